#include "cuda_call.h"

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "mlx/c/private/array.h"
#include "mlx/c/private/enums.h"
#include "mlx/c/private/stream.h"
#include "mlx/fast.h"

namespace {

namespace mx = mlx::core;

// libmlx.so of the CUDA wheel needs these libraries itself, so they are in the process already; in
// that of the CPU wheel they are absent, and this program must link against both.
template <typename F>
F *loaded(const char *name) {
  return reinterpret_cast<F *>(dlsym(RTLD_DEFAULT, name));
}

template <typename F>
F &needed(const char *name) {
  auto *function = loaded<F>(name);
  if (function == nullptr) {
    throw std::runtime_error(std::string(name) + " is not in this process: MLX without CUDA");
  }
  return *function;
}

void report(const char *what, char *error, size_t error_size) {
  if (error_size > 0) {
    std::strncpy(error, what, error_size - 1);
    error[error_size - 1] = '\0';
  }
}

template <typename F>
int guarded(char *error, size_t error_size, F &&f) {
  try {
    f();
    return 0;
  } catch (const std::exception &e) {
    report(e.what(), error, error_size);
  } catch (...) {
    report("a C++ exception of an unknown type", error, error_size);
  }
  return 1;
}

// The run-time compiler's programs are opaque pointers, its results ints, 0 for success.
class Program {
 public:
  explicit Program(const char *source) {
    using Create = int(void **, const char *, const char *, int, const char *const *,
                       const char *const *);
    if (needed<Create>("nvrtcCreateProgram")(&raw_, source, "mtplx.cu", 0, nullptr, nullptr) != 0) {
      throw std::runtime_error("the CUDA compiler took no program");
    }
  }
  ~Program() {
    needed<int(void **)>("nvrtcDestroyProgram")(&raw_);
  }
  Program(const Program &) = delete;
  Program &operator=(const Program &) = delete;

  void compile(const char *const *options, size_t options_len) {
    using Compile = int(void *, int, const char *const *);
    auto &compile = needed<Compile>("nvrtcCompileProgram");
    if (compile(raw_, static_cast<int>(options_len), options) != 0) {
      throw std::runtime_error(text("nvrtcGetProgramLogSize", "nvrtcGetProgramLog"));
    }
  }

  std::string image() {
    return text("nvrtcGetCUBINSize", "nvrtcGetCUBIN");
  }

 private:
  std::string text(const char *size_of, const char *get) {
    size_t size = 0;
    needed<int(void *, size_t *)>(size_of)(raw_, &size);
    std::string text(size, '\0');
    if (needed<int(void *, char *)>(get)(raw_, text.data()) != 0) {
      throw std::runtime_error(std::string(get) + " failed");
    }
    return text;
  }

  void *raw_ = nullptr;
};

} // namespace

extern "C" int mtplx_cuda_attribute(int number) {
  auto *get = loaded<int(int *, int)>("cuDeviceGet");
  auto *attribute = loaded<int(int *, int, int)>("cuDeviceGetAttribute");
  auto *init = loaded<int(unsigned)>("cuInit");
  int device = 0, value = 0;
  if (get == nullptr || attribute == nullptr || init == nullptr || init(0) != 0 ||
      get(&device, 0) != 0 || attribute(&value, number, device) != 0) {
    return 0;
  }
  return value;
}

extern "C" int mtplx_cuda_compile(
    const char *source,
    const char *const *options,
    size_t options_len,
    char **image,
    size_t *image_size,
    char *error,
    size_t error_size) {
  return guarded(error, error_size, [&] {
    Program program(source);
    program.compile(options, options_len);
    const auto code = program.image();
    *image = static_cast<char *>(std::malloc(code.size()));
    if (*image == nullptr) {
      throw std::runtime_error("no memory for a kernel");
    }
    std::memcpy(*image, code.data(), code.size());
    *image_size = code.size();
  });
}

extern "C" void mtplx_cuda_free(char *image) {
  std::free(image);
}

extern "C" int mtplx_cuda_call(
    mlx_array *results,
    const mtplx_cuda_launch *launch,
    const mlx_array *inputs,
    size_t inputs_len,
    const mtplx_cuda_output *outputs,
    size_t outputs_len,
    const mlx_stream stream,
    char *error,
    size_t error_size) {
  return guarded(error, error_size, [&] {
    std::vector<mx::array> in;
    in.reserve(inputs_len);
    for (size_t i = 0; i < inputs_len; ++i) {
      in.push_back(mlx_array_get_(inputs[i]));
    }
    std::vector<mx::Shape> shapes;
    std::vector<mx::Dtype> dtypes;
    for (size_t o = 0; o < outputs_len; ++o) {
      shapes.emplace_back(outputs[o].shape, outputs[o].shape + outputs[o].ndim);
      dtypes.push_back(mlx_dtype_to_cpp(outputs[o].dtype));
    }
    std::vector<mx::fast::ScalarArg> scalars(
        launch->scalars, launch->scalars + launch->scalars_len);
    // MLX counts a grid in threads.
    auto made = mx::fast::precompiled_cuda_kernel(
        launch->name,
        std::string(launch->image, launch->image_size),
        in,
        shapes,
        dtypes,
        scalars,
        {launch->blocks * launch->threads, 1, 1},
        {launch->threads, 1, 1},
        launch->shared_bytes,
        std::nullopt,
        true,
        mlx_stream_get_(stream));
    for (size_t o = 0; o < outputs_len; ++o) {
      results[o] = mlx_array_new_(std::move(made[o]));
    }
  });
}

#include "host_primitive.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/c/private/array.h"
#include "mlx/c/private/enums.h"
#include "mlx/c/private/stream.h"
#include "mlx/primitives.h"

namespace {

namespace mx = mlx::core;

// Shared by the graph's node and by every task made of it: a node may go before its task ran.
class Closure {
 public:
  explicit Closure(mtplx_host_closure closure) : closure_(closure) {}
  ~Closure() {
    closure_.drop(closure_.context);
  }
  Closure(const Closure &) = delete;
  Closure &operator=(const Closure &) = delete;

  void run(const std::vector<mtplx_buffer> &inputs, std::vector<mtplx_buffer> &outputs) const {
    closure_.call(
        closure_.context, inputs.data(), inputs.size(), outputs.data(), outputs.size());
  }

 private:
  mtplx_host_closure closure_;
};

// Copies a strided source to a dense destination, row after row. Strides count elements.
struct Gather {
  const char *source;
  char *destination;
  mx::Shape shape;
  mx::Strides strides;
  size_t itemsize;

  void run() const {
    char *out = destination;
    walk(source, 0, out);
  }

 private:
  void walk(const char *in, size_t axis, char *&out) const {
    if (axis == shape.size()) {
      std::memcpy(out, in, itemsize);
      out += itemsize;
      return;
    }
    const bool dense = axis + 1 == shape.size() && strides[axis] == 1;
    if (dense) {
      std::memcpy(out, in, shape[axis] * itemsize);
      out += shape[axis] * itemsize;
      return;
    }
    const int64_t step = strides[axis] * static_cast<int64_t>(itemsize);
    for (int i = 0; i < shape[axis]; ++i) {
      walk(in + i * step, axis + 1, out);
    }
  }
};

// All that one run needs, made when the graph is walked and used when the stream gets there. It
// holds pointers into MLX's buffers, which MLX's own evaluation keeps until the task is over.
struct Task {
  std::shared_ptr<const Closure> closure;
  std::vector<mx::Shape> shapes;
  std::vector<Gather> gathers;
  std::vector<mtplx_buffer> inputs;
  std::vector<mtplx_buffer> outputs;

  Task(std::shared_ptr<const Closure> closure, size_t inputs_len, size_t outputs_len)
      : closure(std::move(closure)) {
    // Buffers point at shapes: the vector must never move.
    shapes.reserve(inputs_len + outputs_len);
    inputs.reserve(inputs_len);
    outputs.reserve(outputs_len);
  }

  mtplx_buffer buffer(const mx::array &a, void *data) {
    const auto &shape = shapes.emplace_back(a.shape());
    return {data, shape.begin(), shape.size(), a.size(), mlx_dtype_to_c(a.dtype())};
  }

  void run() {
    for (const auto &gather : gathers) {
      gather.run();
    }
    closure->run(inputs, outputs);
  }
};

void allocate(mx::array &a) {
  a.set_data(mx::allocator::malloc(a.nbytes()));
}

class HostCall : public mx::Primitive {
 public:
  HostCall(mx::Stream stream, std::shared_ptr<const Closure> closure, std::vector<int> takes)
      : Primitive(stream), closure_(std::move(closure)), takes_(std::move(takes)) {}

  void eval_cpu(const std::vector<mx::array> &inputs, std::vector<mx::array> &outputs) override {
    auto &encoder = mx::cpu::get_command_encoder(stream());
    auto task = std::make_shared<Task>(closure_, inputs.size(), outputs.size());
    for (size_t i = 0; i < inputs.size(); ++i) {
      encoder.set_input_array(inputs[i]);
      void *data = is_taken(i) ? nullptr : dense(inputs[i], *task, encoder);
      task->inputs.push_back(task->buffer(inputs[i], data));
    }
    for (size_t o = 0; o < outputs.size(); ++o) {
      if (takes_[o] < 0) {
        allocate(outputs[o]);
      } else {
        take_over(inputs, static_cast<size_t>(takes_[o]), outputs[o], *task);
      }
      encoder.set_output_array(outputs[o]);
      task->outputs.push_back(task->buffer(outputs[o], outputs[o].data<void>()));
    }
    encoder.dispatch([task = std::move(task)] { task->run(); });
  }

  void eval_gpu(const std::vector<mx::array> &, std::vector<mx::array> &) override {
    throw std::runtime_error("HostCall runs on a CPU stream, and was given one of a GPU");
  }

  const char *name() const override {
    return "HostCall";
  }

 private:
  bool is_taken(size_t input) const {
    return std::find(takes_.begin(), takes_.end(), static_cast<int>(input)) != takes_.end();
  }

  static void *dense(const mx::array &input, Task &task, mx::cpu::CommandEncoder &encoder) {
    if (input.flags().row_contiguous) {
      return const_cast<void *>(input.data<void>());
    }
    mx::array copy(input.shape(), input.dtype(), nullptr, {});
    allocate(copy);
    gather(input, copy, task);
    encoder.add_temporary(copy);
    return copy.data<void>();
  }

  // An input that is strided, or whose buffer the same call also reads, is copied: the function
  // must never see one byte both as input and as output.
  static void
  take_over(const std::vector<mx::array> &inputs, size_t taken, mx::array &output, Task &task) {
    const auto &input = inputs[taken];
    bool shared = false;
    for (size_t i = 0; i < inputs.size(); ++i) {
      shared |= i != taken && inputs[i].data_shared_ptr() == input.data_shared_ptr();
    }
    if (shared || !input.flags().row_contiguous) {
      allocate(output);
      gather(input, output, task);
      return;
    }
    const auto &shape = output.shape();
    auto flags = input.flags();
    flags.col_contiguous = output.size() <= 1 ||
        static_cast<size_t>(*std::max_element(shape.begin(), shape.end())) == output.size();
    output.copy_shared_buffer(input, output.strides(), flags, input.data_size());
  }

  static void gather(const mx::array &from, mx::array &to, Task &task) {
    task.gathers.push_back(
        {from.data<char>(), to.data<char>(), from.shape(), from.strides(), from.itemsize()});
  }

  std::shared_ptr<const Closure> closure_;
  std::vector<int> takes_;
};

void check_taken(const mx::array &input, const mtplx_output &output) {
  size_t size = 1;
  for (size_t i = 0; i < output.ndim; ++i) {
    size *= static_cast<size_t>(output.shape[i]);
  }
  if (mlx_dtype_to_c(input.dtype()) != output.dtype || input.size() != size) {
    throw std::invalid_argument(
        "an output differs in dtype or size from input " + std::to_string(output.takes) +
        ", which it takes over");
  }
}

std::vector<mx::array> add_to_graph(
    const mlx_array *inputs,
    size_t inputs_len,
    const mtplx_output *outputs,
    size_t outputs_len,
    std::shared_ptr<const Closure> closure,
    mx::Stream stream) {
  std::vector<mx::array> in;
  in.reserve(inputs_len);
  for (size_t i = 0; i < inputs_len; ++i) {
    in.push_back(mlx_array_get_(inputs[i]));
  }
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;
  std::vector<int> takes;
  for (size_t o = 0; o < outputs_len; ++o) {
    const auto &output = outputs[o];
    const auto &shape = shapes.emplace_back(output.shape, output.shape + output.ndim);
    if (std::any_of(shape.begin(), shape.end(), [](int length) { return length < 0; })) {
      throw std::invalid_argument("an output has an axis of negative length");
    }
    dtypes.push_back(mlx_dtype_to_cpp(output.dtype));
    if (output.takes >= 0) {
      check_taken(in.at(static_cast<size_t>(output.takes)), output);
      if (std::find(takes.begin(), takes.end(), output.takes) != takes.end()) {
        throw std::invalid_argument("two outputs take over the same input");
      }
    }
    takes.push_back(output.takes);
  }
  auto primitive = std::make_shared<HostCall>(stream, std::move(closure), std::move(takes));
  return mx::array::make_arrays(std::move(shapes), dtypes, primitive, in);
}

void report(const char *what, char *error, size_t error_size) {
  if (error_size > 0) {
    std::strncpy(error, what, error_size - 1);
    error[error_size - 1] = '\0';
  }
}

} // namespace

extern "C" int mtplx_host_call(
    mlx_array *results,
    const mlx_array *inputs,
    size_t inputs_len,
    const mtplx_output *outputs,
    size_t outputs_len,
    mtplx_host_closure closure,
    const mlx_stream stream,
    char *error,
    size_t error_size) {
  try {
    auto shared = std::make_shared<const Closure>(closure);
    auto made = add_to_graph(
        inputs, inputs_len, outputs, outputs_len, std::move(shared), mlx_stream_get_(stream));
    for (size_t o = 0; o < outputs_len; ++o) {
      results[o] = mlx_array_new_(std::move(made[o]));
    }
    return 0;
  } catch (const std::exception &e) {
    report(e.what(), error, error_size);
  } catch (...) {
    report("a C++ exception of an unknown type", error, error_size);
  }
  return 1;
}

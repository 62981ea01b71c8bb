// The project's own CUDA kernels: compiled by the run-time compiler that MLX's CUDA library brings
// along, launched as nodes of MLX's graph. kernels/gpu/device/cuda.rs is its only caller.
#pragma once

#include <stddef.h>

#include "mlx/c/array.h"
#include "mlx/c/stream.h"

#ifdef __cplusplus
extern "C" {
#endif

// A fact about the first GPU by the driver's number for it; 0 where there is none.
int mtplx_cuda_attribute(int number);

// Compiles `source` with `options`; `image` takes the machine code, freed by mtplx_cuda_free.
// Nonzero says that `error` holds the compiler's words.
int mtplx_cuda_compile(
    const char *source,
    const char *const *options,
    size_t options_len,
    char **image,
    size_t *image_size,
    char *error,
    size_t error_size);

void mtplx_cuda_free(char *image);

typedef struct mtplx_cuda_output {
  const int *shape;
  size_t ndim;
  mlx_dtype dtype;
} mtplx_cuda_output;

typedef struct mtplx_cuda_launch {
  const char *name; // The kernel's in `image`, and unique in the process.
  const char *image;
  size_t image_size;
  const int *scalars; // Follow inputs and outputs in the kernel's arguments.
  size_t scalars_len;
  int blocks;
  int threads;
  int shared_bytes;
} mtplx_cuda_launch;

// Adds a launch to the graph and writes one new array per output to `results`. Nonzero says that
// `error` holds the reason and that `results` is untouched.
int mtplx_cuda_call(
    mlx_array *results,
    const mtplx_cuda_launch *launch,
    const mlx_array *inputs,
    size_t inputs_len,
    const mtplx_cuda_output *outputs,
    size_t outputs_len,
    const mlx_stream stream,
    char *error,
    size_t error_size);

#ifdef __cplusplus
}
#endif

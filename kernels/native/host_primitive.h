// A function of the host inside MLX's lazy graph, on a CPU stream. kernels/host.rs is its only
// caller and says the same in Rust.
#pragma once

#include <stddef.h>

#include "mlx/c/array.h"
#include "mlx/c/stream.h"

#ifdef __cplusplus
extern "C" {
#endif

// One operand as the function sees it: `size` elements of `dtype`, row after row.
typedef struct mtplx_buffer {
  void *data; // Null for an input that an output takes over: its bytes are that output's.
  const int *shape;
  size_t ndim;
  size_t size;
  mlx_dtype dtype;
} mtplx_buffer;

// One result to be. With `takes` >= 0 it starts as the input of that index, of equal dtype and
// size, and lives in that input's buffer; whoever still reads the input reads the result.
typedef struct mtplx_output {
  const int *shape;
  size_t ndim;
  mlx_dtype dtype;
  int takes;
} mtplx_output;

// Runs on the stream's thread, any number of times. It must neither throw nor fail: an exception
// there upsets MLX 0.32's count of tasks at work, and some later evaluation then waits forever.
typedef void (*mtplx_host_fn)(
    void *context,
    const mtplx_buffer *inputs,
    size_t inputs_len,
    mtplx_buffer *outputs,
    size_t outputs_len);

// The function and what it owns; `drop` runs once, on whichever thread lets go last.
typedef struct mtplx_host_closure {
  mtplx_host_fn call;
  void *context;
  void (*drop)(void *context);
} mtplx_host_closure;

// Adds the call to the graph and writes one new array per output to `results`. Takes the closure
// in any case. Nonzero says that `error` holds the reason and that `results` is untouched.
int mtplx_host_call(
    mlx_array *results,
    const mlx_array *inputs,
    size_t inputs_len,
    const mtplx_output *outputs,
    size_t outputs_len,
    mtplx_host_closure closure,
    const mlx_stream stream,
    char *error,
    size_t error_size);

#ifdef __cplusplus
}
#endif

// The three kernels of ragged_attention.metal under the signatures that MLX would write.
#undef BODY
#include "../../ragged_attention.metal"
#define BODY
#define SET_PART 1
static void append(const device Scalar* proj, const device Scalar* q_gain,
                   const device Scalar* k_gain, const device float* inv_freq,
                   const device int* meta, const device Scalar* keys, const device Scalar* values,
                   const device Scalar* after, const constant int* scalars, device Scalar* q) {
#include "../../ragged_attention.metal"
}
#undef SET_PART
#define SET_PART 2
static void attend(const device Scalar* q, const device Scalar* keys, const device Scalar* values,
                   const device int* meta, const constant int* scalars, device float* parts) {
#include "../../ragged_attention.metal"
}
#undef SET_PART
#define SET_PART 3
static void combine(const device float* parts, const device Scalar* proj, const device int* meta,
                    const constant int* scalars, device Scalar* y) {
#include "../../ragged_attention.metal"
}

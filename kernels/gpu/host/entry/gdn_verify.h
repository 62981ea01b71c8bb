// gdn_verify.metal, with gdn_chunked.metal after it, under the signature that MLX would write.
#undef BODY
#include "../../gdn_verify.metal"
#include "../../gdn_chunked.metal"
#define BODY
static void gdn(const device Scalar* proj, const device float* taps, const device float* decay,
                const device float* dt_bias, const device Scalar* gain, const device int* rows,
                const device float* state, const device Scalar* window, const device Scalar* after,
                const constant int* scalars, device Scalar* y) {
#include "../../gdn_verify.metal"
}

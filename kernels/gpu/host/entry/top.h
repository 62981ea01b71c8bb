// top.metal under the signature that MLX would write.
#undef BODY
#include "../../top.metal"
#define BODY
static void top(const device Scalar* logits, const constant int* scalars, device int* out) {
#include "../../top.metal"
}

// draw.metal under the signature that MLX would write.
#undef BODY
#include "../../draw.metal"
#define BODY
static void draw(const device int* found, const device int* settings, const constant int* scalars,
                 device int* out) {
#include "../../draw.metal"
}

// accept.metal under the signature that MLX would write.
#undef BODY
#include "../../accept.metal"
#define BODY
static void accept(const device int* found, const device int* drawn, const device int* settings,
                   const device int* sequences, const device int* found_0,
                   const device int* drawn_0, const device int* found_1,
                   const device int* drawn_1, const device int* found_2,
                   const device int* drawn_2, const device int* found_3,
                   const device int* drawn_3, const constant int* scalars, device int* out) {
#include "../../accept.metal"
}

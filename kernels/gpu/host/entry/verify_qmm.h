// verify_qmm.metal for SET_ROWS rows of x and SET_END, in a namespace of its own, VARIANT, under
// the signature that MLX would write, but with a residual always.
namespace VARIANT {
#undef BODY
#include "../../verify_qmm.metal"
#define BODY
static void product(const device uint* words, const device Scalar* sides, const device Scalar* x,
                    const device Scalar* residual, const constant int* scalars, device Scalar* y) {
#include "../../verify_qmm.metal"
}
}  // namespace VARIANT
#undef VARIANT
#undef SET_ROWS
#undef SET_END

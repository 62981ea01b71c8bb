// rows.metal for the whole matrix and for some of its rows, under the signatures that MLX would
// write.
namespace all {
#undef BODY
#define SET_ALL 1
#include "../../rows.metal"
#define BODY
static void rows(const device uint* words, const device Scalar* sides, const constant int* scalars,
                 device Scalar* y) {
#include "../../rows.metal"
}
}  // namespace all
namespace some {
#undef SET_ALL
#undef BODY
#define SET_ALL 0
#include "../../rows.metal"
#define BODY
static void rows(const device uint* words, const device Scalar* sides, const device int* ids,
                 const constant int* scalars, device Scalar* y) {
#include "../../rows.metal"
}
}  // namespace some

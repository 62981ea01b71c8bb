// Halves as bits: what the kernels beside this file store, widened and narrowed by hand, so that
// the run-time compiler needs no header. SET_TYPE is Brain or Half.

typedef unsigned short u16;

struct Brain {
  // Bits of infinity; of what is no number they are more, but for the sign.
  static constexpr unsigned INFINITE = 0x7f80u;
  static __device__ __forceinline__ float widen(u16 bits) {
    return __uint_as_float(static_cast<unsigned>(bits) << 16);
  }
  static __device__ __forceinline__ u16 narrow(float value) {
    const unsigned bits = __float_as_uint(value);
    // To the nearest, ties to even; what is no number stays none.
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<u16>(bits >> 16 | 0x40u);
    return static_cast<u16>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
  }
};

#ifdef __CUDACC__
struct Half {
  static constexpr unsigned INFINITE = 0x7c00u;
  static __device__ __forceinline__ float widen(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
  }
  static __device__ __forceinline__ u16 narrow(float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
  }
};
#endif

typedef SET_TYPE Scalar;

__device__ __forceinline__ float widen(u16 bits) { return Scalar::widen(bits); }
__device__ __forceinline__ u16 narrow(float value) { return Scalar::narrow(value); }

// The sum over the lanes of a group of WIDTH, in one order.
template <int WIDTH>
__device__ __forceinline__ float sum_lanes(float value) {
#pragma unroll
  for (int step = WIDTH / 2; step > 0; step /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, step);
  }
  return value;
}

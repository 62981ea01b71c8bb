// What the Metal sources share. They keep the contracts of the CUDA sources of their names.
//
// MLX writes a kernel's signature and wants its statements alone, so each source is given twice: as
// it is for its functions, and with BODY defined for its statements. SET_TYPE is Brain or Half.
// LOCAL declares memory of a threadgroup; a word of its own, since the host that runs these sources
// in tests must tell a declaration from a pointer. No lambdas: the language has none.

#ifndef LOCAL
#define LOCAL threadgroup
#endif
// Before loops over arrays that are to stay in registers.
#define UNROLL _Pragma("clang loop unroll(full)")

typedef bfloat16_t Brain;
typedef half Half;
typedef SET_TYPE Scalar;
typedef vec<Scalar, 4> Scalar4;

inline float widen(Scalar value) { return float(value); }
inline Scalar narrow(float value) { return Scalar(value); }

inline float4 float4_of(float x, float y, float z, float w) {
  float4 value;
  value.x = x;
  value.y = y;
  value.z = z;
  value.w = w;
  return value;
}

// The sum over the lanes of a group of `width`, in one order.
inline float sum_lanes(float value, ushort width) {
  for (ushort step = width / 2; step > 0; step /= 2) value += simd_shuffle_xor(value, step);
  return value;
}

// a · b + sum, in one order.
inline float dot_on(float4 a, float4 b, float sum) {
  return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

inline float sigmoid(float value) { return 1.0f / (1.0f + exp(-value)); }

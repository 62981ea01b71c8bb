// The constructs of Metal's language that the kernels use, on the host. Memory of a threadgroup is
// static; the address spaces, of which the host has one, are checked by address_spaces.h.
#pragma once

#include "halves.h"

#define device
#define threadgroup
#define constant
#define thread
#define LOCAL static

typedef unsigned uint;
typedef unsigned short ushort;
typedef uint64_t ulong;

struct At {
  uint x;
};
#define thread_position_in_threadgroup (At{static_cast<uint>(running_thread)})
#define threadgroup_position_in_grid (At{static_cast<uint>(running_block)})

template <typename T, int N>
struct vec;
template <typename T>
struct alignas(4 * sizeof(T)) vec<T, 4> {
  T x, y, z, w;
  vec() = default;
  vec(T x, T y, T z, T w) : x(x), y(y), z(z), w(w) {}
  vec operator*(T factor) const { return {x * factor, y * factor, z * factor, w * factor}; }
};
typedef vec<float, 4> float4;
typedef vec<uint, 4> uint4;

template <typename To, typename From>
static To as_type(From from) {
  return bits_as<To>(from);
}

static inline float fma(float a, float b, float c) { return std::fma(a, b, c); }
static inline float exp(float value) { return std::exp(value); }
static inline float log(float value) { return std::log(value); }
static inline float sin(float value) { return std::sin(value); }
static inline float cos(float value) { return std::cos(value); }
static inline float fabs(float value) { return std::fabs(value); }
static inline float fmax(float a, float b) { return std::fmax(a, b); }
static inline float rsqrt(float value) { return 1.0f / std::sqrt(value); }

enum class mem_flags { mem_threadgroup };
static inline void threadgroup_barrier(mem_flags) { wait_for(BLOCK); }

template <typename T>
static T simd_shuffle_xor(T value, ushort flip) {
  return of_lane(value, running_thread % 32 ^ flip);
}
template <typename T>
static T simd_sum(T value) {
  for (ushort step = 16; step > 0; step /= 2) value += simd_shuffle_xor(value, step);
  return value;
}

template <typename T>
static T simd_shuffle(T value, ushort lane) {
  return of_lane(value, lane);
}
static inline void simdgroup_barrier(mem_flags) { wait_for(WARP); }

struct ulong2 {
  ulong x, y;
  explicit ulong2(ulong both) : x(both), y(both) {}
};
// A matrix of a simdgroup. Here each lane has all of it and waits for nobody, so what it takes before
// a barrier, while others still write, is wrong, as it may be on a device. A lane stores two elements.
struct simdgroup_float8x8 {
  typedef float Row __attribute__((vector_size(32)));
  Row rows[8];
  simdgroup_float8x8() = default;
  explicit simdgroup_float8x8(float diagonal) {
    for (int i = 0; i < 8; ++i) {
      for (int j = 0; j < 8; ++j) rows[i][j] = i == j ? diagonal : 0.0f;
    }
  }
};
static void simdgroup_load(simdgroup_float8x8& m, const float* from, ulong across,
                           ulong2 at = ulong2(0), bool turned = false) {
  from += at.y * across + at.x;
  for (int i = 0; i < 8; ++i) {
    for (int j = 0; j < 8; ++j) m.rows[i][j] = turned ? from[j * across + i] : from[i * across + j];
  }
}
static void simdgroup_store(const simdgroup_float8x8& m, float* to, ulong across,
                            ulong2 at = ulong2(0), bool turned = false) {
  to += at.y * across + at.x;
  const int i = running_thread % 32 / 4;
  for (int j = running_thread % 4 * 2; j < running_thread % 4 * 2 + 2; ++j) {
    to[turned ? j * across + i : i * across + j] = m.rows[i][j];
  }
}
static void simdgroup_multiply_accumulate(simdgroup_float8x8& d, const simdgroup_float8x8& a,
                                          const simdgroup_float8x8& b,
                                          const simdgroup_float8x8& c) {
  simdgroup_float8x8 sum = c;
  for (int i = 0; i < 8; ++i) {
    for (int k = 0; k < 8; ++k) sum.rows[i] += a.rows[i][k] * b.rows[k];
  }
  d = sum;
}
static void simdgroup_multiply(simdgroup_float8x8& d, const simdgroup_float8x8& a,
                               const simdgroup_float8x8& b) {
  simdgroup_multiply_accumulate(d, a, b, simdgroup_float8x8(0.0f));
}

struct atomic_int {
  int value;
};
enum memory_order { memory_order_relaxed };
static inline int atomic_fetch_add_explicit(atomic_int* at, int value, memory_order) {
  const int old = at->value;
  at->value += value;
  return old;
}
static inline int atomic_load_explicit(const atomic_int* at, memory_order) { return at->value; }
static inline void atomic_store_explicit(atomic_int* at, int value, memory_order) {
  at->value = value;
}

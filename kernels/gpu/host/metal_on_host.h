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

// The constructs of CUDA that the kernels use, on the host.
#pragma once

#include "fibers.h"

#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct float4 {
  float x, y, z, w;
};
struct uint4 {
  unsigned x, y, z, w;
};
struct uint2 {
  unsigned x, y;
};
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}

static inline float __uint_as_float(unsigned bits) { return bits_as<float>(bits); }
static inline float __int_as_float(int bits) { return bits_as<float>(bits); }
static inline int __float_as_int(float value) { return bits_as<int>(value); }
static inline unsigned __float_as_uint(float value) { return bits_as<unsigned>(value); }
static inline float rsqrtf(float value) { return 1.0f / std::sqrt(value); }

struct At {
  int x;
};
#define threadIdx (At{running_thread})
#define blockIdx (At{running_block})

static inline void __syncthreads() { wait_for(BLOCK); }
static inline void __syncwarp() { wait_for(WARP); }

static inline float __shfl_xor_sync(unsigned, float value, int flip) {
  return of_lane(value, running_thread % 32 ^ flip);
}
static inline float __shfl_sync(unsigned, float value, int lane) { return of_lane(value, lane); }

static inline int __syncthreads_count(bool vote) {
  fibers[running_thread].given = vote;
  wait_for(BLOCK);
  int count = 0;
  for (const auto& fiber : fibers) count += fiber.given;
  wait_for(BLOCK);
  return count;
}
static inline int atomicAdd(int* at, int value) {
  const int old = *at;
  *at += value;
  return old;
}

// The tensor cores' m16n8k8: lane 4·g + c has rows g and g + 8, columns c and c + 4 of a, rows c and
// c + 4 of column g of b, and columns 2·c and 2·c + 1 of rows g and g + 8 of d.
static inline float tf32(float value) {
  return bits_as<float>((bits_as<uint32_t>(value) + 0x1000u) & ~0x1fffu);
}
static inline void mma(float (&d)[4], const float (&a)[4], float b0, float b1) {
  const float shown[] = {a[0], a[1], a[2], a[3], b0, b1};
  const int g = running_thread % 32 / 4, c = running_thread % 4;
  while_shown(shown, [&](auto&& lane) {
    for (int i = 0; i < 4; ++i) {
      for (int k = 0; k < 8; ++k) {
        const float x = lane(4 * g + k % 4)[i / 2 + k / 4 * 2];
        d[i] += x * lane(4 * (2 * c + i % 2) + k % 4)[4 + k / 4];
      }
    }
  });
}
static float4 chunk_room[1 << 14];

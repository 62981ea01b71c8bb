// The constructs of CUDA that the kernels use, on the host. A thread is a fiber; blocks run one
// after another; who waits for others yields, and a round goes on once all of them wait.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

using std::max;
using std::min;

struct Place {
  int x;
};
static Place threadIdx, blockIdx;

struct float4 {
  float x, y, z, w;
};
struct uint4 {
  unsigned x, y, z, w;
};
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}

template <typename To, typename From>
static To bits_as(From from) {
  To to;
  static_assert(sizeof to == sizeof from);
  std::memcpy(&to, &from, sizeof to);
  return to;
}
static inline float __uint_as_float(unsigned bits) { return bits_as<float>(bits); }
static inline float __int_as_float(int bits) { return bits_as<float>(bits); }
static inline unsigned __float_as_uint(float value) { return bits_as<unsigned>(value); }
static inline float rsqrtf(float value) { return 1.0f / std::sqrt(value); }

enum Wait { NONE, WARP, BLOCK };

struct Fiber {
  ucontext_t at;
  std::unique_ptr<char[]> stack;
  Wait wait = NONE;
  bool over = false;
  float given = 0.0f;
};

static std::vector<Fiber> fibers;
static ucontext_t home;
static int running;
static std::function<void()> body;

static void wait_for(Wait what) {
  fibers[running].wait = what;
  swapcontext(&fibers[running].at, &home);
}
static inline void __syncthreads() { wait_for(BLOCK); }
static inline void __syncwarp() { wait_for(WARP); }

static inline float of_lane(float value, int lane) {
  fibers[running].given = value;
  wait_for(WARP);
  const float found = fibers[running / 32 * 32 + lane].given;
  wait_for(WARP);
  return found;
}
static inline float __shfl_xor_sync(unsigned, float value, int flip) {
  return of_lane(value, running % 32 ^ flip);
}
static inline float __shfl_sync(unsigned, float value, int lane) { return of_lane(value, lane); }

static inline int __syncthreads_count(bool vote) {
  fibers[running].given = vote;
  wait_for(BLOCK);
  int count = 0;
  for (const auto& fiber : fibers) count += fiber.given != 0.0f;
  wait_for(BLOCK);
  return count;
}
static inline int atomicAdd(int* at, int value) {
  const int old = *at;
  *at += value;
  return old;
}

static void begin() {
  body();
  fibers[running].over = true;
  swapcontext(&fibers[running].at, &home);
}

// Lets fibers first..last go on if all of them that are not over wait for `what`.
static bool release(int first, int last, Wait what) {
  bool any = false;
  for (int i = first; i < last; ++i) {
    if (fibers[i].over) continue;
    if (fibers[i].wait != what) return false;
    any = true;
  }
  for (int i = first; i < last; ++i) fibers[i].wait = NONE;
  return any;
}

static void launch(int blocks, int threads, std::function<void()> kernel) {
  constexpr size_t STACK = 1 << 16;
  body = std::move(kernel);
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    fibers = std::vector<Fiber>(threads);
    for (auto& fiber : fibers) {
      fiber.stack.reset(new char[STACK]);
      getcontext(&fiber.at);
      fiber.at.uc_stack = {fiber.stack.get(), 0, STACK};
      fiber.at.uc_link = &home;
      makecontext(&fiber.at, begin, 0);
    }
    for (bool over = false; !over;) {
      for (running = 0; running < threads; ++running) {
        if (fibers[running].over || fibers[running].wait != NONE) continue;
        threadIdx.x = running;
        swapcontext(&home, &fibers[running].at);
      }
      bool released = false;
      for (int warp = 0; warp < threads; warp += 32) released |= release(warp, warp + 32, WARP);
      if (!released) released = release(0, threads, BLOCK);
      over = std::all_of(fibers.begin(), fibers.end(), [](const Fiber& f) { return f.over; });
      if (!released && !over) {
        std::fprintf(stderr, "a block waits for ever\n");
        std::abort();
      }
    }
  }
}

// What checks share.

static std::mt19937 random_bits(7);
static float around(float middle, float reach) {
  return middle + reach * (2.0f * (random_bits() % 100000 / 100000.0f) - 1.0f);
}

struct Distance {
  double apart = 0, size = 0;
  void add(double found, double expected) {
    apart += (found - expected) * (found - expected);
    size += expected * expected;
  }
  double relative() const { return std::sqrt(apart / size); }
};

static int failures = 0;
static void expect_below(const char* what, double value, double bound) {
  std::printf("%s: %.2e\n", what, value);
  // A comparison that NaN fails.
  if (!(value < bound)) ++failures;
}

// The threads of a GPU on the host, and what the checks share. A thread is a fiber; blocks run one
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

using std::max;
using std::min;

template <typename To, typename From>
static To bits_as(From from) {
  To to;
  static_assert(sizeof to == sizeof from);
  std::memcpy(&to, &from, sizeof to);
  return to;
}

enum Wait { NOTHING, WARP, TEAM, BLOCK };

struct Fiber {
  ucontext_t at;
  std::unique_ptr<char[]> stack;
  Wait wait = NOTHING;
  int team = 0, team_size = 0;
  bool over = false;
  uint32_t given = 0;
  const float* shown = nullptr;
};

static std::vector<Fiber> fibers;
static ucontext_t home;
static int running_thread, running_block;
static std::function<void()> body;

static void wait_for(Wait what) {
  fibers[running_thread].wait = what;
  swapcontext(&fibers[running_thread].at, &home);
}

// Waits until so many threads wait with the same name.
static void wait_for_team(int team, int size) {
  fibers[running_thread].team = team;
  fibers[running_thread].team_size = size;
  wait_for(TEAM);
}

// What a lane of the same group of 32 gives.
template <typename T>
static T of_lane(T value, int lane) {
  static_assert(sizeof value == sizeof fibers[running_thread].given);
  std::memcpy(&fibers[running_thread].given, &value, sizeof value);
  wait_for(WARP);
  const T found = bits_as<T>(fibers[running_thread / 32 * 32 + lane].given);
  wait_for(WARP);
  return found;
}

// Has all lanes of a group of 32 show `numbers`, and calls f while they do.
template <typename F>
static void while_shown(const float* numbers, const F& f) {
  fibers[running_thread].shown = numbers;
  wait_for(WARP);
  f([](int lane) { return fibers[running_thread / 32 * 32 + lane].shown; });
  wait_for(WARP);
}

static void begin() {
  body();
  fibers[running_thread].over = true;
  swapcontext(&fibers[running_thread].at, &home);
}

// Lets fibers first..last go on if all of them that are not over wait for `what`.
static bool release(int first, int last, Wait what) {
  bool any = false;
  for (int i = first; i < last; ++i) {
    if (fibers[i].over) continue;
    if (fibers[i].wait != what) return false;
    any = true;
  }
  for (int i = first; i < last; ++i) fibers[i].wait = NOTHING;
  return any;
}

// Lets every team go on that is complete.
static bool release_teams() {
  std::vector<int> waiting(16, 0);
  for (const auto& fiber : fibers) {
    if (!fiber.over && fiber.wait == TEAM) ++waiting.at(fiber.team);
  }
  bool any = false;
  for (auto& fiber : fibers) {
    if (fiber.over || fiber.wait != TEAM || waiting.at(fiber.team) != fiber.team_size) continue;
    fiber.wait = NOTHING;
    any = true;
  }
  return any;
}

static void launch(int blocks, int threads, std::function<void()> kernel) {
  constexpr size_t STACK = 1 << 16;
  body = std::move(kernel);
  for (running_block = 0; running_block < blocks; ++running_block) {
    fibers = std::vector<Fiber>(threads);
    for (auto& fiber : fibers) {
      fiber.stack.reset(new char[STACK]);
      getcontext(&fiber.at);
      fiber.at.uc_stack = {fiber.stack.get(), 0, STACK};
      fiber.at.uc_link = &home;
      makecontext(&fiber.at, begin, 0);
    }
    for (bool over = false; !over;) {
      for (running_thread = 0; running_thread < threads; ++running_thread) {
        if (fibers[running_thread].over || fibers[running_thread].wait != NOTHING) continue;
        swapcontext(&home, &fibers[running_thread].at);
      }
      bool released = false;
      for (int warp = 0; warp < threads; warp += 32) released |= release(warp, warp + 32, WARP);
      released |= release_teams();
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

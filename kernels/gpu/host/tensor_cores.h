// The instructions of tensor_cores.cu on the host. Copies to shared memory are made when they are
// waited for, and not before: so a wait that is missing shows.
#pragma once

#include <deque>

#include "cuda_on_host.h"
#include "halves.h"

namespace verify_qmm {

typedef unsigned short u16;

template <typename T>
struct Halves {
  static float high(unsigned pair) { return low(pair >> 16); }
  static float low(unsigned pair) { return bits_as<T>(static_cast<u16>(pair)); }
  static u16 round(float value) { return T(value).bits; }
  static unsigned fma2(unsigned a, unsigned b, unsigned c) {
    const u16 one = round(std::fma(double(low(a)), low(b), low(c)));
    const u16 other = round(std::fma(double(high(a)), high(b), high(c)));
    return one | unsigned(other) << 16;
  }
  // m16n8k16: lane 4·g + c has rows g and g + 8 and columns 2·c, 2·c + 1 and 8 more of a, the same
  // rows of column g of b, and columns 2·c and 2·c + 1 of rows g and g + 8 of d.
  static void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const float shown[] = {bits_as<float>(a[0]), bits_as<float>(a[1]), bits_as<float>(a[2]),
                           bits_as<float>(a[3]), bits_as<float>(b0), bits_as<float>(b1)};
    const int g = running_thread % 32 / 4, c = running_thread % 4;
    while_shown(shown, [&](auto&& lane) {
      for (int i = 0; i < 4; ++i) {
        for (int k = 0; k < 16; ++k) {
          const int from = k % 8 / 2, upper = k / 8;
          const auto x = bits_as<unsigned>(lane(4 * g + from)[i / 2 + 2 * upper]) >> (k % 2 * 16);
          const auto y = bits_as<unsigned>(lane(4 * (2 * c + i % 2) + from)[4 + upper]);
          d[i] += low(x) * low(y >> (k % 2 * 16));
        }
      }
    });
  }
};

struct Brain : Halves<bfloat16_t> {
  static constexpr unsigned LOW = 0x43004300u, HIGH = 0x45004500u;
  static constexpr unsigned LESS_LOW = 0xc300c300u, LESS_HIGH = 0xc500c500u, ONES = 0x3f803f80u;
};
struct Half : Halves<half> {
  static constexpr unsigned LOW = 0x64006400u, HIGH = 0x74007400u;
  static constexpr unsigned LESS_LOW = 0xe400e400u, LESS_HIGH = 0xf400f400u, ONES = 0x3c003c00u;
};

static uint4 load_once(const uint4* from) { return *from; }
static uint4 load_kept(const uint4* from) { return *from; }
static unsigned nibbles(unsigned word, unsigned magic) { return (word & 0x000f000fu) | magic; }
static unsigned twice_low(unsigned pair) { return (pair & 0xffffu) * 0x10001u; }
static unsigned twice_high(unsigned pair) { return (pair >> 16) * 0x10001u; }
static float gated(float gate, float up) { return gate / (1.0f + std::exp(-gate)) * up; }

static uint4 room[1 << 14];

struct Copy {
  uint4* to;
  const uint4* from;
};
// Of every thread of the block: copies that were sent off together.
static std::vector<std::deque<std::vector<Copy>>> under_way(1024);
static std::vector<std::vector<Copy>> packed(1024);

static void bring(uint4* to, const uint4* from) { packed[running_thread].push_back({to, from}); }
static void send_off() {
  under_way[running_thread].push_back(std::move(packed[running_thread]));
  packed[running_thread].clear();
}
template <int LATER>
static void arrived() {
  auto& groups = under_way[running_thread];
  for (; groups.size() > LATER; groups.pop_front()) {
    for (const auto& copy : groups.front()) *copy.to = *copy.from;
  }
}
static void meet(int barrier, int threads) { wait_for_team(barrier, threads); }

}  // namespace verify_qmm

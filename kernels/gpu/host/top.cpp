// top.cu beside a sort.
#ifndef SET_TYPE
#define SET_TYPE Brain
#endif
#define SET_K 64
#ifdef METAL
#include "metal_on_host.h"
#include "../scalar.metal"
#include "entry/top.h"
typedef Scalar Stored;
static void run(const Stored* logits, int* out, int vocab) { top(logits, &vocab, out); }
#else
#include "cuda_on_host.h"
#define SET_NAME top
#include "../scalar.cu"
#include "../top.cu"
typedef u16 Stored;
static void run(const Stored* logits, int* out, int vocab) { top(logits, out, vocab); }
#endif

int main() {
  constexpr int VOCAB = 20000, TRIED = 7;
  std::normal_distribution<float> normal(0, 3);
  std::vector<Stored> logits(TRIED * VOCAB);
  for (auto& v : logits) v = narrow(normal(random_bits));
  // One row of many ties, and one of so many that the kernel must say so.
  for (int i = 0; i < VOCAB; ++i) {
    logits[2 * VOCAB + i] = narrow(i % 37 == 0 ? -0.5f : -2.0f);
    logits[3 * VOCAB + i] = narrow(1.0f);
  }
  // Rows with logits that are no numbers, of both signs; and one where most are never.
  for (int i = 0; i < 2; ++i) {
    logits[(4 + i) * VOCAB + 12345] = bits_as<Stored>(
        static_cast<uint16_t>(bits_as<uint16_t>(narrow(NAN)) | (i == 1 ? 0x8000u : 0u)));
  }
  for (int i = 0; i < VOCAB; ++i) {
    if (i % 100 != 0) logits[6 * VOCAB + i] = narrow(-INFINITY);
  }
  std::vector<int> out(TRIED * (1 + 2 * K), 7);
  launch(TRIED, THREADS, [&] { run(logits.data(), out.data(), VOCAB); });
  int wrong = out[3 * (1 + 2 * K)] != -1;
  for (int row = 0; row < TRIED; ++row) {
    if (row == 3) continue;
    const int* found = out.data() + row * (1 + 2 * K);
    auto logit = [&](int id) {
      const float value = widen(logits[row * VOCAB + id]);
      // Whatever its sign, it is found.
      return std::isnan(value) ? 1e30f : value;
    };
    std::vector<int> ids(VOCAB);
    for (int i = 0; i < VOCAB; ++i) ids[i] = i;
    std::stable_sort(ids.begin(), ids.end(), [&](int a, int b) { return logit(a) > logit(b); });
    ids.resize(K);
    std::sort(ids.begin(), ids.end());
    wrong += found[0] != K;
    for (int i = 0; i < K; ++i) {
      const float told = bits_as<float>(found[1 + K + i]);
      wrong += found[1 + i] != ids[i] || (std::isnan(told) ? 1e30f : told) != logit(ids[i]);
    }
  }
  expect_below("wrong", wrong, 0.5);
  return failures;
}

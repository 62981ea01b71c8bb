// top.cu beside a sort.
#include "device_on_host.h"

#define SET_TYPE Brain
#define SET_NAME top
#define SET_K 64
#include "../scalar.cu"
#include "../top.cu"

int main() {
  constexpr int VOCAB = 20000, TRIED = 4;
  std::normal_distribution<float> normal(0, 3);
  std::vector<u16> logits(TRIED * VOCAB);
  for (auto& v : logits) v = narrow(normal(random_bits));
  // One row of many ties, and one of so many that the kernel must say so.
  for (int i = 0; i < VOCAB; ++i) {
    logits[2 * VOCAB + i] = narrow(i % 37 == 0 ? -0.5f : -2.0f);
    logits[3 * VOCAB + i] = narrow(1.0f);
  }
  std::vector<int> out(TRIED * (1 + 2 * K), 7);
  launch(TRIED, THREADS, [&] { top(logits.data(), out.data(), VOCAB); });
  int wrong = out[3 * (1 + 2 * K)] != -1;
  for (int row = 0; row < TRIED - 1; ++row) {
    const int* found = out.data() + row * (1 + 2 * K);
    auto logit = [&](int id) { return widen(logits[row * VOCAB + id]); };
    std::vector<int> ids(VOCAB);
    for (int i = 0; i < VOCAB; ++i) ids[i] = i;
    std::stable_sort(ids.begin(), ids.end(), [&](int a, int b) { return logit(a) > logit(b); });
    ids.resize(K);
    std::sort(ids.begin(), ids.end());
    wrong += found[0] != K;
    for (int i = 0; i < K; ++i) {
      wrong += found[1 + i] != ids[i] || __int_as_float(found[1 + K + i]) != logit(ids[i]);
    }
  }
  expect_below("wrong", wrong, 0.5);
  return failures;
}

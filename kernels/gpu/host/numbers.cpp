// numbers.cu: what is said in pieces arrives whole.
#include <array>
#include <tuple>

#include "cuda_on_host.h"
#define SET_NAME numbers
#include "../numbers.cu"

int main() {
  int wrong = 0;
  std::vector<int> all;
  for (int piece = 0; piece < 4; ++piece) {
    std::array<int, SET_COUNT> said;
    for (auto& number : said) number = static_cast<int>(random_bits());
    const int held = static_cast<int>(all.size());
    std::vector<int> out(held + SET_COUNT, 7);
    launch(1, 256, [&] {
      std::apply([&](auto... n) { numbers(all.data(), out.data(), held, n...); }, said);
    });
    all.insert(all.end(), said.begin(), said.end());
    wrong += out != all;
  }
  expect_below("wrong", wrong, 0.5);
  return failures;
}

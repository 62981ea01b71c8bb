// draw.cu beside the same in double precision.
#define SET_TYPE Brain
#define SET_K 64
#ifdef METAL
#include "metal_on_host.h"
#include "../scalar.metal"
#include "entry/draw.h"
static void run(const int* found, const int* settings, int rows, int* out) {
  draw(found, settings, &rows, out);
}
#else
#include "cuda_on_host.h"
#define SET_NAME draw
#include "../draw.cu"
static void run(const int* found, const int* settings, int rows, int* out) {
  draw(found, settings, out, rows);
}
#endif

static uint64_t mixed(uint64_t x) {
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return x ^ x >> 31;
}

static double noise(uint64_t key, uint32_t token) {
  const uint64_t step = 0x9e3779b97f4a7c15ull;
  const uint64_t bits = mixed((key + step) ^ mixed(uint64_t(token) + 1 + step)) >> 12;
  const double u = (bits + 0.5) * 0x1p-52;
  return -std::log(-std::log(u));
}

struct Setting {
  float temperature;
  int top_k;
  float top_p, min_p;
  int shared;
};

int main() {
  const Setting kinds[] = {{0, 0, 1, 0, 0},         {1, 64, 1, 0, 0},      {0.6f, 20, 0.95f, 0, 0},
                           {0.6f, 20, 0.95f, 0, 1}, {1.3f, 40, 1, 0.1f, 1}, {0.8f, 1, 0.5f, 0, 1},
                           {1, 64, 0.7f, 0.02f, 0}};
  constexpr int KINDS = 7, EACH = 40, ROWS = KINDS * EACH;
  std::normal_distribution<float> normal(0, 3);
  std::uniform_real_distribution<float> uniform(0, 1);
  std::vector<int> found(ROWS * (1 + 2 * K)), settings(ROWS * SETTINGS), out(ROWS + ROWS * K, -7);
  for (int row = 0; row < ROWS; ++row) {
    int* top = &found[row * (1 + 2 * K)];
    top[0] = row % EACH == 5 ? -1 : K;
    for (int i = 0; i < K; ++i) {
      top[1 + i] = 11 * i + row;
      // In steps of a quarter: some are equal.
      top[1 + K + i] = bits_as<int>(std::round(normal(random_bits) * 4) / 4);
    }
    // Logits that are no numbers: one, and all.
    if (row % EACH == 6) top[1 + K + 9] = bits_as<int>(NAN);
    for (int i = 0; row % EACH == 7 && i < K; ++i) top[1 + K + i] = bits_as<int>(NAN);
    const Setting& kind = kinds[row / EACH];
    int* set = &settings[row * SETTINGS];
    set[0] = bits_as<int>(kind.temperature > 0 ? 1 / kind.temperature : 0.0f);
    set[1] = kind.top_k;
    set[2] = bits_as<int>(kind.top_p);
    set[3] = bits_as<int>(kind.min_p);
    set[4] = kind.shared;
    set[5] = bits_as<int>(uniform(random_bits));
    set[6] = random_bits();
    set[7] = random_bits();
  }
  launch(ROWS, K, [&] { run(found.data(), settings.data(), ROWS, out.data()); });
  double wrong = 0, apart = 0, close_calls = 0;
  for (int row = 0; row < ROWS; ++row) {
    const int* top = &found[row * (1 + 2 * K)];
    const int* set = &settings[row * SETTINGS];
    const Setting& kind = kinds[row / EACH];
    auto weight_out = [&](int i) { return bits_as<float>(out[ROWS + row * K + i]); };
    if (top[0] != K) {
      wrong += out[row] != 0;
      for (int i = 0; i < K; ++i) wrong += weight_out(i) != 0;
      continue;
    }
    if (row % EACH == 6 || row % EACH == 7) {
      int none = 0, known = 0;
      for (int i = 0; i < K; ++i) {
        none += std::isnan(weight_out(i));
        known += out[row] == top[1 + i];
      }
      wrong += none == 0 || known != 1;
      continue;
    }
    auto logit = [&](int i) { return double(bits_as<float>(top[1 + K + i])); };
    std::vector<int> order(K);
    for (int i = 0; i < K; ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logit(a) > logit(b); });
    if (kind.temperature == 0) {
      wrong += out[row] != top[1 + order[0]];
      continue;
    }
    std::vector<double> weight(K, 0);
    double sum = 0, so_far = 0;
    for (int r = 0; r < kind.top_k; ++r) {
      sum += std::exp((logit(order[r]) - logit(order[0])) / kind.temperature);
    }
    for (int r = 0; r < kind.top_k; ++r) {
      const double w = std::exp((logit(order[r]) - logit(order[0])) / kind.temperature);
      const double edge = so_far - kind.top_p * sum;
      const bool stays = r == 0 || (edge < 0 && w >= kind.min_p);
      // Which side of an edge a rounding falls on may differ.
      const bool sure = r == 0 || (std::fabs(edge) > 1e-4 && std::fabs(w - kind.min_p) > 1e-4);
      if (sure) apart = std::max(apart, std::fabs(weight_out(order[r]) - (stays ? w : 0)));
      so_far += w;
    }
    // The draw, of the weights that were returned.
    for (int i = 0; i < K; ++i) weight[i] = weight_out(i);
    int drawn = order[0];
    double margin = 1;
    if (kind.shared) {
      const uint64_t key = uint64_t(uint32_t(set[7])) << 32 | uint32_t(set[6]);
      auto score = [&](int i) { return std::log(weight[i]) + noise(key, top[1 + i]); };
      double second = -1e9;
      for (int i = 0; i < K; ++i) {
        if (weight[i] > 0 && score(i) > score(drawn)) drawn = i;
      }
      for (int i = 0; i < K; ++i) {
        if (weight[i] > 0 && i != drawn) second = std::max(second, score(i));
      }
      margin = score(drawn) - second;
    } else {
      double all = 0, below = 0;
      for (int i = 0; i < K; ++i) all += weight[i];
      const double at = bits_as<float>(set[5]) * all;
      for (int i = 0; i < K; ++i) {
        if (weight[i] == 0) continue;
        drawn = i;
        margin = std::min(std::fabs(at - below), std::fabs(below + weight[i] - at));
        if (at < below + weight[i]) break;
        below += weight[i];
      }
    }
    if (margin < 1e-4) {
      close_calls += 1;
    } else {
      wrong += out[row] != top[1 + drawn];
    }
  }
  expect_below("wrong", wrong, 0.5);
  expect_below("weights apart", apart, 1e-5);
  expect_below("close calls", close_calls, 6);
  return failures;
}

// ragged_attention.cu beside softmax in double precision over a sequence's whole past.
#define SET_TYPE Brain
#define SET_NQ 6
#define SET_NKV 2
#define SET_P 16
#ifndef SET_E
#define SET_E 4
#define SET_ROTARY 32
#endif
#define SET_T 5
#ifdef METAL
#include "metal_on_host.h"
#include "../scalar.metal"
#include "entry/ragged_attention.h"
typedef Scalar Stored;
static void append(const Stored* proj, const Stored* q_gain, const Stored* k_gain,
                   const float* inv_freq, const int* meta, Stored* keys, Stored* values,
                   const void*, Stored* q, int m, int rows, int eps, int kv_only) {
  const int scalars[] = {m, rows, eps, kv_only};
  append(proj, q_gain, k_gain, inv_freq, meta, keys, values, nullptr, scalars, q);
}
static void attend(const Stored* q, const Stored* keys, const Stored* values, const int* meta,
                   float* parts, int m, int rows, int spans, int first_key) {
  const int scalars[] = {m, rows, spans, first_key};
  attend(q, keys, values, meta, scalars, parts);
}
static void combine(const float* parts, const Stored* proj, const int* meta, Stored* y, int m,
                    int rows, int spans, int first_key) {
  const int scalars[] = {m, rows, spans, first_key};
  combine(parts, proj, meta, scalars, y);
}
#else
#include "cuda_on_host.h"
#include "../scalar.cu"
typedef u16 Stored;
#define SET_PART 1
#define SET_NAME append
namespace first {
#include "../ragged_attention.cu"
}
#undef SET_PART
#undef SET_NAME
#undef LEAST
#define SET_PART 2
#define SET_NAME attend
namespace second {
#include "../ragged_attention.cu"
}
#undef SET_PART
#undef SET_NAME
#undef LEAST
#define SET_PART 3
#define SET_NAME combine
namespace third {
#include "../ragged_attention.cu"
}
using first::append;
using second::attend;
using namespace third;
#endif

constexpr int PAGES = 64, FIRST = 1, TURNED = SET_ROTARY / 2;

struct Row {
  int sequence, start, len, position;
};

int main() {
  // What nobody wrote is no number.
  const Stored NONE = narrow(NAN);
  std::vector<Stored> keys(PAGES * NKV * P * D, NONE), values(keys), q_gain(D), k_gain(D);
  for (auto* gain : {&q_gain, &k_gain}) {
    for (auto& v : *gain) v = narrow(around(1, 0.2f));
  }
  std::vector<float> inv_freq(TURNED);
  for (int i = 0; i < TURNED; ++i) inv_freq[i] = std::pow(1e4f, -static_cast<float>(i) / TURNED);
  std::vector<int> pages[2];
  for (int i = 0; i < 32; ++i) {
    pages[0].push_back(31 - i);
    pages[1].push_back(32 + i * 7 % 32);
  }
  // Prompts fill the cache; then verify rows, some over tokens that were rejected, and a row of 8 in
  // two parts.
  const std::vector<std::vector<Row>> calls = {{{0, 0, 21, 0}, {1, 21, 400, 0}},
                                               {{1, 0, 4, 400}, {0, 4, 1, 21}},
                                               {{1, 0, 1, 402}, {0, 1, 5, 20}},
                                               {{1, 0, 5, 403}, {1, 5, 3, 408}, {0, 8, 1, 25}}};
  std::vector<std::vector<float>> past[2];
  Distance distance;
  for (const auto& call : calls) {
    const bool prompt = &call == &calls[0];
    int m = 0, longest = 1;
    for (const auto& r : call) m += r.len, longest = max(longest, r.position + r.len);
    const int rows = static_cast<int>(call.size()), spans = (longest + SPAN - 1) / SPAN;
    std::vector<Stored> proj(m * PROJ), q(m * NQ * D, NONE), y(m * NQ * D, NONE), kv;
    for (auto& v : proj) v = narrow(around(0, 1));
    std::vector<int> meta, tokens(2 * m), listed;
    for (const auto& r : call) {
      const int offset = static_cast<int>(listed.size());
      for (int v : {r.start, r.len, r.position, offset}) meta.push_back(v);
      const auto& own = pages[r.sequence];
      const int count = (r.position + r.len + P - 1) / P;
      listed.insert(listed.end(), own.begin(), own.begin() + count);
      for (int t = 0; t < r.len; ++t) {
        tokens[2 * (r.start + t)] = r.position + t;
        tokens[2 * (r.start + t) + 1] = own[(r.position + t) / P];
      }
    }
    meta.insert(meta.end(), tokens.begin(), tokens.end());
    meta.insert(meta.end(), listed.begin(), listed.end());
    for (int t = 0; t < m; ++t) {
      kv.insert(kv.end(), proj.begin() + t * PROJ + 2 * NQ * D, proj.begin() + (t + 1) * PROJ);
    }
    launch((m * (prompt ? 2 * NKV : NQ + 2 * NKV) + 3) / 4, 128, [&] {
      append(prompt ? kv.data() : proj.data(), q_gain.data(), k_gain.data(),
                    inv_freq.data(), meta.data(), keys.data(), values.data(), nullptr, q.data(), m,
                    rows, bits_as<int>(1e-6f), prompt);
    });
    for (const auto& r : call) {
      auto& sequence = past[r.sequence];
      sequence.resize(r.position);
      for (int t = 0; t < r.len; ++t) {
        std::vector<float> token(PROJ);
        for (int c = 0; c < PROJ; ++c) token[c] = widen(proj[(r.start + t) * PROJ + c]);
        sequence.push_back(token);
      }
    }
    if (prompt) continue;
    std::vector<float> parts(m * NQ * spans * (D + 2), NAN);
    launch(rows * NKV * spans, 256, [&] {
      attend(q.data(), keys.data(), values.data(), meta.data(), parts.data(), m, rows,
                     spans, FIRST);
    });
    launch((m * NQ + 3) / 4, 128, [&] {
      combine(parts.data(), proj.data(), meta.data(), y.data(), m, rows, spans, FIRST);
    });
    for (const auto& r : call) {
      const auto& sequence = past[r.sequence];
      auto rotated = [&](int at, int column, const std::vector<Stored>& gain) {
        std::vector<double> x(D);
        double squares = 0;
        for (int d = 0; d < D; ++d) x[d] = sequence[at][column + d], squares += x[d] * x[d];
        for (int d = 0; d < D; ++d) x[d] *= widen(gain[d]) / std::sqrt(squares / D + 1e-6);
        for (int d = 0; d < TURNED; ++d) {
          const double angle = at * static_cast<double>(inv_freq[d]), a = x[d], b = x[d + TURNED];
          x[d] = a * std::cos(angle) - b * std::sin(angle);
          x[d + TURNED] = a * std::sin(angle) + b * std::cos(angle);
        }
        return x;
      };
      for (int t = 0; t < r.len; ++t) {
        for (int head = 0; head < NQ; ++head) {
          const int at = r.position + t, k_column = 2 * NQ * D + head / GROUP * D;
          const auto query = rotated(at, 2 * head * D, q_gain);
          std::vector<double> o(D, 0.0);
          double sum = 0;
          for (int i = FIRST; i <= at; ++i) {
            const auto key = rotated(i, k_column, k_gain);
            double score = 0;
            for (int d = 0; d < D; ++d) score += query[d] * key[d];
            const double weight = std::exp(score / std::sqrt(static_cast<double>(D)));
            sum += weight;
            for (int d = 0; d < D; ++d) o[d] += weight * sequence[i][k_column + NKV * D + d];
          }
          for (int d = 0; d < D; ++d) {
            const double gate = sequence[at][(2 * head + 1) * D + d];
            const double expected = o[d] / sum / (1 + std::exp(-gate));
            distance.add(widen(y[((r.start + t) * NQ + head) * D + d]), expected);
          }
        }
      }
    }
  }
  expect_below("results", distance.relative(), 4e-3);
  return failures;
}

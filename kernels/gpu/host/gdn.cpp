// gdn_verify beside one token after another in double precision, over a sequence's whole past. SCENE
// says over which calls; see there.
#ifndef SET_TYPE
#define SET_TYPE Brain
#endif
#ifndef SET_CHUNKED
#define SET_CHUNKED 0
#endif
#ifndef SET_HK
#define SET_HK 2
#define SET_HV 4
#endif
#ifndef SCENE
#define SCENE mixed
#endif
#define SET_T 5
#ifdef METAL
#include "metal_on_host.h"
#include "../scalar.metal"
#include "entry/gdn_verify.h"
typedef Scalar Stored;
static void run(const Stored* proj, const float* taps, const float* decay, const float* dt_bias,
                const Stored* gain, const int* rows, float* state, Stored* window, Stored* y,
                int eps) {
  gdn(proj, taps, decay, dt_bias, gain, rows, state, window, nullptr, &eps, y);
}
#else
#include "cuda_on_host.h"
#define SET_NAME gdn
#include "../scalar.cu"
#include "../gdn_sizes.cu"
#if SET_CHUNKED
#include "../gdn_chunked.cu"
#endif
#include "../gdn_verify.cu"
typedef u16 Stored;
static void run(const Stored* proj, const float* taps, const float* decay, const float* dt_bias,
                const Stored* gain, const int* rows, float* state, Stored* window, Stored* y,
                int eps) {
  gdn(proj, taps, decay, dt_bias, gain, rows, state, window, nullptr, y, eps);
}
#endif

constexpr int SLOTS = 3;

struct Row {
  int slot, start, len, keep, commit;
};
using Calls = std::vector<std::vector<Row>>;

// Prompts, verified tokens of which none, some or all are kept, and a tape that is folded alone.
static Calls mixed() {
  const int longest = SET_CHUNKED ? 107 : 11;
  return {{{2, 0, longest, 0, 1}, {0, longest, 2, 0, 1}}, {{0, 0, 5, 0, 0}, {2, 5, 1, 0, 0}},
          {{2, 0, 5, 1, 0}, {0, 5, 5, 2, 0}},             {{0, 0, 3, 5, 1}, {2, 3, 1, 5, 1}},
          {{0, 0, 0, 0, 1}},
          {{2, 0, 4, 0, 0}, {0, 4, 1, 0, 0}},
          {{2, 0, longest, 3, 1}, {0, longest, 65, 0, 1}}};
}
// Lengths about the bound of long prompts and about multiples of chunks, each from the state that
// the one before left, beside rows of other lengths; and 64 tokens of which a tape has some.
static Calls edges() {
  return {{{0, 0, 63, 0, 1}, {1, 63, 64, 0, 1}, {2, 127, 65, 0, 1}},
          {{1, 0, 79, 0, 1}, {2, 79, 80, 0, 1}, {0, 159, 1, 0, 1}},
          {{2, 0, 5, 0, 0}, {0, 5, 81, 0, 1}},
          {{2, 0, 59, 5, 1}, {1, 59, 96, 0, 1}, {0, 155, 4, 0, 0}},
          {{2, 0, 58, 0, 1}, {0, 58, 128, 0, 1}},
          {{1, 0, 5, 0, 0}},
          {{1, 0, 1, 5, 0}, {2, 1, 64, 0, 1}},
          {{1, 0, 127, 1, 1}}};
}
// A long text in two pieces, and a token after it.
static Calls whole() { return {{{1, 0, 2049, 0, 1}}, {{1, 0, 2047, 0, 1}}, {{1, 0, 1, 0, 0}}}; }
// A prompt and a verified row after it, for many heads.
static Calls wide() { return {{{1, 0, 70, 0, 1}}, {{1, 0, 2, 0, 0}}}; }
using Token = std::vector<float>;
using Tokens = std::vector<Token>;

struct Layer {
  std::vector<float> taps, decay, dt_bias;
  std::vector<Stored> gain;
};

static double silu(double x) { return x / (1 + std::exp(-x)); }

// State and outputs [tokens, D] of a head over a sequence.
struct Walk {
  std::vector<double> state = std::vector<double>(D * D, 0.0);
  std::vector<std::vector<double>> out;

  Walk(const Layer& layer, const Tokens& all, int head) {
    for (size_t t = 0; t < all.size(); ++t) {
      auto conv = [&](int c) {
        double value = 0;
        for (int j = 0; j < 4; ++j) {
          const int e = static_cast<int>(t) + j - 3;
          if (e >= 0) value += layer.taps[j * C + c] * all[e][c];
        }
        return silu(value);
      };
      std::vector<double> q(D), k(D), v(D), o(D, 0.0);
      double qq = 1e-6, kk = 1e-6;
      for (int i = 0; i < D; ++i) {
        q[i] = conv(head / (HV / HK) * D + i), qq += q[i] * q[i];
        k[i] = conv((HK + head / (HV / HK)) * D + i), kk += k[i] * k[i];
        v[i] = conv((2 * HK + head) * D + i);
      }
      const double b = all[t][C + HV * D + head], a = all[t][C + HV * D + HV + head];
      const double beta = 1 / (1 + std::exp(-b));
      const double dt = std::log1p(std::exp(a + layer.dt_bias[head]));
      const double g = std::exp(layer.decay[head] * dt);
      for (int i = 0; i < D; ++i) {
        double seen = 0;
        for (int j = 0; j < D; ++j) seen += (state[i * D + j] *= g) * k[j] / std::sqrt(kk);
        const double d = beta * (v[i] - seen);
        for (int j = 0; j < D; ++j) {
          state[i * D + j] += d * k[j] / std::sqrt(kk);
          o[i] += state[i * D + j] * q[j] / std::sqrt(qq * D);
        }
      }
      out.push_back(o);
    }
  }
};

int main() {
  // What nobody wrote is no number.
  const Stored NONE = narrow(NAN);
  Layer layer{std::vector<float>(4 * C), std::vector<float>(HV), std::vector<float>(HV),
              std::vector<Stored>(D)};
  for (auto& v : layer.taps) v = around(0, 0.6f);
  for (auto& v : layer.decay) v = -std::exp(around(0, 1));
  for (auto& v : layer.dt_bias) v = around(0.5f, 0.5f);
  for (auto& v : layer.gain) v = narrow(around(1, 0.3f));
#ifdef EXTREME
  // What never forgets, what forgets all at once, and what does one or the other by its token.
  for (int head = 0; head < HV; ++head) {
    layer.decay[head] = head % 3 == 0 ? -1e-7f : head % 3 == 1 ? -300.0f : -30.0f;
  }
#endif
  std::vector<float> state(SLOTS * HV * D * D, 0.0f);
  std::vector<Stored> window(2 * SLOTS * ROWS * WIDE, NONE);
  for (int slot = 0; slot < SLOTS; ++slot) {
    std::fill_n(window.begin() + 2 * slot * ROWS * WIDE, 3 * WIDE, narrow(0.0f));
  }
  int side[SLOTS] = {};
  Tokens past[SLOTS], tape[SLOTS];
  Distance outputs, states;
  for (const auto& call : SCENE()) {
    int m = 1, meta_at = 0;
    for (const auto& row : call) m = max(m, row.start + row.len);
    std::vector<Stored> proj(m * PROJ), y(m * HV * D, NONE);
    for (auto& v : proj) v = narrow(around(0, 1));
#ifdef EXTREME
    for (int t = 0; t < m; ++t) {
      for (int c = C + HV * D; c < PROJ; ++c) proj[t * PROJ + c] = narrow(around(0, 25));
    }
#endif
    std::vector<int> meta(6 * call.size());
    for (const auto& r : call) {
      for (int v : {r.slot, r.start, r.len, r.keep, r.commit, side[r.slot]}) meta[meta_at++] = v;
      side[r.slot] ^= 1;
    }
    launch(static_cast<int>(call.size()) * HV, THREADS, [&] {
      run(proj.data(), layer.taps.data(), layer.decay.data(), layer.dt_bias.data(),
          layer.gain.data(), meta.data(), state.data(), window.data(), y.data(),
          bits_as<int>(1e-6f));
    });
    for (const auto& r : call) {
      Tokens& stands = past[r.slot];
      stands.insert(stands.end(), tape[r.slot].begin(), tape[r.slot].begin() + r.keep);
      tape[r.slot].clear();
      Tokens all = stands;
      for (int t = 0; t < r.len; ++t) {
        Token token(PROJ);
        for (int c = 0; c < PROJ; ++c) token[c] = widen(proj[(r.start + t) * PROJ + c]);
        all.push_back(token);
        (r.commit ? stands : tape[r.slot]).push_back(token);
      }
      for (int head = 0; head < HV; ++head) {
        const Walk committed(layer, stands, head), walk(layer, all, head);
        for (int i = 0; i < D * D; ++i) {
          states.add(state[(r.slot * HV + head) * D * D + i], committed.state[i]);
        }
        for (int t = 0; t < r.len; ++t) {
          const auto& o = walk.out[all.size() - r.len + t];
          double squares = 0;
          for (double v : o) squares += v * v;
          for (int i = 0; i < D; ++i) {
            const double z = all[all.size() - r.len + t][C + head * D + i];
            const double norm = std::sqrt(squares / D + 1e-6);
            const double expected = o[i] / norm * widen(layer.gain[i]) * silu(z);
            outputs.add(widen(y[(r.start + t) * HV * D + head * D + i]), expected);
          }
        }
      }
    }
  }
#ifdef METAL
  constexpr double APART = 1e-5;
#else
  // The tensor cores' chunks are of tf32.
  constexpr double APART = SET_CHUNKED ? 1e-3 : 1e-5;
#endif
  expect_below("results", outputs.relative(), 4e-3);
  expect_below("states", states.relative(), APART);
  return failures;
}

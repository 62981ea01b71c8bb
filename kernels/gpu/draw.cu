// draw: a token of every row, from the largest logits that top.cu found in it.
//
// found i32 [R, 1 + 2·K] as top.cu wrote it; settings i32 [≥ R, 8]: temperature (its inverse, 0 for
// the likeliest token), top_k, top_p, min_p, whether noise is shared (else by quantile), u, and the
// key of the noise in two words; out i32 [R + R·K]: the tokens, then the weights (floats as bits) of
// each row's candidates, 0 where one has no chance. A row in which top found nothing has no weights
// and token 0.
//
// Truncation and order are those of src/core/sample.rs, the noise that of src/core/random.rs. What
// is drawn has the distribution of the weights that are returned, up to the 2^-24 of u, whatever
// their own rounding. A row with logits that are no numbers gives some token and weights that are none.
//
// A block is a row, a thread a candidate.

constexpr int K = SET_K, SETTINGS = 8;

typedef unsigned long long u64;

__device__ __forceinline__ u64 mix(u64 x) {
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return x ^ x >> 31;
}

// Standard Gumbel noise of a token: u lies half a step from 0 and from 1.
__device__ __forceinline__ float gumbel(u64 key, unsigned token) {
  const u64 step = 0x9e3779b97f4a7c15ull;
  const u64 word = mix(static_cast<u64>(token) + 1 + step);
  const u64 bits = mix((key + step) ^ word) >> 12;
  // 1 − u, exact where u is near 1 and its logarithm vanishes.
  const float rest = (static_cast<float>((1ull << 52) - 1 - bits) + 0.5f) * 0x1p-52f;
  const float u = (static_cast<float>(bits) + 0.5f) * 0x1p-52f;
  const float minus_log = rest < 1e-3f ? rest * (1.0f + rest * (0.5f + rest / 3.0f)) : -logf(u);
  return -logf(minus_log);
}

extern "C" __global__ void __launch_bounds__(K)
    SET_NAME(const int* found, const int* settings, int* out, int rows) {
  __shared__ float logits[K], weights[K], scores[K];
  __shared__ int ranks[K];
  const int row = blockIdx.x, i = threadIdx.x;
  const int* top = found + row * (1 + 2 * K);
  const int* set = settings + row * SETTINGS;
  int* weights_out = out + rows + row * K;
  if (top[0] != K) {
    weights_out[i] = 0;
    if (i == 0) out[row] = 0;
    return;
  }
  logits[i] = __int_as_float(top[1 + K + i]);
  // Places that logits which are no numbers leave without a rank of their own.
  ranks[i] = i;
  __syncthreads();
  int rank = 0;
  for (int j = 0; j < K; ++j) {
    rank += logits[j] > logits[i] || (logits[j] == logits[i] && j < i);
  }
  ranks[rank] = i;
  __syncthreads();
  const float scale = __int_as_float(set[0]), top_p = __int_as_float(set[2]);
  const int kept = scale == 0.0f ? 1 : set[1] < K ? set[1] : K;
  const float weight = rank < kept ? expf((logits[i] - logits[ranks[0]]) * scale) : 0.0f;
  weights[i] = weight;
  __syncthreads();
  float before = 0.0f, sum = 0.0f;
  for (int r = 0; r < kept; ++r) {
    const float here = weights[ranks[r]];
    sum += here;
    if (r < rank) before += here;
  }
  __syncthreads();
  const bool stays = rank == 0 || (before < top_p * sum && weight >= __int_as_float(set[3]));
  const float last = stays ? weight : 0.0f;
  weights[i] = last;
  const u64 high = static_cast<unsigned>(set[7]), low = static_cast<unsigned>(set[6]);
  scores[i] = last > 0.0f ? logf(last) + gumbel(high << 32 | low, top[1 + i]) : -1e30f;
  weights_out[i] = __float_as_int(last);
  __syncthreads();
  if (i > 0) return;
  int drawn = ranks[0];
  if (set[4] != 0) {
    for (int j = 0; j < K; ++j) {
      if (scores[j] > scores[drawn]) drawn = j;
    }
  } else {
    float all = 0.0f;
    for (int j = 0; j < K; ++j) all += weights[j];
    float left = __int_as_float(set[5]) * all;
    for (int j = 0; j < K; ++j) {
      if (weights[j] == 0.0f) continue;
      drawn = j;
      if (left < weights[j]) break;
      left -= weights[j];
    }
  }
  out[row] = top[1 + drawn];
}

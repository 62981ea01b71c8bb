// draw: a token of every row, from the largest logits that top.metal found in it. The contract and
// the method are those of draw.cu.
//
// Inputs: found, settings, scalars (the rows). Output: out. A threadgroup is a row, a thread a
// candidate.

#ifndef BODY

enum { K = SET_K, SETTINGS = 8 };

inline ulong mix(ulong x) {
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ul;
  x = (x ^ x >> 27) * 0x94d049bb133111ebul;
  return x ^ x >> 31;
}

// Standard Gumbel noise of a token: u lies half a step from 0 and from 1.
inline float gumbel(ulong key, uint token) {
  const ulong step = 0x9e3779b97f4a7c15ul;
  const ulong word = mix(ulong(token) + 1 + step);
  const ulong bits = mix((key + step) ^ word) >> 12;
  const float unit = 1.0f / 4503599627370496.0f;
  // 1 - u, exact where u is near 1 and its logarithm vanishes.
  const float rest = (float((ulong(1) << 52) - 1 - bits) + 0.5f) * unit;
  const float u = (float(bits) + 0.5f) * unit;
  const float minus_log = rest < 1e-3f ? rest * (1.0f + rest * (0.5f + rest / 3.0f)) : -log(u);
  return -log(minus_log);
}

#else

LOCAL float values[K];
LOCAL float weights[K];
LOCAL float scores[K];
LOCAL int ranks[K];
const int row = threadgroup_position_in_grid.x, i = thread_position_in_threadgroup.x;
const device int* top = found + row * (1 + 2 * K);
const device int* set = settings + row * SETTINGS;
device int* weights_out = out + scalars[0] + row * K;
if (top[0] != K) {
  weights_out[i] = 0;
  if (i == 0) out[row] = 0;
  return;
}
values[i] = as_type<float>(top[1 + K + i]);
// Places that logits which are no numbers leave without a rank of their own.
ranks[i] = i;
threadgroup_barrier(mem_flags::mem_threadgroup);
int rank = 0;
for (int j = 0; j < K; ++j) {
  rank += values[j] > values[i] || (values[j] == values[i] && j < i);
}
ranks[rank] = i;
threadgroup_barrier(mem_flags::mem_threadgroup);
const float scale = as_type<float>(set[0]), top_p = as_type<float>(set[2]);
const int kept = scale == 0.0f ? 1 : set[1] < K ? set[1] : K;
const float weight = rank < kept ? exp((values[i] - values[ranks[0]]) * scale) : 0.0f;
weights[i] = weight;
threadgroup_barrier(mem_flags::mem_threadgroup);
float before = 0.0f, sum = 0.0f;
for (int r = 0; r < kept; ++r) {
  const float here = weights[ranks[r]];
  sum += here;
  if (r < rank) before += here;
}
threadgroup_barrier(mem_flags::mem_threadgroup);
const bool stays = rank == 0 || (before < top_p * sum && weight >= as_type<float>(set[3]));
const float last = stays ? weight : 0.0f;
weights[i] = last;
const ulong key = ulong(uint(set[7])) << 32 | uint(set[6]);
scores[i] = last > 0.0f ? log(last) + gumbel(key, top[1 + i]) : -1e30f;
weights_out[i] = as_type<int>(last);
threadgroup_barrier(mem_flags::mem_threadgroup);
if (i > 0) return;
int drawn = ranks[0];
if (set[4] != 0) {
  for (int j = 0; j < K; ++j) {
    if (scores[j] > scores[drawn]) drawn = j;
  }
} else {
  float all = 0.0f;
  for (int j = 0; j < K; ++j) all += weights[j];
  float left = as_type<float>(set[5]) * all;
  for (int j = 0; j < K; ++j) {
    if (weights[j] == 0.0f) continue;
    drawn = j;
    if (left < weights[j]) break;
    left -= weights[j];
  }
}
out[row] = top[1 + drawn];

#endif

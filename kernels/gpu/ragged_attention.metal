// ragged_attention: gated attention over paged keys and values, rows of any length, in three
// kernels that SET_PART picks. The contract is that of ragged_attention.cu.
//
// 1 append. Inputs: proj, q_gain, k_gain, inv_freq, meta, keys, values, after, scalars (m, rows,
//   eps as bits, kv_only). Output: q. A simdgroup is a token and a head of q, k or v.
// 2 attend. Inputs: q, keys, values, meta, scalars (m, rows, spans, first_key). Output: parts. A
//   threadgroup is a row, a kv head and a span of keys; a simdgroup has every eighth query. Keys
//   and values are read where they lie: what simdgroups share comes from the cache.
// 3 combine. Inputs: parts, proj, meta, scalars as for 2. Output: y. A simdgroup is a token and a
//   query head.
//
// A lane has E neighbours of a head's D dimensions.

#ifndef BODY

enum {
  NQ = SET_NQ,
  NKV = SET_NKV,
  P = SET_P,
  E = SET_E,
  D = 32 * E,
  GROUP = NQ / NKV,
  PROJ = (2 * NQ + 2 * NKV) * D,
  SPAN = 64,
  HALF = SET_ROTARY / 2,
  REACH = HALF / E,
  WARPS = 8,
  EACH = (SET_T * GROUP + WARPS - 1) / WARPS
};

#define LEAST (-INFINITY)

#elif SET_PART == 1

const int m = scalars[0], row_count = scalars[1];
const bool kv_only = scalars[3] != 0;
const float eps = as_type<float>(scalars[2]);
const int lane = thread_position_in_threadgroup.x % 32;
const int heads = kv_only ? 2 * NKV : NQ + 2 * NKV;
const int job = threadgroup_position_in_grid.x * 4 + thread_position_in_threadgroup.x / 32;
if (job >= m * heads) return;
const int token = job / heads, head = job % heads + (kv_only ? NQ : 0);
const int position = meta[4 * row_count + 2 * token], page = meta[4 * row_count + 2 * token + 1];
const bool is_q = head < NQ, is_v = head >= NQ + NKV;
if (!is_q && page < 0) return;
const int wide = kv_only ? 2 * NKV * D : PROJ;
const int column = is_q ? 2 * head * D : head * D + (kv_only ? -NQ * D : NQ * D);
const device Scalar* from = proj + size_t(token) * wide + column + lane * E;
float values_of[E], squares = 0.0f;
UNROLL
for (int i = 0; i < E; ++i) {
  values_of[i] = widen(from[i]);
  squares = fma(values_of[i], values_of[i], squares);
}
if (!is_v) {
  const float norm = rsqrt(sum_lanes(squares, 32) / D + eps);
  const device Scalar* gain = is_q ? q_gain : k_gain;
  UNROLL
  for (int i = 0; i < E; ++i) {
    const float own = widen(narrow(values_of[i] * norm * widen(gain[lane * E + i])));
    const float other = simd_shuffle_xor(own, ushort(REACH));
    values_of[i] = own;
    if (lane < 2 * REACH) {
      const float angle = float(position) * inv_freq[lane * E % HALF + i];
      const float sine = sin(angle), cosine = cos(angle);
      values_of[i] = lane < REACH ? own * cosine - other * sine : own * cosine + other * sine;
    }
  }
}
device Scalar* to;
if (is_q) {
  to = q + (size_t(token) * NQ + head) * D;
} else {
  const int kv_head = is_v ? head - NQ - NKV : head - NQ;
  const size_t cell = (size_t(page) * NKV + kv_head) * P + position % P;
  to = (is_v ? (device Scalar*)values : (device Scalar*)keys) + cell * D;
}
UNROLL
for (int i = 0; i < E; ++i) to[lane * E + i] = narrow(values_of[i]);

#elif SET_PART == 2

const int m = scalars[0], row_count = scalars[1], spans = scalars[2], first_key = scalars[3];
const int lane = thread_position_in_threadgroup.x % 32;
const int warp = thread_position_in_threadgroup.x / 32;
const int block = threadgroup_position_in_grid.x;
const int span = block % spans, kv_head = block / spans % NKV;
const device int* row = meta + block / spans / NKV * 4;
const int start = row[0], len = row[1], position = row[2];
const device int* pages = meta + 4 * row_count + 2 * m + row[3];
const int begin = max(span * int(SPAN), first_key);
const int end = min((span + 1) * int(SPAN), position + len);
if (len > SET_T || begin >= end) return;
const float scale = rsqrt(float(D));
const int queries = len * GROUP;
float query[EACH][E], o[EACH][E], most[EACH], sum[EACH];
UNROLL
for (int e = 0; e < EACH; ++e) {
  const int which = min(e * int(WARPS) + warp, queries - 1);
  const size_t cell = size_t(start + which / GROUP) * NQ + kv_head * GROUP + which % GROUP;
  most[e] = LEAST;
  sum[e] = 0.0f;
  UNROLL
  for (int i = 0; i < E; ++i) {
    query[e][i] = widen(q[cell * D + lane * E + i]) * scale;
    o[e][i] = 0.0f;
  }
}
for (int key = begin; key < end; ++key) {
  const size_t cell = (size_t(pages[key / P]) * NKV + kv_head) * P + key % P;
  float k[E], v[E];
  UNROLL
  for (int i = 0; i < E; ++i) {
    k[i] = widen(keys[cell * D + lane * E + i]);
    v[i] = widen(values[cell * D + lane * E + i]);
  }
  UNROLL
  for (int e = 0; e < EACH; ++e) {
    const int which = e * WARPS + warp;
    // The same for all lanes: none of them is missed by the sum.
    if (which >= queries || key > position + which / GROUP) continue;
    float score = 0.0f;
    UNROLL
    for (int i = 0; i < E; ++i) score = fma(query[e][i], k[i], score);
    score = sum_lanes(score, 32);
    const float top = max(score, most[e]);
    // Nothing seen so far: nothing to rescale.
    const float shrink = most[e] == LEAST ? 0.0f : exp(most[e] - top);
    const float weight = exp(score - top);
    sum[e] = fma(sum[e], shrink, weight);
    most[e] = top;
    UNROLL
    for (int i = 0; i < E; ++i) o[e][i] = fma(weight, v[i], o[e][i] * shrink);
  }
}
UNROLL
for (int e = 0; e < EACH; ++e) {
  const int which = e * WARPS + warp;
  if (which >= queries) break;
  const size_t cell = size_t(start + which / GROUP) * NQ + kv_head * GROUP + which % GROUP;
  device float* to = parts + (cell * spans + span) * (D + 2);
  UNROLL
  for (int i = 0; i < E; ++i) to[lane * E + i] = o[e][i];
  if (lane == 0) {
    to[D] = most[e];
    to[D + 1] = sum[e];
  }
}

#else

const int m = scalars[0], row_count = scalars[1], spans = scalars[2], first_key = scalars[3];
const int lane = thread_position_in_threadgroup.x % 32;
const int job = threadgroup_position_in_grid.x * 4 + thread_position_in_threadgroup.x / 32;
if (job >= m * NQ) return;
const int token = job / NQ, head = job % NQ;
const int position = meta[4 * row_count + 2 * token], page = meta[4 * row_count + 2 * token + 1];
float most = LEAST, sum = 0.0f, o[E];
UNROLL
for (int i = 0; i < E; ++i) o[i] = 0.0f;
// Spans in their order; a token of no row has none.
const int last = page >= 0 ? position / SPAN : -1;
for (int span = first_key / SPAN; span <= last; ++span) {
  const device float* part = parts + (size_t(job) * spans + span) * (D + 2);
  const float here = part[D];
  // No key seen in this span: nothing to add up.
  if (here == LEAST) continue;
  const float top = max(here, most);
  const float old = most == LEAST ? 0.0f : exp(most - top), fresh = exp(here - top);
  sum = fma(sum, old, part[D + 1] * fresh);
  most = top;
  UNROLL
  for (int i = 0; i < E; ++i) o[i] = fma(part[lane * E + i], fresh, o[i] * old);
}
const device Scalar* gate = proj + size_t(token) * PROJ + (2 * head + 1) * D + lane * E;
UNROLL
for (int i = 0; i < E; ++i) {
  const float value = sum > 0.0f ? o[i] / sum : 0.0f;
  y[size_t(job) * D + lane * E + i] = narrow(value * sigmoid(widen(gate[i])));
}

#endif

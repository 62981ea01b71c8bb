// ragged_attention: gated attention over paged keys and values, rows of any length, in three
// kernels. SET_PART picks one.
//
// 1 append: q and k normalised and rotated, k and v into their pages, in place; `after` is not
//   read, it is the result of the call before.
// 2 attend: a row's queries (up to SET_T tokens) against SPAN keys, the softmax unfinished.
// 3 combine: the spans of a query put together in order, times the sigmoid of its gate.
//
// Spans begin at multiples of SPAN whatever the batch, so a token's result is the same, to the bit,
// in any company and any row length.
//
// proj [M, NQ × (q | gate) | k | v]; keys, values [pages, NKV, P, D]; meta i32: for every row
// (start, len, position, first of its pages), for every token (position, page; −1 for a token of no
// row), then pages. SET_NQ, SET_NKV, SET_P; D = 32·SET_E; rotation of the first SET_ROTARY of D.

constexpr int NQ = SET_NQ, NKV = SET_NKV, P = SET_P, E = SET_E, D = 32 * E, GROUP = NQ / NKV;
constexpr int PROJ = (2 * NQ + 2 * NKV) * D, SPAN = 64, KEYS = 32;

// Minus infinity.
#define LEAST __uint_as_float(0xff800000u)

#if SET_PART == 1

// A warp is a token and a head of q, k or v; a lane holds E neighbours.
extern "C" __global__ void __launch_bounds__(128)
    SET_NAME(const u16* proj, const u16* q_gain, const u16* k_gain, const float* inv_freq,
             const int* meta, u16* keys, u16* values, const void* after, u16* q, int m, int rows, int eps_bits,
             int kv_only) {
  constexpr int HALF = SET_ROTARY / 2, REACH = HALF / E;
  const int lane = threadIdx.x % 32, heads = kv_only ? 2 * NKV : NQ + 2 * NKV;
  const int job = blockIdx.x * 4 + threadIdx.x / 32;
  if (job >= m * heads) return;
  const int token = job / heads, head = job % heads + (kv_only ? NQ : 0);
  const int position = meta[4 * rows + 2 * token], page = meta[4 * rows + 2 * token + 1];
  const bool is_q = head < NQ, is_v = head >= NQ + NKV;
  if (!is_q && page < 0) return;
  const int wide = kv_only ? 2 * NKV * D : PROJ;
  const int skipped = kv_only ? NQ * D : -NQ * D;
  const u16* from = proj + static_cast<size_t>(token) * wide + lane * E +
                    (is_q ? 2 * head * D : head * D - skipped);
  float x[E], squares = 0.0f;
#pragma unroll
  for (int i = 0; i < E; ++i) {
    x[i] = widen(from[i]);
    squares = fmaf(x[i], x[i], squares);
  }
  if (!is_v) {
    const float norm = rsqrtf(sum_lanes<32>(squares) / D + __int_as_float(eps_bits));
    const u16* gain = is_q ? q_gain : k_gain;
#pragma unroll
    for (int i = 0; i < E; ++i) {
      x[i] = widen(narrow(x[i] * norm * widen(gain[lane * E + i])));
      const float other = __shfl_xor_sync(0xffffffffu, x[i], REACH);
      if (lane < 2 * REACH) {
        float sine, cosine;
        sincosf(static_cast<float>(position) * inv_freq[lane * E % HALF + i], &sine, &cosine);
        x[i] = lane < REACH ? x[i] * cosine - other * sine : x[i] * cosine + other * sine;
      }
    }
  }
  u16* to;
  if (is_q) {
    to = q + (static_cast<size_t>(token) * NQ + head) * D;
  } else {
    const int kv_head = is_v ? head - NQ - NKV : head - NQ;
    to = (is_v ? values : keys) +
         ((static_cast<size_t>(page) * NKV + kv_head) * P + position % P) * D;
  }
#pragma unroll
  for (int i = 0; i < E; ++i) to[lane * E + i] = narrow(x[i]);
}

#elif SET_PART == 2

constexpr int WARPS = 8, QUERIES = SET_T * GROUP, EACH = (QUERIES + WARPS - 1) / WARPS;
constexpr int KEY_ROW = D + 8;

__device__ __forceinline__ void widen8(const u16* from, float (&to)[8]) {
  const uint4 bits = *reinterpret_cast<const uint4*>(from);
  const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) to[i] = widen(static_cast<u16>(words[i / 2] >> (16 * (i % 2))));
}

// A block is a row, a kv head and a span; a warp has every eighth query.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
    SET_NAME(const u16* q, const u16* keys, const u16* values, const int* meta, float* parts,
             int m, int rows, int spans, int first_key) {
  __shared__ __align__(16) u16 tile[KEYS * KEY_ROW];
  __shared__ __align__(16) float query[QUERIES][D];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int span = blockIdx.x % spans, kv_head = blockIdx.x / spans % NKV;
  const int* row = meta + blockIdx.x / spans / NKV * 4;
  const int start = row[0], len = row[1], position = row[2];
  const int* pages = meta + 4 * rows + 2 * m + row[3];
  const int begin = max(span * SPAN, first_key), end = min((span + 1) * SPAN, position + len);
  if (len > SET_T || begin >= end) return;
  const float scale = rsqrtf(static_cast<float>(D));
  for (int i = threadIdx.x; i < len * GROUP * D; i += 32 * WARPS) {
    const int at = i / D, head = kv_head * GROUP + at % GROUP;
    const size_t from = static_cast<size_t>(start + at / GROUP) * NQ + head;
    query[at][i % D] = widen(q[from * D + i % D]) * scale;
  }
  // Queries of this warp; −1 for none.
  int which[EACH];
  float most[EACH], sum[EACH], o[EACH][E];
#pragma unroll
  for (int e = 0; e < EACH; ++e) {
    which[e] = e * WARPS + warp < len * GROUP ? e * WARPS + warp : -1;
    most[e] = LEAST, sum[e] = 0.0f;
#pragma unroll
    for (int i = 0; i < E; ++i) o[e][i] = 0.0f;
  }
  // Keys and values of a tile are on their way together; the tile in shared memory holds the keys
  // first.
  constexpr int PIECES = KEYS * (D / 8) / (32 * WARPS);
  uint4 k_bits[PIECES], v_bits[PIECES];
  auto put = [&](const uint4 (&bits)[PIECES]) {
    __syncthreads();
#pragma unroll
    for (int j = 0; j < PIECES; ++j) {
      const int i = threadIdx.x + j * 32 * WARPS;
      *reinterpret_cast<uint4*>(tile + i / (D / 8) * KEY_ROW + i % (D / 8) * 8) = bits[j];
    }
    __syncthreads();
  };
  for (int base = span * SPAN; base < end; base += KEYS) {
#pragma unroll
    for (int j = 0; j < PIECES; ++j) {
      const int i = threadIdx.x + j * 32 * WARPS, key = base + i / (D / 8);
      k_bits[j] = v_bits[j] = make_uint4(0, 0, 0, 0);
      if (key < end) {
        const size_t cell = (static_cast<size_t>(pages[key / P]) * NKV + kv_head) * P + key % P;
        k_bits[j] = reinterpret_cast<const uint4*>(keys + cell * D)[i % (D / 8)];
        v_bits[j] = reinterpret_cast<const uint4*>(values + cell * D)[i % (D / 8)];
      }
    }
    put(k_bits);
    // Two sums a query, of even and odd groups of four: shorter chains.
    float score[EACH][2] = {}, weight[EACH];
    for (int i = 0; i < D / 8; ++i) {
      float k[8];
      widen8(tile + lane * KEY_ROW + 8 * i, k);
#pragma unroll
      for (int e = 0; e < EACH; ++e) {
        if (which[e] < 0) continue;
        const float4* a = reinterpret_cast<const float4*>(query[which[e]] + 8 * i);
        score[e][0] = fmaf(a[0].x, k[0], score[e][0]);
        score[e][1] = fmaf(a[1].x, k[4], score[e][1]);
        score[e][0] = fmaf(a[0].y, k[1], score[e][0]);
        score[e][1] = fmaf(a[1].y, k[5], score[e][1]);
        score[e][0] = fmaf(a[0].z, k[2], score[e][0]);
        score[e][1] = fmaf(a[1].z, k[6], score[e][1]);
        score[e][0] = fmaf(a[0].w, k[3], score[e][0]);
        score[e][1] = fmaf(a[1].w, k[7], score[e][1]);
      }
    }
    const int key = base + lane;
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
      if (which[e] < 0) continue;
      const float here = score[e][0] + score[e][1];
      const bool seen = key >= first_key && key <= position + which[e] / GROUP;
      float top = seen ? here : LEAST;
#pragma unroll
      for (int step = 16; step > 0; step /= 2) {
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
      }
      top = fmaxf(top, most[e]);
      // Nothing seen so far: nothing to rescale.
      const float shrink = most[e] == LEAST ? 0.0f : expf(most[e] - top);
      weight[e] = seen ? expf(here - top) : 0.0f;
      sum[e] = fmaf(sum[e], shrink, sum_lanes<32>(weight[e]));
      most[e] = top;
#pragma unroll
      for (int i = 0; i < E; ++i) o[e][i] *= shrink;
    }
    put(v_bits);
#pragma unroll 4
    for (int at = 0; at < KEYS; ++at) {
      float v[E];
      const u16* from = tile + at * KEY_ROW + lane * E;
#if SET_E == 8
      widen8(from, v);
#else
#pragma unroll
      for (int i = 0; i < E; ++i) v[i] = widen(from[i]);
#endif
#pragma unroll
      for (int e = 0; e < EACH; ++e) {
        if (which[e] < 0) continue;
        const float w = __shfl_sync(0xffffffffu, weight[e], at);
#pragma unroll
        for (int i = 0; i < E; ++i) o[e][i] = fmaf(w, v[i], o[e][i]);
      }
    }
  }
#pragma unroll
  for (int e = 0; e < EACH; ++e) {
    if (which[e] < 0) continue;
    const int token = which[e] / GROUP, head = kv_head * GROUP + which[e] % GROUP;
    const size_t cell = static_cast<size_t>(start + token) * NQ + head;
    float* to = parts + (cell * spans + span) * (D + 2);
#pragma unroll
    for (int i = 0; i < E; ++i) to[lane * E + i] = o[e][i];
    if (lane == 0) to[D] = most[e], to[D + 1] = sum[e];
  }
}

#else

// A warp is a token and a query head.
extern "C" __global__ void __launch_bounds__(128)
    SET_NAME(const float* parts, const u16* proj, const int* meta, u16* y, int m, int rows,
             int spans, int first_key) {
  const int lane = threadIdx.x % 32, job = blockIdx.x * 4 + threadIdx.x / 32;
  if (job >= m * NQ) return;
  const int token = job / NQ, head = job % NQ;
  const int position = meta[4 * rows + 2 * token], page = meta[4 * rows + 2 * token + 1];
  float most = LEAST, sum = 0.0f, o[E] = {};
  const int last = page >= 0 ? position / SPAN : -1;
  // 32 spans at a time: each lane asks for one, then all add them up in order.
  for (int base = first_key / SPAN; base <= last; base += 32) {
    const float* part = parts + (static_cast<size_t>(job) * spans + base) * (D + 2);
    const bool mine = base + lane <= last;
    const float here = mine ? part[lane * (D + 2) + D] : LEAST;
    const float weight = mine ? part[lane * (D + 2) + D + 1] : 0.0f;
    float top = here;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
    }
    top = fmaxf(top, most);
    // No key seen so far: nothing to add up, and nothing to rescale.
    if (top == LEAST) continue;
    const float old = most == LEAST ? 0.0f : expf(most - top);
    const float fresh = here == LEAST ? 0.0f : expf(here - top);
    sum = fmaf(sum, old, sum_lanes<32>(weight * fresh));
#pragma unroll
    for (int i = 0; i < E; ++i) o[i] *= old;
    const int count = min(32, last - base + 1);
#pragma unroll 4
    for (int at = 0; at < count; ++at) {
      const float w = __shfl_sync(0xffffffffu, fresh, at);
      const float* from = part + at * (D + 2) + lane * E;
#pragma unroll
      for (int i = 0; i < E; ++i) o[i] = fmaf(from[i], w, o[i]);
    }
    most = top;
  }
  const u16* gate = proj + static_cast<size_t>(token) * PROJ + (2 * head + 1) * D + lane * E;
#pragma unroll
  for (int i = 0; i < E; ++i) {
    const float value = sum > 0.0f ? o[i] / sum : 0.0f;
    const float open = 1.0f / (1.0f + expf(-widen(gate[i])));
    y[static_cast<size_t>(job) * D + lane * E + i] = narrow(value * open);
  }
}

#endif

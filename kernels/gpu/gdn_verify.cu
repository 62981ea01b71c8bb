// gdn_verify: Gated DeltaNet between its projections, for rows of any length, state in place.
//
// A row first folds the `keep` accepted tokens of its last cycle into the committed state, then
// walks its new tokens. Old tokens are kept as they came out of the projection, so a replay is the
// same computation as the first time, to the bit; and so is a token of a row that is not a long
// prompt, whatever its row's length. With SET_CHUNKED long prompts go the way of gdn_chunked.cu.
//
// proj [M, q | k | v | z | b | a]; taps f32 [4, C]; decay = −exp(A_log) and dt_bias f32 [HV];
// gain [DV]; rows i32 [B, (slot, start, len, keep, commit, side)];
// state f32 [slots, HV, DV, DK], in place; window [slots, 2 sides, 3 + T, q | k | v | b | a]: the
// three inputs before the tape, then the tape's; read from `side`, written to the other, since
// blocks share channels; `after` is not read, it is the result of the call before. y [M, HV·DV] = rms(o) · gain · silu(z).
//
// A block is a row and a value head. Thread 4·v + p holds state (v, 16·j + 4·p ..), j < 8.
// Needs DK = DV = 128. SET_HK, SET_HV: heads. SET_T: tokens of a tape.

constexpr int ROWS = 3 + SET_T, WIDE = C + 2 * HV;
constexpr int THREADS = 4 * D, CHUNK = 8;

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    SET_NAME(const u16* proj, const float* taps, const float* decay, const float* dt_bias,
             const u16* gain, const int* rows, float* state, u16* window, const void* after, u16* y,
             int eps_bits) {
  __shared__ __align__(16) float qkv[CHUNK][3 * D];
  __shared__ float out[CHUNK][D];
  __shared__ float forget[CHUNK], learn[CHUNK];
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int head = blockIdx.x % HV, key_head = head / (HV / HK);
  const int* row = rows + blockIdx.x / HV * 6;
  const int slot = row[0], start = row[1], len = row[2], keep = row[3], commit = row[4];
  const size_t side = static_cast<size_t>(ROWS) * WIDE;
  const u16* old = window + (2 * slot + row[5]) * side;
  u16* next = window + (2 * slot + 1 - row[5]) * side;
  const int total = keep + len;
  // Column `c` of the window for input `e`, counted from the oldest.
  auto at = [&](int e, int c) {
    if (e < 3 + keep) return old + static_cast<size_t>(e) * WIDE + c;
    const size_t from = static_cast<size_t>(start + e - 3 - keep) * PROJ;
    return proj + from + (c < C ? c : c + HV * D);
  };
  auto input = [&](int e, int c) { return *at(e, c); };
  // Channel of this block's q, k or v.
  auto channel = [&](int i) {
    const int at = i % D;
    return i < D ? key_head * D + at : i < 2 * D ? (HK + key_head) * D + at
                                                 : (2 * HK + head) * D + at;
  };

  // A committed row keeps its last three inputs, a verified one all that it may have to replay.
  const int first = commit ? total : keep, kept = commit ? 3 : 3 + len;
  if (thread < 3 * D && (thread >= 2 * D || head % (HV / HK) == 0)) {
    const int c = channel(thread);
#pragma unroll 4
    for (int j = 0; j < kept; ++j) next[static_cast<size_t>(j) * WIDE + c] = input(first + j, c);
  } else if (thread >= 3 * D && thread < 3 * D + 2) {
    const int c = C + (thread - 3 * D) * HV + head;
    for (int j = 3; j < kept; ++j) next[static_cast<size_t>(j) * WIDE + c] = input(first + j, c);
  }

#if SET_CHUNKED
  if (commit && total >= LONG) {
    float* own = state + (static_cast<size_t>(slot) * HV + head) * D * D;
    walk_chunks(total, keep, start, head, at, taps, decay[head], dt_bias[head], gain, own, proj, y,
                __int_as_float(eps_bits));
    return;
  }
#endif
  const int v = thread / 4, p = thread % 4;
  float4* held = reinterpret_cast<float4*>(
      state + ((static_cast<size_t>(slot) * HV + head) * D + v) * D) + p;
  float4 s[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) s[j] = held[4 * j];
  auto store = [&]() {
#pragma unroll
    for (int j = 0; j < 8; ++j) held[4 * j] = s[j];
  };

  for (int base = 0; base < total; base += CHUNK) {
    const int n = min(CHUNK, total - base);
    if (thread < 3 * D) {
      // A thread is a channel; all its inputs are on their way at once.
      const int c = channel(thread);
      float x[CHUNK + 3], tap[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) tap[j] = taps[j * C + c];
#pragma unroll
      for (int e = 0; e < CHUNK + 3; ++e) x[e] = e < n + 3 ? widen(input(base + e, c)) : 0.0f;
#pragma unroll
      for (int t = 0; t < CHUNK; ++t) {
        float value = 0.0f;
#pragma unroll
        for (int j = 0; j < 4; ++j) value = fmaf(tap[j], x[t + j], value);
        if (t < n) qkv[t][thread] = value / (1.0f + expf(-value));
      }
    } else if (thread < 3 * D + n) {
      const int t = thread - 3 * D;
      const float b = widen(input(base + t + 3, C + head));
      const float a = widen(input(base + t + 3, C + HV + head)) + dt_bias[head];
      learn[t] = 1.0f / (1.0f + expf(-b));
      const float dt = fmaxf(a, 0.0f) + log1pf(expf(-fabsf(a)));
      forget[t] = expf(decay[head] * dt);
    }
    __syncthreads();
    for (int job = warp; job < 2 * n; job += THREADS / 32) {
      float* x = qkv[job / 2] + job % 2 * D;
      float squares = 0.0f;
#pragma unroll
      for (int i = 0; i < 4; ++i) squares = fmaf(x[lane + 32 * i], x[lane + 32 * i], squares);
      const float norm = rsqrtf(sum_lanes<32>(squares) + 1e-6f);
      const float scale = job % 2 == 0 ? norm * 0.08838834764831845f : norm;
#pragma unroll
      for (int i = 0; i < 4; ++i) x[lane + 32 * i] *= scale;
    }
    __syncthreads();
    for (int t = 0; t < n; ++t) {
      const bool fresh = base + t >= keep;
      // The committed state, before any token that may be rejected.
      if (base + t == keep && keep > 0 && !commit) store();
      const float4* q = reinterpret_cast<const float4*>(qkv[t]) + p;
      const float4* k = q + D / 4;
      const float g = forget[t];
      float seen = 0.0f;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float4 kj = k[4 * j];
        s[j].x *= g, s[j].y *= g, s[j].z *= g, s[j].w *= g;
        seen = fmaf(s[j].x, kj.x, seen), seen = fmaf(s[j].y, kj.y, seen);
        seen = fmaf(s[j].z, kj.z, seen), seen = fmaf(s[j].w, kj.w, seen);
      }
      const float d = learn[t] * (qkv[t][2 * D + v] - sum_lanes<4>(seen));
      float o = 0.0f;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float4 kj = k[4 * j], qj = q[4 * j];
        s[j].x = fmaf(d, kj.x, s[j].x), s[j].y = fmaf(d, kj.y, s[j].y);
        s[j].z = fmaf(d, kj.z, s[j].z), s[j].w = fmaf(d, kj.w, s[j].w);
        o = fmaf(s[j].x, qj.x, o), o = fmaf(s[j].y, qj.y, o);
        o = fmaf(s[j].z, qj.z, o), o = fmaf(s[j].w, qj.w, o);
      }
      if (fresh) {
        o = sum_lanes<4>(o);
        if (p == 0) out[t][v] = o;
      }
    }
    __syncthreads();
    if (warp < n && base + warp >= keep) {
      const size_t token = static_cast<size_t>(start + base + warp - keep);
      float o[4], squares = 0.0f;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        o[i] = widen(narrow(out[warp][lane + 32 * i]));
        squares = fmaf(o[i], o[i], squares);
      }
      const float norm = rsqrtf(sum_lanes<32>(squares) / D + __int_as_float(eps_bits));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = lane + 32 * i;
        const float z = widen(proj[token * PROJ + C + head * D + at]);
        const float normed = widen(narrow(o[i] * norm * widen(gain[at])));
        y[token * (HV * D) + head * D + at] = narrow(normed * (z / (1.0f + expf(-z))));
      }
    }
    __syncthreads();
  }
  if (total > 0 && (commit || len == 0)) store();
}

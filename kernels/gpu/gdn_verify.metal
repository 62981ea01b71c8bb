// gdn_verify: Gated DeltaNet between its projections, for rows of any length, state in place. The
// contract is that of gdn_verify.cu.
//
// Inputs: proj, taps, decay, dt_bias, gain, rows, state, window, after, scalars (eps as bits).
// Output: y. A threadgroup is a row and a value head. Thread 4·v + p holds state (v, 16·j + 4·p ..),
// j < 8. With SET_CHUNKED long prompts go the way of gdn_chunked.metal, which then follows this file.

#ifndef BODY

enum {
  HK = SET_HK,
  HV = SET_HV,
  D = 128,
  ROWS = 3 + SET_T,
  C = (2 * HK + HV) * D,
  WIDE = C + 2 * HV,
  PROJ = C + HV * D + 2 * HV,
  THREADS = 4 * D,
  CHUNK = 8,
  // Floats that a threadgroup shares: q | k | v of a chunk, results, decays and learning rates.
  WALK_ROOM = CHUNK * (4 * D + 2)
};

// Inputs of the convolution and the gates, counted from the oldest: `held` in the window, then new
// tokens, the first of which is at `proj`.
struct Tape {
  const device Scalar* old;
  const device Scalar* proj;
  int held;
};

// Column `c` of the window for input `e`.
inline Scalar input(Tape tape, int e, int c) {
  if (e < tape.held) return tape.old[size_t(e) * WIDE + c];
  return tape.proj[size_t(e - tape.held) * PROJ + (c < C ? c : c + HV * D)];
}

// Channel of a threadgroup's q, k or v.
inline int channel(int i, int head) {
  const int at = i % D, key_head = head / (HV / HK);
  return i < D ? key_head * D + at : i < 2 * D ? (HK + key_head) * D + at : (2 * HK + head) * D + at;
}

inline float softplus(float a) {
  // log(1 + x), without loss where x is small.
  const float x = exp(-fabs(a)), u = 1.0f + x;
  return fmax(a, 0.0f) + (u == 1.0f ? x : log(u) * (x / (u - 1.0f)));
}

// A token's results [D] of a head, by all lanes of a simdgroup: rms(o) · gain · silu(z).
inline void finish(const threadgroup float* out, const device Scalar* z_of, const device Scalar* gain,
                   device Scalar* y, float eps, int lane) {
  float o[4], squares = 0.0f;
  UNROLL
  for (int i = 0; i < 4; ++i) {
    o[i] = widen(narrow(out[lane + 32 * i]));
    squares = fma(o[i], o[i], squares);
  }
  const float norm = rsqrt(sum_lanes(squares, 32) / D + eps);
  UNROLL
  for (int i = 0; i < 4; ++i) {
    const int at = lane + 32 * i;
    const float z = widen(z_of[at]), normed = widen(narrow(o[i] * norm * widen(gain[at])));
    y[at] = narrow(normed * (z * sigmoid(z)));
  }
}

#else

#if SET_CHUNKED
LOCAL float4 room[CHUNK_ROOM / 4];
#else
LOCAL float4 room[WALK_ROOM / 4];
#endif
threadgroup float* qkv = (threadgroup float*)room;
threadgroup float* out = qkv + CHUNK * 3 * D;
threadgroup float* forget = out + CHUNK * D;
threadgroup float* learn = forget + CHUNK;
const int thread_at = thread_position_in_threadgroup.x;
const int warp = thread_at / 32, lane = thread_at % 32;
const int head = threadgroup_position_in_grid.x % HV;
const device int* row = rows + threadgroup_position_in_grid.x / HV * 6;
const int slot = row[0], start = row[1], len = row[2], keep = row[3], commit = row[4];
const float eps = as_type<float>(scalars[0]);
const size_t side = size_t(ROWS) * WIDE;
const Tape tape = {window + (2 * slot + row[5]) * side, proj + size_t(start) * PROJ, 3 + keep};
device Scalar* next = (device Scalar*)window + (2 * slot + 1 - row[5]) * side;
const int total = keep + len;

// A committed row keeps its last three inputs, a verified one all that it may have to replay.
const int first = commit ? total : keep, kept = commit ? 3 : 3 + len;
if (thread_at < 3 * D && (thread_at >= 2 * D || head % (HV / HK) == 0)) {
  const int c = channel(thread_at, head);
  for (int j = 0; j < kept; ++j) next[size_t(j) * WIDE + c] = input(tape, first + j, c);
} else if (thread_at >= 3 * D && thread_at < 3 * D + 2) {
  const int c = C + (thread_at - 3 * D) * HV + head;
  for (int j = 3; j < kept; ++j) next[size_t(j) * WIDE + c] = input(tape, first + j, c);
}

#if SET_CHUNKED
if (commit && total >= LONG) {
  device float* own = (device float*)state + (size_t(slot) * HV + head) * D * D;
  walk_chunks(qkv, tape, total, keep, head, taps, decay[head], dt_bias[head], gain, own,
              y + (size_t(start) * HV + head) * D, eps, thread_at);
  return;
}
#endif
const int v = thread_at / 4, p = thread_at % 4;
device float4* held = (device float4*)state + (size_t(slot) * HV + head) * D * D / 4 + v * D / 4 + p;
float4 s[8];
UNROLL
for (int j = 0; j < 8; ++j) s[j] = held[4 * j];

for (int base = 0; base < total; base += CHUNK) {
  const int n = min(int(CHUNK), total - base);
  if (thread_at < 3 * D) {
    // A thread is a channel.
    const int c = channel(thread_at, head);
    float x[4];
    for (int e = 0; e < 3; ++e) x[e + 1] = widen(input(tape, base + e, c));
    for (int t = 0; t < n; ++t) {
      float value = 0.0f;
      for (int j = 0; j < 3; ++j) x[j] = x[j + 1];
      x[3] = widen(input(tape, base + t + 3, c));
      for (int j = 0; j < 4; ++j) value = fma(taps[j * C + c], x[j], value);
      qkv[t * 3 * D + thread_at] = value * sigmoid(value);
    }
  } else if (thread_at < 3 * D + n) {
    const int t = thread_at - 3 * D;
    learn[t] = sigmoid(widen(input(tape, base + t + 3, C + head)));
    const float a = widen(input(tape, base + t + 3, C + HV + head)) + dt_bias[head];
    forget[t] = exp(decay[head] * softplus(a));
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int job = warp; job < 2 * n; job += THREADS / 32) {
    threadgroup float* x = qkv + job / 2 * 3 * D + job % 2 * D;
    float squares = 0.0f;
    UNROLL
    for (int i = 0; i < 4; ++i) squares = fma(x[lane + 32 * i], x[lane + 32 * i], squares);
    const float norm = rsqrt(sum_lanes(squares, 32) + 1e-6f);
    const float scale = job % 2 == 0 ? norm * 0.08838834764831845f : norm;
    UNROLL
    for (int i = 0; i < 4; ++i) x[lane + 32 * i] *= scale;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int t = 0; t < n; ++t) {
    // The committed state, before any token that may be rejected.
    if (base + t == keep && keep > 0 && !commit) {
      UNROLL
      for (int j = 0; j < 8; ++j) held[4 * j] = s[j];
    }
    const threadgroup float4* q = (const threadgroup float4*)(qkv + t * 3 * D) + p;
    const threadgroup float4* k = q + D / 4;
    float seen = 0.0f, o = 0.0f;
    UNROLL
    for (int j = 0; j < 8; ++j) {
      s[j] = s[j] * forget[t];
      seen = dot_on(s[j], k[4 * j], seen);
    }
    const float value = qkv[t * 3 * D + 2 * D + v];
    const float d = learn[t] * (value - sum_lanes(seen, 4));
    UNROLL
    for (int j = 0; j < 8; ++j) {
      const float4 kj = k[4 * j];
      s[j].x = fma(d, kj.x, s[j].x);
      s[j].y = fma(d, kj.y, s[j].y);
      s[j].z = fma(d, kj.z, s[j].z);
      s[j].w = fma(d, kj.w, s[j].w);
      o = dot_on(s[j], q[4 * j], o);
    }
    o = sum_lanes(o, 4);
    if (p == 0) out[t * D + v] = o;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (warp < n && base + warp >= keep) {
    const size_t token = start + base + warp - keep;
    finish(out + warp * D, proj + token * PROJ + C + head * D, gain, y + (token * HV + head) * D, eps,
           lane);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}
if (total > 0 && (commit || len == 0)) {
  UNROLL
  for (int j = 0; j < 8; ++j) held[4 * j] = s[j];
}

#endif

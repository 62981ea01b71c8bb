// gdn_chunked: what gdn_verify does with a row of a long prompt, 16 tokens at a time by matrices of
// 8 × 8 of simdgroups. It follows gdn_verify.metal, which has the contract and the names; the maths
// is that of gdn_chunked.cu.
//
// A simdgroup owns 8 values of its head: their columns of the state, which never leave its
// registers, of the corrections d and of the results. It shares keys, queries, and how much tokens
// weigh upon one another. All is fp32: results and the state differ from those of the walk token by
// token as sums in another order do, by less than 1e-4 of their size before results are rounded.
//
// Rows are scaled by products with diagonal matrices: what a lane holds of a matrix nobody says.

#if !defined(BODY) && SET_CHUNKED

#ifdef __METAL_VERSION__
#include <metal_simdgroup_matrix>
#endif

enum {
  L = 16,
  LONG = 64,
  // Floats of a token's q | k | v, padded so that a column's eight rows lie in different banks.
  ACROSS = 3 * D + 4,
  CHUNK_ROOM = L * ACROSS + 2 * L * L + 3 * 8 * L + 2 * L
};

// Below this a token's decay is 0 in any sum, and sums of more would blur those of its neighbours.
#define LEAST_DECAY -90.0f

// matrix = numbers [8][8] of rows that lie `across` apart.
inline void take(thread simdgroup_float8x8& matrix, const threadgroup float* numbers, int across) {
  simdgroup_load(matrix, numbers, ulong(across));
}

// Its transpose. Whether to transpose is no argument: compilers want to know it.
inline void take_turned(thread simdgroup_float8x8& matrix, const threadgroup float* numbers,
                        int across) {
  simdgroup_load(matrix, numbers, ulong(across), ulong2(0), true);
}

// The logarithm of a chunk's decay up to each token, and what each learns, by one simdgroup.
inline void gates(Tape tape, int base, int n, int head, float decay, float dt_bias,
                  threadgroup float* log_decay, threadgroup float* learn, int lane) {
  const bool lives = lane < n;
  float sum = 0.0f, rate = 0.0f;
  if (lives) {
    const float a = widen(input(tape, base + lane + 3, C + HV + head)) + dt_bias;
    sum = decay * softplus(a);
    // Not by fmax, which would hide what is no number.
    if (sum < LEAST_DECAY) sum = LEAST_DECAY;
    rate = sigmoid(widen(input(tape, base + lane + 3, C + head)));
  }
  for (int step = 1; step < L; step *= 2) {
    const float earlier = simd_shuffle(sum, ushort(max(lane - step, 0)));
    if (lane >= step) sum += earlier;
  }
  if (lane < L) {
    log_decay[lane] = sum;
    learn[lane] = rate;
  }
}

// A channel of q, k or v of a chunk's tokens, by one thread; 0 for those beyond the last.
inline void convolve(Tape tape, int base, int n, int head, const device float* taps,
                     threadgroup float* x, int thread_at) {
  const int c = channel(thread_at, head);
  float in[4];
  for (int e = 0; e < 3; ++e) in[e + 1] = widen(input(tape, base + e, c));
  for (int t = 0; t < L; ++t) {
    float value = 0.0f;
    if (t < n) {
      for (int j = 0; j < 3; ++j) in[j] = in[j + 1];
      in[3] = widen(input(tape, base + t + 3, c));
      for (int j = 0; j < 4; ++j) value = fma(taps[j * C + c], in[j], value);
      value = value * sigmoid(value);
    }
    x[t * ACROSS + thread_at] = value;
  }
}

// One of the tiles [t][s], on or below the diagonal, of what tokens s do to tokens t: to their
// corrections (`job` below 3), or to their results.
inline void weigh(int job, const threadgroup float* x, const threadgroup float* log_decay,
                  const threadgroup float* learn, threadgroup float* before,
                  threadgroup float* shares, int lane) {
  const bool is_query = job >= 3;
  const int first_t = job % 3 > 0 ? 8 : 0, first_s = job % 3 > 1 ? 8 : 0;
  simdgroup_float8x8 sum(0.0f);
  UNROLL
  for (int k = 0; k < D; k += 8) {
    simdgroup_float8x8 a, b;
    take(a, x + first_t * ACROSS + (is_query ? 0 : D) + k, ACROSS);
    take_turned(b, x + first_s * ACROSS + D + k, ACROSS);
    simdgroup_multiply_accumulate(sum, a, b, sum);
  }
  threadgroup float* to = (is_query ? shares : before) + first_t * L + first_s;
  simdgroup_store(sum, to, ulong(L));
  simdgroup_barrier(mem_flags::mem_threadgroup);
  for (int i = lane; i < 64; i += 32) {
    const int t = first_t + i / 8, s = first_s + i % 8;
    float weight = 0.0f;
    if (s < t || (is_query && s == t)) {
      weight = to[i / 8 * L + i % 8] * exp(log_decay[t] - log_decay[s]) * (is_query ? 1.0f : learn[t]);
    }
    to[i / 8 * L + i % 8] = weight;
  }
}

// Solves the triangular system for a simdgroup's 8 values, whose right sides `own` [t][v] has and
// where d comes: lane 8 · p + v has tokens p, p + 4, ... of value v.
inline void solve(threadgroup float* own, const threadgroup float* before, int lane) {
  const int v = lane % 8, p = lane / 8;
  float d[L / 4];
  UNROLL
  for (int j = 0; j < L / 4; ++j) d[j] = own[(p + 4 * j) * ACROSS + v];
  UNROLL
  for (int s = 0; s < L; ++s) {
    const float solved = simd_shuffle(d[s / 4], ushort(s % 4 * 8 + v));
    UNROLL
    for (int j = s / 4; j < L / 4; ++j) {
      // Up to s itself they are zero.
      d[j] = fma(-before[(p + 4 * j) * L + s], solved, d[j]);
    }
  }
  UNROLL
  for (int j = 0; j < L / 4; ++j) own[(p + 4 * j) * ACROSS + v] = d[j];
}

// A head's walk over all tokens of a row. `y` is where its first new token's results go.
inline void walk_chunks(threadgroup float* x, Tape tape, int total, int keep, int head,
                        const device float* taps, float decay, float dt_bias,
                        const device Scalar* gain, device float* state, device Scalar* y, float eps,
                        int thread_at) {
  const int warp = thread_at / 32, lane = thread_at % 32;
  threadgroup float* before = x + L * ACROSS;
  threadgroup float* shares = before + L * L;
  // Diagonals, 8 tokens a matrix: decay since the chunk's start, that times −learn, and decay until
  // the chunk's end.
  threadgroup float* since = shares + L * L;
  threadgroup float* unlearn = since + 8 * L;
  threadgroup float* until = unlearn + 8 * L;
  threadgroup float* log_decay = until + 8 * L;
  threadgroup float* learn = log_decay + L;
  if (thread_at < 3 * 8 * L) since[thread_at] = 0.0f;

  // [k][v]: the pool has [v][k].
  device float* held = state + 8 * warp * D;
  simdgroup_float8x8 s[D / 8];
  UNROLL
  for (int i = 0; i < D / 8; ++i) simdgroup_load(s[i], held + 8 * i, ulong(D), ulong2(0), true);

  for (int base = 0; base < total; base += L) {
    const int n = min(int(L), total - base);
    if (thread_at < 3 * D) {
      convolve(tape, base, n, head, taps, x, thread_at);
    } else if (warp == 3 * D / 32) {
      gates(tape, base, n, head, decay, dt_bias, log_decay, learn, lane);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int job = warp; job < 2 * L; job += THREADS / 32) {
      threadgroup float* of = x + job / 2 * ACROSS + job % 2 * D;
      float squares = 0.0f;
      UNROLL
      for (int i = 0; i < 4; ++i) squares = fma(of[lane + 32 * i], of[lane + 32 * i], squares);
      const float norm = rsqrt(sum_lanes(squares, 32) + 1e-6f);
      const float scale = job % 2 == 0 ? norm * 0.08838834764831845f : norm;
      UNROLL
      for (int i = 0; i < 4; ++i) of[lane + 32 * i] *= scale;
    }
    for (int i = thread_at; i < L * D; i += THREADS) x[i / D * ACROSS + 2 * D + i % D] *= learn[i / D];
    if (thread_at < L) {
      const int at = thread_at / 8 * 64 + thread_at % 8 * 9;
      since[at] = exp(log_decay[thread_at]);
      unlearn[at] = -learn[thread_at] * since[at];
      until[at] = exp(log_decay[L - 1] - log_decay[thread_at]);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (warp < 6) weigh(warp, x, log_decay, learn, before, shares, lane);

    // Keys and queries against the state.
    threadgroup float* own = x + 2 * D + 8 * warp;
    simdgroup_float8x8 seen[2] = {simdgroup_float8x8(0.0f), simdgroup_float8x8(0.0f)};
    simdgroup_float8x8 o[2] = {simdgroup_float8x8(0.0f), simdgroup_float8x8(0.0f)};
    UNROLL
    for (int i = 0; i < D / 8; ++i) {
      UNROLL
      for (int tile = 0; tile < 2; ++tile) {
        simdgroup_float8x8 of;
        take(of, x + 8 * tile * ACROSS + D + 8 * i, ACROSS);
        simdgroup_multiply_accumulate(seen[tile], of, s[i], seen[tile]);
        take(of, x + 8 * tile * ACROSS + 8 * i, ACROSS);
        simdgroup_multiply_accumulate(o[tile], of, s[i], o[tile]);
      }
    }
    UNROLL
    for (int tile = 0; tile < 2; ++tile) {
      simdgroup_float8x8 right, scale;
      take(right, own + 8 * tile * ACROSS, ACROSS);
      take(scale, unlearn + 64 * tile, 8);
      simdgroup_multiply_accumulate(right, scale, seen[tile], right);
      simdgroup_store(right, own + 8 * tile * ACROSS, ulong(ACROSS));
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    solve(own, before, lane);
    simdgroup_barrier(mem_flags::mem_threadgroup);

    simdgroup_float8x8 d[2];
    UNROLL
    for (int tile = 0; tile < 2; ++tile) {
      take(d[tile], own + 8 * tile * ACROSS, ACROSS);
      simdgroup_float8x8 scale, scaled;
      take(scale, since + 64 * tile, 8);
      simdgroup_multiply(scaled, scale, o[tile]);
      UNROLL
      for (int from = 0; from <= tile; ++from) {
        simdgroup_float8x8 share;
        take(share, shares + 8 * tile * L + 8 * from, L);
        simdgroup_multiply_accumulate(scaled, share, d[from], scaled);
      }
      o[tile] = scaled;
    }
    UNROLL
    for (int tile = 0; tile < 2; ++tile) {
      simdgroup_float8x8 scale, scaled;
      take(scale, until + 64 * tile, 8);
      simdgroup_multiply(scaled, scale, d[tile]);
      d[tile] = scaled;
    }
    simdgroup_float8x8 all(exp(log_decay[L - 1]));
    UNROLL
    for (int i = 0; i < D / 8; ++i) {
      simdgroup_float8x8 next;
      simdgroup_multiply(next, all, s[i]);
      UNROLL
      for (int tile = 0; tile < 2; ++tile) {
        simdgroup_float8x8 key;
        take_turned(key, x + 8 * tile * ACROSS + D + 8 * i, ACROSS);
        simdgroup_multiply_accumulate(next, key, d[tile], next);
      }
      s[i] = next;
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    UNROLL
    for (int tile = 0; tile < 2; ++tile) {
      simdgroup_store(o[tile], own + 8 * tile * ACROSS, ulong(ACROSS));
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (warp < n && base + warp >= keep) {
      const size_t token = base + warp - keep;
      finish(x + warp * ACROSS + 2 * D, tape.proj + token * PROJ + C + head * D, gain,
             y + token * HV * D, eps, lane);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  UNROLL
  for (int i = 0; i < D / 8; ++i) simdgroup_store(s[i], held + 8 * i, ulong(D), ulong2(0), true);
}

#endif

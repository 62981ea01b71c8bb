// gdn_chunked: what gdn_verify does with a row of a long prompt, 32 tokens at a time on the tensor
// cores. Included before gdn_verify.cu, which has the contract and the names.
//
// With G the logarithm of the decay since a chunk's start and S the state there, the recurrence's
// corrections d are the solution of a triangular system,
//   d_t = β_t (v_t − e^G_t S k_t − Σ_{s<t} e^(G_t − G_s) (k_s·k_t) d_s),
// and then o_t = e^G_t S q_t + Σ_{s≤t} e^(G_t − G_s) (k_s·q_t) d_s, and the state goes on as
// e^G_L S + Σ_s e^(G_L − G_s) d_s k_sᵀ. (Yang et al. 2024, section 3.3.)
//
// Products take tf32: k, q, d and a copy of S rounded to 11 bits, sums in fp32. S itself stays fp32
// in registers. Against the walk token by token results differ by less than their own rounding to
// halves, the state by 1e-3 of its size.
//
// 512 threads. Tiles of the tensor cores: m16n8k8; lane 4·g + c.

constexpr int L = 32;
constexpr int LONG = 2 * L;

// What a block shares. Rows are padded so that a warp's fragments lie in different banks.
struct ChunkRoom {
  float state[128][132];       // [v][k]
  float keys[2 * L][132];      // k of every token, then q, in whose place results come later
  float values[L][136];        // v of every token, then d
  float weighted[L][136];      // d, decayed to the chunk's end
  float before[L][36];         // [s][t]: what d of s adds to d of t
  float shares[L][36];         // [t][s]: what d of s adds to the result of t
  float log_decay[L], learn[L];
};

#ifdef __CUDACC__
extern __shared__ float4 chunk_room[];

// To the nearest tf32.
__device__ __forceinline__ float tf32(float value) {
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return __uint_as_float(bits);
}

__device__ __forceinline__ void mma(float (&d)[4], const float (&a)[4], float b0, float b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}
#endif

// A head's walk. `at(e, c)` is where column c of input e lies; see gdn_verify.cu.
template <typename Where>
__device__ __forceinline__ void walk_chunks(int total, int keep, int start, int head, const Where& at,
                                            const float* taps, float decay, float dt_bias,
                                            const u16* gain, float* state, const u16* proj, u16* y,
                                            float eps) {
  ChunkRoom& room = *reinterpret_cast<ChunkRoom*>(chunk_room);
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int g = lane / 4, c = lane % 4, key_head = head / (HV / HK);

  // A warp holds 32 × 32 of the state.
  const int state_v = warp / 4 * 32, state_k = warp % 4 * 32;
  float s[2][4][4];
  auto each_state = [&](auto&& f) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          f(s[i][j][2 * r], s[i][j][2 * r + 1], state_v + 16 * i + g + 8 * r, state_k + 8 * j + 2 * c);
        }
  };
  auto share_state = [&]() {
    each_state([&](float& a, float& b, int v, int k) {
      room.state[v][k] = tf32(a), room.state[v][k + 1] = tf32(b);
    });
  };
  each_state([&](float& a, float& b, int v, int k) { a = state[v * D + k], b = state[v * D + k + 1]; });
  share_state();

  // Threads below 384 have two channels of 16 tokens, the next 32 a token's gates.
  const bool convolves = thread < 384, gates = thread / 32 == 12;
  const int pair = thread % 192 * 2, part = thread / 192 * 16;
  const int column = pair < D       ? key_head * D + pair
                     : pair < 2 * D ? (HK + key_head) * D + pair - D
                                    : (2 * HK + head) * D + pair - 2 * D;
  unsigned raw[19];
  u16 raw_b = 0, raw_a = 0;
  auto fetch = [&](int base) {
    if (convolves) {
#pragma unroll
      for (int j = 0; j < 19; ++j) {
        const int e = base + part + j;
        raw[j] = e < total + 3 ? *reinterpret_cast<const unsigned*>(at(e, column)) : 0;
      }
    } else if (gates && base + lane < total) {
      raw_b = *at(base + lane + 3, C + head), raw_a = *at(base + lane + 3, C + HV + head);
    }
  };
  float tap[4][2];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    tap[j][0] = taps[j * C + column], tap[j][1] = taps[j * C + column + 1];
  }
  fetch(0);

  for (int base = 0; base < total; base += L) {
    const int n = min(L, total - base);
    if (convolves) {
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        const int t = part + j;
        float value[2] = {};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          value[0] = fmaf(tap[i][0], widen(static_cast<u16>(raw[j + i] & 0xffffu)), value[0]);
          value[1] = fmaf(tap[i][1], widen(static_cast<u16>(raw[j + i] >> 16)), value[1]);
        }
        // A token beyond the last changes nothing.
#pragma unroll
        for (int i = 0; i < 2; ++i) value[i] = t < n ? value[i] / (1.0f + expf(-value[i])) : 0.0f;
        float* to = pair < D       ? &room.keys[L + t][pair]
                    : pair < 2 * D ? &room.keys[t][pair - D]
                                   : &room.values[t][pair - 2 * D];
        to[0] = value[0], to[1] = value[1];
      }
    } else if (gates) {
      const float a = widen(raw_a) + dt_bias;
      const float dt = fmaxf(a, 0.0f) + log1pf(expf(-fabsf(a)));
      float sum = lane < n ? decay * dt : 0.0f;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const float earlier = __shfl_sync(0xffffffffu, sum, max(lane - step, 0));
        if (lane >= step) sum += earlier;
      }
      room.log_decay[lane] = sum;
      room.learn[lane] = lane < n ? 1.0f / (1.0f + expf(-widen(raw_b))) : 0.0f;
    }
    fetch(base + L);
    __syncthreads();
    for (int job = warp; job < 2 * L; job += 16) {
      float* x = room.keys[job];
      float squares = 0.0f;
#pragma unroll
      for (int i = 0; i < 4; ++i) squares = fmaf(x[lane + 32 * i], x[lane + 32 * i], squares);
      const float norm = rsqrtf(sum_lanes<32>(squares) + 1e-6f);
      const float scale = job < L ? norm : norm * 0.08838834764831845f;
#pragma unroll
      for (int i = 0; i < 4; ++i) x[lane + 32 * i] = tf32(x[lane + 32 * i] * scale);
    }
    __syncthreads();

    // Keys and queries against the state and the keys: 4 × 20 tiles, 5 in a row a warp.
    const int rows = warp % 4 * 16;
    float product[5][4] = {};
#pragma unroll 4
    for (int k = 0; k < D; k += 8) {
      const float a[4] = {room.keys[rows + g][k + c], room.keys[rows + g + 8][k + c],
                          room.keys[rows + g][k + c + 4], room.keys[rows + g + 8][k + c + 4]};
#pragma unroll
      for (int i = 0; i < 5; ++i) {
        const int tile = warp / 4 * 5 + i;
        const float* b = (tile < 16 ? room.state[8 * tile + g] : room.keys[8 * tile - 128 + g]) + k;
        mma(product[i], a, b[c], b[c + 4]);
      }
    }
    const bool is_query = rows >= L;
#pragma unroll
    for (int i = 0; i < 5; ++i)
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int tile = warp / 4 * 5 + i, t = rows % L + g + 8 * (r / 2);
        const int col = 8 * tile + 2 * c + r % 2, other = col - 128;
        const float since = room.log_decay[t], learn = room.learn[t];
        float& value = product[i][r];
        if (tile < 16) {
          value *= expf(since);
          if (!is_query) room.values[t][col] = learn * (room.values[t][col] - value);
        } else {
          const float between = expf(since - room.log_decay[other]) * value;
          if (is_query) {
            room.shares[t][other] = other <= t ? tf32(between) : 0.0f;
          } else {
            room.before[other][t] = other < t ? learn * between : 0.0f;
          }
        }
      }
    __syncthreads();

    // The triangular system: a thread is a column, and solves it token by token.
    const float last = room.log_decay[L - 1];
    if (thread < D) {
      float d[L];
#pragma unroll
      for (int t = 0; t < L; ++t) d[t] = room.values[t][thread];
#pragma unroll
      for (int from = 0; from < L; ++from) {
        const float4* row = reinterpret_cast<const float4*>(room.before[from]);
#pragma unroll
        for (int t = from / 4 * 4; t < L; t += 4) {
          const float4 part_of = row[t / 4];
          // Before and at `from` they are zero.
          d[t] = fmaf(-part_of.x, d[from], d[t]);
          d[t + 1] = fmaf(-part_of.y, d[from], d[t + 1]);
          d[t + 2] = fmaf(-part_of.z, d[from], d[t + 2]);
          d[t + 3] = fmaf(-part_of.w, d[from], d[t + 3]);
        }
      }
#pragma unroll
      for (int t = 0; t < L; ++t) {
        room.values[t][thread] = tf32(d[t]);
        room.weighted[t][thread] = tf32(d[t] * expf(last - room.log_decay[t]));
      }
    }
    __syncthreads();

    if (is_query) {
#pragma unroll
      for (int from = 0; from < L; from += 8) {
        const int t = rows % L + g;
        const float a[4] = {room.shares[t][from + c], room.shares[t + 8][from + c],
                            room.shares[t][from + c + 4], room.shares[t + 8][from + c + 4]};
#pragma unroll
        for (int i = 0; i < 5; ++i) {
          const int tile = warp / 4 * 5 + i;
          if (tile < 16) {
            mma(product[i], a, room.values[from + c][8 * tile + g],
                room.values[from + c + 4][8 * tile + g]);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < 5; ++i) {
        const int tile = warp / 4 * 5 + i;
        if (tile >= 16) continue;
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          room.keys[rows + g + 8 * (r / 2)][8 * tile + 2 * c + r % 2] = product[i][r];
        }
      }
    }
    const float all = expf(last);
#pragma unroll
    for (int i = 0; i < 32; ++i) s[i / 16][i / 4 % 4][i % 4] *= all;
#pragma unroll
    for (int from = 0; from < L; from += 8) {
      const float* d = room.weighted[from + c] + state_v + g;
      const float* d4 = room.weighted[from + c + 4] + state_v + g;
      const float a[2][4] = {{d[0], d[8], d4[0], d4[8]}, {d[16], d[24], d4[16], d4[24]}};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int k = state_k + 8 * j + g;
        const float b0 = room.keys[from + c][k], b1 = room.keys[from + c + 4][k];
#pragma unroll
        for (int i = 0; i < 2; ++i) mma(s[i][j], a[i], b0, b1);
      }
    }
    __syncthreads();
    share_state();
    for (int t = warp; t < n; t += 16) {
      if (base + t < keep) continue;
      const size_t token = static_cast<size_t>(start + base + t - keep);
      float o[4], squares = 0.0f;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        o[i] = widen(narrow(room.keys[L + t][lane + 32 * i]));
        squares = fmaf(o[i], o[i], squares);
      }
      const float norm = rsqrtf(sum_lanes<32>(squares) / D + eps);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int v = lane + 32 * i;
        const float z = widen(proj[token * PROJ + C + head * D + v]);
        const float normed = widen(narrow(o[i] * norm * widen(gain[v])));
        y[token * (HV * D) + head * D + v] = narrow(normed * (z / (1.0f + expf(-z))));
      }
    }
    __syncthreads();
  }
  each_state([&](float& a, float& b, int v, int k) { state[v * D + k] = a, state[v * D + k + 1] = b; });
}

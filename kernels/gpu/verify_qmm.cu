// verify_qmm: y [M, N] = x [M, K] · Wᵀ for affine 4- and 8-bit W, fp32 accumulation.
//
// A block is 32 outputs and 8·NT rows of x. PARTS warps divide K; each walks its part in steps of
// 64, and their sums are added in the order of the warps. Neither the division nor any order depends
// on M, so a row's result is the same, to the bit, whatever travels with it.
//
// W lies as layout.rs packs it: for every 32 outputs and every 64 of K what a warp needs for one
// step, in the order in which its lanes take it, 16 bytes a lane.
//
// The tensor cores see weights, made in registers: with q a 4-bit code, the bf16 of bits 0x4300 | q is
// 128 + q, exactly; less 128, times scale, plus bias, it is W rounded once, two of them at a time.
// So a warp's sums over K stay in the tensor cores' accumulators, whatever the groups. An 8-bit code
// is two nibbles: 0x4500 | hi is 2048 + 16·hi, and the two halves of q add up exactly.
//
// It includes nothing: halves are bits here, and the run-time compiler needs no header.

namespace verify_qmm {

typedef unsigned short u16;

struct Brain {
  // Bits of 128 and 2048, under whose last places nibbles fit, of −128 and −2048, and of 1.
  static constexpr unsigned LOW = 0x43004300u, HIGH = 0x45004500u;
  static constexpr unsigned LESS_LOW = 0xc300c300u, LESS_HIGH = 0xc500c500u, ONES = 0x3f803f80u;
  // a · b + c of pairs, each rounded once.
  static __device__ __forceinline__ unsigned fma2(unsigned a, unsigned b, unsigned c) {
    unsigned d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
  }
  static __device__ __forceinline__ float low(unsigned pair) {
    return __uint_as_float(pair << 16);
  }
  static __device__ __forceinline__ u16 round(float value) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
  }
  static __device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                                             unsigned b1) {
    asm(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

struct Half {
  static constexpr unsigned LOW = 0x64006400u, HIGH = 0x74007400u;
  static constexpr unsigned LESS_LOW = 0xe400e400u, LESS_HIGH = 0xf400f400u, ONES = 0x3c003c00u;
  static __device__ __forceinline__ unsigned fma2(unsigned a, unsigned b, unsigned c) {
    unsigned d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
  }
  static __device__ __forceinline__ float low(unsigned pair) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(static_cast<u16>(pair & 0xffffu)));
    return value;
  }
  static __device__ __forceinline__ u16 round(float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
  }
  static __device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                                             unsigned b1) {
    asm(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

// Weights pass through once: they are not to push x out of the first cache.
__device__ __forceinline__ uint4 load_once(const uint4* from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

__device__ __forceinline__ uint4 load_kept(const uint4* from) {
  uint4 v;
  asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(from));
  return v;
}

// The 8 codes of a word as the fragment that the tensor cores want: 16 outputs × 16 of K.
__device__ __forceinline__ void spread(unsigned word, unsigned magic, unsigned (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    asm("lop3.b32 %0, %1, 0x000f000f, %2, 0xea;" : "=r"(a[i]) : "r"(word >> (4 * i)), "r"(magic));
  }
}

__device__ __forceinline__ unsigned pick(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// Both halves of a pair made its low one, or its high one.
__device__ __forceinline__ unsigned twice_low(unsigned pair) { return __byte_perm(pair, 0, 0x1010); }
__device__ __forceinline__ unsigned twice_high(unsigned pair) { return __byte_perm(pair, 0, 0x3232); }

// What becomes of a sum: itself; the residual added; outputs in pairs 16 apart, silu(a)·b.
enum Ending { PLAIN = 0, ADD = 1, GATED = 2 };

// silu(gate)·up with every rounding spelled out: it must not depend on how a variant is compiled.
__device__ __forceinline__ float gated(float gate, float up) {
  const float power = __fmul_rn(gate, -1.4426950408889634f);
  float falling;
  asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(falling) : "f"(power));
  return __fmul_rn(__fdiv_rn(gate, __fadd_rn(1.0f, falling)), up);
}

// The pieces of x that a warp meets, step by step; 16 bytes a lane and piece. A row beyond the last
// is anything: its results are dropped. Few rows come straight from memory, both halves of a step
// at once.
template <int NT>
struct X {
  const uint4* at;
  unsigned rows[NT];
  uint4 now[NT][2];

  __device__ __forceinline__ X(const u16* x, int first, int m, int k, int from, int, int lane) {
    at = reinterpret_cast<const uint4*>(x) + from * 8 + lane % 4;
#pragma unroll
    for (int t = 0; t < NT; ++t) rows[t] = min(first + 8 * t + lane / 4, m - 1) * (k / 8);
  }
  __device__ __forceinline__ void next(bool) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int t = 0; t < NT; ++t) now[t][i] = load_kept(at + rows[t] + 4 * i);
    at += 8;
  }
  __device__ __forceinline__ uint4 piece(int t, int i) const { return now[t][i]; }
};

// Many rows would take too many registers: they wait in shared memory, two steps of a warp, of
// which one is on its way. 8 lanes take a row's 128 bytes; the halves of odd rows change places, so
// that no two lanes meet in a bank when fragments are read.
extern __shared__ uint4 x_room[];

template <>
struct X<4> {
  static constexpr int PIECES = 4 * 64;
  const uint4* from;
  unsigned stride, room;
  int rows, side, read;

  __device__ __forceinline__ X(const u16* x, int first, int m, int k, int step, int warp, int lane) {
    const int row = lane / 8, piece = lane % 8;
    from = reinterpret_cast<const uint4*>(x) + static_cast<size_t>(first + row) * (k / 8) +
           step * 8 + piece;
    stride = k / 2;
    rows = m - first - row;
    // Where it writes; a row is 128 bytes, and a lane has every fourth.
    room = static_cast<unsigned>(__cvta_generic_to_shared(x_room + warp * 2 * PIECES)) +
           (row * 8 + (piece ^ row % 2 * 4)) * 16;
    read = warp * 2 * PIECES + lane / 4 * 8 + (lane % 4 ^ lane / 4 % 2 * 4);
    side = 0;
    bring(0);
  }
  __device__ __forceinline__ void bring(int to) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (4 * j < rows) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(room + (to * PIECES + 32 * j) * 16),
                     "l"(from + j * stride));
      }
    }
    asm volatile("cp.async.commit_group;");
    from += 8;
  }
  __device__ __forceinline__ void next(bool more) {
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    __syncwarp();
    side ^= 1;
    if (more) bring(side);
  }
  __device__ __forceinline__ uint4 piece(int t, int i) const {
    return x_room[(side ^ 1) * PIECES + (read ^ 4 * i) + 64 * t];
  }
};

// SUBS: groups a step covers (2 when a group is 32, else 1). DEPTH: steps on their way from memory.
template <typename H, int BITS, int SUBS, int NT, int PARTS, int DEPTH, int END>
__device__ __forceinline__ void block(const unsigned* words, const u16* scales, const u16* x,
                                      const u16* residual, u16* y, int m, int n, int k) {
  constexpr int PLANES = BITS / 4;
  constexpr int LOADS = 2 * PLANES;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row = lane / 4, quad = lane % 4;
  const int chunks = (m + 8 * NT - 1) / (8 * NT), steps = k / 64;
  const int first = blockIdx.x % chunks * 8 * NT, tile = blockIdx.x / chunks;
  const int from = steps * warp / PARTS, to = steps * (warp + 1) / PARTS;
  const size_t at = static_cast<size_t>(tile) * steps + from;
  const uint4* w = reinterpret_cast<const uint4*>(words) + at * (LOADS * 32) + lane;
  const uint4* s = reinterpret_cast<const uint4*>(scales) + at * (SUBS * 8) + row;
  X<NT> xs(x, first, m, k, from, warp, lane);

  uint4 ring[DEPTH][LOADS], sides[DEPTH][SUBS];
  auto fetch = [&](int d) {
#pragma unroll
    for (int i = 0; i < LOADS; ++i) ring[d][i] = load_once(w + (d * LOADS + i) * 32);
#pragma unroll
    for (int i = 0; i < SUBS; ++i) sides[d][i] = load_once(s + (d * SUBS + i) * 8);
  };
#pragma unroll
  for (int d = 0; d < DEPTH; ++d) {
    if (from + d < to) fetch(d);
  }
  w += DEPTH * LOADS * 32;
  s += DEPTH * SUBS * 8;

  float sum[NT][2][4];
#pragma unroll
  for (int t = 0; t < NT; ++t)
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[t][i / 4][i % 4] = 0.0f;

  for (int step = from; step < to; step += DEPTH) {
#pragma unroll
    for (int d = 0; d < DEPTH; ++d) {
      if (step + d >= to) break;
      xs.next(step + d + 1 < to);
      uint4 now[LOADS], side[SUBS];
#pragma unroll
      for (int i = 0; i < LOADS; ++i) now[i] = ring[d][i];
#pragma unroll
      for (int i = 0; i < SUBS; ++i) side[i] = sides[d][i];
      if (step + d + DEPTH < to) fetch(d);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        // 8 of K a lane: which ones is layout.rs's affair and the same for W.
        uint4 b[NT];
#pragma unroll
        for (int t = 0; t < NT; ++t) b[t] = xs.piece(t, i);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          // Of the fragment's rows g and g + 8.
          unsigned scale[2], bias[2];
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const unsigned both = pick(side[SUBS == 2 ? i : 0], 2 * h + r);
            scale[r] = twice_low(both), bias[r] = twice_high(both);
          }
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            unsigned a[4];
            spread(pick(now[h * PLANES], 2 * i + j), H::LOW, a);
#pragma unroll
            for (int r = 0; r < 4; ++r) a[r] = H::fma2(a[r], H::ONES, H::LESS_LOW);
            if constexpr (PLANES == 2) {
              unsigned high[4];
              spread(pick(now[h * PLANES + 1], 2 * i + j), H::HIGH, high);
#pragma unroll
              for (int r = 0; r < 4; ++r) {
                a[r] = H::fma2(H::fma2(high[r], H::ONES, H::LESS_HIGH), H::ONES, a[r]);
              }
            }
#pragma unroll
            for (int r = 0; r < 4; ++r) a[r] = H::fma2(a[r], scale[r % 2], bias[r % 2]);
#pragma unroll
            for (int t = 0; t < NT; ++t) {
              H::mma(sum[t][h], a, pick(b[t], 2 * j), pick(b[t], 2 * j + 1));
            }
          }
        }
      }
    }
    w += DEPTH * LOADS * 32;
    s += DEPTH * SUBS * 8;
  }

  // Sums of the warps, added in order.
  constexpr int COLUMN = 36, THREADS = 32 * PARTS;
  __shared__ float parts[PARTS][8 * COLUMN];
#pragma unroll
  for (int t = 0; t < NT; ++t) {
    if (t > 0) __syncthreads();
    float* here = parts[warp];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int out = 16 * (i / 4) + 8 * (i % 4 / 2) + row;
      here[(2 * quad + i % 2) * COLUMN + out] = sum[t][i / 4][i % 4];
    }
    __syncthreads();
    auto whole = [&](int column, int out) {
      float total = 0.0f;
#pragma unroll
      for (int v = 0; v < PARTS; ++v) total += parts[v][column * COLUMN + out];
      return total;
    };
    if constexpr (END == GATED) {
      for (int i = threadIdx.x; i < 128; i += THREADS) {
        const int out = i % 16, column = i / 16;
        const int r = first + 8 * t + column, c = 16 * tile + out;
        if (r < m && 2 * c < n) {
          const float value = gated(whole(column, out), whole(column, out + 16));
          y[static_cast<size_t>(r) * (n / 2) + c] = H::round(value);
        }
      }
    } else {
      for (int i = threadIdx.x; i < 256; i += THREADS) {
        const int out = i % 32, column = i / 32;
        const int r = first + 8 * t + column, c = 32 * tile + out;
        if (r < m && c < n) {
          const size_t to_y = static_cast<size_t>(r) * n + c;
          float value = whole(column, out);
          if constexpr (END == ADD) value += H::low(residual[to_y]);
          y[to_y] = H::round(value);
        }
      }
    }
  }
}

}  // namespace verify_qmm

#ifdef SET_NAME
extern "C" __global__ void __launch_bounds__(32 * SET_PARTS, SET_BLOCKS)
    SET_NAME(const unsigned* words, const verify_qmm::u16* sides, const verify_qmm::u16* x,
#if SET_END == 1
             const verify_qmm::u16* residual,
#endif
             verify_qmm::u16* y, int m, int n, int k) {
#if SET_END != 1
  const verify_qmm::u16* residual = nullptr;
#endif
  verify_qmm::block<verify_qmm::SET_TYPE, SET_BITS, SET_SUBS, SET_ROWS / 8, SET_PARTS, SET_DEPTH,
                    SET_END>(words, sides, x, residual, y, m, n, k);
}
#endif

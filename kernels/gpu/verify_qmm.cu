// verify_qmm: y [M, N] = x [M, K] · Wᵀ for affine 4- and 8-bit W, fp32 accumulation.
//
// A tile is 32 outputs and 8·NT rows of x. PARTS warps divide K; each walks its part in steps of
// 64, and their sums are added in the order of the warps. Neither division nor any order depends on
// M, so a row's result is the same, to the bit, whatever travels with it.
//
// W lies as layout.rs packs it: for every 32 outputs and every 64 of K what a warp needs for one
// step, in the order in which its lanes take it, 16 bytes a lane.
//
// The tensor cores see weights, made in registers: with q a 4-bit code, the bf16 of bits 0x4300 | q
// is 128 + q, exactly; less 128, times scale, plus bias, it is W rounded once, two of them at a
// time. So a warp's sums over K stay in the tensor cores' accumulators, whatever the groups. An
// 8-bit code is two nibbles: 0x4500 | hi is 2048 + 16·hi, and the two halves of q add up exactly.
//
// Few rows (`block`) come straight from memory; a block is a tile. For many (`shared_block`) TILES
// tiles of a block share x, and x and W wait in shared memory, DEPTH − 1 steps ahead: so few
// registers are left that all tiles of a large matrix run at once.

namespace verify_qmm {

__device__ __forceinline__ unsigned pick(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// The 8 codes of a word as the fragment that the tensor cores want: 16 outputs × 16 of K.
__device__ __forceinline__ void spread(unsigned word, unsigned magic, unsigned (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = nibbles(word >> (4 * i), magic);
}

// What becomes of a sum: itself; the residual added; outputs in pairs 16 apart, silu(a)·b.
enum Ending { PLAIN = 0, ADD = 1, GATED = 2 };

// A warp's sums: of 32 outputs and 8·NT rows.
template <int NT>
using Sums = float[NT][2][4];

// Adds a step's 64 columns; `piece(t, i)` is half i of what a lane needs of rows 8·t to
// 8·t + 7.
template <typename H, int BITS, int SUBS, int NT, typename Piece>
__device__ __forceinline__ void take_step(Sums<NT>& sum, const uint4 (&codes)[BITS / 2],
                                          const uint4 (&sides)[SUBS], const Piece& piece) {
  constexpr int PLANES = BITS / 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    // 8 of K a lane: which ones is layout.rs's affair and the same for W.
    uint4 b[NT];
#pragma unroll
    for (int t = 0; t < NT; ++t) b[t] = piece(t, i);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      // Of the fragment's rows g and g + 8.
      unsigned scale[2], bias[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const unsigned both = pick(sides[SUBS == 2 ? i : 0], 2 * h + r);
        scale[r] = twice_low(both), bias[r] = twice_high(both);
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        unsigned a[4];
        spread(pick(codes[h * PLANES], 2 * i + j), H::LOW, a);
#pragma unroll
        for (int r = 0; r < 4; ++r) a[r] = H::fma2(a[r], H::ONES, H::LESS_LOW);
        if constexpr (PLANES == 2) {
          unsigned high[4];
          spread(pick(codes[h * PLANES + 1], 2 * i + j), H::HIGH, high);
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

// What a warp shows of its sums: 8 rows, padded so that lanes lie in different banks.
constexpr int COLUMN = 36, SHOWN = 8 * COLUMN;

// Adds the sums of the warps in order and writes results; `parts` has SHOWN floats a warp. Warp
// TILES·p + i has part p of tile `tile` + i.
template <typename H, int NT, int PARTS, int TILES, int END>
__device__ __forceinline__ void finish(float* parts, const Sums<NT>& sum, int first, int tile,
                                       const u16* residual, u16* y, int m, int n) {
  constexpr int THREADS = 32 * PARTS * TILES;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int t = 0; t < NT; ++t) {
    if (t > 0) __syncthreads();
    float* here = parts + threadIdx.x / 32 * SHOWN;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int out = 16 * (i / 4) + 8 * (i % 4 / 2) + lane / 4;
      here[(2 * (lane % 4) + i % 2) * COLUMN + out] = sum[t][i / 4][i % 4];
    }
    __syncthreads();
    auto whole = [&](int own, int column, int out) {
      float total = 0.0f;
#pragma unroll
      for (int v = 0; v < PARTS; ++v) {
        total += parts[(v * TILES + own) * SHOWN + column * COLUMN + out];
      }
      return total;
    };
    if constexpr (END == GATED) {
      for (int i = threadIdx.x; i < 128 * TILES; i += THREADS) {
        const int out = i % 16, column = i / 16 % 8, own = i / 128;
        const int r = first + 8 * t + column, c = 16 * (tile + own) + out;
        if (r < m && 2 * c < n) {
          const float value = gated(whole(own, column, out), whole(own, column, out + 16));
          y[static_cast<size_t>(r) * (n / 2) + c] = H::round(value);
        }
      }
    } else {
      for (int i = threadIdx.x; i < 256 * TILES; i += THREADS) {
        const int out = i % 32, column = i / 32 % 8, own = i / 256;
        const int r = first + 8 * t + column, c = 32 * (tile + own) + out;
        if (r < m && c < n) {
          const size_t to_y = static_cast<size_t>(r) * n + c;
          float value = whole(own, column, out);
          if constexpr (END == ADD) value += H::low(residual[to_y]);
          y[to_y] = H::round(value);
        }
      }
    }
  }
}

template <int NT>
__device__ __forceinline__ void clear(Sums<NT>& sum) {
#pragma unroll
  for (int t = 0; t < NT; ++t)
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[t][i / 4][i % 4] = 0.0f;
}

// SUBS: groups a step covers (2 when a group is 32, else 1). DEPTH: steps on their way from memory.
template <typename H, int BITS, int SUBS, int NT, int PARTS, int DEPTH, int END>
__device__ __forceinline__ void block(const unsigned* words, const u16* scales, const u16* x,
                                      const u16* residual, u16* y, int m, int n, int k) {
  constexpr int LOADS = BITS / 2;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int chunks = (m + 8 * NT - 1) / (8 * NT), steps = k / 64;
  const int first = blockIdx.x % chunks * 8 * NT, tile = blockIdx.x / chunks;
  const int from = steps * warp / PARTS, to = steps * (warp + 1) / PARTS;
  const size_t at = static_cast<size_t>(tile) * steps + from;
  const uint4* w = reinterpret_cast<const uint4*>(words) + at * (LOADS * 32) + lane;
  const uint4* s = reinterpret_cast<const uint4*>(scales) + at * (SUBS * 8) + lane / 4;
  // A row beyond the last is the last one: its results are dropped.
  const uint4* xs = reinterpret_cast<const uint4*>(x) + from * 8 + lane % 4;
  unsigned rows[NT];
#pragma unroll
  for (int t = 0; t < NT; ++t) rows[t] = min(first + 8 * t + lane / 4, m - 1) * (k / 8);

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

  Sums<NT> sum;
  clear<NT>(sum);
  for (int step = from; step < to; step += DEPTH) {
#pragma unroll
    for (int d = 0; d < DEPTH; ++d) {
      if (step + d >= to) break;
      // Both halves of a step at once.
      uint4 pieces[NT][2];
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int t = 0; t < NT; ++t) pieces[t][i] = load_kept(xs + rows[t] + 4 * i);
      xs += 8;
      uint4 now[LOADS], side[SUBS];
#pragma unroll
      for (int i = 0; i < LOADS; ++i) now[i] = ring[d][i];
#pragma unroll
      for (int i = 0; i < SUBS; ++i) side[i] = sides[d][i];
      if (step + d + DEPTH < to) fetch(d);
      take_step<H, BITS, SUBS, NT>(sum, now, side, [&](int t, int i) { return pieces[t][i]; });
    }
    w += DEPTH * LOADS * 32;
    s += DEPTH * SUBS * 8;
  }
  __shared__ float parts[PARTS * SHOWN];
  finish<H, NT, PARTS, 1, END>(parts, sum, first, tile, residual, y, m, n);
}

// What a part of K keeps in shared memory of a step, in pieces of 16 bytes: x, then W of the tiles.
template <int BITS, int SUBS, int NT, int TILES>
struct Stage {
  static constexpr int X = 8 * NT * 8, CODES = BITS / 2 * 32, W = CODES + SUBS * 8;
  static constexpr int PIECES = X + TILES * W;
};

// As `block`, of TILES tiles. The warps of a part share its x, and each brings a share of it.
template <typename H, int BITS, int SUBS, int NT, int PARTS, int TILES, int DEPTH, int END>
__device__ __forceinline__ void shared_block(const unsigned* words, const u16* scales, const u16* x,
                                             const u16* residual, u16* y, int m, int n, int k) {
  typedef Stage<BITS, SUBS, NT, TILES> S;
  constexpr int LOADS = BITS / 2, TEAM = 32 * TILES;
  const int lane = threadIdx.x % 32, own = threadIdx.x / 32 % TILES, part = threadIdx.x / TEAM;
  const int chunks = (m + 8 * NT - 1) / (8 * NT), steps = k / 64;
  const int first = blockIdx.x % chunks * 8 * NT, tile = blockIdx.x / chunks * TILES;
  const int from = steps * part / PARTS, to = steps * (part + 1) / PARTS;
  // A tile beyond the last is the last one: its results are dropped.
  const int mine = min(tile + own, (n + 31) / 32 - 1);
  const size_t at = static_cast<size_t>(mine) * steps + from;
  const uint4* w = reinterpret_cast<const uint4*>(words) + at * (LOADS * 32) + lane;
  const uint4* s = reinterpret_cast<const uint4*>(scales) + at * (SUBS * 8) + lane;
  uint4* stages = room + part * DEPTH * S::PIECES;

  // 8 lanes take a row's 128 bytes; the halves of odd rows change places, so that no two lanes meet
  // in a bank when fragments are read. A row beyond the last is anything.
  const int member = threadIdx.x % TEAM, row = member / 8, piece = member % 8;
  const uint4* xs = reinterpret_cast<const uint4*>(x) +
                    static_cast<size_t>(first + row) * (k / 8) + from * 8 + piece;
  const int x_to = row * 8 + (piece ^ row % 2 * 4), w_to = S::X + own * S::W + lane;
  const unsigned stride = TEAM / 8 * (k / 8);
  auto fetch = [&](int side) {
    uint4* stage = stages + side * S::PIECES;
#pragma unroll
    for (int i = 0; i < LOADS; ++i) bring(stage + w_to + 32 * i, w + 32 * i);
    if (lane < SUBS * 8) bring(stage + w_to + S::CODES, s);
#pragma unroll
    for (int j = 0; j * TEAM < S::X; ++j) {
      const int r = row + TEAM / 8 * j;
      if (r < 8 * NT && first + r < m) bring(stage + x_to + TEAM * j, xs + j * stride);
    }
    w += LOADS * 32, s += SUBS * 8, xs += 8;
  };
#pragma unroll
  for (int d = 0; d < DEPTH - 1; ++d) {
    if (from + d < to) fetch(d);
    send_off();
  }

  const int read_x = lane / 4 * 8 + (lane % 4 ^ lane / 4 % 2 * 4);
  const int read_s = S::X + own * S::W + S::CODES + lane / 4;
  Sums<NT> sum;
  clear<NT>(sum);
  int side = 0;
  for (int step = from; step < to; ++step) {
    arrived<DEPTH - 2>();
    // What all have brought is there, and nobody reads what the next copies overwrite.
    meet(part, TEAM);
    if (step + DEPTH - 1 < to) fetch(side == 0 ? DEPTH - 1 : side - 1);
    send_off();
    const uint4* stage = stages + side * S::PIECES;
    uint4 codes[LOADS], sides[SUBS];
#pragma unroll
    for (int i = 0; i < LOADS; ++i) codes[i] = stage[w_to + 32 * i];
#pragma unroll
    for (int i = 0; i < SUBS; ++i) sides[i] = stage[read_s + 8 * i];
    take_step<H, BITS, SUBS, NT>(sum, codes, sides, [&](int t, int i) {
      return stage[(read_x ^ 4 * i) + 64 * t];
    });
    side = side == DEPTH - 1 ? 0 : side + 1;
  }
  arrived<0>();
  __syncthreads();
  finish<H, NT, PARTS, TILES, END>(reinterpret_cast<float*>(room), sum, first, tile, residual, y, m,
                                   n);
}

}  // namespace verify_qmm

#ifdef SET_NAME
extern "C" __global__ void
    __launch_bounds__(32 * SET_PARTS * (SET_TILES ? SET_TILES : 1), SET_BLOCKS)
    SET_NAME(const unsigned* words, const verify_qmm::u16* sides, const verify_qmm::u16* x,
#if SET_END == 1
             const verify_qmm::u16* residual,
#endif
             verify_qmm::u16* y, int m, int n, int k) {
#if SET_END != 1
  const verify_qmm::u16* residual = nullptr;
#endif
#if SET_TILES
  verify_qmm::shared_block<verify_qmm::SET_TYPE, SET_BITS, SET_SUBS, SET_ROWS / 8, SET_PARTS,
                           SET_TILES, SET_DEPTH, SET_END>(words, sides, x, residual, y, m, n, k);
#else
  verify_qmm::block<verify_qmm::SET_TYPE, SET_BITS, SET_SUBS, SET_ROWS / 8, SET_PARTS, SET_DEPTH,
                    SET_END>(words, sides, x, residual, y, m, n, k);
#endif
}
#endif

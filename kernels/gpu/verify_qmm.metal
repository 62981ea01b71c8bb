// verify_qmm: y [M, N] = x [M, K] · Wᵀ for affine 4- and 8-bit W, fp32 accumulation. The contract is
// that of verify_qmm.cu, and W lies as layout.rs packs it.
//
// Inputs: words, sides, x, with SET_END 1 residual, scalars (m, n, k). Output: y.
//
// A simdgroup computes 32 outputs for SET_ROWS rows of x over a part of K, which it walks in steps
// of 64; lane 4·g + c has outputs g, g + 8, g + 16, g + 24 and 16 columns of each step. SET_PARTS
// simdgroups divide K. Lanes, then parts, are added in their order, and neither the division nor
// any order depends on M: a row's result is the same, to the bit, whatever travels with it.

#ifndef BODY

enum {
  R = SET_ROWS,
  PARTS = SET_PARTS,
  PLANES = SET_BITS / 4,
  LOADS = 2 * PLANES,
  SUBS = SET_SUBS,
  TILE = 32
};

// Sums of 4 outputs by R rows.
struct Sums {
  float of[4][R];
};

inline uint pick(uint4 v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// Adds a step's part of a lane: `codes` as loaded, `sides` of the lane, `x` the lane's columns of
// the first row, and `rows` the offsets of all rows.
inline void add_step(thread Sums& sums, const thread uint4* codes, const device Scalar* sides,
                     const device Scalar* x, const thread size_t* rows) {
  UNROLL
  for (int j = 0; j < 4; ++j) {
    float4 xs[R];
    UNROLL
    for (int row = 0; row < R; ++row) {
      const Scalar4 four = *(const device Scalar4*)(x + rows[row] + 32 * (j / 2) + 4 * (j % 2));
      xs[row] = float4_of(widen(four.x), widen(four.y), widen(four.z), widen(four.w));
    }
    UNROLL
    for (int r = 0; r < 4; ++r) {
      const device Scalar* side = sides + (SUBS == 2 ? j / 2 : 0) * 64 + 2 * r;
      const float scale = widen(side[0]), bias = widen(side[1]);
      float weight[4];
      UNROLL
      for (int col = 0; col < 4; ++col) {
        const int nibble = r % 2 + 2 * (col / 2) + 4 * (col % 2);
        uint code = 0;
        UNROLL
        for (int plane = 0; plane < PLANES; ++plane) {
          code |= (pick(codes[r / 2 * PLANES + plane], j) >> (4 * nibble) & 15u) << (4 * plane);
        }
        weight[col] = fma(scale, float(code), bias);
      }
      const float4 w = float4_of(weight[0], weight[1], weight[2], weight[3]);
      UNROLL
      for (int row = 0; row < R; ++row) sums.of[r][row] = dot_on(w, xs[row], sums.of[r][row]);
    }
  }
}

#else

LOCAL float parts[PARTS][R][TILE];
const int m = scalars[0], n = scalars[1], k = scalars[2];
const int lane = thread_position_in_threadgroup.x % 32;
const int part = thread_position_in_threadgroup.x / 32;
const int g = lane / 4, c = lane % 4;
const int chunks = (m + R - 1) / R, steps = k / 64;
const int first = threadgroup_position_in_grid.x % chunks * R;
const int tile = threadgroup_position_in_grid.x / chunks;
// A row of x beyond the last is read as the last one and its result dropped.
size_t row_at[R];
UNROLL
for (int row = 0; row < R; ++row) row_at[row] = size_t(min(first + row, m - 1)) * k;
Sums sums;
UNROLL
for (int r = 0; r < 4; ++r) {
  UNROLL
  for (int row = 0; row < R; ++row) sums.of[r][row] = 0.0f;
}
for (int step = steps * part / PARTS; step < steps * (part + 1) / PARTS; ++step) {
  const size_t at = size_t(tile) * steps + step;
  const device uint4* from = (const device uint4*)words + at * (LOADS * 32) + lane;
  uint4 codes[LOADS];
  UNROLL
  for (int i = 0; i < LOADS; ++i) codes[i] = from[32 * i];
  add_step(sums, codes, sides + at * (SUBS * 64) + 8 * g, x + 64 * step + 8 * c, row_at);
}
UNROLL
for (int r = 0; r < 4; ++r) {
  UNROLL
  for (int row = 0; row < R; ++row) {
    const float sum = sum_lanes(sums.of[r][row], 4);
    if (c == 0) parts[part][row][g + 8 * r] = sum;
  }
}
threadgroup_barrier(mem_flags::mem_threadgroup);
for (int i = thread_position_in_threadgroup.x; i < R * TILE; i += 32 * PARTS) {
  const int row = i / TILE, out = i % TILE;
  if (first + row >= m) continue;
  float whole = 0.0f;
  for (int p = 0; p < PARTS; ++p) whole += parts[p][row][out];
#if SET_END == 2
  // Outputs in pairs 16 apart: silu(a)·b.
  const int to = TILE / 2 * tile + out;
  if (out >= TILE / 2 || 2 * to >= n) continue;
  float up = 0.0f;
  for (int p = 0; p < PARTS; ++p) up += parts[p][row][out + TILE / 2];
  y[size_t(first + row) * (n / 2) + to] = narrow(whole * sigmoid(whole) * up);
#else
  const int to = TILE * tile + out;
  if (to >= n) continue;
  const size_t to_y = size_t(first + row) * n + to;
#if SET_END == 1
  whole += widen(residual[to_y]);
#endif
  y[to_y] = narrow(whole);
#endif
}

#endif

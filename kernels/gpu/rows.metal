// rows: rows of an affine W that lies as layout.rs packs it, as halves. The contract is that of
// rows.cu.
//
// Inputs: words, sides, without SET_ALL ids, scalars (count, k). Output: y. A thread writes 8
// columns.

#ifndef BODY

enum { PLANES = SET_BITS / 4, SUBS = SET_SUBS };

#else

const int count = scalars[0], steps = scalars[1] / 64;
const size_t at = size_t(threadgroup_position_in_grid.x) * 256 + thread_position_in_threadgroup.x;
const int piece = at % (8 * steps), step = piece / 8;
const size_t i = at / (8 * steps);
if (i >= size_t(count)) return;
#if SET_ALL
const int row = i;
#else
const int row = ids[i];
#endif
const int j = piece % 8 / 4, c = piece % 4, g = row % 8;
const size_t block = size_t(row / 32) * steps + step;
const device Scalar* side =
    sides + (block * SUBS + (SUBS == 2 ? j : 0)) * 64 + g * 8 + row % 32 / 8 * 2;
const float scale = widen(side[0]), bias = widen(side[1]);
device Scalar* to = y + i * scalars[1] + 64 * step + 32 * j + 8 * c;
for (int col = 0; col < 8; ++col) {
  const int nibble = row % 16 / 8 + 2 * (col % 4 / 2) + 4 * (col % 2);
  uint code = 0;
  for (int plane = 0; plane < PLANES; ++plane) {
    const size_t load = block * (2 * PLANES) + row % 32 / 16 * PLANES + plane;
    const uint word = words[load * 128 + (4 * g + c) * 4 + 2 * j + col / 4];
    code |= (word >> (4 * nibble) & 15u) << (4 * plane);
  }
  to[col] = narrow(fma(scale, float(code), bias));
}

#endif

// rows: rows of an affine W that lies as layout.rs packs it, as halves: embeddings, and for many
// rows of x the whole matrix, which a library then multiplies.
//
// words, sides: see layout.rs. ids: the rows wanted; with SET_ALL row i itself. y [count, K].
// A thread writes 8 columns. SET_BITS, SET_SUBS: as in verify_qmm.cu.

extern "C" __global__ void __launch_bounds__(256)
    SET_NAME(const unsigned* words, const u16* sides,
#if !SET_ALL
             const unsigned* ids,
#endif
             u16* y, int count, int k) {
  constexpr int PLANES = SET_BITS / 4;
  const int steps = k / 64;
  const size_t at = static_cast<size_t>(blockIdx.x) * 256 + threadIdx.x;
  const int piece = static_cast<int>(at % (8 * steps)), step = piece / 8;
  const size_t i = at / (8 * steps);
  if (i >= static_cast<size_t>(count)) return;
#if SET_ALL
  const int row = static_cast<int>(i);
#else
  const int row = static_cast<int>(ids[i]);
#endif
  const int j = piece % 8 / 4, c = piece % 4, g = row % 8;
  const size_t block = static_cast<size_t>(row / 32) * steps + step;
  uint2 codes[PLANES];
#pragma unroll
  for (int plane = 0; plane < PLANES; ++plane) {
    const size_t load = block * (2 * PLANES) + row % 32 / 16 * PLANES + plane;
    codes[plane] =
        *reinterpret_cast<const uint2*>(words + load * 128 + (4 * g + c) * 4 + 2 * j);
  }
  const int sub = SET_SUBS == 2 ? j : 0;
  const u16* side = sides + (block * SET_SUBS + sub) * 64 + g * 8 + row % 32 / 8 * 2;
  const float scale = widen(side[0]), bias = widen(side[1]);
  unsigned packed[4];
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) {
    float value[2];
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const int nibble = row % 16 / 8 + 2 * (pair % 2) + 4 * b;
      unsigned code = 0;
#pragma unroll
      for (int plane = 0; plane < PLANES; ++plane) {
        const unsigned word = pair < 2 ? codes[plane].x : codes[plane].y;
        code |= (word >> (4 * nibble) & 15u) << (4 * plane);
      }
      value[b] = fmaf(scale, static_cast<float>(code), bias);
    }
    packed[pair] = narrow(value[0]) | static_cast<unsigned>(narrow(value[1])) << 16;
  }
  *reinterpret_cast<uint4*>(y + i * k + 64 * step + 32 * j + 8 * c) =
      make_uint4(packed[0], packed[1], packed[2], packed[3]);
}

// verify_qmm beside a product in double precision, for a form of weights that the command line
// defines: SET_TYPE, SET_BITS, GROUP, SET_PARTS; and the sources `rows` beside what they unpack.
#define SET_SUBS (GROUP == 32 ? 2 : 1)
#ifdef METAL
#include "metal_on_host.h"

#include "../scalar.metal"

#define VARIANT one
#define SET_ROWS 1
#define SET_END 0
#include "entry/verify_qmm.h"
#define VARIANT two
#define SET_ROWS 2
#define SET_END 0
#include "entry/verify_qmm.h"
#define VARIANT four
#define SET_ROWS 4
#define SET_END 0
#include "entry/verify_qmm.h"
#define VARIANT eight
#define SET_ROWS 8
#define SET_END 0
#include "entry/verify_qmm.h"
#define VARIANT four_added
#define SET_ROWS 4
#define SET_END 1
#include "entry/verify_qmm.h"
#define VARIANT one_gated
#define SET_ROWS 1
#define SET_END 2
#include "entry/verify_qmm.h"
#define VARIANT eight_gated
#define SET_ROWS 8
#define SET_END 2
#include "entry/verify_qmm.h"

#include "entry/rows.h"
#else
#include "tensor_cores.h"
#include "../verify_qmm.cu"
typedef std::conditional_t<std::is_same_v<verify_qmm::SET_TYPE, verify_qmm::Half>, half, bfloat16_t>
    Scalar;
typedef unsigned uint;
typedef unsigned short u16;
// As scalar.cu has them, which on the host knows one of the two types.
static float widen(u16 bits) { return bits_as<Scalar>(bits); }
static u16 narrow(float value) { return Scalar(value).bits; }
#undef SET_NAME
#define SET_NAME all_rows
#define SET_ALL 1
#include "../rows.cu"
#undef SET_NAME
#undef SET_ALL
#define SET_NAME some_rows
#define SET_ALL 0
#include "../rows.cu"
#endif

// Steps that the parts do not divide evenly; a ragged last tile.
constexpr int COLS = 64 * 6, ROWS = 43, TILES = 2, M = 64;
constexpr int ALL = 32 * TILES, STEPS = COLS / 64, PLANES = SET_BITS / 4, SUBS = SET_SUBS;

static std::vector<uint> words(TILES* STEPS* PLANES * 256);
static std::vector<Scalar> sides(TILES* STEPS* SUBS * 64);

// As `Form::weight` of layout.rs reads them.
static double weight(int row, int col) {
  const int half_of = row % 32 / 16, g = row % 8, high = row % 16 / 8, c = col % 32 / 8;
  const int j = col % 64 / 32 * 2 + col % 8 / 4;
  const int nibble = high + 2 * (col % 4 / 2) + 4 * (col % 2), block = row / 32 * STEPS + col / 64;
  uint code = 0;
  for (int plane = 0; plane < PLANES; ++plane) {
    const int load = block * 2 * PLANES + half_of * PLANES + plane;
    code |= (words[load * 128 + (4 * g + c) * 4 + j] >> (4 * nibble) & 15u) << (4 * plane);
  }
  const int side = (block * SUBS + col % 64 * SUBS / 64) * 64 + g * 8 + row % 32 / 8 * 2;
  const double value = static_cast<double>(sides[side]) * code + static_cast<double>(sides[side + 1]);
#ifdef METAL
  return value;
#else
  // The tensor cores see it rounded.
  return Scalar(static_cast<float>(value));
#endif
}

typedef void Product(const uint*, const Scalar*, const Scalar*, const Scalar*, const int*, Scalar*);

// A kernel, and how many rows of x and tiles a block of it takes.
struct Variant {
  Product* kernel;
  int rows, tiles;
};

#ifdef METAL
static const Variant ADDED = {four_added::product, 4, 1};
static const Variant GATED[] = {{eight_gated::product, 8, 1}, {one_gated::product, 1, 1}};
static Variant plain_for(int m) {
  return m == 1   ? Variant{one::product, 1, 1}
         : m == 2 ? Variant{two::product, 2, 1}
         : m <= 4 ? Variant{four::product, 4, 1}
                  : Variant{eight::product, 8, 1};
}
#else
static const verify_qmm::u16* bits(const Scalar* halves) {
  return reinterpret_cast<const verify_qmm::u16*>(halves);
}
typedef verify_qmm::SET_TYPE H;
template <int NT, int TILES, int END>
static void cuda(const uint* w, const Scalar* s, const Scalar* x, const Scalar* residual,
                 const int* sizes, Scalar* out) {
  const int m = sizes[0], n = sizes[1], k = sizes[2];
  auto* y = reinterpret_cast<verify_qmm::u16*>(out);
  if constexpr (TILES == 0) {
    verify_qmm::block<H, SET_BITS, SET_SUBS, NT, SET_PARTS, 2, END>(w, bits(s), bits(x),
                                                                    bits(residual), y, m, n, k);
  } else {
    verify_qmm::shared_block<H, SET_BITS, SET_SUBS, NT, SET_PARTS, TILES, 3, END>(
        w, bits(s), bits(x), bits(residual), y, m, n, k);
  }
}
static const Variant ADDED = {cuda<4, 1, 1>, 32, 1};
static const Variant GATED[] = {{cuda<4, 2, 2>, 32, 2}, {cuda<1, 0, 2>, 8, 1}};
// Of 32 rows a block's tiles are more than there are.
static Variant plain_for(int m) {
  return m <= 8    ? Variant{cuda<1, 0, 0>, 8, 1}
         : m <= 16 ? Variant{cuda<2, 0, 0>, 16, 1}
         : m <= 32 ? Variant{cuda<4, 3, 0>, 32, 3}
                   : Variant{cuda<4, 2, 0>, 32, 2};
}
#endif

// `m` rows of x.
static std::vector<Scalar> product(const Variant& kind, const std::vector<Scalar>& x, int m, int n,
                                   int out, const std::vector<Scalar>& residual) {
  std::vector<Scalar> y(m * out, Scalar(NAN));
  const int scalars[] = {m, n, COLS}, tiles = (n + 31) / 32;
  const int blocks = (tiles + kind.tiles - 1) / kind.tiles * ((m + kind.rows - 1) / kind.rows);
  launch(blocks, 32 * SET_PARTS * kind.tiles, [&] {
    kind.kernel(words.data(), sides.data(), x.data(), residual.data(), scalars, y.data());
  });
  return y;
}

int main() {
  for (auto& word : words) word = random_bits();
  for (size_t i = 0; i < sides.size(); i += 2) {
    const float step = around(0.16f, 0.08f) / (1 << SET_BITS);
    sides[i] = Scalar(step);
    sides[i + 1] = Scalar(around(-0.08f, 0.03f));
  }
  std::vector<Scalar> x(M * COLS), residual(M * ROWS);
  for (auto& v : x) v = Scalar(around(0, 1));
  for (auto& v : residual) v = Scalar(around(0, 1));
  std::vector<double> sums(M * ALL, 0.0);
  for (int row = 0; row < ALL; ++row) {
    for (int col = 0; col < COLS; ++col) {
      const double w = weight(row, col);
      for (int r = 0; r < M; ++r) sums[r * ALL + row] += w * x[r * COLS + col];
    }
  }

  const auto same = [](const std::vector<Scalar>& part, const std::vector<Scalar>& all) {
    return std::memcmp(part.data(), all.data(), part.size() * sizeof(Scalar)) == 0;
  };
  Distance plain, added, gated;
  int apart = 0;
  const auto whole = product(plain_for(M), x, M, ROWS, ROWS, residual);
#ifdef METAL
  std::vector<int> counts(M);
  for (int m = 1; m <= M; ++m) counts[m - 1] = m;
#else
  const int counts[] = {1, 3, 8, 9, 16, 17, 31, 32, 33};
#endif
  for (int m : counts) apart += !same(product(plain_for(m), x, m, ROWS, ROWS, residual), whole);
  const auto sum = [&](int i) { return sums[i / ROWS * ALL + i % ROWS]; };
  for (int i = 0; i < M * ROWS; ++i) plain.add(whole[i], sum(i));
  const auto with = product(ADDED, x, 5, ROWS, ROWS, residual);
  for (int i = 0; i < 5 * ROWS; ++i) added.add(with[i], sum(i) + residual[i]);
  const int half_of = ALL / 2;
  const auto pairs = product(GATED[0], x, M, ALL, half_of, residual);
  apart += !same(product(GATED[1], x, 1, ALL, half_of, residual), pairs);
  for (int i = 0; i < M * half_of; ++i) {
    const int at = i / half_of * ALL + i % half_of / 16 * 32 + i % 16;
    gated.add(pairs[i], sums[at] / (1 + std::exp(-sums[at])) * sums[at + 16]);
  }

  Distance values;
  const int ids[] = {42, 0, 40};
  std::vector<Scalar> unpacked(ROWS * COLS, Scalar(NAN)), found(3 * COLS, Scalar(NAN));
#ifdef METAL
  const int of_all[] = {ROWS, COLS}, of_some[] = {3, COLS};
  const auto unpack = [&] { all::rows(words.data(), sides.data(), of_all, unpacked.data()); };
  const auto pick = [&] { some::rows(words.data(), sides.data(), ids, of_some, found.data()); };
#else
  const auto bits = [](std::vector<Scalar>& halves) { return reinterpret_cast<u16*>(halves.data()); };
  const auto unpack = [&] { all_rows(words.data(), bits(sides), bits(unpacked), ROWS, COLS); };
  const auto pick = [&] {
    some_rows(words.data(), bits(sides), reinterpret_cast<const uint*>(ids), bits(found), 3, COLS);
  };
#endif
  launch((ROWS * COLS / 8 + 255) / 256, 256, unpack);
  launch((3 * COLS / 8 + 255) / 256, 256, pick);
  for (int i = 0; i < ROWS * COLS; ++i) values.add(unpacked[i], weight(i / COLS, i % COLS));
  for (int i = 0; i < 3 * COLS; ++i) values.add(found[i], weight(ids[i / COLS], i % COLS));
  expect_below("weights", values.relative(), 3e-3);

  expect_below("products", plain.relative(), 3e-3);
  expect_below("products with a residual", added.relative(), 3e-3);
  expect_below("gated products", gated.relative(), 3e-3);
  expect_below("numbers of rows that change a row", apart, 0.5);
  return failures;
}

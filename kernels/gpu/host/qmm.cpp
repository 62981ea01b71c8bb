// verify_qmm.metal and rows.metal beside a product in double precision, for a form of weights that
// the command line defines: SET_TYPE, SET_BITS, GROUP, SET_PARTS.
#include "metal_on_host.h"

#define SET_SUBS (GROUP == 32 ? 2 : 1)
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
  return static_cast<double>(sides[side]) * code + static_cast<double>(sides[side + 1]);
}

typedef void Product(const uint*, const Scalar*, const Scalar*, const Scalar*, const int*, Scalar*);

// `m` rows of x, `rows` of them a threadgroup.
static std::vector<Scalar> product(Product& kernel, const std::vector<Scalar>& x, int m, int rows,
                                   int n, int out, const std::vector<Scalar>& residual) {
  std::vector<Scalar> y(m * out, Scalar(NAN));
  const int scalars[] = {m, n, COLS};
  launch((n + 31) / 32 * ((m + rows - 1) / rows), 32 * SET_PARTS, [&] {
    kernel(words.data(), sides.data(), x.data(), residual.data(), scalars, y.data());
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
  Distance plain, added, gated, values;
  int apart = 0;
  const auto whole = product(eight::product, x, M, 8, ROWS, ROWS, residual);
  for (int m = 1; m <= M; ++m) {
    const bool one = m == 1, two = m == 2, four = m == 3 || m == 4;
    Product& kernel = one   ? one::product
                      : two ? two::product
                      : four ? four::product
                             : eight::product;
    const int rows = one ? 1 : two ? 2 : four ? 4 : 8;
    apart += !same(product(kernel, x, m, rows, ROWS, ROWS, residual), whole);
  }
  const auto sum = [&](int i) { return sums[i / ROWS * ALL + i % ROWS]; };
  for (int i = 0; i < M * ROWS; ++i) plain.add(whole[i], sum(i));
  const auto with = product(four_added::product, x, 5, 4, ROWS, ROWS, residual);
  for (int i = 0; i < 5 * ROWS; ++i) added.add(with[i], sum(i) + residual[i]);
  const int half_of = ALL / 2;
  const auto pairs = product(eight_gated::product, x, M, 8, ALL, half_of, residual);
  apart += !same(product(one_gated::product, x, 1, 1, ALL, half_of, residual), pairs);
  for (int i = 0; i < M * half_of; ++i) {
    const int at = i / half_of * ALL + i % half_of / 16 * 32 + i % 16;
    gated.add(pairs[i], sums[at] / (1 + std::exp(-sums[at])) * sums[at + 16]);
  }

  const int ids[] = {42, 0, 40};
  const int of_all[] = {ROWS, COLS}, of_some[] = {3, COLS};
  std::vector<Scalar> unpacked(ROWS * COLS, Scalar(NAN)), found(3 * COLS, Scalar(NAN));
  launch((ROWS * COLS / 8 + 255) / 256, 256,
         [&] { all::rows(words.data(), sides.data(), of_all, unpacked.data()); });
  launch((3 * COLS / 8 + 255) / 256, 256,
         [&] { some::rows(words.data(), sides.data(), ids, of_some, found.data()); });
  for (int i = 0; i < ROWS * COLS; ++i) values.add(unpacked[i], weight(i / COLS, i % COLS));
  for (int i = 0; i < 3 * COLS; ++i) values.add(found[i], weight(ids[i / COLS], i % COLS));

  expect_below("products", plain.relative(), 3e-3);
  expect_below("products with a residual", added.relative(), 3e-3);
  expect_below("gated products", gated.relative(), 3e-3);
  expect_below("weights", values.relative(), 3e-3);
  expect_below("numbers of rows that change a row", apart, 0.5);
  return failures;
}

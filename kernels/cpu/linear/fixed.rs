//! Activations as fixed-point numbers, for products with integer codes.
//!
//! Each group of a row becomes 23-bit integers that share a power of two: the largest value of
//! the group keeps 22 bits, which is the rounding fp32 itself does when such values are summed.
//! Products with codes are then exact integers, their sum has no order, and no code is ever
//! converted to floating point. What a group sums to is rounded once.

use crate::cpu::parallel::{self, Shared};
use crate::cpu::simd::amx::TILE_ROWS;
use crate::cpu::simd::{Digits, Job, LANES, Line, Simd, Tier, flat, flat_mut, lanes};
use crate::cpu::weight::coded::QUAD;

/// `x [M, K]` in fixed point.
#[derive(Default)]
pub(super) struct Fixed {
    pub(super) group: usize,
    rows: usize,
    cols: usize,
    /// `[M, K / 4]`, unless there are tiles; all of these may be longer than what is in use.
    digits: Vec<Digits>,
    /// `[tiles, 3, tile_rows, K / 4]` for the matrix unit: a tile's upper, middle, lower digits.
    tiles: Vec<Line<u32>>,
    tile_rows: usize,
    /// `[K / group, M]`.
    units: Vec<Unit>,
}

/// What the integers of a group mean.
#[derive(Clone, Copy, Default)]
pub(super) struct Unit {
    /// The value of a lower digit's one: a power of two, or NaN if the group is not finite.
    pub(super) low: f32,
    /// The value of an upper digit's one.
    pub(super) high: f32,
    /// The sum of the group's values.
    pub(super) sum: f32,
}

impl Fixed {
    /// Converts `x` anew, into `digits` or `tiles`.
    pub(super) fn set(&mut self, tier: Tier, x: &[f32], (cols, group): (usize, usize), to: Layout) {
        let rows = x.len() / cols;
        (self.group, self.rows, self.cols) = (group, rows, cols);
        reserve(&mut self.units, x.len() / group, Unit::default());
        let per_row = cols / QUAD;
        let height = tile_rows(rows);
        self.tile_rows = height;
        let (digits, tiles) = match to {
            Layout::Quads => (rows * per_row, 0),
            Layout::Tiles => (0, rows.div_ceil(height) * 3 * height * per_row),
        };
        reserve(&mut self.digits, digits, Digits::ZERO);
        reserve(&mut self.tiles, tiles.div_ceil(LANES), Line::<u32>::ZERO);
        let (all_digits, all_units) = (Shared::new(&mut self.digits), Shared::new(&mut self.units));
        let all_tiles = Shared::new(flat_mut(&mut self.tiles));
        parallel::for_each(rows, cols, |row| {
            let x = &x[row * cols..][..cols];
            let to = match to {
                // SAFETY: each row is visited once.
                Layout::Quads => To::Quads(unsafe { all_digits.part(row * per_row, per_row) }),
                Layout::Tiles => To::Tiles([0, 1, 2].map(|digit| {
                    let at = (row / height * 3 + digit) * height + row % height;
                    // SAFETY: as above.
                    unsafe { all_tiles.part(at * per_row, per_row) }
                })),
            };
            let units = Units { all: &all_units, row, rows };
            tier.run(Convert { x, group, to, units });
        });
    }

    /// The numbers of group `group` of `row`, by quads.
    #[inline(always)]
    pub(super) fn digits(&self, row: usize, group: usize) -> &[Digits] {
        &self.digits[(row * self.cols + group * self.group) / QUAD..][..self.group / QUAD]
    }

    /// Rows of x in a tile.
    #[inline(always)]
    pub(super) fn tile_rows(&self) -> usize {
        self.tile_rows
    }

    /// Where the digits of a tile from `k` on begin, and the bytes from row to row.
    #[inline(always)]
    pub(super) fn tile(&self, tile: usize, k: usize) -> (*const u32, usize) {
        let at = tile * 3 * self.tile_rows * self.cols + k;
        (flat(&self.tiles)[at / QUAD..].as_ptr(), self.cols)
    }

    /// What the rows' numbers mean in a group.
    #[inline(always)]
    pub(super) fn units(&self, group: usize) -> &[Unit] {
        &self.units[group * self.rows..][..self.rows]
    }
}

/// Rows of x in a tile, if there are `rows` in all: few are dealt out evenly, many fill tiles.
#[inline(always)]
fn tile_rows(rows: usize) -> usize {
    if rows > super::TILE_ROWS {
        return TILE_ROWS;
    }
    rows.div_ceil(rows.div_ceil(TILE_ROWS).max(1)).max(1)
}

/// Makes `values` at least `len` long. Never shorter: calls of few and of many rows take turns, and
/// each would clear anew what it is about to write.
fn reserve<T: Clone>(values: &mut Vec<T>, len: usize, empty: T) {
    if values.len() < len {
        values.resize(len, empty);
    }
}

/// How the numbers are to lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// A quad's digits side by side, for vectors.
    Quads,
    /// Each digit's rows together, for the matrix unit.
    Tiles,
}

enum To<'a> {
    Quads(&'a mut [Digits]),
    Tiles([&'a mut [u32]; 3]),
}

struct Convert<'a> {
    x: &'a [f32],
    group: usize,
    to: To<'a>,
    units: Units<'a>,
}

/// The units of one row.
struct Units<'a> {
    all: &'a Shared<'a, Unit>,
    row: usize,
    rows: usize,
}

impl Units<'_> {
    #[inline(always)]
    fn set(&self, group: usize, unit: Unit) {
        // SAFETY: only this row's job writes here.
        unsafe { self.all.part(group * self.rows + self.row, 1)[0] = unit };
    }
}

impl Job for Convert<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, group, to, units } = self;
        match to {
            To::Quads(digits) => {
                let digits = digits.as_chunks_mut::<4>().0;
                convert(simd, x, group, units, |i, quads| digits[i] = quads);
            }
            To::Tiles([high, middle, low]) => {
                let (high, middle) = (high.as_chunks_mut::<4>().0, middle.as_chunks_mut::<4>().0);
                let low = low.as_chunks_mut::<4>().0;
                convert(simd, x, group, units, |i, quads| {
                    let [a, b, c, d] = quads;
                    let [a, b, c, d] = [a.planes(), b.planes(), c.planes(), d.planes()];
                    high[i] = [a[0], b[0], c[0], d[0]];
                    middle[i] = [a[1], b[1], c[1], d[1]];
                    low[i] = [a[2], b[2], c[2], d[2]];
                });
            }
        }
    }
}

/// Converts a row; `put` takes the index of sixteen numbers and their digits by quads.
#[inline(always)]
fn convert<S: Simd>(
    simd: S,
    x: &[f32],
    group: usize,
    units: Units<'_>,
    mut put: impl FnMut(usize, [Digits; 4]),
) {
    let vectors = group / LANES;
    for (at, x) in lanes(x).0.chunks_exact(vectors).enumerate() {
        let mut largest = simd.magnitude(simd.zero());
        for x in x {
            largest = simd.max_words(largest, simd.magnitude(simd.load(x)));
        }
        let (scale, low) = powers(simd.largest_word(largest));
        let mut sum = simd.magnitude(simd.zero());
        for (i, x) in x.iter().enumerate() {
            let x = simd.round(simd.mul(simd.load(x), simd.splat(scale)));
            sum = simd.add_words(sum, x);
            put(at * vectors + i, simd.digits(x));
        }
        let high = low * (1 << Digits::LOW_BITS) as f32;
        units.set(at, Unit { low, high, sum: simd.sum_words(sum) as f32 * low });
    }
}

/// The power of two that takes values up to `largest` (as bits) to integers up to
/// `Digits::MAX`, and its inverse.
#[inline(always)]
fn powers(largest: u32) -> (f32, f32) {
    // A significand of 24 bits that, cut to 22, would round above `Digits::MAX` counts as the
    // next power of two.
    const ROUND_UP: u32 = (1 << 24) - (4 * Digits::MAX as u32 + 2);
    // Below that, the inverse would not be a normal number: such a group is next to nothing.
    const LEAST: u32 = 22;
    let exponent = ((largest + ROUND_UP) >> 23).max(LEAST);
    if exponent >= 255 {
        return (0.0, f32::NAN);
    }
    (f32::from_bits((275 - exponent) << 23), f32::from_bits((exponent - 21) << 23))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_use_their_range_and_never_leave_it() {
        for exponent in 22..254 {
            for mantissa in [0, 1, 0x40_0000, 0x7E_FFFD, 0x7E_FFFE, 0x7E_FFFF, 0x7F_FFFF] {
                let largest = f32::from_bits(exponent << 23 | mantissa);
                let (scale, inverse) = powers(largest.to_bits());
                let integer = f64::from(largest * scale).round_ties_even();
                assert!(integer <= f64::from(Digits::MAX), "{largest:e}: {integer}");
                assert!(integer >= f64::from(Digits::MAX / 2), "{largest:e}: {integer}");
                assert_eq!(scale * inverse, 1.0);
            }
        }
        assert!(powers(f32::INFINITY.to_bits()).1.is_nan());
        assert!(powers(f32::NAN.to_bits()).1.is_nan());
        assert!(powers(0).0.is_finite());
    }
}

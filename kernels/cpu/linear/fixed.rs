//! Activations as fixed-point numbers, for products with integer codes.
//!
//! Each group of a row becomes 23-bit integers that share a power of two: the largest value of
//! the group keeps 22 bits, which is the rounding fp32 itself does when such values are summed.
//! Products with codes are then exact integers, their sum has no order, and no code is ever
//! converted to floating point. What a group sums to is rounded once.

use crate::cpu::parallel::{self, Shared};
use crate::cpu::simd::{Digits, Job, LANES, Simd, Tier, lanes};
use crate::cpu::weight::coded::QUAD;

/// `x [M, K]` in fixed point.
#[derive(Default)]
pub(super) struct Fixed {
    pub(super) group: usize,
    cols: usize,
    /// `K / group`, kept because a division takes longer than a group's sum.
    groups: usize,
    /// `[M, K / 4]`.
    digits: Vec<Digits>,
    /// `[M, K / group]`.
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
    /// Converts `x` anew.
    pub(super) fn set(&mut self, tier: Tier, x: &[f32], cols: usize, group: usize) {
        (self.group, self.cols, self.groups) = (group, cols, cols / group);
        self.digits.resize(x.len() / QUAD, Digits::ZERO);
        self.units.resize(x.len() / group, Unit::default());
        let (all_digits, all_units) = (Shared::new(&mut self.digits), Shared::new(&mut self.units));
        parallel::for_each(x.len() / cols, cols, |row| {
            let x = &x[row * cols..][..cols];
            // SAFETY: each row is visited once.
            let digits = unsafe { all_digits.part(row * (cols / QUAD), cols / QUAD) };
            // SAFETY: as above.
            let units = unsafe { all_units.part(row * (cols / group), cols / group) };
            tier.run(Convert { x, group, digits, units });
        });
    }

    /// The numbers of group `group` of `row`, by quads.
    #[inline(always)]
    pub(super) fn digits(&self, row: usize, group: usize) -> &[Digits] {
        &self.digits[(row * self.cols + group * self.group) / QUAD..][..self.group / QUAD]
    }

    #[inline(always)]
    pub(super) fn unit(&self, row: usize, group: usize) -> Unit {
        self.units[row * self.groups + group]
    }
}

struct Convert<'a> {
    x: &'a [f32],
    group: usize,
    digits: &'a mut [Digits],
    units: &'a mut [Unit],
}

impl Job for Convert<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let groups = lanes(self.x).0.chunks_exact(self.group / LANES);
        let digits = self.digits.as_chunks_mut::<4>().0.chunks_exact_mut(self.group / LANES);
        for ((x, digits), unit) in groups.zip(digits).zip(self.units) {
            let mut largest = simd.magnitude(simd.zero());
            for x in x {
                largest = simd.max_words(largest, simd.magnitude(simd.load(x)));
            }
            let (scale, low) = powers(simd.largest_word(largest));
            let mut sum = simd.magnitude(simd.zero());
            for (x, digits) in x.iter().zip(digits) {
                let x = simd.round(simd.mul(simd.load(x), simd.splat(scale)));
                sum = simd.add_words(sum, x);
                *digits = simd.digits(x);
            }
            let high = low * (1 << Digits::LOW_BITS) as f32;
            *unit = Unit { low, high, sum: simd.sum_words(sum) as f32 * low };
        }
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

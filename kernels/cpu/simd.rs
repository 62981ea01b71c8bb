//! Sixteen lanes of fp32 on every machine.
//!
//! Kernels are written once, over [`Simd`], and compiled once per tier. All tiers have the same
//! sixteen logical lanes, the same order of operations and (where the machine has it) fused
//! multiply-add, so AVX-512, AVX2 and aarch64 agree to the last bit. Only an x86-64 without FMA
//! rounds differently, and there the law still holds within the tier.
//!
//! A value of a [`Simd`] type is the proof that its instructions exist: it is made only by
//! [`Tier::run`]. Everything generic over it must be `#[inline(always)]`, for only code inlined
//! into the tier's entry function is compiled with the tier's instructions.

#[cfg_attr(not(all(target_arch = "x86_64", target_os = "linux")), path = "simd/no_amx.rs")]
pub(super) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
#[cfg(test)]
mod tests;
mod tier;

pub use tier::numerics;
#[cfg(test)]
pub(super) use tier::with_tier;
pub(super) use tier::{Job, Tier};

/// Lanes in a vector, on every tier.
pub(super) const LANES: usize = 16;

/// One vector in memory: sixteen lanes on a cache line of their own.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Line<T>(pub(super) [T; LANES]);

impl Line<f32> {
    pub(super) const ZERO: Self = Self([0.0; LANES]);
}

impl Line<u32> {
    pub(super) const ZERO: Self = Self([0; LANES]);
}

/// The values of consecutive lines.
#[inline(always)]
pub(super) fn flat<T>(lines: &[Line<T>]) -> &[T] {
    // SAFETY: a line is sixteen values without padding.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * LANES) }
}

/// The same, to be written.
#[inline(always)]
pub(super) fn flat_mut<T>(lines: &mut [Line<T>]) -> &mut [T] {
    // SAFETY: as above.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * LANES) }
}

/// Four fixed-point numbers, cut into digits as the tier's [`Simd::dot`] wants them.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Digits([u32; 4]);

impl Digits {
    /// Upper, middle and lower digits of four numbers, as AVX-512 has them.
    #[inline(always)]
    pub(super) fn planes(self) -> [u32; 3] {
        let [high, middle, low, _] = self.0;
        [high, middle, low]
    }

    pub(super) const ZERO: Self = Self([0; 4]);
    /// The largest magnitude of a fixed-point number: 127 upper digits, 2^14 - 1 below.
    pub(super) const MAX: i32 = (127 << Self::LOW_BITS) + (1 << (Self::LOW_BITS - 1)) - 1;
    /// A number is `high * 2^15 + low` with `-2^14 <= low < 2^14`.
    pub(super) const LOW_BITS: u32 = 15;
}

/// The operations of a tier on vectors of sixteen lanes.
pub(super) trait Simd: Copy + Send + Sync + 'static {
    /// Sixteen fp32.
    type V: Copy;
    /// Sixteen integers of 32 bits.
    type W: Copy;
    /// Sixteen sums of products of codes with fixed-point numbers.
    type D: Copy;
    /// Whether sixteen accumulators fit the register file; else at most four do.
    const WIDE: bool;

    fn splat(self, x: f32) -> Self::V;
    fn load(self, from: &[f32; LANES]) -> Self::V;
    fn store(self, v: Self::V, to: &mut [f32; LANES]);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `if a > b { a } else { b }`: a NaN in either gives `b`.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `if a < b { a } else { b }`.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;

    /// Sixteen bfloat16 bit patterns as fp32.
    fn load_bf16(self, from: &[u16; LANES]) -> Self::V;
    /// Sixteen IEEE half bit patterns as fp32.
    fn load_f16(self, from: &[u16; LANES]) -> Self::V;

    fn load_words(self, from: &[u32; LANES]) -> Self::W;
    fn store_words(self, w: Self::W, to: &mut [u32; LANES]);
    fn add_words(self, a: Self::W, b: Self::W) -> Self::W;
    fn max_words(self, a: Self::W, b: Self::W) -> Self::W;
    fn or_words(self, a: Self::W, b: Self::W) -> Self::W;
    /// `((w >> right) & mask) << left`.
    fn bits(self, w: Self::W, right: u32, mask: u32, left: u32) -> Self::W;
    /// The bits of `|v|`: they are ordered as the values are, with NaN above all.
    fn magnitude(self, v: Self::V) -> Self::W;
    /// The nearest integers, ties to even, for lanes below 2^22.
    fn round(self, v: Self::V) -> Self::W;
    /// Signed integers as fp32.
    fn float(self, w: Self::W) -> Self::V;
    fn sum_words(self, w: Self::W) -> i32;
    fn largest_word(self, w: Self::W) -> u32;

    /// The digits of sixteen numbers up to [`Digits::MAX`].
    fn digits(self, x: Self::W) -> [Digits; 4];
    fn no_dots(self) -> Self::D;
    /// Adds to each lane the products of its four unsigned bytes with four numbers. At most
    /// 128 products of a lane can be summed before the sums must be read.
    fn dot(self, sums: Self::D, bytes: Self::W, x: &Digits) -> Self::D;
    /// The sums as `high * 2^15 + low`: `high` exact, `low` rounded to fp32.
    fn dot_sums(self, sums: Self::D) -> (Self::V, Self::V);

    /// `2^n` for lanes holding `n + MAGIC`: the low bits of such a float are the integer `n`.
    fn exp2_of_magic(self, v: Self::V) -> Self::V;
    /// Sum by the one tree: lanes `i` and `i+8`, then `i+4`, `i+2`, `i+1`.
    fn sum(self, v: Self::V) -> f32;
    /// Lane `i` is `sum(v[i])`, by the same tree.
    fn sum_each(self, v: &[Self::V; LANES]) -> Self::V;
    fn largest(self, v: Self::V) -> f32;

    #[inline(always)]
    fn zero(self) -> Self::V {
        self.splat(0.0)
    }

    /// `e^x` within about one unit in the last place; saturates outside -87..88.
    #[inline(always)]
    fn exp(self, x: Self::V) -> Self::V {
        // The operand order lets a NaN through.
        let x = self.max(self.splat(-87.0), self.min(self.splat(88.0), x));
        let magic = self.splat(MAGIC);
        let shifted = self.fma(x, self.splat(std::f32::consts::LOG2_E), magic);
        let n = self.sub(shifted, magic);
        let r = self.fma(n, self.splat(-LN_2_HIGH), x);
        let r = self.fma(n, self.splat(-LN_2_LOW), r);
        let mut p = self.splat(EXP_TAIL[0]);
        for &c in &EXP_TAIL[1..] {
            p = self.fma(p, r, self.splat(c));
        }
        let p = self.add(self.fma(p, self.mul(r, r), r), self.splat(1.0));
        self.mul(p, self.exp2_of_magic(shifted))
    }

    /// `1 / (1 + e^-x)`.
    #[inline(always)]
    fn sigmoid(self, x: Self::V) -> Self::V {
        let one = self.splat(1.0);
        self.div(one, self.add(one, self.exp(self.sub(self.zero(), x))))
    }

    /// `x * sigmoid(x)`.
    #[inline(always)]
    fn silu(self, x: Self::V) -> Self::V {
        let one = self.splat(1.0);
        self.div(x, self.add(one, self.exp(self.sub(self.zero(), x))))
    }
}

/// Adding it to a small float leaves the nearest integer in the low bits: 1.5 * 2^23.
const MAGIC: f32 = 12_582_912.0;
// ln 2 in two parts, the first exact in few bits, so that `x - n ln 2` loses nothing (Cephes).
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;
// (e^r - 1 - r) / r^2 on |r| <= ln 2 / 2, highest power first (Cephes).
const EXP_TAIL: [f32; 6] =
    [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// Whole vectors of a slice, and what is left over.
#[inline(always)]
pub(super) fn lanes(x: &[f32]) -> (&[[f32; LANES]], &[f32]) {
    x.as_chunks::<LANES>()
}

/// The same, to be written.
#[inline(always)]
pub(super) fn lanes_mut(x: &mut [f32]) -> (&mut [[f32; LANES]], &mut [f32]) {
    x.as_chunks_mut::<LANES>()
}

/// A tail of fewer than sixteen values, with zeros for the lanes that are missing.
#[inline(always)]
pub(super) fn padded(tail: &[f32]) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    lanes[..tail.len()].copy_from_slice(tail);
    lanes
}

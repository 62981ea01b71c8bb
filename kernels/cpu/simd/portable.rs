//! Plain arrays, for the compiler to vectorise: aarch64, and x86-64 without AVX2.

// Register tiles are walked by index: that is how they unroll.
#![allow(clippy::needless_range_loop)]

use super::{Digits, LANES, Simd};

/// Whether `mul_add` is an instruction here; where it is not it would be a slow library call.
pub(super) const FUSED: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

#[derive(Clone, Copy)]
pub(super) struct Portable;

#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Lanes<T>([T; LANES]);

#[inline(always)]
fn each<T: Copy, U: Copy, R: Copy + Default>(
    a: Lanes<T>,
    b: Lanes<U>,
    op: impl Fn(T, U) -> R,
) -> Lanes<R> {
    let mut out = [R::default(); LANES];
    for i in 0..LANES {
        out[i] = op(a.0[i], b.0[i]);
    }
    Lanes(out)
}

#[inline(always)]
fn widen<T: Copy>(from: &[T; LANES], op: impl Fn(T) -> f32) -> Lanes<f32> {
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        out[i] = op(from[i]);
    }
    Lanes(out)
}

/// Digits of 16 bits for a multiplication of pairs: upper digits of numbers 0 and 2, of 1 and
/// 3, then their lower digits.
#[inline(always)]
pub(super) fn paired_digits(x: &[u32; LANES]) -> [Digits; 4] {
    const LOW: u32 = 32 - Digits::LOW_BITS;
    let mut all = [Digits::ZERO; 4];
    for (x, digits) in x.as_chunks::<4>().0.iter().zip(&mut all) {
        let x = x.map(|x| x as i32);
        let low = x.map(|x| x << LOW >> LOW);
        let high = [0, 1, 2, 3].map(|i| (x[i] - low[i]) >> Digits::LOW_BITS);
        let pair = |a: i32, b: i32| (a as u32 & 0xFFFF) | (b as u32) << 16;
        digits.0 = [
            pair(high[0], high[2]),
            pair(high[1], high[3]),
            pair(low[0], low[2]),
            pair(low[1], low[3]),
        ];
    }
    all
}

impl Simd for Portable {
    type V = Lanes<f32>;
    type W = Lanes<u32>;
    /// Upper and lower digits.
    type D = [Lanes<i32>; 2];
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        Lanes([x; LANES])
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::V {
        Lanes(*from)
    }
    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f32; LANES]) {
        *to = v.0;
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        each(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        each(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        each(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        each(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        let mut out = [0.0; LANES];
        for i in 0..LANES {
            out[i] = if FUSED { a.0[i].mul_add(b.0[i], c.0[i]) } else { a.0[i] * b.0[i] + c.0[i] };
        }
        Lanes(out)
    }
    // Comparisons rather than `f32::max`: they are one instruction, and what x86 does.
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        each(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        each(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> Self::V {
        widen(from, |x| f32::from_bits(u32::from(x) << 16))
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> Self::V {
        widen(from, |x| half::f16::from_bits(x).to_f32())
    }
    #[inline(always)]
    fn load_words(self, from: &[u32; LANES]) -> Self::W {
        Lanes(*from)
    }
    #[inline(always)]
    fn store_words(self, w: Self::W, to: &mut [u32; LANES]) {
        *to = w.0;
    }
    #[inline(always)]
    fn add_words(self, a: Self::W, b: Self::W) -> Self::W {
        each(a, b, |a, b| a.wrapping_add(b))
    }
    #[inline(always)]
    fn max_words(self, a: Self::W, b: Self::W) -> Self::W {
        each(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn or_words(self, a: Self::W, b: Self::W) -> Self::W {
        each(a, b, |a, b| a | b)
    }
    #[inline(always)]
    fn bits(self, w: Self::W, right: u32, mask: u32, left: u32) -> Self::W {
        each(w, w, |w, _| (w >> right & mask) << left)
    }
    #[inline(always)]
    fn magnitude(self, v: Self::V) -> Self::W {
        each(v, v, |v, _| v.to_bits() & 0x7FFF_FFFF)
    }
    #[inline(always)]
    fn round(self, v: Self::V) -> Self::W {
        // Above 2^23 the floats are the integers. `round_ties_even` may be a library call.
        const WHOLE: f32 = 8_388_608.0;
        each(v, v, |v, _| ((v.abs() + WHOLE) - WHOLE).copysign(v) as i32 as u32)
    }
    #[inline(always)]
    fn float(self, w: Self::W) -> Self::V {
        widen(&w.0, |w| w as i32 as f32)
    }
    #[inline(always)]
    fn sum_words(self, w: Self::W) -> i32 {
        w.0.iter().fold(0, |sum, &w| sum.wrapping_add(w as i32))
    }
    #[inline(always)]
    fn largest_word(self, w: Self::W) -> u32 {
        w.0.iter().fold(0, |a, &b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn digits(self, x: Self::W) -> [Digits; 4] {
        paired_digits(&x.0)
    }
    #[inline(always)]
    fn no_dots(self) -> Self::D {
        [Lanes([0; LANES]); 2]
    }
    #[inline(always)]
    fn dot(self, [mut high, mut low]: Self::D, bytes: Self::W, x: &Digits) -> Self::D {
        let [high_even, high_odd, low_even, low_odd] =
            x.0.map(|pair| [pair as i16, (pair >> 16) as i16].map(i32::from));
        for i in 0..LANES {
            let [b0, b1, b2, b3] = bytes.0[i].to_le_bytes().map(i32::from);
            high.0[i] +=
                b0 * high_even[0] + b2 * high_even[1] + b1 * high_odd[0] + b3 * high_odd[1];
            low.0[i] += b0 * low_even[0] + b2 * low_even[1] + b1 * low_odd[0] + b3 * low_odd[1];
        }
        [high, low]
    }
    #[inline(always)]
    fn dot_sums(self, [high, low]: Self::D) -> (Self::V, Self::V) {
        (each(high, high, |x, _| x as f32), each(low, low, |x, _| x as f32))
    }
    #[inline(always)]
    fn exp2_of_magic(self, v: Self::V) -> Self::V {
        widen(&v.0, |x| f32::from_bits((x.to_bits() << 23).wrapping_add(0x3F80_0000)))
    }
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let mut t = v.0;
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                t[i] += t[i + width];
            }
        }
        t[0]
    }
    #[inline(always)]
    fn sum_each(self, v: &[Self::V; LANES]) -> Self::V {
        let mut out = [0.0; LANES];
        for i in 0..LANES {
            out[i] = self.sum(v[i]);
        }
        Lanes(out)
    }
    #[inline(always)]
    fn largest(self, v: Self::V) -> f32 {
        v.0.iter().copied().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }
}

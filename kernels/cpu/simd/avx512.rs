//! AVX-512 with VNNI: a vector is one register, and four byte products one instruction.

// SAFETY, for every block here: `self` is the proof that AVX-512 exists (see `Avx512::new`),
// and pointers come from references to whole arrays of sixteen lanes.
#![allow(clippy::undocumented_unsafe_blocks)]

use super::{Digits, LANES, Simd};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(super) struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The machine must have AVX-512F, BW and VNNI.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        Self(())
    }
}

/// Adds the halves of `a` and of `b`: the sums of `a` below, of `b` above.
macro_rules! fold {
    ($shuffle:ident, $low:literal, $high:literal, $a:expr, $b:expr) => {
        _mm512_add_ps($shuffle::<$low>($a, $b), $shuffle::<$high>($a, $b))
    };
}

impl Simd for Avx512 {
    type V = __m512;
    type W = __m512i;
    /// Digits of eight bits: upper, middle, lower.
    type D = [__m512i; 3];
    const WIDE: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, v: __m512, to: &mut [f32; LANES]) {
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> __m512 {
        unsafe {
            let halves = _mm256_loadu_si256(from.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
        }
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_words(self, from: &[u32; LANES]) -> __m512i {
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn store_words(self, w: __m512i, to: &mut [u32; LANES]) {
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), w) }
    }
    #[inline(always)]
    fn add_words(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    fn max_words(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_max_epu32(a, b) }
    }
    #[inline(always)]
    fn or_words(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    fn bits(self, w: __m512i, right: u32, mask: u32, left: u32) -> __m512i {
        // Constant counts become immediates.
        unsafe {
            let w = _mm512_srl_epi32(w, _mm_cvtsi32_si128(right as i32));
            let w = _mm512_and_si512(w, _mm512_set1_epi32(mask as i32));
            _mm512_sll_epi32(w, _mm_cvtsi32_si128(left as i32))
        }
    }
    #[inline(always)]
    fn magnitude(self, v: __m512) -> __m512i {
        unsafe { _mm512_castps_si512(_mm512_abs_ps(v)) }
    }
    #[inline(always)]
    fn round(self, v: __m512) -> __m512i {
        unsafe { _mm512_cvtps_epi32(v) }
    }
    #[inline(always)]
    fn float(self, w: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(w) }
    }
    #[inline(always)]
    fn sum_words(self, w: __m512i) -> i32 {
        unsafe { _mm512_reduce_add_epi32(w) }
    }
    #[inline(always)]
    fn largest_word(self, w: __m512i) -> u32 {
        unsafe { _mm512_reduce_max_epu32(w) }
    }
    #[inline(always)]
    fn digits(self, x: __m512i) -> [Digits; 4] {
        unsafe {
            const LOW: u32 = Digits::LOW_BITS;
            let below = _mm512_srai_epi32::<{ 32 - LOW }>(_mm512_slli_epi32::<{ 32 - LOW }>(x));
            let high = _mm512_srai_epi32::<LOW>(_mm512_sub_epi32(x, below));
            let low = _mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(below));
            let middle = _mm512_srai_epi32::<8>(_mm512_sub_epi32(below, low));
            let (high, middle) = (_mm512_cvtepi32_epi8(high), _mm512_cvtepi32_epi8(middle));
            let (low, none) = (_mm512_cvtepi32_epi8(low), _mm_setzero_si128());
            let (a, b) = (_mm_unpacklo_epi32(high, middle), _mm_unpacklo_epi32(low, none));
            let (c, d) = (_mm_unpackhi_epi32(high, middle), _mm_unpackhi_epi32(low, none));
            let quads = [
                _mm_unpacklo_epi64(a, b),
                _mm_unpackhi_epi64(a, b),
                _mm_unpacklo_epi64(c, d),
                _mm_unpackhi_epi64(c, d),
            ];
            let mut digits = [Digits::ZERO; 4];
            for (quad, digits) in quads.into_iter().zip(&mut digits) {
                _mm_storeu_si128(digits.0.as_mut_ptr().cast(), quad);
            }
            digits
        }
    }
    #[inline(always)]
    fn no_dots(self) -> Self::D {
        unsafe { [_mm512_setzero_si512(); 3] }
    }
    #[inline(always)]
    fn dot(self, [high, middle, low]: Self::D, bytes: __m512i, x: &Digits) -> Self::D {
        unsafe {
            let digit = |i: usize| _mm512_set1_epi32(x.0[i] as i32);
            [
                _mm512_dpbusd_epi32(high, bytes, digit(0)),
                _mm512_dpbusd_epi32(middle, bytes, digit(1)),
                _mm512_dpbusd_epi32(low, bytes, digit(2)),
            ]
        }
    }
    #[inline(always)]
    fn dot_sums(self, [high, middle, low]: Self::D) -> (__m512, __m512) {
        unsafe {
            let low = _mm512_add_epi32(_mm512_slli_epi32::<8>(middle), low);
            (_mm512_cvtepi32_ps(high), _mm512_cvtepi32_ps(low))
        }
    }
    #[inline(always)]
    fn exp2_of_magic(self, v: __m512) -> __m512 {
        unsafe {
            let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(v));
            _mm512_castsi512_ps(_mm512_add_epi32(n, _mm512_set1_epi32(0x3F80_0000)))
        }
    }
    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        unsafe {
            let v = _mm512_add_ps(v, _mm512_shuffle_f32x4::<0xEE>(v, v));
            let v = _mm512_add_ps(v, _mm512_shuffle_f32x4::<0x55>(v, v));
            let v = _mm512_add_ps(v, _mm512_permute_ps::<0xEE>(v));
            let v = _mm512_add_ps(v, _mm512_permute_ps::<0x55>(v));
            _mm512_cvtss_f32(v)
        }
    }
    #[inline(always)]
    fn sum_each(self, v: &[__m512; LANES]) -> __m512 {
        unsafe {
            // Per step two vectors become one. The order in which vectors meet is chosen so
            // that the last step leaves vector i's sum in lane i.
            let mut quarter = [_mm512_setzero_ps(); 4];
            for (i, q) in quarter.iter_mut().enumerate() {
                let ab = fold!(_mm512_shuffle_f32x4, 0x44, 0xEE, v[i], v[i + 4]);
                let cd = fold!(_mm512_shuffle_f32x4, 0x44, 0xEE, v[i + 8], v[i + 12]);
                *q = fold!(_mm512_shuffle_f32x4, 0x88, 0xDD, ab, cd);
            }
            let even = fold!(_mm512_shuffle_ps, 0x44, 0xEE, quarter[0], quarter[1]);
            let odd = fold!(_mm512_shuffle_ps, 0x44, 0xEE, quarter[2], quarter[3]);
            fold!(_mm512_shuffle_ps, 0x88, 0xDD, even, odd)
        }
    }
    #[inline(always)]
    fn largest(self, v: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(v) }
    }
}

//! AVX2 with FMA and F16C: a vector is two registers.

// SAFETY, for every block here: `self` is the proof that AVX2, FMA and F16C exist (see
// `Avx2::new`), and pointers come from references to whole arrays of sixteen lanes.
#![allow(clippy::undocumented_unsafe_blocks)]

use super::portable::paired_digits;
use super::{Digits, LANES, Simd};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The machine must have AVX2, FMA and F16C.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        Self(())
    }
}

#[derive(Clone, Copy)]
pub(super) struct Pair<T>(T, T);

macro_rules! both {
    ($op:ident, $($x:expr),+) => {
        unsafe { Pair($op($($x.0),+), $op($($x.1),+)) }
    };
}

macro_rules! fold {
    ($shuffle:ident, $low:literal, $high:literal, $a:expr, $b:expr) => {
        _mm256_add_ps($shuffle::<$low>($a, $b), $shuffle::<$high>($a, $b))
    };
}

/// Lane `i` is the sum of `v[i]`'s eight lanes.
#[inline(always)]
unsafe fn sum_each_8(v: &[__m256; 8]) -> __m256 {
    unsafe {
        let mut half = [v[0]; 4];
        for (i, h) in half.iter_mut().enumerate() {
            *h = fold!(_mm256_permute2f128_ps, 0x20, 0x31, v[i], v[i + 4]);
        }
        let even = fold!(_mm256_shuffle_ps, 0x44, 0xEE, half[0], half[1]);
        let odd = fold!(_mm256_shuffle_ps, 0x44, 0xEE, half[2], half[3]);
        fold!(_mm256_shuffle_ps, 0x88, 0xDD, even, odd)
    }
}

/// Adds the products of bytes 0 and 2 with the pair `even`, of bytes 1 and 3 with `odd`.
#[inline(always)]
fn add_pairs(sums: Pair<__m256i>, bytes: Pair<__m256i>, even: u32, odd: u32) -> Pair<__m256i> {
    let add = |sums, bytes| unsafe {
        let (even, odd) = (_mm256_set1_epi32(even as i32), _mm256_set1_epi32(odd as i32));
        let bytes_even = _mm256_and_si256(bytes, _mm256_set1_epi32(0x00FF_00FF));
        let bytes_odd = _mm256_srli_epi16::<8>(bytes);
        let products = _mm256_madd_epi16(bytes_odd, odd);
        _mm256_add_epi32(_mm256_add_epi32(sums, _mm256_madd_epi16(bytes_even, even)), products)
    };
    Pair(add(sums.0, bytes.0), add(sums.1, bytes.1))
}

impl Simd for Avx2 {
    type V = Pair<__m256>;
    type W = Pair<__m256i>;
    /// Upper and lower digits, of sixteen bits for lack of VNNI.
    type D = [Pair<__m256i>; 2];
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        unsafe { Pair(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::V {
        let p = from.as_ptr();
        unsafe { Pair(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
    }
    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f32; LANES]) {
        let p = to.as_mut_ptr();
        unsafe {
            _mm256_storeu_ps(p, v.0);
            _mm256_storeu_ps(p.add(8), v.1);
        }
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_div_ps, a, b)
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        both!(_mm256_fmadd_ps, a, b, c)
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_min_ps, a, b)
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> Self::V {
        unsafe {
            let p: *const __m128i = from.as_ptr().cast();
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(p));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(1)));
            let low = _mm256_slli_epi32::<16>(low);
            let high = _mm256_slli_epi32::<16>(high);
            Pair(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        }
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> Self::V {
        unsafe {
            let p: *const __m128i = from.as_ptr().cast();
            Pair(_mm256_cvtph_ps(_mm_loadu_si128(p)), _mm256_cvtph_ps(_mm_loadu_si128(p.add(1))))
        }
    }
    #[inline(always)]
    fn load_words(self, from: &[u32; LANES]) -> Self::W {
        unsafe {
            let p: *const __m256i = from.as_ptr().cast();
            Pair(_mm256_loadu_si256(p), _mm256_loadu_si256(p.add(1)))
        }
    }
    #[inline(always)]
    fn store_words(self, w: Self::W, to: &mut [u32; LANES]) {
        unsafe {
            let p: *mut __m256i = to.as_mut_ptr().cast();
            _mm256_storeu_si256(p, w.0);
            _mm256_storeu_si256(p.add(1), w.1);
        }
    }
    #[inline(always)]
    fn add_words(self, a: Self::W, b: Self::W) -> Self::W {
        both!(_mm256_add_epi32, a, b)
    }
    #[inline(always)]
    fn max_words(self, a: Self::W, b: Self::W) -> Self::W {
        both!(_mm256_max_epu32, a, b)
    }
    #[inline(always)]
    fn or_words(self, a: Self::W, b: Self::W) -> Self::W {
        both!(_mm256_or_si256, a, b)
    }
    #[inline(always)]
    fn bits(self, w: Self::W, right: u32, mask: u32, left: u32) -> Self::W {
        // Constant counts become immediates.
        unsafe {
            let mask = _mm256_set1_epi32(mask as i32);
            let right = _mm_cvtsi32_si128(right as i32);
            let left = _mm_cvtsi32_si128(left as i32);
            let low = _mm256_and_si256(_mm256_srl_epi32(w.0, right), mask);
            let high = _mm256_and_si256(_mm256_srl_epi32(w.1, right), mask);
            Pair(_mm256_sll_epi32(low, left), _mm256_sll_epi32(high, left))
        }
    }
    #[inline(always)]
    fn magnitude(self, v: Self::V) -> Self::W {
        unsafe {
            let mask = _mm256_set1_epi32(0x7FFF_FFFF);
            let low = _mm256_and_si256(_mm256_castps_si256(v.0), mask);
            Pair(low, _mm256_and_si256(_mm256_castps_si256(v.1), mask))
        }
    }
    #[inline(always)]
    fn round(self, v: Self::V) -> Self::W {
        both!(_mm256_cvtps_epi32, v)
    }
    #[inline(always)]
    fn float(self, w: Self::W) -> Self::V {
        both!(_mm256_cvtepi32_ps, w)
    }
    #[inline(always)]
    fn sum_words(self, w: Self::W) -> i32 {
        let mut words = [0; LANES];
        self.store_words(w, &mut words);
        words.iter().fold(0, |sum, &w| sum.wrapping_add(w as i32))
    }
    #[inline(always)]
    fn largest_word(self, w: Self::W) -> u32 {
        let mut words = [0; LANES];
        self.store_words(w, &mut words);
        words.iter().fold(0, |a, &b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn digits(self, x: Self::W) -> [Digits; 4] {
        let mut words = [0; LANES];
        self.store_words(x, &mut words);
        paired_digits(&words)
    }
    #[inline(always)]
    fn no_dots(self) -> Self::D {
        unsafe { [Pair(_mm256_setzero_si256(), _mm256_setzero_si256()); 2] }
    }
    #[inline(always)]
    fn dot(self, [high, low]: Self::D, bytes: Self::W, x: &Digits) -> Self::D {
        [add_pairs(high, bytes, x.0[0], x.0[1]), add_pairs(low, bytes, x.0[2], x.0[3])]
    }
    #[inline(always)]
    fn dot_sums(self, [high, low]: Self::D) -> (Self::V, Self::V) {
        (both!(_mm256_cvtepi32_ps, high), both!(_mm256_cvtepi32_ps, low))
    }
    #[inline(always)]
    fn exp2_of_magic(self, v: Self::V) -> Self::V {
        unsafe {
            let one = _mm256_set1_epi32(0x3F80_0000);
            let low = _mm256_slli_epi32::<23>(_mm256_castps_si256(v.0));
            let high = _mm256_slli_epi32::<23>(_mm256_castps_si256(v.1));
            Pair(
                _mm256_castsi256_ps(_mm256_add_epi32(low, one)),
                _mm256_castsi256_ps(_mm256_add_epi32(high, one)),
            )
        }
    }
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        unsafe {
            let t = _mm256_add_ps(v.0, v.1);
            let t = _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps::<1>(t));
            let t = _mm_add_ps(t, _mm_movehl_ps(t, t));
            let t = _mm_add_ss(t, _mm_shuffle_ps::<0x55>(t, t));
            _mm_cvtss_f32(t)
        }
    }
    #[inline(always)]
    fn sum_each(self, v: &[Self::V; LANES]) -> Self::V {
        unsafe {
            let mut t = [_mm256_setzero_ps(); LANES];
            for i in 0..LANES {
                t[i] = _mm256_add_ps(v[i].0, v[i].1);
            }
            let low = [t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7]];
            let high = [t[8], t[9], t[10], t[11], t[12], t[13], t[14], t[15]];
            Pair(sum_each_8(&low), sum_each_8(&high))
        }
    }
    #[inline(always)]
    fn largest(self, v: Self::V) -> f32 {
        unsafe {
            let t = _mm256_max_ps(v.0, v.1);
            let t = _mm_max_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps::<1>(t));
            let t = _mm_max_ps(t, _mm_movehl_ps(t, t));
            _mm_cvtss_f32(_mm_max_ss(t, _mm_shuffle_ps::<0x55>(t, t)))
        }
    }
}

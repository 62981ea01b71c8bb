//! Root-mean-square norms, row by row, with statistics in fp32 lanes of a fixed order.

use super::parallel::{self, Shared};
use super::simd::{Job, LANES, Simd, Tier, lanes, lanes_mut, padded};

#[cfg(test)]
mod tests;

/// `out [M, H] = x * rsqrt(mean x² + eps) * gain`, where H is `gain.len()`.
pub fn rms_norm(x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
    let rows = row_count(x, gain);
    assert_eq!(out.len(), x.len(), "rms_norm: out is not [M, H]");
    let (tier, out, width) = (Tier::current(), Shared::new(out), gain.len());
    parallel::for_each(rows, row_ops(width), |row| {
        let at = row * width;
        // SAFETY: each row is visited once.
        let out = unsafe { out.part(at, width) };
        tier.run(Norm { x: &x[at..][..width], gain, eps, out });
    });
}

/// `sum [M, H] = x + residual` and `out [M, H] = rms_norm(sum)`.
pub fn add_rms_norm(
    x: &[f32],
    residual: &[f32],
    gain: &[f32],
    eps: f32,
    sum: &mut [f32],
    out: &mut [f32],
) {
    let rows = row_count(x, gain);
    assert_eq!(residual.len(), x.len(), "add_rms_norm: residual is not [M, H]");
    assert_eq!(sum.len(), x.len(), "add_rms_norm: sum is not [M, H]");
    assert_eq!(out.len(), x.len(), "add_rms_norm: out is not [M, H]");
    let (tier, width) = (Tier::current(), gain.len());
    let (sum, out) = (Shared::new(sum), Shared::new(out));
    parallel::for_each(rows, row_ops(width), |row| {
        let at = row * width;
        // SAFETY: each row is visited once.
        let sum = unsafe { sum.part(at, width) };
        tier.run(Add { a: &x[at..][..width], b: &residual[at..][..width], out: sum });
        // SAFETY: as above.
        let out = unsafe { out.part(at, width) };
        tier.run(Norm { x: sum, gain, eps, out });
    });
}

/// `out [M, A + B] = rms_norm(a) | rms_norm(b)`, of values `[M, A]` and `[M, B]` with a gain each.
pub fn rms_norm_pair(a: (&[f32], &[f32]), b: (&[f32], &[f32]), eps: f32, out: &mut [f32]) {
    let rows = row_count(a.0, a.1);
    assert_eq!(rows, row_count(b.0, b.1), "rms_norm_pair: unequal rows");
    let width = a.1.len() + b.1.len();
    assert_eq!(out.len(), rows * width, "rms_norm_pair: out is not [M, A + B]");
    let (tier, out) = (Tier::current(), Shared::new(out));
    parallel::for_each(rows, row_ops(width), |row| {
        // SAFETY: each row is visited once.
        let out = unsafe { out.part(row * width, width) };
        let (out_a, out_b) = out.split_at_mut(a.1.len());
        for ((x, gain), out) in [a, b].into_iter().zip([out_a, out_b]) {
            tier.run(Norm { x: &x[row * gain.len()..][..gain.len()], gain, eps, out });
        }
    });
}

fn row_count(x: &[f32], gain: &[f32]) -> usize {
    let width = gain.len();
    assert!(width > 0 && x.len().is_multiple_of(width), "norm: x is not [M, H]");
    x.len() / width
}

/// Vector operations of a row: sum of squares, loads, two products, stores.
fn row_ops(width: usize) -> usize {
    width.div_ceil(LANES) * 4
}

/// One row.
pub(super) struct Norm<'a> {
    pub(super) x: &'a [f32],
    pub(super) gain: &'a [f32],
    pub(super) eps: f32,
    pub(super) out: &'a mut [f32],
}

impl Job for Norm<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, gain, eps, out } = self;
        let scale = simd.splat(inverse_rms(simd, x, eps));
        let ((x, x_tail), (gain, gain_tail)) = (lanes(x), lanes(gain));
        let (out, out_tail) = lanes_mut(out);
        for ((x, gain), out) in x.iter().zip(gain).zip(out) {
            let scaled = simd.mul(simd.load(x), scale);
            simd.store(simd.mul(scaled, simd.load(gain)), out);
        }
        if !x_tail.is_empty() {
            let scaled = simd.mul(simd.load(&padded(x_tail)), scale);
            let mut last = [0.0; LANES];
            simd.store(simd.mul(scaled, simd.load(&padded(gain_tail))), &mut last);
            out_tail.copy_from_slice(&last[..out_tail.len()]);
        }
    }
}

/// `1 / sqrt(mean x² + eps)`.
#[inline(always)]
pub(super) fn inverse_rms<S: Simd>(simd: S, x: &[f32], eps: f32) -> f32 {
    1.0 / (sum_of_squares(simd, x) / x.len() as f32 + eps).sqrt()
}

/// The sum of `x²`: four vectors take turns, and are added at the end.
#[inline(always)]
pub(super) fn sum_of_squares<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let (x, tail) = lanes(x);
    let mut sums = [simd.zero(); 4];
    let (whole, rest) = x.as_chunks::<4>();
    for four in whole {
        for i in 0..4 {
            let x = simd.load(&four[i]);
            sums[i] = simd.fma(x, x, sums[i]);
        }
    }
    for (x, sum) in rest.iter().zip(&mut sums) {
        let x = simd.load(x);
        *sum = simd.fma(x, x, *sum);
    }
    if !tail.is_empty() {
        let x = simd.load(&padded(tail));
        sums[3] = simd.fma(x, x, sums[3]);
    }
    simd.sum(simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3])))
}

struct Add<'a> {
    a: &'a [f32],
    b: &'a [f32],
    out: &'a mut [f32],
}

impl Job for Add<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        for ((a, b), out) in self.a.iter().zip(self.b).zip(self.out) {
            *out = a + b;
        }
    }
}

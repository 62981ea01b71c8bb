//! What the recurrence consumes: convolved, split and normalised tokens with their two rates.

use super::{Gdn, GdnDims, GdnRow, HISTORY, TAPS, for_each_token};
use crate::cpu::norm::sum_of_squares;
use crate::cpu::parallel::Shared;
use crate::cpu::simd::{Job, LANES, Line, Simd, Tier, flat, flat_mut, lanes, lanes_mut};

/// Added to the sum of squares of q and of k.
const L2_EPS: f32 = 1e-6;

/// Indexed by the tokens of the call.
#[derive(Default)]
pub(super) struct Inputs {
    /// `[M, C]`: q and k normalised, v.
    qkv: Vec<Line<f32>>,
    /// `[M, Hv]`.
    rates: Vec<Rates>,
}

/// The scalars of one token and value head.
#[derive(Clone, Copy, Default)]
pub(super) struct Rates {
    /// g: what remains of the state.
    pub(super) decay: f32,
    /// How much of the error is learned.
    pub(super) beta: f32,
    /// k · q.
    pub(super) overlap: f32,
}

impl Inputs {
    pub(super) fn prepare(
        &mut self,
        tier: Tier,
        layer: &Gdn,
        proj: &[f32],
        rows: &[GdnRow],
        windows: &[f32],
    ) {
        let dims = &layer.dims;
        let (count, channels) = (proj.len() / dims.projection(), dims.channels());
        self.qkv.resize(count * channels / LANES, Line::<f32>::ZERO);
        self.rates.resize(count * dims.value_heads, Rates::default());
        let qkv = Shared::new(flat_mut(&mut self.qkv));
        let rates = Shared::new(&mut self.rates);
        // Four products and a silu for each vector.
        for_each_token(rows, channels / LANES * 35, |row, token| {
            let window = &windows[row.slot * dims.window_len()..][..dims.window_len()];
            let taps = taps(dims, proj, row, token - row.start, window);
            let rest = &proj[token * dims.projection() + channels + dims.values()..];
            let (b, a) = rest[..2 * dims.value_heads].split_at(dims.value_heads);
            // SAFETY: no two rows share a token.
            let qkv = unsafe { qkv.part(token * channels, channels) };
            // SAFETY: as above.
            let rates = unsafe { rates.part(token * dims.value_heads, dims.value_heads) };
            tier.run(Token { layer, taps, b, a, qkv, rates });
        });
    }

    /// q of key head `head`.
    #[inline(always)]
    pub(super) fn q(&self, dims: &GdnDims, token: usize, head: usize) -> &[f32] {
        &self.token(dims, token)[head * dims.key_dim..][..dims.key_dim]
    }

    /// k of key head `head`.
    #[inline(always)]
    pub(super) fn k(&self, dims: &GdnDims, token: usize, head: usize) -> &[f32] {
        &self.keys(dims, token)[head * dims.key_dim..][..dims.key_dim]
    }

    /// k of all key heads.
    #[inline(always)]
    pub(super) fn keys(&self, dims: &GdnDims, token: usize) -> &[f32] {
        &self.token(dims, token)[dims.keys()..][..dims.keys()]
    }

    /// v of all value heads.
    #[inline(always)]
    pub(super) fn values(&self, dims: &GdnDims, token: usize) -> &[f32] {
        &self.token(dims, token)[2 * dims.keys()..]
    }

    #[inline(always)]
    pub(super) fn rates(&self, dims: &GdnDims, token: usize) -> &[Rates] {
        &self.rates[token * dims.value_heads..][..dims.value_heads]
    }

    #[inline(always)]
    fn token(&self, dims: &GdnDims, token: usize) -> &[f32] {
        &flat(&self.qkv)[token * dims.channels()..][..dims.channels()]
    }
}

/// The convolution's inputs for a row's token `t`: the window's history, then the row's tokens.
fn taps<'a>(
    dims: &GdnDims,
    proj: &'a [f32],
    row: &GdnRow,
    t: usize,
    window: &'a [f32],
) -> [&'a [f32]; TAPS] {
    let channels = dims.channels();
    let mut taps: [&[f32]; TAPS] = [&[]; TAPS];
    for (tap, input) in taps.iter_mut().enumerate() {
        let at = t + tap;
        *input = if at < HISTORY {
            &window[(row.keep + at) * channels..][..channels]
        } else {
            &proj[(row.start + at - HISTORY) * dims.projection()..][..channels]
        };
    }
    taps
}

/// One token.
struct Token<'a> {
    layer: &'a Gdn,
    /// Oldest first, `[C]` each.
    taps: [&'a [f32]; TAPS],
    b: &'a [f32],
    a: &'a [f32],
    qkv: &'a mut [f32],
    rates: &'a mut [Rates],
}

impl Job for Token<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { layer, taps, b, a, qkv, rates } = self;
        let dims = &layer.dims;
        convolve(simd, &layer.conv, &taps, qkv);
        let (q, k) = qkv[..2 * dims.keys()].split_at_mut(dims.keys());
        let heads = q.chunks_exact_mut(dims.key_dim).zip(k.chunks_exact_mut(dims.key_dim));
        let shared = dims.value_heads / dims.key_heads;
        for ((q, k), rates) in heads.zip(rates.chunks_exact_mut(shared)) {
            normalise(simd, q, (dims.key_dim as f32).sqrt());
            normalise(simd, k, 1.0);
            let overlap = dot(simd, q, k);
            rates.iter_mut().for_each(|rates| rates.overlap = overlap);
        }
        for (head, rates) in rates.iter_mut().enumerate() {
            rates.beta = 1.0 / (1.0 + (-b[head]).exp());
            rates.decay = (-layer.rate[head] * softplus(a[head] + layer.dt_bias[head])).exp();
        }
    }
}

/// `silu(sum of tap * input)` for each channel, the oldest first.
#[inline(always)]
fn convolve<S: Simd>(simd: S, conv: &[f32], taps: &[&[f32]; TAPS], out: &mut [f32]) {
    let (out, _) = lanes_mut(out);
    let mut inputs: [&[[f32; LANES]]; TAPS] = [&[]; TAPS];
    let mut weights: [&[[f32; LANES]]; TAPS] = [&[]; TAPS];
    for tap in 0..TAPS {
        inputs[tap] = &lanes(taps[tap]).0[..out.len()];
        weights[tap] = &lanes(conv).0[tap * out.len()..][..out.len()];
    }
    for (i, out) in out.iter_mut().enumerate() {
        let mut sum = simd.zero();
        for tap in 0..TAPS {
            sum = simd.fma(simd.load(&weights[tap][i]), simd.load(&inputs[tap][i]), sum);
        }
        simd.store(simd.silu(sum), out);
    }
}

/// `x / (sqrt(sum x² + eps) * divisor)`.
#[inline(always)]
fn normalise<S: Simd>(simd: S, x: &mut [f32], divisor: f32) {
    let scale = simd.splat(1.0 / ((sum_of_squares(simd, x) + L2_EPS).sqrt() * divisor));
    for x in lanes_mut(x).0 {
        simd.store(simd.mul(simd.load(x), scale), x);
    }
}

#[inline(always)]
fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let mut sum = simd.zero();
    for (a, b) in lanes(a).0.iter().zip(lanes(b).0) {
        sum = simd.fma(simd.load(a), simd.load(b), sum);
    }
    simd.sum(sum)
}

/// `ln(1 + e^x)`, which is x itself once `e^-x` is below fp32's resolution.
fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

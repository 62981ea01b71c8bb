//! The way of a token's heads into the cache, and of its queries to those who will walk.

use super::{Attention, AttentionRow, HEAD_DIM_MAX, KvPools};
use crate::cpu::norm::Norm;
use crate::cpu::parallel::{self, Shared};
use crate::cpu::simd::{Job, LANES, Simd, Tier};

/// Where the heads of tokens are found.
pub(super) struct Source<'a> {
    pub(super) layer: &'a Attention,
    pub(super) proj: &'a [f32],
    /// From one token to the next.
    pub(super) stride: usize,
    /// The offset of k in a token; v follows.
    pub(super) keys: usize,
}

/// Writes keys and values of the tokens of `rows` to the pools, and queries, ready to be
/// multiplied with keys, to `queries [M, Nq, D]`.
pub(super) fn run(
    tier: Tier,
    source: &Source<'_>,
    rows: &[AttentionRow<'_>],
    pools: &mut KvPools<'_>,
    queries: Option<&mut [f32]>,
) {
    let dims = &source.layer.dims;
    let (keys, values) = (Shared::new(pools.keys), Shared::new(pools.values));
    let queries = queries.map(Shared::new);
    let count = rows.iter().map(|row| row.len).sum();
    let ops = (dims.query_heads + dims.kv_heads) * dims.head_dim.div_ceil(LANES) * 8;
    parallel::for_each(count, ops, |i| {
        let (row, t) = parallel::locate(rows.iter().map(|row| row.len), i);
        let (row, token) = (&rows[row], rows[row].start + t);
        let (keys, values) = (&keys, &values);
        let width = dims.queries();
        // SAFETY: no two rows share a token.
        let queries = queries.as_ref().map(|all| unsafe { all.part(token * width, width) });
        let (position, proj) = (row.position + t, &source.proj[token * source.stride..]);
        let pages = row.pages;
        tier.run(Token { source, proj, position, pages, keys, values, queries });
    });
}

/// One token.
struct Token<'a> {
    source: &'a Source<'a>,
    proj: &'a [f32],
    position: usize,
    pages: &'a [u32],
    keys: &'a Shared<'a, f32>,
    values: &'a Shared<'a, f32>,
    queries: Option<&'a mut [f32]>,
}

impl Job for Token<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let layer = self.source.layer;
        let (dims, dim, eps) = (&layer.dims, layer.dims.head_dim, layer.eps);
        let turn = Turn::at(self.position, &layer.inv_freq);
        let (k, v) =
            self.proj[self.source.keys..][..2 * dims.kv_heads * dim].split_at(dims.kv_heads * dim);
        for head in 0..dims.kv_heads {
            let place = dims.place(self.pages, self.position, head);
            // SAFETY: tokens of a row have their own places, and no page is written by two rows.
            let key = unsafe { self.keys.part(place, dim) };
            Norm { x: &k[head * dim..][..dim], gain: &layer.k_gain, eps, out: key }.run(simd);
            turn.apply(key);
            // SAFETY: as above.
            let value = unsafe { self.values.part(place, dim) };
            value.copy_from_slice(&v[head * dim..][..dim]);
        }
        let queries = self.queries.into_iter().flat_map(|queries| queries.chunks_exact_mut(dim));
        // Each head's query is followed by its gate.
        for (x, query) in self.proj.chunks_exact(2 * dim).zip(queries) {
            Norm { x: &x[..dim], gain: &layer.q_gain, eps, out: query }.run(simd);
            turn.apply(query);
        }
    }
}

/// The rotation of a position.
struct Turn {
    half: usize,
    cos: [f32; HEAD_DIM_MAX / 2],
    sin: [f32; HEAD_DIM_MAX / 2],
}

impl Turn {
    #[inline(always)]
    fn at(position: usize, inv_freq: &[f32]) -> Self {
        let (mut cos, mut sin) = ([0.0; HEAD_DIM_MAX / 2], [0.0; HEAD_DIM_MAX / 2]);
        for (i, freq) in inv_freq.iter().enumerate() {
            // The angle in fp32, as in the models' own code.
            (sin[i], cos[i]) = (position as f32 * freq).sin_cos();
        }
        Self { half: inv_freq.len(), cos, sin }
    }

    /// Rotates dimensions i and i + half of `x`; those beyond stay.
    #[inline(always)]
    fn apply(&self, x: &mut [f32]) {
        let (a, b) = x[..2 * self.half].split_at_mut(self.half);
        for i in 0..self.half {
            let (low, high) = (a[i], b[i]);
            a[i] = low * self.cos[i] - high * self.sin[i];
            b[i] = high * self.cos[i] + low * self.sin[i];
        }
    }
}

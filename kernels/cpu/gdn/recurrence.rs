//! The state's walk over the tokens, sixteen of its rows (values) at a time.

use super::inputs::{Inputs, Rates};
use super::{GdnDims, GdnPools, GdnRow};
use crate::cpu::parallel::{self, Shared};
use crate::cpu::simd::{Job, LANES, Line, Simd, Tier, flat_mut, lanes, lanes_mut};
use std::cell::Cell;

thread_local! {
    // A block of state that must not be kept. Taken while in use, as jobs may be stolen.
    static DRAFT: Cell<Option<Vec<Line<f32>>>> = const { Cell::new(None) };
}

/// Folds what is kept into the states, and writes S q of every token to `out [M, Hv Dv]`.
pub(super) fn run(
    tier: Tier,
    dims: &GdnDims,
    inputs: &Inputs,
    rows: &[GdnRow],
    pools: &mut GdnPools<'_>,
    out: &mut [f32],
) {
    let blocks = dims.values() / LANES;
    let work: usize = rows.iter().map(|row| 5 * row.len + 2 * row.keep).sum();
    let ops = dims.key_dim * work / rows.len().max(1);
    let state = Shared::new(pools.state);
    let tape = Shared::new(pools.tape);
    let out = Shared::new(out);
    parallel::for_each(rows.len() * blocks, ops, |unit| {
        let (row, first) = (&rows[unit / blocks], unit % blocks * LANES);
        // Found once: a division takes as long as several rows of the state.
        let head = first / dims.value_dim;
        let key_head = head / (dims.value_heads / dims.key_heads);
        let (state, tape, out) = (&state, &tape, &out);
        tier.run(Block { dims, inputs, row, first, head, key_head, state, tape, out });
    });
}

/// Sixteen values of one head of one row.
struct Block<'a> {
    dims: &'a GdnDims,
    inputs: &'a Inputs,
    row: &'a GdnRow,
    /// The first of them among the values of all heads.
    first: usize,
    head: usize,
    key_head: usize,
    state: &'a Shared<'a, f32>,
    tape: &'a Shared<'a, f32>,
    out: &'a Shared<'a, f32>,
}

impl Job for Block<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // A known length lets the loops over k unroll; models have this one.
        match self.dims.key_dim {
            128 => self.walk(simd, 128),
            other => self.walk(simd, other),
        }
    }
}

impl Block<'_> {
    #[inline(always)]
    fn walk<S: Simd>(&self, simd: S, key_dim: usize) {
        let row = self.row;
        let at = row.slot * self.dims.state_len() + self.first * key_dim;
        // SAFETY: blocks are disjoint, and so are the slots of rows.
        let state = unsafe { self.state.part(at, LANES * key_dim) };
        self.fold(simd, key_dim, state);
        if row.commit {
            for token in row.start..row.start + row.len {
                self.set_aside(token, state);
                let delta = self.look(simd, key_dim, token, state);
                let (k, rates) = self.key(token);
                advance(simd, state, &k[..key_dim], &delta, rates.decay);
            }
        } else {
            self.verify(simd, key_dim, state);
        }
    }

    /// Copies the state before `token` where it is to be kept.
    #[inline(always)]
    fn set_aside(&self, token: usize, state: &[f32]) {
        let Some((len, slot)) = self.row.mark else { return };
        if token == self.row.start + len {
            let at = slot * self.dims.state_len() + self.first * self.dims.key_dim;
            // SAFETY: blocks are disjoint, and nobody else has this slot.
            unsafe { self.state.part(at, state.len()) }.copy_from_slice(state);
        }
    }

    /// Replays the kept tokens from the tape.
    #[inline(always)]
    fn fold<S: Simd>(&self, simd: S, key_dim: usize, state: &mut [f32]) {
        let dims = self.dims;
        let key = self.key_head * key_dim;
        for t in 0..self.row.keep {
            let at = self.row.slot * dims.tape_len() + t * dims.tape_width();
            // SAFETY: keys and decays of the tape are written after all blocks are done.
            let k = unsafe { self.tape.read(at + key, key_dim) };
            // SAFETY: as above.
            let decay =
                unsafe { self.tape.read(at + dims.keys() + dims.values() + self.head, 1) }[0];
            let mut delta = [0.0; LANES];
            delta.copy_from_slice(self.tape_delta(t));
            advance(simd, state, k, &delta, decay);
        }
    }

    /// Runs uncertain tokens over a copy of the state, and writes their d to the tape.
    #[inline(always)]
    fn verify<S: Simd>(&self, simd: S, key_dim: usize, state: &[f32]) {
        let row = self.row;
        let mut draft = DRAFT.take().unwrap_or_default();
        draft.resize(key_dim, Line::<f32>::ZERO);
        for t in 0..row.len {
            let token = row.start + t;
            let before: &[f32] = if t == 0 { state } else { flat_mut(&mut draft) };
            let delta = self.look(simd, key_dim, token, before);
            self.tape_delta(t).copy_from_slice(&delta);
            let (k, rates) = self.key(token);
            let k = &k[..key_dim];
            // Nobody looks at the state after the last token.
            match t {
                _ if t + 1 == row.len => (),
                0 => advance_to(simd, state, flat_mut(&mut draft), k, &delta, rates.decay),
                _ => advance(simd, flat_mut(&mut draft), k, &delta, rates.decay),
            }
        }
        DRAFT.set(Some(draft));
    }

    /// Writes the output of `token`, from the state before it, and returns its d.
    #[inline(always)]
    fn look<S: Simd>(&self, simd: S, key_dim: usize, token: usize, state: &[f32]) -> [f32; LANES] {
        let dims = self.dims;
        let (k, rates) = self.key(token);
        let q = self.inputs.q(dims, token, self.key_head);
        let (by_k, by_q) = products(simd, state, &k[..key_dim], &q[..key_dim]);
        let v = &lanes(&self.inputs.values(dims, token)[self.first..]).0[0];
        let error = simd.fma(simd.splat(-rates.decay), by_k, simd.load(v));
        let delta = simd.mul(simd.splat(rates.beta), error);
        // (g S + d kᵀ) q, without the new state.
        let kept = simd.mul(simd.splat(rates.decay), by_q);
        let y = simd.fma(delta, simd.splat(rates.overlap), kept);
        // SAFETY: no two rows share a token, and blocks are disjoint.
        let out = unsafe { self.out.part(token * dims.values() + self.first, LANES) };
        simd.store(y, &mut lanes_mut(out).0[0]);
        let mut d = [0.0; LANES];
        simd.store(delta, &mut d);
        d
    }

    #[inline(always)]
    fn key(&self, token: usize) -> (&[f32], &Rates) {
        let rates = self.inputs.rates(self.dims, token);
        let k = self.inputs.k(self.dims, token, self.key_head);
        (k, &rates[self.head])
    }

    /// The block's d of the tape's entry `t`.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    fn tape_delta(&self, t: usize) -> &mut [f32] {
        let dims = self.dims;
        let at = self.row.slot * dims.tape_len() + t * dims.tape_width();
        // SAFETY: blocks are disjoint, and a block holds one such slice at a time.
        unsafe { self.tape.part(at + dims.keys() + self.first, LANES) }
    }
}

/// S k and S q of sixteen rows of S.
#[inline(always)]
fn products<S: Simd>(simd: S, state: &[f32], k: &[f32], q: &[f32]) -> (S::V, S::V) {
    let mut by_k = [simd.zero(); LANES];
    let mut by_q = [simd.zero(); LANES];
    let step = if S::WIDE { 4 } else { 2 };
    for row in (0..LANES).step_by(step) {
        if S::WIDE {
            row_products::<S, 4>(simd, row, state, (k, q), (&mut by_k, &mut by_q));
        } else {
            row_products::<S, 2>(simd, row, state, (k, q), (&mut by_k, &mut by_q));
        }
    }
    (simd.sum_each(&by_k), simd.sum_each(&by_q))
}

/// The lanes of S k and S q for `R` rows of S from `row`.
#[inline(always)]
fn row_products<S: Simd, const R: usize>(
    simd: S,
    row: usize,
    state: &[f32],
    (k, q): (&[f32], &[f32]),
    (by_k, by_q): (&mut [S::V; LANES], &mut [S::V; LANES]),
) {
    let (k, q) = (lanes(k).0, lanes(q).0);
    let q = &q[..k.len()];
    let mut rows: [&[[f32; LANES]]; R] = [&[]; R];
    for (r, s) in rows.iter_mut().enumerate() {
        *s = &lanes(state).0[(row + r) * k.len()..][..k.len()];
    }
    let (mut sums_k, mut sums_q) = ([simd.zero(); R], [simd.zero(); R]);
    for i in 0..k.len() {
        let (k, q) = (simd.load(&k[i]), simd.load(&q[i]));
        for r in 0..R {
            let s = simd.load(&rows[r][i]);
            sums_k[r] = simd.fma(s, k, sums_k[r]);
            sums_q[r] = simd.fma(s, q, sums_q[r]);
        }
    }
    by_k[row..row + R].copy_from_slice(&sums_k);
    by_q[row..row + R].copy_from_slice(&sums_q);
}

/// `S = g S + d kᵀ` for sixteen rows of S, the one way in which states ever change.
#[inline(always)]
fn advance<S: Simd>(simd: S, state: &mut [f32], k: &[f32], delta: &[f32; LANES], decay: f32) {
    let decay = simd.splat(decay);
    for (state, &delta) in state.chunks_exact_mut(k.len()).zip(delta) {
        let delta = simd.splat(delta);
        for (s, k) in lanes_mut(state).0.iter_mut().zip(lanes(k).0) {
            simd.store(simd.fma(delta, simd.load(k), simd.mul(decay, simd.load(s))), s);
        }
    }
}

/// The same from one place to another.
#[inline(always)]
fn advance_to<S: Simd>(
    simd: S,
    from: &[f32],
    to: &mut [f32],
    k: &[f32],
    delta: &[f32; LANES],
    decay: f32,
) {
    let decay = simd.splat(decay);
    let rows = from.chunks_exact(k.len()).zip(to.chunks_exact_mut(k.len()));
    for ((from, to), &delta) in rows.zip(delta) {
        let delta = simd.splat(delta);
        for ((from, to), k) in lanes(from).0.iter().zip(lanes_mut(to).0).zip(lanes(k).0) {
            simd.store(simd.fma(delta, simd.load(k), simd.mul(decay, simd.load(from))), to);
        }
    }
}

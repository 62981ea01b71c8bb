//! The gated DeltaNet mixer of a ragged batch, from the fused projection to the gated output.
//!
//! Per value head a state S `[Dv, Dk]` is carried from token to token:
//!
//! ```text
//! d = beta (v - g S k)      S = g S + d kᵀ      o = S q
//! ```
//!
//! A verified token may yet be rejected, so it leaves the state alone and writes (k, d, g) to the
//! slot's *tape*; the next call for the slot says how many tokens to `keep`, and begins by
//! replaying them: the very same update, with d already known. The convolution keeps its raw
//! inputs in the slot's *window* for the same reason. Prompts are certain and `commit` at once.
//!
//! Every row of S is updated by itself, token after token, so neither the cut of tokens into
//! calls nor the way of keeping them can change a bit of any result.

use super::norm;
use super::parallel::{self, Shared};
use super::simd::{Job, LANES, Simd, Tier, lanes, lanes_mut};
use super::weight::{WeightError, expect_len};
use inputs::Inputs;
use std::cell::Cell;

mod inputs;
mod recurrence;
mod settle;
#[cfg(test)]
mod tests;

/// Taps of the convolution; one less is its history.
const TAPS: usize = 4;
const HISTORY: usize = TAPS - 1;

/// Sizes of a layer, and of its pools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GdnDims {
    /// Hk: heads of queries and keys.
    pub key_heads: usize,
    /// Hv: heads of values, each of which has a state. A multiple of Hk.
    pub value_heads: usize,
    /// Dk, a multiple of 16.
    pub key_dim: usize,
    /// Dv, a multiple of 16.
    pub value_dim: usize,
    /// T_max: tokens that a slot can hold uncommitted.
    pub verify_max: usize,
}

impl GdnDims {
    /// C: channels of the convolution, q | k | v.
    pub fn channels(&self) -> usize {
        2 * self.keys() + self.values()
    }

    /// Width of a projected token: q k v `[C]` | z `[Hv Dv]` | b `[Hv]` | a `[Hv]`.
    pub fn projection(&self) -> usize {
        self.channels() + self.values() + 2 * self.value_heads
    }

    /// Values of a slot's state `[Hv, Dv, Dk]`.
    pub fn state_len(&self) -> usize {
        self.values() * self.key_dim
    }

    /// Values of a slot's window `[3 + T_max, C]`.
    pub fn window_len(&self) -> usize {
        (HISTORY + self.verify_max) * self.channels()
    }

    /// Values of a slot's tape `[T_max, k | d | g]`.
    pub fn tape_len(&self) -> usize {
        self.verify_max * self.tape_width()
    }

    fn keys(&self) -> usize {
        self.key_heads * self.key_dim
    }

    fn values(&self) -> usize {
        self.value_heads * self.value_dim
    }

    /// k `[Hk Dk]` | d `[Hv Dv]` | g `[Hv]`.
    fn tape_width(&self) -> usize {
        self.keys() + self.values() + self.value_heads
    }
}

/// Parameters of a layer as a checkpoint has them, in fp32.
#[derive(Clone, Copy)]
pub struct GdnParams<'a> {
    /// `[C, 4]`, the last tap for the current token.
    pub conv: &'a [f32],
    /// `[Hv]`.
    pub a_log: &'a [f32],
    /// `[Hv]`.
    pub dt_bias: &'a [f32],
    /// `[Dv]`: the plain gain of the output norm.
    pub gain: &'a [f32],
    /// Of the output norm.
    pub eps: f32,
}

/// One layer, prepared at load.
#[derive(Debug)]
pub struct Gdn {
    dims: GdnDims,
    /// `[4, C]`.
    conv: Vec<f32>,
    /// `[Hv]`: exp(A_log).
    rate: Vec<f32>,
    dt_bias: Vec<f32>,
    gain: Vec<f32>,
    eps: f32,
}

/// What a layer remembers of all slots. A slot begins with zeros in state and window.
pub struct GdnPools<'a> {
    /// `[slots, Hv, Dv, Dk]`.
    pub state: &'a mut [f32],
    /// `[slots, 3 + T_max, C]`.
    pub window: &'a mut [f32],
    /// `[slots, T_max, k | d | g]`.
    pub tape: &'a mut [f32],
}

/// Consecutive tokens of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GdnRow {
    /// Where the sequence is kept; no two rows of a call may share one.
    pub slot: usize,
    /// The first of its tokens in the call.
    pub start: usize,
    /// How many; none only folds the kept tokens into the state.
    pub len: usize,
    /// How many tokens of the slot's last verify to keep; 0 after a commit.
    pub keep: usize,
    /// Whether the tokens are certain. If not they wait in the slot for the next call's `keep`.
    pub commit: bool,
    /// After so many of its tokens, which are certain, state and window are copied to this slot.
    pub mark: Option<(usize, usize)>,
}

impl Gdn {
    /// Checks and rearranges the parameters.
    pub fn new(dims: GdnDims, params: GdnParams<'_>) -> Result<Self, WeightError> {
        let GdnDims { key_heads, value_heads, key_dim, value_dim, .. } = dims;
        let heads = key_heads > 0 && value_heads > 0 && value_heads.is_multiple_of(key_heads);
        let whole = |dim: usize| dim > 0 && dim.is_multiple_of(LANES);
        if !heads || !whole(key_dim) || !whole(value_dim) {
            return Err(WeightError::Unsupported(format!("{dims:?}")));
        }
        let channels = dims.channels();
        expect_len("conv1d", params.conv.len(), channels * TAPS)?;
        expect_len("A_log", params.a_log.len(), value_heads)?;
        expect_len("dt_bias", params.dt_bias.len(), value_heads)?;
        expect_len("norm", params.gain.len(), value_dim)?;
        let taps = (0..TAPS).flat_map(|tap| (0..channels).map(move |c| c * TAPS + tap));
        Ok(Self {
            dims,
            conv: taps.map(|i| params.conv[i]).collect(),
            rate: params.a_log.iter().map(|a| a.exp()).collect(),
            dt_bias: params.dt_bias.to_vec(),
            gain: params.gain.to_vec(),
            eps: params.eps,
        })
    }

    /// The sizes it was made with.
    pub fn dims(&self) -> GdnDims {
        self.dims
    }
}

thread_local! {
    // Kept from call to call: fresh memory would have to be mapped by the kernel each time.
    static INPUTS: Cell<Option<Inputs>> = const { Cell::new(None) };
}

/// Runs the mixer for the tokens of `rows`: from `proj [M, projection]` to `out [M, Hv Dv]`, the
/// input of the output projection. Tokens that belong to no row keep their output.
pub fn gated_delta(
    layer: &Gdn,
    proj: &[f32],
    rows: &[GdnRow],
    mut pools: GdnPools<'_>,
    out: &mut [f32],
) {
    check(&layer.dims, proj, rows, &pools, out);
    let tier = Tier::current();
    let mut inputs = INPUTS.take().unwrap_or_default();
    inputs.prepare(tier, layer, proj, rows, pools.window);
    recurrence::run(tier, &layer.dims, &inputs, rows, &mut pools, out);
    gate(tier, layer, proj, rows, out);
    for row in rows {
        settle::mark(&layer.dims, proj, row, pools.window);
        settle::window(&layer.dims, proj, row, pools.window);
        settle::tape(&layer.dims, &inputs, row, pools.tape);
    }
    INPUTS.set(Some(inputs));
}

fn check(dims: &GdnDims, proj: &[f32], rows: &[GdnRow], pools: &GdnPools<'_>, out: &[f32]) {
    let tokens = proj.len() / dims.projection();
    assert_eq!(proj.len(), tokens * dims.projection(), "gated_delta: proj is not [M, projection]");
    assert_eq!(out.len(), tokens * dims.values(), "gated_delta: out is not [M, Hv Dv]");
    let slots = pools.state.len() / dims.state_len();
    assert_eq!(pools.state.len(), slots * dims.state_len(), "gated_delta: state pool");
    assert_eq!(pools.window.len(), slots * dims.window_len(), "gated_delta: window pool");
    assert_eq!(pools.tape.len(), slots * dims.tape_len(), "gated_delta: tape pool");
    let mut taken = vec![false; slots];
    let mut next = 0;
    let mut order: Vec<&GdnRow> = rows.iter().collect();
    order.sort_by_key(|row| row.start);
    for (len, slot) in rows.iter().filter_map(|row| row.mark) {
        assert!(slot < slots, "gated_delta: no slot {slot} to set aside");
        assert!(!std::mem::replace(&mut taken[slot], true), "gated_delta: slot taken twice");
        let fits = |row: &GdnRow| row.commit && row.len > len && row.mark == Some((len, slot));
        assert!(rows.iter().any(fits), "gated_delta: sets aside what is uncertain");
    }
    for row in order {
        assert!(row.slot < slots, "gated_delta: no slot {}", row.slot);
        assert!(!std::mem::replace(&mut taken[row.slot], true), "gated_delta: slot taken twice");
        assert!(row.keep <= dims.verify_max, "gated_delta: keeps more than was verified");
        assert!(row.commit || row.len <= dims.verify_max, "gated_delta: verifies too many tokens");
        assert!(row.len == 0 || row.start >= next, "gated_delta: rows share tokens");
        assert!(row.start + row.len <= tokens, "gated_delta: row outside of the call");
        next = next.max(row.start + row.len);
    }
}

/// `out = rms_norm(out) * gain * silu(z)`, head by head.
fn gate(tier: Tier, layer: &Gdn, proj: &[f32], rows: &[GdnRow], out: &mut [f32]) {
    let dims = &layer.dims;
    let (width, out) = (dims.values(), Shared::new(out));
    for_each_token(rows, width.div_ceil(LANES) * 35, |_, token| {
        let z = &proj[token * dims.projection() + dims.channels()..][..width];
        // SAFETY: no two rows share a token.
        let out = unsafe { out.part(token * width, width) };
        tier.run(Gate { layer, z, out });
    });
}

struct Gate<'a> {
    layer: &'a Gdn,
    z: &'a [f32],
    out: &'a mut [f32],
}

impl Job for Gate<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (dim, gain) = (self.layer.dims.value_dim, lanes(&self.layer.gain).0);
        for (z, out) in self.z.chunks_exact(dim).zip(self.out.chunks_exact_mut(dim)) {
            let scale = simd.splat(norm::inverse_rms(simd, out, self.layer.eps));
            for ((z, gain), out) in lanes(z).0.iter().zip(gain).zip(lanes_mut(out).0) {
                let normed = simd.mul(simd.mul(simd.load(out), scale), simd.load(gain));
                simd.store(simd.mul(normed, simd.silu(simd.load(z))), out);
            }
        }
    }
}

/// Calls `body(row, token)` for every token of `rows`, by its index in the call.
fn for_each_token(rows: &[GdnRow], ops: usize, body: impl Fn(&GdnRow, usize) + Sync) {
    let count = rows.iter().map(|row| row.len).sum();
    parallel::for_each(count, ops, |i| {
        let (row, t) = parallel::locate(rows.iter().map(|row| row.len), i);
        body(&rows[row], rows[row].start + t);
    });
}

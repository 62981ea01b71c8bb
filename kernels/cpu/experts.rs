//! A mixture of experts: every token has a few of many feed-forward blocks, and one that is
//! everybody's. Only blocks that some token is routed to are read.
//!
//! Tokens of one block are multiplied together, sixty at most, so that its weights are read
//! once for all of them. A token's sum runs over its own experts, the likeliest first and the
//! shared one last: it is the same whoever travels with it.

use super::parallel::{self, Shared};
use super::{Weight, WeightError, linear, silu_mul};
use route::{Choice, route};
use std::cell::Cell;

mod route;
#[cfg(test)]
mod tests;

/// Tokens of a block that are multiplied in one go: as many as a linear layer takes.
const ROWS: usize = linear::TILE_ROWS;
/// Tokens whose parts of sums are held at once: a bound of memory.
const TOKENS: usize = 512;

/// One feed-forward block: `down(silu(gate x) · up x)`.
#[derive(Debug)]
pub struct Expert {
    /// `[2 I, H]`: gate, then up.
    pub gate_up: Weight,
    /// `[H, I]`.
    pub down: Weight,
}

/// The blocks of a layer, and how tokens come to them.
#[derive(Debug)]
pub struct Experts {
    /// Those that tokens are routed to, then the shared one.
    blocks: Vec<Expert>,
    hidden: usize,
    choice: Choice,
}

impl Experts {
    /// `per_token` of `routed` for every token, and `shared` for all; `renormalise` makes the
    /// weights of a token's routed experts sum to one.
    ///
    /// # Errors
    /// Shapes that do not fit each other.
    pub fn new(
        routed: Vec<Expert>,
        shared: Expert,
        per_token: usize,
        renormalise: bool,
    ) -> Result<Self, WeightError> {
        let (experts, hidden) = (routed.len(), shared.down.rows());
        if per_token == 0 || per_token > experts {
            return Err(WeightError::Unsupported(format!("{per_token} of {experts} experts")));
        }
        let mut blocks = routed;
        blocks.push(shared);
        for Expert { gate_up, down } in &blocks {
            let fits =
                (gate_up.cols(), gate_up.rows(), down.rows()) == (hidden, 2 * down.cols(), hidden);
            if !fits {
                let what = format!("an expert of {gate_up:?} and {down:?} in {hidden} wide rows");
                return Err(WeightError::Unsupported(what));
            }
        }
        Ok(Self { blocks, hidden, choice: Choice { experts, per_token, renormalise } })
    }

    /// Width of a row of `scores`: one for each routed expert, one for the shared one's gate.
    pub fn scores(&self) -> usize {
        self.blocks.len()
    }

    /// Memory taken.
    pub fn bytes(&self) -> usize {
        self.blocks.iter().map(|block| block.gate_up.bytes() + block.down.bytes()).sum()
    }
}

/// `out [M, H] = residual [M, H] + Σ r_e · expert_e(x)`, of normalised `x [M, H]` and the router's
/// `scores [M, E + 1]`, the last column the shared expert's gate.
pub fn mix_experts(
    x: &[f32],
    scores: &[f32],
    experts: &Experts,
    residual: &[f32],
    out: &mut [f32],
) {
    let (hidden, width) = (experts.hidden, experts.scores());
    assert!(x.len().is_multiple_of(hidden), "mix_experts: x is not [M, H]");
    assert_eq!(scores.len(), x.len() / hidden * width, "mix_experts: scores is not [M, E + 1]");
    assert_eq!((residual.len(), out.len()), (x.len(), x.len()), "mix_experts: not [M, H]");
    let blocks = x.chunks(TOKENS * hidden).zip(scores.chunks(TOKENS * width));
    let ends = residual.chunks(TOKENS * hidden).zip(out.chunks_mut(TOKENS * hidden));
    for ((x, scores), (residual, out)) in blocks.zip(ends) {
        let (ids, weights) = route(scores, experts.choice);
        let len = ids.len() * hidden;
        with_room(&PARTS, len, |parts| {
            multiply(x, &ids, experts, parts);
            sum(parts, &weights, experts, residual, out);
        });
    }
}

/// Tokens that one block is multiplied with: indices of their parts.
struct Unit<'a> {
    block: &'a Expert,
    parts: &'a [u32],
}

/// `parts [M, K + 1, H]`: for each token the results of its experts, not yet weighted.
fn multiply(x: &[f32], ids: &[u32], experts: &Experts, parts: &mut [f32]) {
    let (hidden, per_token) = (experts.hidden, experts.choice.per_token + 1);
    let (starts, order) = by_expert(ids, experts.blocks.len());
    let mut units = Vec::with_capacity(ids.len());
    // The shared block has the most tokens, so it is begun first.
    for (block, ends) in experts.blocks.iter().zip(starts.windows(2)).rev() {
        let rows = order[ends[0]..ends[1]].chunks(ROWS);
        units.extend(rows.map(|parts| Unit { block, parts }));
    }
    let ops = units.iter().map(Unit::ops).sum::<usize>() / units.len().max(1);
    let parts = Shared::new(parts);
    parallel::for_each(units.len(), ops, |i| {
        let Unit { block, parts: of } = units[i];
        if let [only] = *of {
            let token = only as usize / per_token;
            // SAFETY: a part belongs to one unit.
            let part = unsafe { parts.part(only as usize * hidden, hidden) };
            return block.apply(&x[token * hidden..][..hidden], part);
        }
        with_room(&ROWS_OF_ONE, 2 * of.len() * hidden, |room| {
            let (rows, results) = room.split_at_mut(of.len() * hidden);
            for (row, &part) in rows.chunks_exact_mut(hidden).zip(of) {
                row.copy_from_slice(&x[part as usize / per_token * hidden..][..hidden]);
            }
            block.apply(rows, results);
            for (result, &part) in results.chunks_exact(hidden).zip(of) {
                // SAFETY: as above.
                unsafe { parts.part(part as usize * hidden, hidden) }.copy_from_slice(result);
            }
        });
    });
}

/// The indices of `ids` expert by expert, in order, and where each expert's begin.
fn by_expert(ids: &[u32], experts: usize) -> (Vec<usize>, Vec<u32>) {
    let mut starts = vec![0; experts + 1];
    ids.iter().for_each(|&id| starts[id as usize + 1] += 1);
    for i in 0..experts {
        starts[i + 1] += starts[i];
    }
    let (mut next, mut order) = (starts.clone(), vec![0; ids.len()]);
    for (part, &id) in (0..).zip(ids) {
        order[next[id as usize]] = part;
        next[id as usize] += 1;
    }
    (starts, order)
}

/// The weighted sum of each token's parts and its residual.
fn sum(parts: &[f32], weights: &[f32], experts: &Experts, residual: &[f32], out: &mut [f32]) {
    let (hidden, per_token) = (experts.hidden, experts.choice.per_token + 1);
    let tokens = out.len() / hidden;
    let out = Shared::new(out);
    parallel::for_each(tokens, hidden / 8 * per_token, |token| {
        // SAFETY: each token is visited once.
        let out = unsafe { out.part(token * hidden, hidden) };
        out.copy_from_slice(&residual[token * hidden..][..hidden]);
        let parts = parts[token * per_token * hidden..].chunks_exact(hidden);
        for (part, weight) in parts.zip(&weights[token * per_token..][..per_token]) {
            for (out, part) in out.iter_mut().zip(part) {
                *out += weight * part;
            }
        }
    });
}

impl Expert {
    /// `x [M, H]` → `out [M, H]`.
    fn apply(&self, x: &[f32], out: &mut [f32]) {
        let (rows, width) = (x.len() / self.gate_up.cols(), self.down.cols());
        with_room(&WIDE, 3 * rows * width, |room| {
            let (gate_up, gated) = room.split_at_mut(2 * rows * width);
            linear(x, &self.gate_up, gate_up);
            silu_mul(gate_up, width, gated);
            linear(gated, &self.down, out);
        });
    }
}

impl Unit<'_> {
    /// Vector operations, more or less.
    fn ops(&self) -> usize {
        let Expert { gate_up, down } = self.block;
        (gate_up.rows() * gate_up.cols() + down.rows() * down.cols()) / 16 * self.parts.len()
    }
}

thread_local! {
    static PARTS: Room = const { Cell::new(Vec::new()) };
    static ROWS_OF_ONE: Room = const { Cell::new(Vec::new()) };
    static WIDE: Room = const { Cell::new(Vec::new()) };
}

/// Memory kept from call to call; taken while in use.
type Room = Cell<Vec<f32>>;

/// Calls `f` with `len` arbitrary values.
fn with_room<R>(
    room: &'static std::thread::LocalKey<Room>,
    len: usize,
    f: impl FnOnce(&mut [f32]) -> R,
) -> R {
    let mut values = room.take();
    if values.len() < len {
        values.resize(len, 0.0);
    }
    let result = f(&mut values[..len]);
    room.set(values);
    result
}

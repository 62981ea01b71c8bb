//! `draw`: a token of every row within the graph, so that the pass that is fed with it need not
//! wait for the host.

use mlx_rs::error::Exception;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::{Array, Dtype};
use mtplx_core::accept::{Rule, draft};
use mtplx_core::random::{Purpose, bits};
use mtplx_core::sample::{Dist, NotFinite, Sampling, Seen, TEMPERATURE_MIN};

use super::device::{Launch, Source};
use super::top::{self, KEPT};
use super::{Gpu, trial};
use crate::error::Result;

/// Numbers that say how a row is drawn.
const SETTINGS: usize = 8;

const SOURCE: Source = Source {
    name: "draw",
    cuda: include_str!("draw.cu"),
    metal: include_str!("draw.metal"),
    inputs: &["found", "settings"],
    output: "out",
};

/// Tokens on their way.
#[derive(Clone, Debug)]
pub struct Drawn {
    /// i32 [R].
    pub tokens: Array,
    /// What `top` found, how it is drawn from, and what the kernel wrote.
    pub(super) found: Array,
    pub(super) settings: Array,
    pub(super) out: Array,
    pub(super) rows: usize,
}

/// How a row is drawn, from what its sampling makes of its logits; `position` is the token's, and
/// `purpose` whether it is a draft or the target's own.
#[must_use]
pub fn settings(s: &Sampling, position: u64, purpose: Purpose) -> [i32; SETTINGS] {
    let greedy = s.temperature < TEMPERATURE_MIN;
    let scale = if greedy { 0.0 } else { s.temperature.recip() };
    let key = bits(s.seed, position, Purpose::Draw);
    let float = |value: f32| value.to_bits().cast_signed();
    [
        float(scale),
        if s.top_k == 0 { i32::MAX } else { i32::try_from(s.top_k).unwrap_or(i32::MAX) },
        float(s.top_p),
        float(s.min_p),
        i32::from(s.rule == Rule::Coupled),
        float(unit(s.seed, position, purpose)),
        key as i32,
        (key >> 32) as i32,
    ]
}

/// Whether tokens of rows of `vocab` logits of this type can be drawn here; it is tried once.
#[must_use]
pub fn can(gpu: &Gpu, dtype: Dtype, vocab: usize) -> bool {
    top::knows(vocab) && serves(gpu, dtype)
}

/// A uniform number in [0, 1) of 24 bits, cut off and never rounded up to 1.
pub(super) fn unit(seed: u64, position: u64, purpose: Purpose) -> f32 {
    (bits(seed, position, purpose) >> 40) as f32 / (1_u32 << 24) as f32
}

/// Adds a draw from `logits` [R, V] to the graph. [`can`] must have said that it serves.
///
/// # Errors
/// When MLX refuses.
pub fn add(gpu: &Gpu, logits: &Array, rows: &[[i32; SETTINGS]]) -> Result<Drawn> {
    add_to(gpu, top::add(gpu, logits)?, rows)
}

/// As [`add`], from what `top` found.
///
/// # Errors
/// When MLX refuses.
pub fn add_to(gpu: &Gpu, found: Array, rows: &[[i32; SETTINGS]]) -> Result<Drawn> {
    let kernel = gpu.kernel(&SOURCE, &[("K", KEPT.to_string())])?;
    let settings = gpu.numbers(rows.concat())?;
    let count = rows.len() as i32;
    let launch = Launch { scalars: &[count], blocks: rows.len(), threads: KEPT, shared_bytes: 0 };
    let shape = [count * (1 + KEPT as i32)];
    // SAFETY: a row of `found` and its settings for every block; each writes its token and weights.
    let [out] = unsafe { kernel.call(&[&found, &settings], [(&shape, Dtype::Int32)], launch) }?;
    Ok(Drawn { tokens: out.try_index(..count)?, found, settings, out, rows: rows.len() })
}

impl Drawn {
    /// What must be evaluated before [`Self::read`].
    pub fn arrays(&self) -> [&Array; 3] {
        [&self.tokens, &self.found, &self.out]
    }

    /// Every token and the distribution it was drawn from; or that there was nothing to draw from.
    #[must_use]
    pub fn read(&self) -> Vec<(u32, Result<Dist, NotFinite>)> {
        let (tokens, weights) = self.out.as_slice::<i32>().split_at(self.rows);
        let rows = tokens.iter().zip(top::ids(&self.found).zip(weights.chunks(KEPT)));
        rows.map(|(&token, (ids, weights))| {
            let pairs = ids.iter().zip(weights).map(|(&id, &bits)| (id as u32, bits));
            let kept = pairs.filter(|&(_, bits)| bits != 0);
            let kept = kept.map(|(id, bits)| (id, f32::from_bits(bits.cast_unsigned())));
            (token as u32, Dist::from_weights(kept.collect()))
        })
        .collect()
    }
}

/// Whether the kernel serves here; it is tried once.
pub(super) fn serves(gpu: &Gpu, dtype: Dtype) -> bool {
    top::serves(gpu, dtype) && gpu.passed("draw", dtype, || run(gpu, dtype))
}

/// Draws beside the host's.
fn run(gpu: &Gpu, dtype: Dtype) -> Result<()> {
    let plain = Sampling { top_k: 64, seed: 5, ..Sampling::default() };
    let few = Sampling { temperature: 0.7, top_k: 20, top_p: 0.9, min_p: 0.01, ..plain.clone() };
    let shared = Sampling { rule: Rule::Coupled, ..few.clone() };
    let kinds = [Sampling::greedy(), plain, few, shared];
    let (rows, vocab) = (16, 4096);
    let logits = trial::noise(&[rows, vocab], 9, Dtype::Float32)?.multiply(Array::from_f32(6.0))?;
    let logits = logits.as_dtype(dtype)?;
    let of = |row: usize| (&kinds[row % kinds.len()], row as u64);
    let settings: Vec<_> =
        (0..rows as usize).map(|row| settings(of(row).0, of(row).1, Purpose::Draft)).collect();
    let (drawn, all) = (add(gpu, &logits, &settings)?, logits.as_dtype(Dtype::Float32)?);
    crate::place::eval(drawn.arrays().into_iter().chain([&all]))?;
    let mut other = 0;
    let off = |what: &str| Err(Exception::custom(format!("draw is off: {what}")).into());
    for (row, (token, q)) in drawn.read().into_iter().enumerate() {
        let (s, position) = of(row);
        let logits = &all.as_slice::<f32>()[row * vocab as usize..][..vocab as usize];
        let want = Dist::from_logits(logits, s, &Seen::default(), &[]);
        let (Ok(q), Ok(want)) = (q, want) else { return off("no distribution") };
        let ids = q.ids().iter().chain(want.ids());
        if ids.into_iter().any(|&id| (q.prob(id) - want.prob(id)).abs() > 0.02) {
            return off("another distribution");
        }
        other += usize::from(token != draft(s.rule, s.seed, position, &want));
        if q.prob(token) == 0.0 {
            return off("a token without a chance");
        }
    }
    // A number close to an edge may fall on the other side of it.
    if other > 1 {
        return off("other tokens");
    }
    Ok(())
}

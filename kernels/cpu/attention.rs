//! Gated, grouped, causal attention of a ragged batch over a paged cache.
//!
//! First every token's key (normalised, rotated) and value are written to the cache, then every
//! token attends to the keys from `first_key` to its own. Keys are taken in blocks of 32, cut at
//! multiples of 32 of the key's index in its sequence, with an online softmax from block to
//! block. So the order of every sum is given by key indices alone: not by the pages, the other
//! tokens of the call, nor the calls in which the cache was filled.

use super::parallel::{self, Shared};
use super::pool::Pool;
use super::simd::{LANES, Tier};
use super::weight::{WeightError, expect_len};
use append::Source;
use std::cell::Cell;
use walk::Walk;

mod append;
mod block;
#[cfg(test)]
mod tests;
mod walk;

/// Queries that walk over the keys together, so that a block of keys is read once for all.
const QUERIES: usize = 32;
/// The largest D.
const HEAD_DIM_MAX: usize = 256;

/// Sizes of a layer, and of its pools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionDims {
    /// Nq, a multiple of Nkv: consecutive query heads share a head of keys and values.
    pub query_heads: usize,
    /// Nkv.
    pub kv_heads: usize,
    /// D, a multiple of 16 up to 256.
    pub head_dim: usize,
    /// Tokens of a page.
    pub page_tokens: usize,
}

impl AttentionDims {
    /// Width of a projected token: (query | gate) of each query head, k of each head, v of each.
    pub fn projection(&self) -> usize {
        2 * (self.query_heads + self.kv_heads) * self.head_dim
    }

    /// Values of a page `[Nkv, page_tokens, D]`, in each of the two pools.
    pub fn page_len(&self) -> usize {
        self.kv_heads * self.page_tokens * self.head_dim
    }

    /// Query heads that share a head of keys.
    fn group(&self) -> usize {
        self.query_heads / self.kv_heads
    }

    /// Width of the queries of a token, and of its output.
    fn queries(&self) -> usize {
        self.query_heads * self.head_dim
    }

    /// Where key or value `key` of `head` lies in a pool, for a sequence in `pages`.
    #[inline(always)]
    fn place(&self, pages: &[u32], key: usize, head: usize) -> usize {
        let (page, slot) = (pages[key / self.page_tokens] as usize, key % self.page_tokens);
        ((page * self.kv_heads + head) * self.page_tokens + slot) * self.head_dim
    }
}

/// Parameters of a layer as a checkpoint has them, in fp32.
#[derive(Clone, Copy)]
pub struct AttentionParams<'a> {
    /// `[D]`: the effective gain of the norm of queries.
    pub q_gain: &'a [f32],
    /// `[D]`: of keys.
    pub k_gain: &'a [f32],
    /// Half as many as dimensions are rotated: the i-th turns dimensions i and i + half.
    pub inv_freq: &'a [f32],
    /// Of both norms.
    pub eps: f32,
}

/// One layer, prepared at load.
#[derive(Debug)]
pub struct Attention {
    dims: AttentionDims,
    /// With the softmax's scale in it: norms and rotations are linear in the gain.
    q_gain: Vec<f32>,
    k_gain: Vec<f32>,
    inv_freq: Vec<f32>,
    eps: f32,
}

/// The caches of a layer.
pub struct KvPools<'a> {
    /// `[pages, Nkv, page_tokens, D]`.
    pub keys: &'a mut [f32],
    /// `[pages, Nkv, page_tokens, D]`.
    pub values: &'a mut [f32],
}

/// Consecutive tokens of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionRow<'a> {
    /// The first of its tokens in the call.
    pub start: usize,
    /// How many.
    pub len: usize,
    /// The index of the first in its sequence: where its key goes, and the angle it is given.
    pub position: usize,
    /// The sequence's pages in order. A page that this call writes to belongs to one row only.
    pub pages: &'a [u32],
    /// The first key to attend to: 0, or 1 if entry 0 is not in use.
    pub first_key: usize,
}

impl Attention {
    /// Checks and prepares the parameters.
    pub fn new(dims: AttentionDims, params: AttentionParams<'_>) -> Result<Self, WeightError> {
        let AttentionDims { query_heads, kv_heads, head_dim, page_tokens } = dims;
        let heads = kv_heads > 0 && query_heads > 0 && query_heads.is_multiple_of(kv_heads);
        let whole = head_dim > 0 && head_dim.is_multiple_of(LANES) && head_dim <= HEAD_DIM_MAX;
        let rotated = params.inv_freq.len() * 2;
        if !heads || !whole || page_tokens == 0 || rotated > head_dim {
            let what = format!("{dims:?} with {rotated} rotated dimensions");
            return Err(WeightError::Unsupported(what));
        }
        expect_len("q_norm", params.q_gain.len(), head_dim)?;
        expect_len("k_norm", params.k_gain.len(), head_dim)?;
        let scale = 1.0 / (head_dim as f32).sqrt();
        Ok(Self {
            dims,
            q_gain: params.q_gain.iter().map(|gain| gain * scale).collect(),
            k_gain: params.k_gain.to_vec(),
            inv_freq: params.inv_freq.to_vec(),
            eps: params.eps,
        })
    }

    /// The sizes it was made with.
    pub fn dims(&self) -> AttentionDims {
        self.dims
    }
}

thread_local! {
    // Queries, kept from call to call: fresh memory would have to be mapped each time.
    static QUERIES_OF_CALL: Cell<Option<Pool>> = const { Cell::new(None) };
}

/// Appends the tokens of `rows` to the cache and attends: from `proj [M, projection]` to
/// `out [M, Nq D]`, gated, the input of the output projection. Tokens of no row keep their output.
pub fn attention(
    layer: &Attention,
    proj: &[f32],
    rows: &[AttentionRow<'_>],
    mut pools: KvPools<'_>,
    out: &mut [f32],
) {
    let dims = &layer.dims;
    let tokens = proj.len() / dims.projection();
    assert_eq!(proj.len(), tokens * dims.projection(), "attention: proj is not [M, projection]");
    assert_eq!(out.len(), tokens * dims.queries(), "attention: out is not [M, Nq D]");
    check(dims, rows, &pools, tokens);
    let tier = Tier::current();
    let kept = QUERIES_OF_CALL.take().filter(|kept| kept.len() >= tokens * dims.queries());
    let mut queries = kept.unwrap_or_else(|| Pool::zeros(tokens * dims.queries()));
    let source = Source { layer, proj, stride: dims.projection(), keys: 2 * dims.queries() };
    append::run(tier, &source, rows, &mut pools, Some(&mut queries));
    let tasks = tasks(dims, rows);
    let (keys, values, out) = (&*pools.keys, &*pools.values, Shared::new(out));
    let ops = ops(dims, rows) / tasks.len().max(1);
    parallel::for_each(tasks.len(), ops, |i| {
        let Task { row, head, first, count } = tasks[i];
        let (layer, queries, out, row) = (layer, &*queries, &out, &rows[row]);
        tier.run(Walk { layer, proj, queries, keys, values, out, row, head, first, count });
    });
    QUERIES_OF_CALL.set(Some(queries));
}

/// Appends the tokens of `rows` to the cache without attending. Token t's k | v begin at
/// `kv[t * stride]`: of a projection of k | v alone, or of a fused one from its k on.
pub fn append_kv(
    layer: &Attention,
    kv: &[f32],
    stride: usize,
    rows: &[AttentionRow<'_>],
    mut pools: KvPools<'_>,
) {
    let dims = &layer.dims;
    let width = 2 * dims.kv_heads * dims.head_dim;
    assert!(stride >= width, "append_kv: stride is less than k | v");
    // The last token may end with its values.
    let tokens = (kv.len() + stride - width) / stride;
    check(dims, rows, &pools, tokens);
    let source = Source { layer, proj: kv, stride, keys: 0 };
    append::run(Tier::current(), &source, rows, &mut pools, None);
}

/// Some tokens of a row with one head of keys.
struct Task {
    row: usize,
    head: usize,
    /// Among the row's tokens.
    first: usize,
    count: usize,
}

/// Cuts the rows: many queries at a time, as long as every thread has something to do.
fn tasks(dims: &AttentionDims, rows: &[AttentionRow<'_>]) -> Vec<Task> {
    let mut most = (QUERIES / dims.group()).max(1);
    let count = |most: usize| -> usize {
        rows.iter().map(|row| row.len.div_ceil(most) * dims.kv_heads).sum()
    };
    while most > 1 && count(most) < rayon::current_num_threads() {
        most = most.div_ceil(2);
    }
    let mut tasks = Vec::with_capacity(count(most));
    for (row, AttentionRow { len, .. }) in rows.iter().enumerate() {
        for first in (0..*len).step_by(most) {
            let count = most.min(len - first);
            tasks.extend((0..dims.kv_heads).map(|head| Task { row, head, first, count }));
        }
    }
    tasks
}

/// Vector operations of all rows: two products for each key, query and dimension.
fn ops(dims: &AttentionDims, rows: &[AttentionRow<'_>]) -> usize {
    let keys: usize = rows.iter().map(|row| row.len * (row.position + row.len)).sum();
    keys * dims.queries().div_ceil(LANES) * 2
}

fn check(dims: &AttentionDims, rows: &[AttentionRow<'_>], pools: &KvPools<'_>, tokens: usize) {
    let pages = pools.keys.len() / dims.page_len();
    assert_eq!(pools.keys.len(), pages * dims.page_len(), "attention: key pool");
    assert_eq!(pools.values.len(), pools.keys.len(), "attention: value pool");
    let mut written = vec![];
    let mut order: Vec<&AttentionRow<'_>> = rows.iter().filter(|row| row.len > 0).collect();
    order.sort_by_key(|row| row.start);
    let mut next = 0;
    for row in order {
        assert!(row.start >= next, "attention: rows share tokens");
        next = row.start + row.len;
        let end = row.position + row.len;
        assert!(end <= row.pages.len() * dims.page_tokens, "attention: row beyond its pages");
        assert!(row.first_key <= row.position, "attention: a token before the first key");
        let first = row.position / dims.page_tokens;
        written.extend_from_slice(&row.pages[first..end.div_ceil(dims.page_tokens)]);
    }
    assert!(next <= tokens, "attention: row outside of the call");
    written.sort_unstable();
    assert!(written.windows(2).all(|pair| pair[0] != pair[1]), "attention: page written twice");
    assert!(written.last().is_none_or(|&page| (page as usize) < pages), "attention: no such page");
}

//! Some tokens' queries on their way over the keys of one head.

use super::block::{BLOCK, Block, Query};
use super::{Attention, AttentionRow};
use crate::cpu::parallel::Shared;
use crate::cpu::simd::{Job, LANES, Line, Simd, flat, flat_mut, lanes, lanes_mut};
use std::cell::Cell;

pub(super) struct Walk<'a> {
    pub(super) layer: &'a Attention,
    /// `[M, projection]`, for the gates.
    pub(super) proj: &'a [f32],
    /// `[M, Nq, D]`.
    pub(super) queries: &'a [f32],
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
    /// `[M, Nq, D]`.
    pub(super) out: &'a Shared<'a, f32>,
    pub(super) row: &'a AttentionRow<'a>,
    pub(super) head: usize,
    /// The first token, in the row.
    pub(super) first: usize,
    pub(super) count: usize,
}

/// What the queries carry along.
#[derive(Default)]
pub(super) struct Scratch {
    /// `[queries, D]`.
    pub(super) vectors: Vec<Line<f32>>,
    /// `[queries, D]`: weighted sums of values.
    pub(super) sums: Vec<Line<f32>>,
    pub(super) queries: Vec<Query>,
}

thread_local! {
    // Taken while in use, so that a job stolen in the middle of another simply makes its own.
    static SCRATCH: Cell<Option<Scratch>> = const { Cell::new(None) };
}

impl Job for Walk<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mut scratch = SCRATCH.take().unwrap_or_default();
        self.set_out(&mut scratch);
        let row = self.row;
        let last = row.position + self.first + self.count - 1;
        for index in row.first_key / BLOCK..=last / BLOCK {
            let begin = (index * BLOCK).max(row.first_key);
            let end = (index * BLOCK + BLOCK).min(last + 1);
            self.find(index, begin, end).visit_all(simd, &mut scratch);
        }
        self.arrive(simd, &scratch);
        SCRATCH.set(Some(scratch));
    }
}

impl Walk<'_> {
    /// Gathers the queries, token by token.
    #[inline(always)]
    fn set_out(&self, scratch: &mut Scratch) {
        let dims = &self.layer.dims;
        let width = dims.group() * dims.head_dim;
        let lines = self.count * width / LANES;
        scratch.vectors.resize(lines, Line::<f32>::ZERO);
        scratch.sums.clear();
        scratch.sums.resize(lines, Line::<f32>::ZERO);
        scratch.queries.clear();
        let vectors = flat_mut(&mut scratch.vectors).chunks_exact_mut(width);
        for (t, vectors) in (self.first..self.first + self.count).zip(vectors) {
            let token = self.row.start + t;
            let from = &self.queries[token * dims.queries() + self.head * width..];
            vectors.copy_from_slice(&from[..width]);
            let query = Query::new(self.row.position + t + 1);
            scratch.queries.extend(std::iter::repeat_n(query, dims.group()));
        }
    }

    /// Finds the keys and values `begin..end` of block `index` in their pages.
    #[inline(always)]
    fn find(&self, index: usize, begin: usize, end: usize) -> Block<'_> {
        let dims = &self.layer.dims;
        let mut block = Block::new(index, begin, end);
        let mut key = begin;
        // Page by page: a division for each key would take longer than its products.
        while key < end {
            let here = end.min(key + dims.page_tokens - key % dims.page_tokens);
            let place = dims.place(self.row.pages, key, self.head);
            let len = (here - key) * dims.head_dim;
            let keys = self.keys[place..][..len].chunks_exact(dims.head_dim);
            let values = self.values[place..][..len].chunks_exact(dims.head_dim);
            for (k, v) in keys.zip(values) {
                block.put(key, k, v);
                key += 1;
            }
        }
        block
    }

    /// Writes what was gathered, gated, to the output.
    #[inline(always)]
    fn arrive<S: Simd>(&self, simd: S, scratch: &Scratch) {
        let dims = &self.layer.dims;
        let (dim, group) = (dims.head_dim, dims.group());
        let sums = flat(&scratch.sums).chunks_exact(dim);
        for (i, (query, sum)) in scratch.queries.iter().zip(sums).enumerate() {
            let token = self.row.start + self.first + i / group;
            let head = self.head * group + i % group;
            let gate = &self.proj[token * dims.projection() + (2 * head + 1) * dim..][..dim];
            // SAFETY: no two rows share a token, and no two tasks a token's head.
            let out = unsafe { self.out.part(token * dims.queries() + head * dim, dim) };
            let scale = simd.splat(1.0 / query.weight);
            for ((sum, gate), out) in lanes(sum).0.iter().zip(lanes(gate).0).zip(lanes_mut(out).0) {
                let mean = simd.mul(simd.load(sum), scale);
                simd.store(simd.mul(mean, simd.sigmoid(simd.load(gate))), out);
            }
        }
    }
}

//! One block of keys, visited by all queries of a walk.

// Register tiles are walked by index: that is how they unroll.
#![allow(clippy::needless_range_loop)]

use super::walk::Scratch;
use crate::cpu::simd::{LANES, Line, Simd, flat, flat_mut, lanes, lanes_mut};

/// Keys of a block: the multiples of this in a sequence are where blocks begin.
pub(super) const BLOCK: usize = 32;

type Vectors<'a> = &'a [[f32; LANES]];

/// How far a query has come.
#[derive(Clone, Copy)]
pub(super) struct Query {
    /// One more than its own key.
    end: usize,
    /// The largest score so far.
    largest: f32,
    /// The sum of `exp(score - largest)`.
    pub(super) weight: f32,
}

impl Query {
    pub(super) fn new(end: usize) -> Self {
        Self { end, largest: f32::NEG_INFINITY, weight: 0.0 }
    }
}

/// Keys and values `begin..end` of the sequence, which lie in block `index`.
pub(super) struct Block<'a> {
    index: usize,
    begin: usize,
    end: usize,
    keys: [Vectors<'a>; BLOCK],
    values: [Vectors<'a>; BLOCK],
}

impl<'a> Block<'a> {
    #[inline(always)]
    pub(super) fn new(index: usize, begin: usize, end: usize) -> Self {
        Self { index, begin, end, keys: [&[]; BLOCK], values: [&[]; BLOCK] }
    }

    /// Puts `key` into its place. Places before the first and behind the last hold its vectors
    /// too, so that scores can be computed for whole vectors of keys; they are not used.
    #[inline(always)]
    pub(super) fn put(&mut self, key: usize, k: &'a [f32], v: &'a [f32]) {
        let (k, v) = (lanes(k).0, lanes(v).0);
        let at = key - self.index * BLOCK;
        if key == self.begin {
            self.keys = [k; BLOCK];
        }
        self.keys[at] = k;
        self.values[at] = v;
    }

    /// Every query sees those keys of the block that are not behind its own.
    #[inline(always)]
    pub(super) fn visit_all<S: Simd>(&self, simd: S, scratch: &mut Scratch) {
        let dim = self.keys[0].len();
        let Scratch { vectors, sums, queries } = scratch;
        let mut queries = queries.as_mut_slice();
        let (mut vectors, mut sums) = (lanes(flat(vectors)).0, lanes_mut(flat_mut(sums)).0);
        while !queries.is_empty() {
            let many = match queries.len() {
                4.. if S::WIDE => 4,
                2.. => 2,
                _ => 1,
            };
            let (now, later) = queries.split_at_mut(many);
            let (sums_now, sums_later) = sums.split_at_mut(many * dim);
            let (vectors_now, vectors_later) = vectors.split_at(many * dim);
            match now {
                [a, b, c, d] => self.visit::<S, 4, 4>(simd, vectors_now, sums_now, [a, b, c, d]),
                [a, b] => self.visit::<S, 2, 8>(simd, vectors_now, sums_now, [a, b]),
                [a] => self.visit::<S, 1, 16>(simd, vectors_now, sums_now, [a]),
                _ => unreachable!("four, two or one"),
            }
            (queries, sums, vectors) = (later, sums_later, vectors_later);
        }
    }

    /// The visit of `Q` queries, whose scores are computed for `K` keys at a time.
    #[inline(always)]
    fn visit<S: Simd, const Q: usize, const K: usize>(
        &self,
        simd: S,
        vectors: Vectors<'_>,
        sums: &mut [[f32; LANES]],
        queries: [&mut Query; Q],
    ) {
        let first = self.index * BLOCK;
        let begin = self.begin - first;
        let mut scores = [[Line::<f32>::ZERO; BLOCK / LANES]; Q];
        for at in (0..self.end - first).step_by(K) {
            if at + K > begin {
                self.score::<S, Q, K>(simd, at, vectors, &mut scores);
            }
        }
        let (mut ends, mut scales) = ([begin; Q], [1.0; Q]);
        for (q, query) in queries.into_iter().enumerate() {
            ends[q] = query.end.min(self.end).saturating_sub(first).max(begin);
            if ends[q] > begin {
                scales[q] = weigh(simd, query, flat_mut(&mut scores[q]), begin, ends[q]);
            }
        }
        let mut weights: [&[f32]; Q] = [&[]; Q];
        for q in 0..Q {
            weights[q] = flat(&scores[q]);
        }
        let (mut at, dim) = (0, self.keys[0].len());
        while at < dim {
            let gather = Gather { block: self, weights, begin, ends, scales, at, dim };
            at += match dim - at {
                4.. if S::WIDE => gather.run::<S, 4>(simd, sums),
                2.. => gather.run::<S, 2>(simd, sums),
                _ => gather.run::<S, 1>(simd, sums),
            };
        }
    }

    /// The products of `Q` queries with `K` keys from place `at`; Q K = 16.
    #[inline(always)]
    fn score<S: Simd, const Q: usize, const K: usize>(
        &self,
        simd: S,
        at: usize,
        vectors: Vectors<'_>,
        scores: &mut [[Line<f32>; BLOCK / LANES]; Q],
    ) {
        let dim = self.keys[0].len();
        let mut queries: [Vectors<'_>; Q] = [&[]; Q];
        for q in 0..Q {
            queries[q] = &vectors[q * dim..][..dim];
        }
        let mut products = [simd.zero(); LANES];
        if S::WIDE {
            let mut keys: [Vectors<'_>; K] = [&[]; K];
            keys.copy_from_slice(&self.keys[at..at + K]);
            multiply(simd, dim, &queries, &keys, &mut products);
        } else {
            for (q, products) in products.chunks_exact_mut(K).enumerate() {
                for (k, products) in products.chunks_exact_mut(4).enumerate() {
                    let mut keys: [Vectors<'_>; 4] = [&[]; 4];
                    keys.copy_from_slice(&self.keys[at + 4 * k..][..4]);
                    multiply(simd, dim, &[queries[q]], &keys, products);
                }
            }
        }
        let mut all = [0.0; LANES];
        simd.store(simd.sum_each(&products), &mut all);
        for (scores, all) in scores.iter_mut().zip(all.chunks_exact(K)) {
            flat_mut(scores)[at..at + K].copy_from_slice(all);
        }
    }
}

/// The lanes of the products of `Q` queries with `K` keys, `[Q, K]`.
#[inline(always)]
fn multiply<S: Simd, const Q: usize, const K: usize>(
    simd: S,
    dim: usize,
    queries: &[Vectors<'_>; Q],
    keys: &[Vectors<'_>; K],
    products: &mut [S::V],
) {
    // Cut to one length here, so that the loop below needs no checks.
    let (mut queries, mut keys) = (*queries, *keys);
    queries.iter_mut().for_each(|q| *q = &q[..dim]);
    keys.iter_mut().for_each(|k| *k = &k[..dim]);
    let mut sums = [[simd.zero(); K]; Q];
    for i in 0..dim {
        let mut x = [simd.zero(); Q];
        for q in 0..Q {
            x[q] = simd.load(&queries[q][i]);
        }
        for k in 0..K {
            let key = simd.load(&keys[k][i]);
            for q in 0..Q {
                sums[q][k] = simd.fma(x[q], key, sums[q][k]);
            }
        }
    }
    for q in 0..Q {
        for k in 0..K {
            products[q * K + k] = sums[q][k];
        }
    }
}

/// Turns a query's scores into weights relative to the largest score so far. Returns the scale
/// that makes what it gathered before relative to that as well.
#[inline(always)]
fn weigh<S: Simd>(simd: S, query: &mut Query, scores: &mut [f32], begin: usize, end: usize) -> f32 {
    let whole = end - begin == BLOCK;
    if !whole {
        scores[..begin].fill(f32::NEG_INFINITY);
        scores[end..].fill(f32::NEG_INFINITY);
    }
    let (vectors, _) = lanes_mut(scores);
    let (a, b) = (simd.load(&vectors[0]), simd.load(&vectors[1]));
    let largest = simd.largest(simd.max(a, b));
    let largest = if largest > query.largest { largest } else { query.largest };
    let shift = simd.splat(largest);
    simd.store(simd.exp(simd.sub(a, shift)), &mut vectors[0]);
    simd.store(simd.exp(simd.sub(b, shift)), &mut vectors[1]);
    if !whole {
        // The exponential of what is not there saturates above zero.
        scores[..begin].fill(0.0);
        scores[end..].fill(0.0);
    }
    let (vectors, _) = lanes(scores);
    let weight = simd.sum(simd.add(simd.load(&vectors[0]), simd.load(&vectors[1])));
    let mut scale = [1.0; LANES];
    if largest != query.largest {
        simd.store(simd.exp(simd.splat(query.largest - largest)), &mut scale);
    }
    query.largest = largest;
    query.weight = query.weight * scale[0] + weight;
    scale[0]
}

/// The weighted values of a block on their way into the sums of `Q` queries.
struct Gather<'a, const Q: usize> {
    block: &'a Block<'a>,
    weights: [&'a [f32]; Q],
    begin: usize,
    ends: [usize; Q],
    scales: [f32; Q],
    /// Vectors from `at` of the `dim` of a value.
    at: usize,
    dim: usize,
}

impl<const Q: usize> Gather<'_, Q> {
    /// Gathers `N` vectors of each value, and returns `N`: key after key, all queries together
    /// as far as the first of them sees, and then each by itself.
    #[inline(always)]
    fn run<S: Simd, const N: usize>(&self, simd: S, sums: &mut [[f32; LANES]]) -> usize {
        let mut totals = [[simd.zero(); N]; Q];
        for q in 0..Q {
            for n in 0..N {
                let sum = simd.load(&sums[q * self.dim + self.at + n]);
                totals[q][n] = simd.mul(sum, simd.splat(self.scales[q]));
            }
        }
        let common = self.ends.iter().copied().min().unwrap_or(self.begin);
        for key in self.begin..common {
            let values = &self.block.values[key][self.at..][..N];
            for q in 0..Q {
                add(simd, self.weights[q][key], values, &mut totals[q]);
            }
        }
        for q in 0..Q {
            for key in common..self.ends[q] {
                let values = &self.block.values[key][self.at..][..N];
                add(simd, self.weights[q][key], values, &mut totals[q]);
            }
            for n in 0..N {
                simd.store(totals[q][n], &mut sums[q * self.dim + self.at + n]);
            }
        }
        N
    }
}

#[inline(always)]
fn add<S: Simd, const N: usize>(
    simd: S,
    weight: f32,
    values: &[[f32; LANES]],
    totals: &mut [S::V; N],
) {
    let weight = simd.splat(weight);
    for n in 0..N {
        totals[n] = simd.fma(weight, simd.load(&values[n]), totals[n]);
    }
}

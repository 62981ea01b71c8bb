//! A tile of plain values: fp32 products, summed in the order of k.

// Register tiles are walked by index: that is how they unroll.
#![allow(clippy::needless_range_loop)]

use super::output::Output;
use super::{TILE_PANELS, TILE_ROWS};
use crate::cpu::simd::{Job, LANES, Line, Simd};
use crate::cpu::weight::dense::{Dense, Item, Values};
use std::cell::Cell;
use std::ops::Range;

/// Steps of k that are summed before they are added to the total.
const BLOCK: usize = 64;
/// Rows of x in a register tile.
const ROWS: usize = 4;

/// Up to four panels of sixteen outputs, for up to [`TILE_ROWS`](super::TILE_ROWS) rows of x.
pub(super) struct Tile<'a> {
    /// `[M, K]`.
    pub(super) x: &'a [f32],
    pub(super) w: &'a Dense,
    pub(super) rows: Range<usize>,
    pub(super) panel: usize,
    pub(super) column: usize,
    pub(super) output: &'a Output<'a>,
}

/// A block of halves widened to fp32, and the totals of the outputs.
struct Scratch {
    values: Vec<Line<f32>>,
    totals: Vec<Line<f32>>,
}

thread_local! {
    // Taken while in use, so that a job stolen in the middle of another simply makes its own.
    static SCRATCH: Cell<Option<Scratch>> = const { Cell::new(None) };
}

impl Scratch {
    fn new() -> Self {
        let values = vec![Line::<f32>::ZERO; TILE_PANELS * BLOCK];
        Self { values, totals: vec![Line::<f32>::ZERO; TILE_PANELS * TILE_ROWS] }
    }
}

impl Job for Tile<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match &self.w.values {
            Values::F32(items) => self.multiply(simd, items, false),
            Values::Bf16(items) => self.multiply(simd, items, true),
            Values::F16(items) => self.multiply(simd, items, true),
        }
    }
}

impl Tile<'_> {
    #[inline(always)]
    fn multiply<S: Simd, I: Item>(&self, simd: S, items: &[I], halves: bool) {
        let mut scratch = SCRATCH.take().unwrap_or_else(Scratch::new);
        let panels = self.w.rows.div_ceil(LANES) - self.panel;
        // Few rows do not repay a detour of widened values through memory.
        let widen = halves && self.rows.len() > ROWS;
        if panels >= TILE_PANELS {
            self.multiply_panels::<S, I, TILE_PANELS>(simd, items, self.panel, widen, &mut scratch);
        } else {
            for panel in self.panel..self.panel + panels {
                self.multiply_panels::<S, I, 1>(simd, items, panel, widen, &mut scratch);
            }
        }
        SCRATCH.set(Some(scratch));
    }

    /// All rows with the `P` panels from `panel` on.
    #[inline(always)]
    fn multiply_panels<S: Simd, I: Item, const P: usize>(
        &self,
        simd: S,
        items: &[I],
        panel: usize,
        widen: bool,
        scratch: &mut Scratch,
    ) {
        let Scratch { values, totals } = scratch;
        let totals = &mut totals[..self.rows.len() * P];
        totals.fill(Line::<f32>::ZERO);
        let cols = self.w.cols;
        for first in (0..cols).step_by(BLOCK) {
            let steps = BLOCK.min(cols - first);
            let mut block: [&[I]; P] = [&[]; P];
            for (p, block) in block.iter_mut().enumerate() {
                *block = &items[(panel + p) * cols + first..][..steps];
            }
            if !widen {
                self.add_all(simd, first, &block, totals);
                continue;
            }
            let mut widened: [&[Line<f32>]; P] = [&[]; P];
            for (p, values) in values.chunks_mut(BLOCK).take(P).enumerate() {
                for (item, value) in block[p].iter().zip(values.iter_mut()) {
                    simd.store(item.load(simd), &mut value.0);
                }
                widened[p] = &values[..steps];
            }
            self.add_all(simd, first, &widened, totals);
        }
        let first = panel * LANES;
        let width = (P * LANES).min(self.w.rows - first);
        for (row, totals) in self.rows.clone().zip(totals.chunks(P)) {
            // SAFETY: tiles differ in their rows or in their columns.
            unsafe { self.output.write(simd, row, self.column + first, width, totals) };
        }
    }

    /// Adds the products of the block from k = `first` to `totals [rows][P]`.
    #[inline(always)]
    fn add_all<S: Simd, I: Item, const P: usize>(
        &self,
        simd: S,
        first: usize,
        block: &[&[I]; P],
        totals: &mut [Line<f32>],
    ) {
        let mut at = self.rows.start * self.w.cols + first;
        for totals in totals.chunks_mut(ROWS * P) {
            match totals.len() / P {
                1 => self.add_rows::<S, I, 1, P>(simd, at, block, totals),
                2 => self.add_rows::<S, I, 2, P>(simd, at, block, totals),
                3 => self.add_rows::<S, I, 3, P>(simd, at, block, totals),
                _ => self.add_rows::<S, I, ROWS, P>(simd, at, block, totals),
            }
            at += ROWS * self.w.cols;
        }
    }

    /// Adds them for the `R` rows whose values begin at `at`, in tiles that fit the registers.
    #[inline(always)]
    fn add_rows<S: Simd, I: Item, const R: usize, const P: usize>(
        &self,
        simd: S,
        at: usize,
        block: &[&[I]; P],
        totals: &mut [Line<f32>],
    ) {
        if S::WIDE || R * P <= 4 {
            let sums = self.products::<S, I, R, P>(simd, at, block);
            settle(simd, 0, &sums, totals);
        } else {
            for p in 0..P {
                let sums = self.products::<S, I, R, 1>(simd, at, &[block[p]]);
                settle(simd, p, &sums, totals);
            }
        }
    }

    /// The sums over the block of `R` rows' products with `P` panels.
    #[inline(always)]
    fn products<S: Simd, I: Item, const R: usize, const P: usize>(
        &self,
        simd: S,
        at: usize,
        block: &[&[I]; P],
    ) -> [[S::V; P]; R] {
        // Cut to one length here, so that the loop below needs no checks.
        let steps = block[0].len();
        let mut x: [&[f32]; R] = [&[]; R];
        for (r, x) in x.iter_mut().enumerate() {
            *x = &self.x[at + r * self.w.cols..][..steps];
        }
        let mut w: [&[I]; P] = [&[]; P];
        for p in 0..P {
            w[p] = &block[p][..steps];
        }
        let mut sums = [[simd.zero(); P]; R];
        for k in 0..steps {
            let mut values = [simd.zero(); P];
            for p in 0..P {
                values[p] = w[p][k].load(simd);
            }
            for r in 0..R {
                let x = simd.splat(x[r][k]);
                for p in 0..P {
                    sums[r][p] = simd.fma(x, values[p], sums[r][p]);
                }
            }
        }
        sums
    }
}

/// Adds a block's sums to the totals of its rows from panel `first` on.
#[inline(always)]
fn settle<S: Simd, const R: usize, const P: usize>(
    simd: S,
    first: usize,
    sums: &[[S::V; P]; R],
    totals: &mut [Line<f32>],
) {
    let stride = totals.len() / R;
    for r in 0..R {
        for p in 0..P {
            let total = &mut totals[r * stride + first + p].0;
            simd.store(simd.add(simd.load(total), sums[r][p]), total);
        }
    }
}

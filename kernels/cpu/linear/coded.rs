//! A tile of quantised weights: exact integer products, scaled group by group.

// Register tiles are walked by index: that is how they unroll.
#![allow(clippy::needless_range_loop)]

use super::fixed::{Fixed, Unit};
use super::output::Output;
use super::{TILE_PANELS, TILE_ROWS};
use crate::cpu::simd::{Digits, Job, LANES, Line, Simd};
use crate::cpu::weight::coded::{Coded, GROUP_MAX, QUAD, SPAN_QUADS, quad_bytes};
use std::cell::Cell;
use std::ops::Range;

/// Up to four panels of sixteen outputs, for up to [`TILE_ROWS`](super::TILE_ROWS) rows of x.
pub(super) struct Tile<'a> {
    pub(super) x: &'a Fixed,
    pub(super) w: &'a Coded,
    pub(super) rows: Range<usize>,
    pub(super) panel: usize,
    pub(super) column: usize,
    pub(super) output: &'a Output<'a>,
}

/// Codes of a group as bytes, and the totals of the outputs.
pub(super) struct Scratch {
    pub(super) bytes: Vec<Line<u32>>,
    pub(super) totals: Vec<Line<f32>>,
}

/// Words of a group: its codes as bytes.
const GROUP_WORDS: usize = GROUP_MAX / QUAD;

thread_local! {
    // Taken while in use, so that a job stolen in the middle of another simply makes its own.
    static SCRATCH: Cell<Option<Scratch>> = const { Cell::new(None) };
}

impl Scratch {
    fn new() -> Self {
        let bytes = vec![Line::<u32>::ZERO; TILE_PANELS * GROUP_WORDS];
        Self { bytes, totals: vec![Line::<f32>::ZERO; TILE_PANELS * TILE_ROWS] }
    }

    pub(super) fn take() -> Self {
        SCRATCH.take().unwrap_or_else(Self::new)
    }

    pub(super) fn give_back(self) {
        SCRATCH.set(Some(self));
    }
}

impl Job for Tile<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.multiply_coded(simd, self.w.bits);
    }
}

/// What is compiled once for every width of codes.
pub(super) trait ByBits {
    fn multiply<S: Simd, const BITS: usize>(&self, simd: S);

    #[inline(always)]
    fn multiply_coded<S: Simd>(&self, simd: S, bits: u32) {
        match bits {
            2 => self.multiply::<S, 2>(simd),
            3 => self.multiply::<S, 3>(simd),
            4 => self.multiply::<S, 4>(simd),
            5 => self.multiply::<S, 5>(simd),
            6 => self.multiply::<S, 6>(simd),
            _ => self.multiply::<S, 8>(simd),
        }
    }
}

impl ByBits for Tile<'_> {
    #[inline(always)]
    fn multiply<S: Simd, const BITS: usize>(&self, simd: S) {
        let mut scratch = Scratch::take();
        let panels = self.w.rows.div_ceil(LANES) - self.panel;
        if panels >= TILE_PANELS {
            self.multiply_panels::<S, BITS, TILE_PANELS>(simd, self.panel, &mut scratch);
        } else {
            for panel in self.panel..self.panel + panels {
                self.multiply_panels::<S, BITS, 1>(simd, panel, &mut scratch);
            }
        }
        scratch.give_back();
    }
}

impl Tile<'_> {
    /// All rows with the `P` panels from `panel` on.
    #[inline(always)]
    fn multiply_panels<S: Simd, const BITS: usize, const P: usize>(
        &self,
        simd: S,
        panel: usize,
        scratch: &mut Scratch,
    ) {
        let Scratch { bytes, totals } = scratch;
        let totals = &mut totals.as_chunks_mut::<P>().0[..self.rows.len()];
        totals.fill([Line::<f32>::ZERO; P]);
        for group in 0..self.w.groups {
            let group = Group { tile: self, panel, group };
            let mut lines: [&[Line<u32>]; P] = [&[]; P];
            for (p, lines) in lines.iter_mut().enumerate() {
                *lines = self.w.lines(panel + p, group.group);
            }
            // Few rows do not repay a detour of the bytes through memory.
            if BITS == 8 || self.rows.len() <= rows_in_registers::<S>() {
                group.add_all::<S, BITS, P>(simd, &lines, totals);
                continue;
            }
            for (lines, bytes) in lines.iter_mut().zip(bytes.chunks_mut(GROUP_WORDS)) {
                let bytes = &mut bytes[..self.w.group / QUAD];
                unpack::<S, BITS>(simd, lines, bytes);
                *lines = bytes;
            }
            group.add_all::<S, 8, P>(simd, &lines, totals);
        }
        let first = panel * LANES;
        let width = (P * LANES).min(self.w.rows - first);
        for (row, totals) in self.rows.clone().zip(totals) {
            // SAFETY: tiles differ in their rows or in their columns.
            unsafe { self.output.write(simd, row, self.column + first, width, totals) };
        }
    }
}

/// Rows of x that are multiplied in one go.
#[inline(always)]
const fn rows_in_registers<S: Simd>() -> usize {
    if S::WIDE { 4 } else { 2 }
}

/// The bytes of whole spans.
#[inline(always)]
pub(super) fn unpack<S: Simd, const BITS: usize>(
    simd: S,
    lines: &[Line<u32>],
    bytes: &mut [Line<u32>],
) {
    let spans = lines.as_chunks::<BITS>().0;
    for (lines, bytes) in spans.iter().zip(bytes.as_chunks_mut::<SPAN_QUADS>().0) {
        for (quad, bytes) in bytes.iter_mut().enumerate() {
            simd.store_words(quad_bytes::<S, BITS>(simd, lines, quad), &mut bytes.0);
        }
    }
}

/// One group of k of some panels of a tile.
struct Group<'a> {
    tile: &'a Tile<'a>,
    panel: usize,
    group: usize,
}

impl Group<'_> {
    /// Adds the group's products for all rows and panels to `totals`.
    #[inline(always)]
    fn add_all<S: Simd, const BITS: usize, const P: usize>(
        &self,
        simd: S,
        lines: &[&[Line<u32>]; P],
        totals: &mut [[Line<f32>; P]],
    ) {
        let mut row = self.tile.rows.start;
        for totals in totals.chunks_mut(rows_in_registers::<S>()) {
            match totals {
                [a] => self.add_rows::<S, BITS, 1, P>(simd, row, lines, [a]),
                [a, b] => self.add_rows::<S, BITS, 2, P>(simd, row, lines, [a, b]),
                [a, b, c] => self.add_rows::<S, BITS, 3, P>(simd, row, lines, [a, b, c]),
                [a, b, c, d, ..] => {
                    self.add_rows::<S, BITS, 4, P>(simd, row, lines, [a, b, c, d]);
                }
                [] => (),
            }
            row += rows_in_registers::<S>();
        }
    }

    /// Adds them for the `R` rows from `row`, in tiles that fit the registers.
    #[inline(always)]
    fn add_rows<S: Simd, const BITS: usize, const R: usize, const P: usize>(
        &self,
        simd: S,
        row: usize,
        lines: &[&[Line<u32>]; P],
        mut totals: [&mut [Line<f32>; P]; R],
    ) {
        if S::WIDE && R <= 2 {
            let sums = self.products::<S, BITS, R, P>(simd, row, lines);
            self.settle(simd, row, 0, &sums, &mut totals);
        } else if S::WIDE && P.is_multiple_of(2) {
            for p in (0..P).step_by(2) {
                let lines = [lines[p], lines[p + 1]];
                let sums = self.products::<S, BITS, R, 2>(simd, row, &lines);
                self.settle(simd, row, p, &sums, &mut totals);
            }
        } else {
            for p in 0..P {
                let sums = self.products::<S, BITS, R, 1>(simd, row, &[lines[p]]);
                self.settle(simd, row, p, &sums, &mut totals);
            }
        }
    }

    /// The exact sums over the group of `R` rows' products with `P` panels.
    #[inline(always)]
    fn products<S: Simd, const BITS: usize, const R: usize, const P: usize>(
        &self,
        simd: S,
        row: usize,
        lines: &[&[Line<u32>]; P],
    ) -> [[S::D; P]; R] {
        // Cut to one length here, so that the loop below needs no checks.
        let spans = self.tile.w.group / (SPAN_QUADS * QUAD);
        let mut x: [&[[Digits; SPAN_QUADS]]; R] = [&[]; R];
        for (r, x) in x.iter_mut().enumerate() {
            *x = &self.tile.x.digits(row + r, self.group).as_chunks().0[..spans];
        }
        let mut w: [&[[Line<u32>; BITS]]; P] = [&[]; P];
        for p in 0..P {
            w[p] = &lines[p].as_chunks().0[..spans];
        }
        let mut sums = [[simd.no_dots(); P]; R];
        for span in 0..spans {
            for quad in 0..SPAN_QUADS {
                let mut bytes = [simd.magnitude(simd.zero()); P];
                for p in 0..P {
                    bytes[p] = quad_bytes::<S, BITS>(simd, &w[p][span], quad);
                }
                // Row by row: one row's digits for all panels need the fewest registers.
                for r in 0..R {
                    for p in 0..P {
                        sums[r][p] = simd.dot(sums[r][p], bytes[p], &x[r][span][quad]);
                    }
                }
            }
        }
        sums
    }

    /// Adds the group's sums, scaled, to the totals of its rows from panel `first` on.
    #[inline(always)]
    fn settle<S: Simd, const R: usize, const P: usize, const ALL: usize>(
        &self,
        simd: S,
        row: usize,
        first: usize,
        sums: &[[S::D; P]; R],
        totals: &mut [&mut [Line<f32>; ALL]; R],
    ) {
        let units: &[Unit] = &self.tile.x.units(self.group)[row..][..R];
        for p in 0..P {
            let [scale, bias] = self.tile.w.scales(self.panel + first + p, self.group);
            let scales = (simd.load(&scale.0), simd.load(&bias.0));
            for r in 0..R {
                let sums = simd.dot_sums(sums[r][p]);
                add_scaled(simd, sums, units[r], scales, &mut totals[r][first + p]);
            }
        }
    }
}

/// Adds what a group sums to: `sum x (scale q + bias) = scale (sum x q) + bias (sum x)`.
#[inline(always)]
pub(super) fn add_scaled<S: Simd>(
    simd: S,
    (high, low): (S::V, S::V),
    unit: Unit,
    (scale, bias): (S::V, S::V),
    total: &mut Line<f32>,
) {
    let low = simd.mul(low, simd.splat(unit.low));
    let sum = simd.fma(high, simd.splat(unit.high), low);
    let v = simd.fma(scale, sum, simd.load(&total.0));
    simd.store(simd.fma(bias, simd.splat(unit.sum), v), &mut total.0);
}

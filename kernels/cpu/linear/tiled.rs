//! A tile of quantised weights through the matrix unit: the same exact integers as `coded`, sixteen
//! rows at a time, and the same scaling after each group.

use super::TILE_PANELS;
use super::coded::{ByBits, Scratch, add_scaled, unpack};
use super::fixed::Fixed;
use super::output::Output;
use crate::cpu::simd::amx::{Amx, Sums, TILE_K, TILE_ROWS, Tiles};
use crate::cpu::simd::{Job, LANES, Line, Simd};
use crate::cpu::weight::coded::{Coded, QUAD};
use std::ops::Range;

/// Up to four panels of sixteen outputs, for up to [`TILE_ROWS`](super::TILE_ROWS) rows of x.
pub(super) struct Tile<'a> {
    pub(super) unit: Amx,
    pub(super) x: &'a Fixed,
    pub(super) w: &'a Coded,
    pub(super) rows: Range<usize>,
    pub(super) panel: usize,
    pub(super) column: usize,
    pub(super) output: &'a Output<'a>,
}

impl Job for Tile<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.multiply_coded(simd, self.w.bits);
    }
}

/// Groups between the one that is multiplied and the one that is fetched.
const PREFETCH: usize = 2;

/// Totals of a row.
type Totals = [Line<f32>; TILE_PANELS];

/// What the unit was last told to sum up: two panels, a tile's rows. It is read one step later,
/// while the unit works on the next.
struct Pending {
    group: usize,
    /// The first of the panels, within the tile.
    pair: usize,
    rows: Range<usize>,
}

impl ByBits for Tile<'_> {
    #[inline(always)]
    fn multiply<S: Simd, const BITS: usize>(&self, simd: S) {
        let mut scratch = Scratch::take();
        let Scratch { bytes, totals } = &mut scratch;
        let totals = &mut totals.as_chunks_mut::<TILE_PANELS>().0[..self.rows.len()];
        totals.fill([Line::<f32>::ZERO; TILE_PANELS]);
        let panels = (self.w.rows.div_ceil(LANES) - self.panel).min(TILE_PANELS);
        self.add_groups::<S, BITS>(simd, panels, bytes, totals);
        let (first, column) = (self.panel * LANES, self.column + self.panel * LANES);
        let width = (panels * LANES).min(self.w.rows - first);
        for (row, totals) in self.rows.clone().zip(totals) {
            // SAFETY: tiles differ in their rows or in their columns.
            unsafe { self.output.write(simd, row, column, width, &totals[..panels]) };
        }
        scratch.give_back();
    }
}

impl Tile<'_> {
    #[inline(always)]
    fn add_groups<S: Simd, const BITS: usize>(
        &self,
        simd: S,
        panels: usize,
        bytes: &mut [Line<u32>],
        totals: &mut [Totals],
    ) {
        let height = self.x.tile_rows();
        let tiles = self.unit.shape(height, self.w.group.min(TILE_K));
        let words = self.w.group / QUAD;
        let mut sums = [[[Line::<u32>::ZERO; 3 * TILE_ROWS]; 2]; 2];
        let mut turn = 0;
        let mut pending: Option<Pending> = None;
        for group in 0..self.w.groups {
            let mut lines: [&[Line<u32>]; TILE_PANELS] = [&[]; TILE_PANELS];
            for (p, (lines, bytes)) in lines.iter_mut().zip(bytes.chunks_mut(words)).enumerate() {
                // Beyond the last panel the last one stands in; its sums are not read.
                *lines = self.w.lines(self.panel + p.min(panels - 1), group);
                if BITS != 8 {
                    unpack::<S, BITS>(simd, lines, bytes);
                    *lines = bytes;
                }
            }
            for first in (0..self.rows.len()).step_by(height) {
                let rows = first..self.rows.len().min(first + height);
                for pair in [0, 2].into_iter().take(panels.div_ceil(2)) {
                    let lines = [lines[pair], lines[pair + 1]];
                    if first == 0 && group + PREFETCH < self.w.groups {
                        for p in [pair, pair + 1] {
                            tiles.prefetch(
                                self.w.lines(self.panel + p.min(panels - 1), group + PREFETCH),
                            );
                        }
                    }
                    self.add(&tiles, (group, pair, first), lines, &mut sums[turn]);
                    turn = 1 - turn;
                    if let Some(last) = pending.replace(Pending { group, pair, rows: rows.clone() })
                    {
                        self.settle(simd, &last, panels, &sums[turn], totals);
                    }
                }
            }
        }
        if let Some(last) = pending {
            self.settle(simd, &last, panels, &sums[1 - turn], totals);
        }
    }

    /// Sums up a group's products of two panels with the rows from `row` on.
    #[inline(always)]
    fn add(
        &self,
        tiles: &Tiles,
        (group, pair, row): (usize, usize, usize),
        lines: [&[Line<u32>]; 2],
        sums: &mut [Sums; 2],
    ) {
        let tile = (self.rows.start + row) / self.x.tile_rows();
        tiles.clear();
        for k in (0..self.w.group).step_by(TILE_K) {
            let (digits, stride) = self.x.tile(tile, group * self.w.group + k);
            let codes = [lines[0][k / QUAD..].as_ptr(), lines[1][k / QUAD..].as_ptr()];
            // SAFETY: there are the digits of whole tiles; the lines are those of a group.
            unsafe {
                // The digits of a whole group stay for the next pair.
                if pair == 0 || self.w.group > TILE_K {
                    tiles.load(digits, stride);
                }
                tiles.multiply(codes);
            }
        }
        tiles.store(sums);
    }

    #[inline(always)]
    fn settle<S: Simd>(
        &self,
        simd: S,
        of: &Pending,
        panels: usize,
        sums: &[Sums; 2],
        totals: &mut [Totals],
    ) {
        let (rows, height) = (of.rows.len(), self.x.tile_rows());
        // All cut to one length here, so that the loop below needs no checks.
        let totals = &mut totals[of.rows.clone()][..rows];
        let units = &self.x.units(of.group)[self.rows.start + of.rows.start..][..rows];
        let [a, b] = [digits(&sums[0], height, rows), digits(&sums[1], height, rows)];
        let scales = |panel: usize| {
            let [scale, bias] = self.w.scales(self.panel + panel.min(panels - 1), of.group);
            (simd.load(&scale.0), simd.load(&bias.0))
        };
        let (scales_a, scales_b) = (scales(of.pair), scales(of.pair + 1));
        for row in 0..rows {
            let (total, unit) = (&mut totals[row], units[row]);
            let sum = [&a[0][row], &a[1][row], &a[2][row]];
            add_scaled(simd, joined(simd, sum), unit, scales_a, &mut total[of.pair]);
            let sum = [&b[0][row], &b[1][row], &b[2][row]];
            add_scaled(simd, joined(simd, sum), unit, scales_b, &mut total[of.pair + 1]);
        }
    }
}

/// The rows of upper, middle and lower digits.
#[inline(always)]
fn digits(sums: &Sums, height: usize, rows: usize) -> [&[Line<u32>]; 3] {
    [&sums[..rows], &sums[height..][..rows], &sums[2 * height..][..rows]]
}

/// As [`Simd::dot_sums`].
#[inline(always)]
fn joined<S: Simd>(simd: S, [high, middle, low]: [&Line<u32>; 3]) -> (S::V, S::V) {
    let middle = simd.bits(simd.load_words(&middle.0), 0, u32::MAX, 8);
    let low = simd.add_words(middle, simd.load_words(&low.0));
    (simd.float(simd.load_words(&high.0)), simd.float(low))
}

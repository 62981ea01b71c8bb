//! Linear layers: `x Wᵀ` for any number of rows, each row as if it came alone.
//!
//! A tile of up to 64 outputs is read once and multiplied with every row of `x`, whatever M is:
//! as long as weights come from memory, four rows cost little more than one. Within a block of K
//! the products of an output are summed in a fixed way (in fp32 and in the order of k for plain
//! values; exactly, as integers, for codes) and block after block is added to the output's
//! total. That order is the same for all shapes of call.

use super::parallel::{self, Shared};
use super::simd::{Tier, amx::Amx};
use super::weight::{Part, Weight, coded::Coded, dense::Dense};
use fixed::{Fixed, Layout};
use output::Output;
use std::cell::Cell;
use std::ops::Range;

mod coded;
mod dense;
mod fixed;
mod output;
#[cfg(test)]
mod tests;
mod tiled;

/// Panels of sixteen outputs in a tile.
const TILE_PANELS: usize = 4;
/// Rows of x for which a tile is decoded once: they, their totals and the tile share L1.
pub(super) const TILE_ROWS: usize = 60;
// Where a job's rows begin, a tile of the matrix unit begins too.
const _: () = assert!(TILE_ROWS.is_multiple_of(super::simd::amx::TILE_ROWS));
/// Rows of x that repay setting up a matrix unit.
const MATRIX_ROWS: usize = 2;

/// `out [M, N] = x [M, K] Wᵀ`.
pub fn linear(x: &[f32], w: &Weight, out: &mut [f32]) {
    multiply(x, w, None, out);
}

/// `out [M, N] = residual [M, N] + x [M, K] Wᵀ`.
pub fn linear_add(x: &[f32], w: &Weight, residual: &[f32], out: &mut [f32]) {
    assert_eq!(residual.len(), out.len(), "linear_add: residual is not [M, N]");
    multiply(x, w, Some(residual), out);
}

/// A part of the weight with what its tiles need.
struct Stripe<'a> {
    /// The output column of the part's first row.
    column: usize,
    tiles: usize,
    operands: Operands<'a>,
}

enum Operands<'a> {
    Dense(&'a [f32], &'a Dense),
    Coded(&'a Fixed, &'a Coded, Option<Amx>),
}

thread_local! {
    // Kept from call to call: fresh memory would have to be mapped each time.
    static FIXED: Cell<Vec<Fixed>> = const { Cell::new(Vec::new()) };
}

impl Stripe<'_> {
    /// Vector operations of all tiles, for `rows` rows of x.
    fn ops(&self, rows: usize, cols: usize) -> usize {
        let panel = match self.operands {
            // A product for each k and row, and a load.
            Operands::Dense(..) => cols * (rows + 1),
            // Three for each four k and row, and an unpacking.
            Operands::Coded(..) => cols / 4 * (3 * rows + 1),
        };
        self.tiles * TILE_PANELS * panel
    }
}

fn multiply(x: &[f32], w: &Weight, residual: Option<&[f32]>, out: &mut [f32]) {
    let (cols, columns) = (w.cols(), w.rows());
    assert!(cols > 0 && x.len().is_multiple_of(cols), "linear: x is not [M, K]");
    let rows = x.len() / cols;
    assert_eq!(out.len(), rows * columns, "linear: out is not [M, N]");
    let tier = Tier::current();
    let mut kept = FIXED.take();
    let unit = tier.matrix_unit().filter(|_| rows >= MATRIX_ROWS);
    let layout = if unit.is_some() { Layout::Tiles } else { Layout::Quads };
    let fixed = fix(tier, x, w, layout, &mut kept);
    let stripes = stripes(x, fixed, w, unit);
    let output = Output { columns, residual, out: Shared::new(out) };
    let tiles: usize = stripes.iter().map(|stripe| stripe.tiles).sum();
    let chunks = rows.div_ceil(TILE_ROWS);
    let ops: usize = stripes.iter().map(|stripe| stripe.ops(rows.min(TILE_ROWS), cols)).sum();
    parallel::for_each(tiles * chunks, ops / tiles.max(1), |unit| {
        let first = unit % chunks * TILE_ROWS;
        let rows = first..rows.min(first + TILE_ROWS);
        multiply_tile(tier, &stripes, unit / chunks, rows, &output);
    });
    FIXED.set(kept);
}

fn multiply_tile(
    tier: Tier,
    stripes: &[Stripe<'_>],
    mut tile: usize,
    rows: Range<usize>,
    output: &Output<'_>,
) {
    for stripe in stripes {
        if tile >= stripe.tiles {
            tile -= stripe.tiles;
            continue;
        }
        let (panel, column) = (tile * TILE_PANELS, stripe.column);
        return match stripe.operands {
            Operands::Dense(x, w) => tier.run(dense::Tile { x, w, rows, panel, column, output }),
            Operands::Coded(x, w, None) => {
                tier.run(coded::Tile { x, w, rows, panel, column, output })
            }
            Operands::Coded(x, w, Some(unit)) => {
                tier.run(tiled::Tile { unit, x, w, rows, panel, column, output })
            }
        };
    }
}

/// `x` as fixed-point numbers, for each size of group in `w`: into the first of `fixed`, whose
/// memory is used again.
fn fix<'a>(
    tier: Tier,
    x: &[f32],
    w: &Weight,
    layout: Layout,
    fixed: &'a mut Vec<Fixed>,
) -> &'a [Fixed] {
    let mut count = 0;
    for part in w.parts() {
        if let Part::Coded(part) = part
            && fixed[..count].iter().all(|fixed| fixed.group != part.group)
        {
            if fixed.len() == count {
                fixed.push(Fixed::default());
            }
            fixed[count].set(tier, x, (part.cols, part.group), layout);
            count += 1;
        }
    }
    &fixed[..count]
}

fn stripes<'a>(
    x: &'a [f32],
    fixed: &'a [Fixed],
    w: &'a Weight,
    unit: Option<Amx>,
) -> Vec<Stripe<'a>> {
    let mut column = 0;
    let mut stripes = Vec::with_capacity(w.parts().len());
    for part in w.parts() {
        let operands = match part {
            Part::Dense(part) => Operands::Dense(x, part),
            Part::Coded(part) => {
                let own = fixed.iter().find(|fixed| fixed.group == part.group);
                Operands::Coded(own.expect("made for every group of the weight"), part, unit)
            }
        };
        let tiles = part.panels().div_ceil(TILE_PANELS);
        stripes.push(Stripe { column, tiles, operands });
        column += part.rows();
    }
    stripes
}

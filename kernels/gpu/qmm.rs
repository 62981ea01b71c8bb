//! `verify_qmm`: products with affine weights for the few rows of a verify pass. A row's result
//! does not depend, to the bit, on how many rows travel with it.

use std::rc::Rc;

use mlx_rs::{Array, Dtype};

use super::Gpu;
use super::device::{self, Kernel, Launch, Source};
use super::layout::{Form, STEP, TILE};
use crate::error::Result;
use crate::linear::Ids;

/// Most rows of x for which the kernel is used; beyond, a library multiplies the unpacked matrix.
pub const ROWS_MAX: usize = 64;

/// Rows of x of a block whose tiles share it, in CUDA's source.
const SHARED: usize = 32;
/// Warps of such a block, at most: what a multiprocessor holds of them beside their registers.
const WARPS: usize = 20;
/// Most steps that such a block keeps: more gained nothing on an H100.
const DEPTH_MAX: usize = 6;

const SOURCE: Source = Source {
    name: "verify_qmm",
    cuda: concat!(include_str!("tensor_cores.cu"), include_str!("verify_qmm.cu")),
    metal: include_str!("verify_qmm.metal"),
    inputs: &["words", "sides", "x", "residual"],
    output: "y",
};
const UNPACK: Source = Source {
    name: "rows",
    cuda: concat!(include_str!("scalar.cu"), include_str!("rows.cu")),
    metal: include_str!("rows.metal"),
    inputs: &["words", "sides", "ids"],
    output: "y",
};

/// What becomes of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// `x Wᵀ`.
    Plain,
    /// `x Wᵀ + residual`.
    Add,
    /// Rows of W in turns of 16 of two matrices, a and b: `silu(x aᵀ) · x bᵀ`.
    Gated,
}

/// How a kernel takes so many rows of x. None of it changes a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    /// Most rows of x of a block.
    rows: usize,
    /// Tiles of a block that share its x and keep their steps in shared memory; 0 where a block is
    /// one tile and keeps nothing there.
    tiles: usize,
    /// Steps on their way from memory.
    depth: usize,
    /// Blocks that a multiprocessor is to hold.
    blocks: usize,
}

/// By their rows, ascending; the last for any number.
fn shapes(form: &Form) -> Vec<Shape> {
    if cfg!(target_os = "macos") {
        // Without tensor cores every row is work of its own.
        return [1, 2, 4, 8].map(|rows| Shape { rows, tiles: 0, depth: 0, blocks: 0 }).to_vec();
    }
    // Two planes of codes take the registers of twice the depth.
    let depth = (2 / form.planes()).max(1);
    let blocks = if form.parts() == 8 { 2 } else { 5 };
    let few = [8, 16].map(|rows| Shape { rows, tiles: 0, depth, blocks });
    few.into_iter().chain(shared(form, device::limits())).collect()
}

/// The shape of blocks whose tiles share x, on a device with these limits: as many tiles as it has
/// room for, or a few less where that leaves fewer multiprocessors idle in the last round. `None`
/// on a device that has no room for two steps of one.
fn shared(form: &Form, limits: device::Limits) -> Option<Shape> {
    let parts = form.parts();
    let depth = |tiles: usize| limits.shared_bytes / (parts * stage_bytes(form, tiles));
    let known = [5, 4, 2, 1].into_iter().filter(|tiles| tiles * parts <= WARPS);
    let fit = known.filter(|&tiles| depth(tiles) >= 2).take(2);
    let rounds = |tiles: usize| form.tiles().div_ceil(tiles).div_ceil(limits.multiprocessors);
    // The first of equals.
    let tiles = fit.min_by_key(|&tiles| rounds(tiles) * tiles)?;
    let blocks = (WARPS / (tiles * parts)).min(depth(tiles) / 2).clamp(1, 4);
    let depth = (depth(tiles) / blocks).clamp(2, DEPTH_MAX);
    Some(Shape { rows: SHARED, tiles, depth, blocks })
}

/// Tiles that share x in blocks of many rows.
#[must_use]
pub fn tiles_together(form: &Form) -> usize {
    shapes(form).last().map_or(1, Shape::tiles)
}

/// Bytes that one part of the columns keeps of a step: x, then codes and sides of the tiles.
fn stage_bytes(form: &Form, tiles: usize) -> usize {
    let (codes, sides) = (TILE * STEP * form.bits / 8, form.subs() * TILE * 4);
    SHARED * STEP * 2 + tiles * (codes + sides)
}

impl Shape {
    /// Bytes of shared memory that the source does not declare.
    fn shared_bytes(&self, form: &Form) -> usize {
        match self.tiles {
            0 => 0,
            tiles => form.parts() * self.depth * stage_bytes(form, tiles),
        }
    }

    /// Tiles of a block.
    fn tiles(&self) -> usize {
        self.tiles.max(1)
    }
}

/// An affine matrix on the device, packed for the kernel.
#[derive(Debug)]
pub struct PackedMatrix {
    form: Form,
    words: Array,
    sides: Array,
    dtype: Dtype,
    shapes: Vec<Shape>,
    /// By shape, for `Plain` or `Gated`, and for `Add` unless gated.
    kernels: Vec<Vec<Rc<Kernel>>>,
    gated: bool,
    gather: Rc<Kernel>,
    unpack: Rc<Kernel>,
}

impl PackedMatrix {
    /// Takes arrays in the layout of [`super::layout`], of the form's sizes. Blocks are those that
    /// suit the form `shaped`, which is another in trials alone.
    ///
    /// # Errors
    /// When a kernel does not compile.
    pub fn new(
        gpu: &Gpu,
        [form, shaped]: [Form; 2],
        (words, sides): (Array, Array),
        gated: bool,
    ) -> Result<Self> {
        let dtype = sides.dtype();
        let shapes = shapes(&shaped);
        let endings: &[Ending] =
            if gated { &[Ending::Gated] } else { &[Ending::Plain, Ending::Add] };
        let kernels = endings
            .iter()
            .map(|&ending| {
                let kernel = |s: &Shape| gpu.kernel(&SOURCE, &settings(&form, dtype, *s, ending));
                shapes.iter().map(kernel).collect()
            })
            .collect::<Result<_>>()?;
        let rows = |all: bool| gpu.kernel(&UNPACK, &rows_settings(&form, dtype, all));
        let (gather, unpack) = (rows(false)?, rows(true)?);
        Ok(Self { form, words, sides, dtype, shapes, kernels, gated, gather, unpack })
    }

    /// Whether [`Self::apply`] gives the gated product.
    #[must_use]
    pub fn is_gated(&self) -> bool {
        self.gated
    }

    /// `x [M, K]` → `[M, N]`, or `[M, N/2]` when gated; with `residual` of that shape added, unless
    /// gated.
    ///
    /// # Errors
    /// When MLX refuses.
    pub fn apply(&self, x: &Array, residual: Option<&Array>) -> Result<Array> {
        let m = x.dim(0) as usize;
        if m > ROWS_MAX {
            return self.apply_unpacked(x, residual);
        }
        let last = self.shapes.len() - 1;
        let at = self.shapes.iter().position(|shape| m <= shape.rows).unwrap_or(last);
        let (f, shape) = (&self.form, &self.shapes[at]);
        let launch = Launch {
            scalars: &[m as i32, f.rows as i32, f.cols as i32],
            blocks: f.tiles().div_ceil(shape.tiles()) * m.div_ceil(shape.rows),
            threads: 32 * f.parts() * shape.tiles(),
            shared_bytes: shape.shared_bytes(f),
        };
        let out = if self.gated { f.rows / 2 } else { f.rows };
        let out = [m as i32, out as i32];
        let outputs = [(&out[..], self.dtype)];
        let inputs = [&self.words, &self.sides, x];
        let (kernel, inputs) = match residual {
            None => (&self.kernels[0][at], inputs.to_vec()),
            Some(residual) => (&self.kernels[1][at], [&inputs[..], &[residual]].concat()),
        };
        // SAFETY: the arrays have the sizes that the form names; the source guards ragged edges.
        let [y] = unsafe { kernel.call(&inputs, outputs, launch) }?;
        Ok(y)
    }

    fn apply_unpacked(&self, x: &Array, residual: Option<&Array>) -> Result<Array> {
        let y = x.matmul(self.unpacked()?.transpose()?)?;
        if self.gated {
            let (m, pairs) = (x.dim(0), self.form.rows as i32 / 32);
            let halves = y.reshape(&[m, pairs, 2, 16])?.split_equal(2, 2)?;
            let gated = mlx_rs::nn::silu(&halves[0])?.multiply(&halves[1])?;
            return Ok(gated.reshape(&[m, 16 * pairs])?);
        }
        Ok(match residual {
            Some(residual) => y.add(residual)?,
            None => y,
        })
    }

    /// The whole matrix as values `[N, K]`, computed anew.
    ///
    /// # Errors
    /// When MLX refuses.
    pub fn unpacked(&self) -> Result<Array> {
        let inputs = [&self.words, &self.sides];
        self.rows(&self.unpack, &inputs, self.form.rows)
    }

    /// Rows `ids` of W as values, `[ids, K]`.
    ///
    /// # Errors
    /// When MLX refuses.
    pub fn gather(&self, ids: &Ids) -> Result<Array> {
        let at = match ids {
            Ids::Known(ids) => super::gpu().numbers(ids.iter().map(|&id| id as i32).collect())?,
            Ids::Drawn(ids) => ids.clone(),
        };
        self.rows(&self.gather, &[&self.words, &self.sides, &at], ids.count())
    }

    fn rows(&self, kernel: &Kernel, inputs: &[&Array], count: usize) -> Result<Array> {
        let cols = self.form.cols;
        let launch = Launch {
            scalars: &[count as i32, cols as i32],
            blocks: (count * cols / 8).div_ceil(256),
            threads: 256,
            shared_bytes: 0,
        };
        let shape = [count as i32, cols as i32];
        // SAFETY: the arrays have the sizes that the form names; ids are tokens of the vocabulary.
        let [y] = unsafe { kernel.call(inputs, [(&shape, self.dtype)], launch) }?;
        Ok(y)
    }
}

fn settings(
    form: &Form,
    dtype: Dtype,
    shape: Shape,
    ending: Ending,
) -> Vec<(&'static str, String)> {
    vec![
        ("TYPE", super::scalar(dtype)),
        ("BITS", form.bits.to_string()),
        ("SUBS", form.subs().to_string()),
        ("ROWS", shape.rows.to_string()),
        ("PARTS", form.parts().to_string()),
        ("TILES", shape.tiles.to_string()),
        ("DEPTH", shape.depth.to_string()),
        ("BLOCKS", shape.blocks.to_string()),
        ("END", (ending as i32).to_string()),
    ]
}

fn rows_settings(form: &Form, dtype: Dtype, all: bool) -> Vec<(&'static str, String)> {
    vec![
        ("TYPE", super::scalar(dtype)),
        ("BITS", form.bits.to_string()),
        ("SUBS", form.subs().to_string()),
        ("ALL", i32::from(all).to_string()),
    ]
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_share_x_fit_their_device_and_leave_little_of_it_idle() {
        let form = |rows, cols, bits| Form { rows, cols, bits, group: 64 };
        let h100 = device::Limits { multiprocessors: 132, shared_bytes: 232_448 };
        let small = device::Limits { multiprocessors: 128, shared_bytes: 101_376 };
        let tiles = |form: &Form| shared(form, h100).unwrap().tiles;
        assert_eq!(tiles(&form(17_408, 5120, 4)), 5, "one round of 109 blocks");
        assert_eq!(tiles(&form(16_480, 5120, 4)), 4, "one round of 129");
        assert_eq!(tiles(&form(5120, 17_408, 4)), 2, "one round of 80");
        let unknown = device::Limits { multiprocessors: 1, shared_bytes: 49_152 };
        for limits in [h100, small, unknown] {
            for (bits, group) in [(4, 32), (4, 64), (4, 128), (8, 32), (8, 64), (8, 128)] {
                for rows in [5120, 17_408, 248_320] {
                    let form = Form { group, ..form(rows, 5120, bits) };
                    let shape = shared(&form, limits);
                    let bytes = shape.map_or(0, |s| s.shared_bytes(&form) * s.blocks);
                    assert!(bytes <= limits.shared_bytes, "{form:?} {shape:?}");
                    assert!(shape.is_some() || limits.shared_bytes < h100.shared_bytes, "{form:?}");
                }
            }
        }
    }
}

//! `verify_qmm`: products with affine weights for the few rows of a verify pass. A row's result
//! does not depend, to the bit, on how many rows travel with it.

use std::rc::Rc;

use mlx_rs::{Array, Dtype};

use super::Gpu;
use super::device::{Kernel, Launch, Source};
use super::layout::{Form, TILE};
use crate::error::Result;
use crate::linear::Ids;

/// Rows of x that one tile of the tensor cores takes.
const ROWS: usize = 8;
/// Most rows of x for which the kernel is used; beyond, a library multiplies the unpacked matrix.
pub const ROWS_MAX: usize = 64;

const SOURCE: Source = Source { name: "verify_qmm", text: include_str!("verify_qmm.cu") };
const UNPACK: Source =
    Source { name: "rows", text: concat!(include_str!("scalar.cu"), include_str!("rows.cu")) };

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

/// How a kernel takes so many rows of x.
#[derive(Clone, Copy, Debug)]
struct Shape {
    /// Tiles of rows.
    rows: usize,
    /// Tiles of outputs of a block.
    outputs: usize,
    /// Steps on their way from memory.
    depth: usize,
    /// Blocks that a multiprocessor is to hold.
    blocks: usize,
}

/// For up to 8 rows, 16, and more.
fn shapes(form: &Form) -> [Shape; 3] {
    let shape = |rows, blocks| Shape { rows, outputs: 1, depth: 2, blocks };
    if form.parts() == 8 {
        return [shape(1, 2), shape(2, 2), shape(2, 2)];
    }
    let many = if form.is_wide() { shape(4, 3) } else { shape(2, 4) };
    [shape(1, 5), shape(2, 4), many]
}

/// An affine matrix on the device, packed for the kernel.
#[derive(Debug)]
pub struct PackedMatrix {
    form: Form,
    words: Array,
    sides: Array,
    dtype: Dtype,
    shapes: [Shape; 3],
    /// By shape, for `Plain` or `Gated`, and for `Add` unless gated.
    kernels: Vec<[Rc<Kernel>; 3]>,
    gated: bool,
    gather: Rc<Kernel>,
    unpack: Rc<Kernel>,
}

impl PackedMatrix {
    /// Takes arrays in the layout of [`super::layout`], of the form's sizes.
    ///
    /// # Errors
    /// When a kernel does not compile.
    pub fn new(gpu: &Gpu, form: Form, (words, sides): (Array, Array), gated: bool) -> Result<Self> {
        let dtype = sides.dtype();
        let shapes = shapes(&form);
        let endings: &[Ending] =
            if gated { &[Ending::Gated] } else { &[Ending::Plain, Ending::Add] };
        let kernels = endings
            .iter()
            .map(|&ending| -> Result<[Rc<Kernel>; 3]> {
                let [a, b, c] =
                    shapes.map(|shape| gpu.kernel(&SOURCE, &settings(&form, dtype, shape, ending)));
                Ok([a?, b?, c?])
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
        let at = m.div_ceil(ROWS).min(self.shapes.len()) - 1;
        let shape = self.shapes[at];
        let f = &self.form;
        let tiles = f.rows.div_ceil(TILE).div_ceil(shape.outputs);
        let launch = Launch {
            scalars: &[m as i32, f.rows as i32, f.cols as i32],
            blocks: tiles * m.div_ceil(shape.rows * ROWS),
            threads: 32 * f.parts() * shape.outputs,
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
    // Two planes of codes take the registers of twice the depth.
    let depth = (shape.depth / form.planes()).max(1);
    vec![
        ("TYPE", super::scalar(dtype)),
        ("BITS", form.bits.to_string()),
        ("SUBS", form.subs().to_string()),
        ("NT", shape.rows.to_string()),
        ("NW", shape.outputs.to_string()),
        ("PARTS", form.parts().to_string()),
        ("DEPTH", depth.to_string()),
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

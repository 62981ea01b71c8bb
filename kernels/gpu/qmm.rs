//! `verify_qmm`: products with affine weights for the few rows of a verify pass. A row's result
//! does not depend, to the bit, on how many rows travel with it.

use std::rc::Rc;

use mlx_rs::{Array, Dtype};

use super::Gpu;
use super::device::{Kernel, Launch, Source};
use super::layout::{Form, STEP};
use crate::error::Result;
use crate::linear::Ids;

/// Most rows of x for which the kernel is used; beyond, a library multiplies the unpacked matrix.
pub const ROWS_MAX: usize = 64;

/// Rows of x from which on it is staged in shared memory, as CUDA's source has it.
const STAGED: usize = 32;

const SOURCE: Source = Source {
    name: "verify_qmm",
    cuda: include_str!("verify_qmm.cu"),
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

/// How a kernel takes so many rows of x.
#[derive(Clone, Copy, Debug)]
struct Shape {
    /// Most rows of x of a block.
    rows: usize,
    /// Steps on their way from memory.
    depth: usize,
    /// Blocks that a multiprocessor is to hold.
    blocks: usize,
}

/// By their rows, ascending; the last for any number.
fn shapes(form: &Form) -> Vec<Shape> {
    let known: &[(usize, usize, usize)] = if cfg!(target_os = "macos") {
        // Without tensor cores every row is work of its own.
        &[(1, 0, 0), (2, 0, 0), (4, 0, 0), (8, 0, 0)]
    } else if form.parts() == 8 {
        &[(8, 2, 2), (16, 2, 2), (STAGED, 2, 2)]
    } else {
        &[(8, 2, 5), (16, 2, 5), (STAGED, 2, 4)]
    };
    known.iter().map(|&(rows, depth, blocks)| Shape { rows, depth, blocks }).collect()
}

impl Shape {
    /// Bytes of x that wait in shared memory: two steps of every warp.
    fn shared_bytes(&self, form: &Form) -> usize {
        if self.rows == STAGED { form.parts() * 2 * STAGED * STEP * 2 } else { 0 }
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
        let f = &self.form;
        let launch = Launch {
            scalars: &[m as i32, f.rows as i32, f.cols as i32],
            blocks: f.tiles() * m.div_ceil(self.shapes[at].rows),
            threads: 32 * f.parts(),
            shared_bytes: self.shapes[at].shared_bytes(f),
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
    // Two planes of codes take the registers of twice the depth.
    let depth = (shape.depth / form.planes()).max(1);
    vec![
        ("TYPE", super::scalar(dtype)),
        ("BITS", form.bits.to_string()),
        ("SUBS", form.subs().to_string()),
        ("ROWS", shape.rows.to_string()),
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

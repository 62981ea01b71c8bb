//! `verify_qmm`: products with affine weights for the few rows of a verify pass. A row's result
//! does not depend, to the bit, on how many rows travel with it.

use std::rc::Rc;

use mlx_rs::{Array, Dtype};

use super::device::{Kernel, Launch, Source};
use super::layout::{Form, TILE};
use crate::error::Result;

/// Rows of x that one tile of the tensor cores takes.
const ROWS: usize = 8;
/// Most tiles of rows a block keeps in registers.
const TILES_MAX: usize = 4;

const SOURCE: Source = Source {
    name: "verify_qmm",
    inputs: &["words", "sides", "x", "outputs"],
    outputs: &["y"],
    header: include_str!("verify_qmm.cu"),
    body: "
  const int m = x_shape[0], k = x_shape[1], n = outputs[0];
  const int chunks = (m + 8 * NT - 1) / (8 * NT);
  const int first = static_cast<int>(blockIdx.x) % chunks * 8 * NT;
  verify_qmm::block<T, BITS, SUBS, NT, WARPS, DEPTH, ASYNC != 0>(
      words, sides, x, y, m, n, k, blockIdx.x / chunks, first);
",
};

/// An affine matrix on the device, packed for the kernel.
#[derive(Debug)]
pub struct PackedMatrix {
    kernel: Rc<Kernel>,
    form: Form,
    words: Array,
    sides: Array,
    outputs: Array,
    dtype: Dtype,
}

/// The kernel, not compiled yet.
///
/// # Errors
/// When MLX has no such kernels.
pub fn kernel() -> Result<Rc<Kernel>> {
    Ok(Rc::new(Kernel::new(&SOURCE)?))
}

impl PackedMatrix {
    /// Takes arrays in the layout of [`super::layout`], of the form's sizes.
    #[must_use]
    pub fn new(kernel: Rc<Kernel>, form: Form, words: Array, sides: Array) -> Self {
        let dtype = sides.dtype();
        let outputs = Array::from_slice(&[form.rows as i32], &[1]);
        Self { kernel, form, words, sides, outputs, dtype }
    }

    /// `x [M, K]` → `[M, N]`.
    ///
    /// # Errors
    /// When MLX refuses.
    pub fn apply(&self, x: &Array) -> Result<Array> {
        let (f, m) = (&self.form, x.dim(0) as usize);
        let tiles = m.div_ceil(ROWS).min(TILES_MAX);
        let warps = warps(f);
        let constants = [
            ("BITS", f.bits as i32),
            ("SUBS", f.subs() as i32),
            ("NT", tiles as i32),
            ("WARPS", warps),
            ("DEPTH", 3),
            ("ASYNC", 0),
        ];
        let launch = Launch {
            constants: &constants,
            dtypes: &[("T", self.dtype)],
            blocks: (f.rows.div_ceil(TILE) * m.div_ceil(tiles * ROWS)) as i32,
            threads: 32 * warps,
        };
        let inputs = [&self.words, &self.sides, x, &self.outputs];
        let shape = [m as i32, f.rows as i32];
        // SAFETY: the arrays have the sizes that the form names; the source guards ragged edges.
        let [y] = unsafe { self.kernel.call(&inputs, [(&shape, self.dtype)], launch) }?;
        Ok(y)
    }
}

/// Warps that share a tile's columns: fixed for a shape, so that sums have one order.
fn warps(form: &Form) -> i32 {
    if form.tiles() < 400 { 8 } else { 4 }
}

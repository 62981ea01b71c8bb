//! The product kernel beside a product with the unpacked matrix.

use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::ops::{dequantize, sigmoid};
use mlx_rs::{Array, Dtype};

use super::Ids;
use super::packed::{in_turns, on_device};
use crate::error::Result;
use crate::gpu::layout::{Form, TILE, TILES_FEW};
use crate::gpu::{gpu, trial};

/// Tries a form with `form`'s format and division of the columns, and few outputs.
///
/// # Errors
/// When the two differ, and what MLX or the compiler found wrong.
pub(super) fn run(form: &Form, dtype: Dtype, gated: bool) -> Result<()> {
    let Form { bits, group, .. } = *form;
    // Steps that do not divide evenly; as many outputs as are divided alike, and not all of whose
    // tiles share a block with others.
    let (cols, tiles) = if form.parts() == 8 { (64 * 26, 3) } else { (512, TILES_FEW + 1) };
    let shaped = *form;
    let form = Form { rows: TILE * tiles, cols, bits, group };
    let stored = trial::words(form.rows * cols * bits / 32, 3);
    let (groups, top) = (form.rows * cols / group, (1 << bits) as f32);
    let scales = trial::floats(groups, 5, (0.16 / top, 0.08 / top));
    let biases = trial::floats(groups, 6, (-0.08, 0.03));
    let side = [form.rows as i32, (cols / group) as i32];
    let rounded = |values: &[f32]| Array::from_slice(values, &side).as_dtype(dtype);
    let words = Array::from_slice(&stored, &[form.rows as i32, (cols * bits / 32) as i32]);
    let (s, b) = (rounded(&scales)?, rounded(&biases)?);
    let wide = |a: &Array| a.as_dtype(Dtype::Float32);
    let values = dequantize(&words, &wide(&s)?, &wide(&b)?, group as i32, bits as i32)?;
    let x = trial::noise(&[70, cols as i32], 9, dtype)?;
    let product = wide(&x)?.matmul(values.transpose()?)?;
    let matrix = if gated {
        let turns = |values: &[f32]| in_turns(values, &form);
        let (scales, biases) = (turns(&scales), turns(&biases));
        let stored = in_turns(&stored, &form);
        on_device(&gpu(), [form, shaped], &stored, [&scales, &biases], (dtype, true))?
    } else {
        on_device(&gpu(), [form, shaped], &stored, [&scales, &biases], (dtype, false))?
    };
    let expected = if gated {
        let halves = product.split_equal(2, -1)?;
        halves[0].multiply(sigmoid(&halves[0])?)?.multiply(&halves[1])?
    } else {
        product.clone()
    };
    let all = matrix.apply(&x.try_index(..64)?, None)?;
    for m in [1, 2, 8, 9, 20, 33, 64, 70] {
        let y = matrix.apply(&x.try_index(..m)?, None)?;
        trial::close(&format!("a product of {m} rows"), &y, &expected.try_index(..m)?, dtype)?;
        if m <= 64 {
            trial::same_rows(&format!("a product of {m} rows"), &y, &all)?;
        }
    }
    if gated {
        return Ok(());
    }
    let residual = trial::noise(&[70, form.rows as i32], 11, dtype)?;
    for m in [3, 16, 41] {
        let r = residual.try_index(..m)?;
        let y = matrix.apply(&x.try_index(..m)?, Some(&r))?;
        let expected = product.try_index(..m)?.add(wide(&r)?)?;
        trial::close(&format!("{m} rows with a residual"), &y, &expected, dtype)?;
    }
    let ids = [95_u32, 0, 40];
    let at = Array::from_slice(&ids, &[3]);
    let expected = values.take_axis(&at, 0)?;
    for ids in [Ids::Known(ids.to_vec()), Ids::Drawn(at)] {
        trial::close("rows", &matrix.gather(&ids)?, &expected, dtype)?;
    }
    Ok(())
}

//! Writing into arrays that outlive a cycle. The old handle is given up, so that MLX reuses its
//! buffer instead of copying it.

use mlx_rs::Array;
use mlx_rs::ops::indexing::TryIndexMutOp;
use mlx_rs::ops::{concatenate, zeros_dtype};

use crate::error::Result;

/// Puts `values [m ≤ n, …]` at the beginning of row `row` of `pool [rows, n, …]`.
///
/// # Errors
/// When MLX fails.
pub(crate) fn write(pool: &mut Array, row: usize, values: &Array) -> Result<()> {
    let row = row as i32;
    let mut shape = vec![1];
    shape.extend_from_slice(values.shape());
    let values = values.reshape(&shape)?;
    pool.try_index_mut((row..row + 1, 0..shape[1]), values)?;
    Ok(())
}

/// Puts as many rows of `values`, from `first` on, as `rows` names into those rows of `pool`.
///
/// # Errors
/// When MLX fails.
pub(crate) fn put(
    pool: &mut Array,
    rows: std::ops::Range<usize>,
    first: usize,
    values: &Array,
) -> Result<()> {
    let index: Vec<i32> = (first..first + rows.len()).map(|i| i as i32).collect();
    let values = values.take_axis(Array::from_slice(&index, &[index.len() as i32]), 0)?;
    crate::place::eval([&values])?;
    pool.try_index_mut((rows.start as i32..rows.end as i32,), values)?;
    Ok(())
}

/// Copies row `from` of `pool` over row `to`.
///
/// # Errors
/// When MLX fails.
pub(crate) fn copy(pool: &mut Array, from: usize, to: usize) -> Result<()> {
    let values = pool.take_axis(Array::from_int(from as i32), 0)?;
    // The copy is real before the pool is written to again.
    crate::place::eval([&values])?;
    write(pool, to, &values)
}

/// Room for `shape` in fp32 that the system hands out page by page as it is written to.
///
/// # Errors
/// When MLX cannot allocate.
#[cfg(target_os = "linux")]
pub(crate) fn untouched(shape: &[i32]) -> Result<Array> {
    crate::host::call_one(&[], shape, |_, _| Ok(()))
}

/// Gives `pool` room for `rows` along the first axis; the new ones are zero.
///
/// # Errors
/// When MLX cannot allocate.
pub(crate) fn grow(pool: &mut Array, rows: usize) -> Result<()> {
    let mut shape = pool.shape().to_vec();
    shape[0] = rows as i32 - shape[0];
    let more = zeros_dtype(&shape, pool.dtype())?;
    *pool = concatenate(&[&*pool, &more], 0)?;
    crate::place::eval([&*pool])?;
    Ok(())
}

/// The result of a host kernel that goes on living in the buffer of its `input`-th operand, which
/// is `pool`.
#[cfg(target_os = "linux")]
pub(crate) fn in_place(pool: &Array, input: usize) -> crate::host::OutputSpec<'_> {
    // SAFETY: pools have one owner, who replaces its handle by the result at once; what was
    // gathered from a pool before is evaluated before the next kernel is added to the graph.
    unsafe { crate::host::OutputSpec::taking(input, pool.shape(), pool.dtype()) }
}

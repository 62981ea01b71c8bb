//! What trials of kernels share: noise, and how far two results are apart.

use half::{bf16, f16};
use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype};

use crate::error::Result;

/// `len` words without a pattern.
pub(crate) fn words(len: usize, mut seed: u32) -> Vec<u32> {
    std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        seed ^ seed >> 15
    })
    .take(len)
    .collect()
}

/// `len` numbers around `middle`, at most `reach` away.
pub(crate) fn floats(len: usize, seed: u32, (middle, reach): (f32, f32)) -> Vec<f32> {
    let unit = |word: &u32| (word >> 8) as f32 / (1 << 23) as f32 - 1.0;
    words(len, seed).iter().map(|w| middle + reach * unit(w)).collect()
}

/// Numbers between −1 and 1.
pub(crate) fn noise(shape: &[i32], seed: u32, dtype: Dtype) -> Result<Array> {
    let len = shape.iter().product::<i32>() as usize;
    Ok(Array::from_slice(&floats(len, seed, (0.0, 1.0)), shape).as_dtype(dtype)?)
}

/// Numbers as bits of `dtype`, each rounded once; a sign that an array's conversion might drop
/// stays.
pub(crate) fn narrowed(values: &[f32], dtype: Dtype) -> Vec<u16> {
    let half = dtype == Dtype::Float16;
    let narrow =
        |&v: &f32| if half { f16::from_f32(v).to_bits() } else { bf16::from_f32(v).to_bits() };
    values.iter().map(narrow).collect()
}

/// What such bits say.
pub(crate) fn widened(bits: &[u16], dtype: Dtype) -> Vec<f32> {
    let half = dtype == Dtype::Float16;
    let widen =
        |&v: &u16| if half { f16::from_bits(v).to_f32() } else { bf16::from_bits(v).to_f32() };
    bits.iter().map(widen).collect()
}

/// Such bits as an array.
pub(crate) fn of_bits(bits: &[u16], shape: &[i32], dtype: Dtype) -> Result<Array> {
    Ok(Array::from_slice(bits, shape).view_dtype(dtype)?)
}

/// Fails unless `a` is `b` up to a relative error that roundings of `dtype` explain.
pub(crate) fn close(what: &str, a: &Array, b: &Array, dtype: Dtype) -> Result<()> {
    let bound = if dtype == Dtype::Float16 { 4e-3 } else { 1.2e-2 };
    let (a, b) = (a.as_dtype(Dtype::Float32)?, b.as_dtype(Dtype::Float32)?);
    crate::place::eval([&a, &b])?;
    let (mut distance, mut size) = (0.0_f64, 0.0_f64);
    for (x, y) in a.as_slice::<f32>().iter().zip(b.as_slice::<f32>()) {
        distance += f64::from(x - y).powi(2);
        size += f64::from(*y).powi(2);
    }
    let error = (distance / size).sqrt();
    // A comparison that NaN fails.
    if a.shape() == b.shape() && error < bound {
        return Ok(());
    }
    let shapes = (a.shape().to_vec(), b.shape().to_vec());
    Err(Exception::custom(format!("{what} is off by {error:.1e} of {shapes:?}")).into())
}

/// Fails unless the first rows of `all` are `part`, to the bit.
pub(crate) fn same_rows(what: &str, part: &Array, all: &Array) -> Result<()> {
    let (part, all) = (part.as_dtype(Dtype::Float32)?, all.as_dtype(Dtype::Float32)?);
    crate::place::eval([&part, &all])?;
    let part = part.as_slice::<f32>();
    if part == &all.as_slice::<f32>()[..part.len()] {
        return Ok(());
    }
    Err(Exception::custom(format!("{what} depends on the rows beside it")).into())
}

//! Numbers to affine codes, as MLX makes them.

use mlx_rs::Dtype as MlxDtype;
use mlx_rs::ops::quantize;

use super::modules::Scheme;
use crate::checkpoint::tensor::{Dtype, Tensor};
use crate::error::Result;
use crate::linear::array;

/// The words, scales and biases of the rows of `numbers`, as they stand in a file.
pub(super) fn of(numbers: &Tensor, scheme: Scheme) -> Result<[Vec<u8>; 3]> {
    let matrix = array(numbers)?;
    let (words, scales, biases) = quantize(&matrix, scheme.group as i32, scheme.bits as i32)?;
    words.eval()?;
    let bytes_of = |floats: &mlx_rs::Array| -> Result<Vec<u8>> {
        Ok(match numbers.dtype() {
            Dtype::F16 | Dtype::BF16 => {
                let bits = floats.view_dtype(MlxDtype::Uint16)?;
                bits.eval()?;
                bits.as_slice::<u16>().iter().flat_map(|x| x.to_le_bytes()).collect()
            }
            Dtype::F32 | Dtype::U32 => {
                floats.eval()?;
                floats.as_slice::<f32>().iter().flat_map(|x| x.to_le_bytes()).collect()
            }
        })
    };
    let codes = words.as_slice::<u32>().iter().flat_map(|word| word.to_le_bytes()).collect();
    Ok([codes, bytes_of(&scales)?, bytes_of(&biases)?])
}

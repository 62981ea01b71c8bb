//! Matrices in fewer bits than they are stored in, for what may be inexact.

use rayon::prelude::*;

use super::linear::{Format, Linear};
use super::tensor::{Dtype, Tensor};

impl Linear {
    /// The same matrix in affine codes of `bits` bits, each group of `group` columns stretched over
    /// its own range of values. `None` where bits or group are of no known format.
    #[must_use]
    pub fn requantized(&self, bits: usize, group: usize) -> Option<Self> {
        let (out, input) = (self.out, self.input);
        let known = super::config::BITS.contains(&bits) && super::config::GROUPS.contains(&group);
        if !known || !input.is_multiple_of(group) {
            return None;
        }
        let (stream, groups) = (input * bits / 8, input / group);
        let mut codes = vec![0u8; out * stream];
        let (mut scales, mut biases) = (vec![0f32; out * groups], vec![0f32; out * groups]);
        let rows = codes.par_chunks_mut(stream).zip(scales.par_chunks_mut(groups));
        rows.zip(biases.par_chunks_mut(groups)).enumerate().for_each(|(row, parts)| {
            let ((codes, scales), biases) = parts;
            for (i, values) in self.row_f32(row).chunks_exact(group).enumerate() {
                let codes = &mut codes[i * group * bits / 8..][..group * bits / 8];
                (scales[i], biases[i]) = encode(values, bits, codes);
            }
        });
        let tensor = |name: &str, dtype, columns, bytes: Vec<u8>| {
            Tensor::new(&format!("{}.{name}", self.path), dtype, &[out, columns], bytes.into())
        };
        let floats = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let format = Format::Affine {
            bits,
            group,
            words: tensor("weight", Dtype::U32, input * bits / 32, codes)?,
            scales: tensor("scales", Dtype::F32, groups, floats(&scales))?,
            biases: tensor("biases", Dtype::F32, groups, floats(&biases))?,
        };
        Some(Self { path: self.path.clone(), out, input, format })
    }
}

/// Writes the codes of one group, a stream of bits that starts on a byte; its scale and bias.
fn encode(values: &[f32], bits: usize, codes: &mut [u8]) -> (f32, f32) {
    let largest_code = ((1u32 << bits) - 1) as f32;
    let low = values.iter().copied().fold(f32::INFINITY, f32::min);
    let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scale = (high - low) / largest_code;
    let unit = if scale > 0.0 { scale.recip() } else { 0.0 };
    for (i, value) in values.iter().enumerate() {
        // A conversion saturates, so a value that is no number does no harm here.
        let code = ((value - low) * unit).round().min(largest_code) as u32;
        let at = i * bits;
        let pair = code << (at % 8);
        codes[at / 8] |= pair as u8;
        if let Some(next) = codes.get_mut(at / 8 + 1) {
            *next |= (pair >> 8) as u8;
        }
    }
    (scale, low)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(out: usize, input: usize) -> Linear {
        let value = |i: usize| ((i * 7919) % 1009) as f32 / 504.5 - 1.0 + (i / input) as f32;
        let bytes: Vec<u8> = (0..out * input).flat_map(|i| value(i).to_le_bytes()).collect();
        let tensor = Tensor::new("w", Dtype::F32, &[out, input], bytes.into()).unwrap();
        Linear { path: "w".into(), out, input, format: Format::Dense(tensor) }
    }

    #[test]
    fn values_are_off_by_half_a_step_at_most() {
        let exact = matrix(5, 256);
        for (bits, group) in [(2, 32), (3, 64), (4, 64), (5, 128), (6, 32), (8, 64)] {
            let coded = exact.requantized(bits, group).unwrap();
            let half = 2.0 / ((1u32 << bits) - 1) as f32 / 2.0;
            for row in 0..5 {
                for (a, b) in exact.row_f32(row).iter().zip(coded.row_f32(row)) {
                    assert!((a - b).abs() <= half * 1.001, "{bits} bits: {a} became {b}");
                }
            }
            // Codes again are what they were, but for rounding.
            let again = coded.requantized(bits, group).unwrap();
            for (a, b) in coded.row_f32(3).iter().zip(again.row_f32(3)) {
                assert!((a - b).abs() < 1e-5, "{bits} bits: {a} became {b}");
            }
        }
    }

    #[test]
    fn a_flat_group_keeps_its_value() {
        let mut codes = [0; 16];
        assert_eq!(encode(&[0.75; 32], 4, &mut codes), (0.0, 0.75));
        assert_eq!(codes, [0; 16]);
    }

    #[test]
    fn formats_nobody_has_are_refused() {
        let matrix = matrix(1, 96);
        assert!(matrix.requantized(4, 64).is_none());
        assert!(matrix.requantized(7, 32).is_none());
        assert!(matrix.requantized(4, 16).is_none());
        assert!(matrix.requantized(4, 32).is_some());
    }
}

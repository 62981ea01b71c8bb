//! A matrix that multiplies activations, in the form it is stored in.

use std::ops::Range;

use super::tensor::Tensor;

/// The matrix of a linear map without bias, rows by output.
#[derive(Clone, Debug)]
pub struct Linear {
    /// The module's inner name, such as `layers.0.mlp.up_proj` or `mtp.fc`.
    pub path: String,
    /// Output features: rows.
    pub out: usize,
    /// Input features: columns once unpacked.
    pub input: usize,
    /// How the elements are stored.
    pub format: Format,
}

/// How the elements of a matrix are stored.
#[derive(Clone, Debug)]
pub enum Format {
    /// As numbers: [out, input], f32, f16 or bf16.
    Dense(Tensor),
    /// As MLX's affine codes: an element is `scale · code + bias` of its row and group of columns.
    Affine {
        /// Bits of a code: 2, 3, 4, 5, 6 or 8.
        bits: usize,
        /// Columns that share a scale and a bias: 32, 64 or 128.
        group: usize,
        /// Codes, lowest bits first: u32 [out, input · bits / 32].
        words: Tensor,
        /// f32, f16 or bf16 [out, input / group].
        scales: Tensor,
        /// As `scales`.
        biases: Tensor,
    },
}

impl Linear {
    /// The rows of `stretches`, one after the other, as the module `path`. Shares the bytes of a
    /// single stretch, copies those of several. `None` where a stretch leads outside.
    #[must_use]
    pub fn rows(&self, path: String, stretches: &[Range<usize>]) -> Option<Self> {
        let format = match &self.format {
            Format::Dense(tensor) => Format::Dense(tensor.rows(stretches)?),
            Format::Affine { bits, group, words, scales, biases } => Format::Affine {
                bits: *bits,
                group: *group,
                words: words.rows(stretches)?,
                scales: scales.rows(stretches)?,
                biases: biases.rows(stretches)?,
            },
        };
        let out = stretches.iter().map(ExactSizeIterator::len).sum();
        Some(Self { path, out, input: self.input, format })
    }

    /// The row `row` as numbers [input]; empty beyond the last. For embeddings and tests: the
    /// engine multiplies the stored form.
    #[must_use]
    pub fn row_f32(&self, row: usize) -> Vec<f32> {
        if row >= self.out {
            return vec![];
        }
        match &self.format {
            Format::Dense(tensor) => {
                tensor.to_f32_between(row * self.input, (row + 1) * self.input)
            }
            Format::Affine { bits, group, words, scales, biases } => {
                let groups = self.input / group;
                let scales = scales.to_f32_between(row * groups, (row + 1) * groups);
                let biases = biases.to_f32_between(row * groups, (row + 1) * groups);
                let bytes = self.input * bits / 8;
                let codes = &words.bytes()[row * bytes..(row + 1) * bytes];
                let element =
                    |i: usize| scales[i / group] * code(codes, *bits, i) as f32 + biases[i / group];
                (0..self.input).map(element).collect()
            }
        }
    }

    /// The bytes it is stored in.
    #[must_use]
    pub fn bytes_total(&self) -> usize {
        self.tensors().map(|tensor| tensor.bytes().len()).sum()
    }

    /// Its one tensor, or its three.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        match &self.format {
            Format::Dense(tensor) => [Some(tensor), None, None],
            Format::Affine { words, scales, biases, .. } => {
                [Some(words), Some(scales), Some(biases)]
            }
        }
        .into_iter()
        .flatten()
    }
}

/// The code at `index` of a row. The words are little endian, so the row is one stream of bits,
/// and a code touches two bytes at most.
fn code(bytes: &[u8], bits: usize, index: usize) -> u32 {
    let bit = index * bits;
    let low = u32::from(bytes[bit / 8]);
    let high = bytes.get(bit / 8 + 1).map_or(0, |&byte| u32::from(byte));
    ((high << 8 | low) >> (bit % 8)) & ((1 << bits) - 1)
}

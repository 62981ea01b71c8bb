//! Weights, repacked once at load into the order in which the kernels read them.
//!
//! A weight `[N, K]` becomes panels of sixteen rows with the rows innermost, so that a vector
//! holds one `k` of sixteen outputs. Every output is then a plain sum over `k`, in order, and
//! lanes never have to be added to each other.

use super::parallel;
use super::simd::LANES;
use coded::Coded;
use dense::Dense;
use rayon::prelude::*;
use std::fmt;

pub(super) mod coded;
pub(super) mod dense;
#[cfg(test)]
pub(super) mod tests;

/// A matrix `[N, K]`, of one format or several stacked along N.
pub struct Weight {
    parts: Vec<Part>,
    rows: usize,
    cols: usize,
}

/// A matrix of one format.
pub(super) enum Part {
    Dense(Dense),
    Coded(Coded),
}

/// An affine quantised matrix as MLX lays it out: value = scale * code + bias.
#[derive(Clone, Copy)]
pub struct Affine<'a> {
    /// Bits of a code: 2, 3, 4, 5, 6 or 8.
    pub bits: u32,
    /// Values that share a scale and a bias: 32, 64 or 128.
    pub group: usize,
    /// `[N, K * bits / 32]`: each row one little-endian stream of codes.
    pub words: &'a [u32],
    /// `[N, K / group]`.
    pub scales: &'a [f32],
    /// `[N, K / group]`.
    pub biases: &'a [f32],
}

/// Why tensors of a checkpoint do not make a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightError {
    /// A tensor has another number of elements than its shape demands.
    Length {
        /// Which tensor.
        tensor: &'static str,
        /// How many elements it has.
        found: usize,
        /// How many it should have.
        expected: usize,
    },
    /// Dimensions for which there is no kernel.
    Unsupported(String),
}

impl fmt::Display for WeightError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { tensor, found, expected } => {
                write!(f, "{tensor} has {found} elements, expected {expected}")
            }
            Self::Unsupported(what) => write!(f, "unsupported shape: {what}"),
        }
    }
}

impl std::error::Error for WeightError {}

/// Checks the number of elements of `tensor`.
pub(super) fn expect_len(
    tensor: &'static str,
    found: usize,
    expected: usize,
) -> Result<(), WeightError> {
    if found == expected { Ok(()) } else { Err(WeightError::Length { tensor, found, expected }) }
}

// === impl Weight ===

impl Weight {
    /// A matrix of fp32.
    pub fn f32(values: &[f32], rows: usize, cols: usize) -> Result<Self, WeightError> {
        expect_len("weight", values.len(), rows * cols)?;
        Ok(Self::of(Part::Dense(Dense::f32(values, rows, cols))))
    }

    /// A matrix of bfloat16 bit patterns.
    pub fn bf16(values: &[u16], rows: usize, cols: usize) -> Result<Self, WeightError> {
        expect_len("weight", values.len(), rows * cols)?;
        Ok(Self::of(Part::Dense(Dense::bf16(values, rows, cols))))
    }

    /// A matrix of IEEE half bit patterns.
    pub fn f16(values: &[u16], rows: usize, cols: usize) -> Result<Self, WeightError> {
        expect_len("weight", values.len(), rows * cols)?;
        Ok(Self::of(Part::Dense(Dense::f16(values, rows, cols))))
    }

    /// A quantised matrix.
    pub fn affine(codes: Affine<'_>, rows: usize, cols: usize) -> Result<Self, WeightError> {
        let Affine { bits, group, words, scales, biases } = codes;
        let known = matches!(bits, 2..=6 | 8) && matches!(group, 32 | 64 | 128);
        if !known || !cols.is_multiple_of(group) {
            let what = format!("{bits} bits in groups of {group} over {cols} columns");
            return Err(WeightError::Unsupported(what));
        }
        expect_len("weight", words.len(), rows * cols * bits as usize / 32)?;
        expect_len("scales", scales.len(), rows * cols / group)?;
        expect_len("biases", biases.len(), rows * cols / group)?;
        Ok(Self::of(Part::Coded(Coded::new(codes, rows, cols))))
    }

    /// The rows of all `parts`, one after the other.
    pub fn stack(parts: Vec<Weight>) -> Result<Self, WeightError> {
        let cols = parts.first().map_or(0, |part| part.cols);
        if let Some(other) = parts.iter().find(|part| part.cols != cols) {
            let what = format!("a stack of {cols} and {} columns", other.cols);
            return Err(WeightError::Unsupported(what));
        }
        let rows = parts.iter().map(|part| part.rows).sum();
        Ok(Self { parts: parts.into_iter().flat_map(|part| part.parts).collect(), rows, cols })
    }

    fn of(part: Part) -> Self {
        Self { rows: part.rows(), cols: part.cols(), parts: vec![part] }
    }

    /// N, the outputs of a linear layer.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// K, its inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Memory taken, and read by each [`linear`](super::linear()).
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(Part::bytes).sum()
    }

    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The part that holds `row`, and the row's index within it.
    fn locate(&self, row: usize) -> (&Part, usize) {
        let mut index = row;
        for part in &self.parts {
            if index < part.rows() {
                return (part, index);
            }
            index -= part.rows();
        }
        panic!("row {row} of a weight with {} rows", self.rows)
    }
}

impl Part {
    pub(super) fn rows(&self) -> usize {
        match self {
            Self::Dense(part) => part.rows,
            Self::Coded(part) => part.rows,
        }
    }

    /// Panels of sixteen rows.
    pub(super) fn panels(&self) -> usize {
        self.rows().div_ceil(LANES)
    }

    fn cols(&self) -> usize {
        match self {
            Self::Dense(part) => part.cols,
            Self::Coded(part) => part.cols,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Dense(part) => part.bytes(),
            Self::Coded(part) => part.bytes(),
        }
    }

    fn read_row(&self, row: usize, out: &mut [f32]) {
        match self {
            Self::Dense(part) => part.read_row(row, out),
            Self::Coded(part) => part.read_row(row, out),
        }
    }
}

/// Packs panels of sixteen rows, each of `items`: `set(item, lane, row, index of the item)`.
fn panels<T: Copy + Send + Sync>(
    rows: usize,
    items: usize,
    zero: T,
    set: impl Fn(&mut T, usize, usize, usize) + Sync,
) -> Vec<T> {
    let mut all = vec![zero; rows.div_ceil(LANES) * items];
    all.par_chunks_mut(items.max(1)).enumerate().for_each(|(panel, items)| {
        for (lane, row) in (panel * LANES..rows.min((panel + 1) * LANES)).enumerate() {
            for (index, item) in items.iter_mut().enumerate() {
                set(item, lane, row, index);
            }
        }
    });
    all
}

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rows, cols, parts) = (self.rows, self.cols, self.parts.len());
        write!(f, "Weight([{rows}, {cols}], {parts} parts, {} bytes)", self.bytes())
    }
}

/// Rows `ids` of `w` as fp32, into `out [ids, K]`: the embedding of tokens.
pub fn gather_rows(w: &Weight, ids: &[u32], out: &mut [f32]) {
    assert_eq!(out.len(), ids.len() * w.cols, "gather_rows: out is not [ids, K]");
    let shared = parallel::Shared::new(out);
    parallel::for_each(ids.len(), w.cols, |i| {
        let (part, row) = w.locate(ids[i] as usize);
        // SAFETY: one part per index.
        part.read_row(row, unsafe { shared.part(i * w.cols, w.cols) });
    });
}

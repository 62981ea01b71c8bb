//! Products with weights: `y [M, N] = x [M, K] · Wᵀ`, W dense or affine quantised, several
//! matrices of one input stacked along N and computed at once.

use mlx_rs::ops::{concatenate, dequantize, quantized_matmul, sigmoid};
use mlx_rs::{Array, Dtype};

use crate::checkpoint::{self, Format, Linear, Tensor};
use crate::error::Result;
use crate::gpu::qmm::PackedMatrix;
use crate::place::Place;
#[cfg(target_os = "linux")]
use crate::{
    cpu,
    host::{Input, Output, call_one as host_call},
};
#[cfg(target_os = "linux")]
use std::sync::Arc;

mod experts;
mod packed;
mod trial;

pub use experts::ExpertMatrix;

/// One or more stacked weight matrices, prepared for a place.
#[derive(Debug)]
pub struct Matrix {
    rows: i32,
    weights: Weights,
}

#[derive(Debug)]
enum Weights {
    #[cfg(target_os = "linux")]
    Host(Arc<cpu::Weight>),
    Mlx(Vec<Part>),
    Packed(Box<PackedMatrix>),
}

#[derive(Debug)]
struct Part {
    /// Dense [N, K], or packed words [N, K·bits/32].
    weight: Array,
    affine: Option<Affine>,
}

#[derive(Debug)]
struct Affine {
    /// [N, K/group].
    scales: Array,
    /// [N, K/group].
    biases: Array,
    bits: i32,
    group: i32,
}

impl Matrix {
    /// Stacks `parts`, all of the same input width, along their outputs.
    ///
    /// # Errors
    /// When a part's format cannot be prepared.
    pub fn load(place: Place, parts: &[&Linear]) -> Result<Self> {
        let rows = parts.iter().map(|p| p.out).sum::<usize>() as i32;
        let weights = match place {
            #[cfg(target_os = "linux")]
            Place::Host => Weights::Host(Arc::new(host_matrix(parts)?)),
            Place::Mlx(dtype) => match packed::load(parts, dtype, false)? {
                Some(matrix) => Weights::Packed(Box::new(matrix)),
                None => {
                    let parts: Vec<Part> =
                        parts.iter().map(|p| Part::load(p, dtype)).collect::<Result<_>>()?;
                    Weights::Mlx(Part::stack(parts)?)
                }
            },
        };
        Ok(Self { rows, weights })
    }

    /// Two matrices of one shape, for [`Self::apply_gated`] alone.
    ///
    /// # Errors
    /// When a part's format cannot be prepared.
    pub fn load_gated(place: Place, gate: &Linear, up: &Linear) -> Result<Self> {
        if let Place::Mlx(dtype) = place
            && let Some(matrix) = packed::load(&[gate, up], dtype, true)?
        {
            return Ok(Self {
                rows: 2 * gate.out as i32,
                weights: Weights::Packed(Box::new(matrix)),
            });
        }
        Self::load(place, &[gate, up])
    }

    /// `silu(x gateᵀ) · x upᵀ`, `[M, K]` → `[M, N/2]`.
    ///
    /// # Errors
    /// When shapes disagree or MLX fails.
    pub fn apply_gated(&self, x: &Array) -> Result<Array> {
        if let Weights::Packed(matrix) = &self.weights
            && matrix.is_gated()
        {
            return matrix.apply(x, None);
        }
        let halves = self.apply(x)?.split_equal(2, -1)?;
        let gate = &halves[0];
        Ok(gate.multiply(sigmoid(gate)?)?.multiply(&halves[1])?)
    }

    /// `x [M, K]` → `[M, N]`.
    ///
    /// # Errors
    /// When shapes disagree or MLX fails.
    pub fn apply(&self, x: &Array) -> Result<Array> {
        match &self.weights {
            #[cfg(target_os = "linux")]
            Weights::Host(w) => {
                let w = Arc::clone(w);
                let shape = [x.dim(0), self.rows];
                let f = move |i: &[Input<'_>], o: &mut [Output<'_>]| {
                    cpu::linear(i[0].as_slice()?, &w, o[0].as_mut_slice()?);
                    Ok(())
                };
                host_call(&[x], &shape, f)
            }
            Weights::Mlx(parts) => {
                let y: Vec<Array> = parts.iter().map(|p| p.apply(x)).collect::<Result<_>>()?;
                if let [only] = y.as_slice() {
                    return Ok(only.clone());
                }
                Ok(concatenate(&y, -1)?)
            }
            Weights::Packed(matrix) => matrix.apply(x, None),
        }
    }

    /// `residual [M, N] + x Wᵀ`.
    ///
    /// # Errors
    /// When shapes disagree or MLX fails.
    pub fn apply_add(&self, x: &Array, residual: &Array) -> Result<Array> {
        if let Weights::Packed(matrix) = &self.weights {
            return matrix.apply(x, Some(residual));
        }
        Ok(self.apply(x)?.add(residual)?)
    }

    /// Rows `ids` of W as values: embeddings `[ids, K]`.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn gather(&self, ids: &Ids) -> Result<Array> {
        match &self.weights {
            #[cfg(target_os = "linux")]
            Weights::Host(w) => {
                let w = Arc::clone(w);
                let ids = ids.array();
                let shape = [ids.dim(0), w.cols() as i32];
                let f = move |i: &[Input<'_>], o: &mut [Output<'_>]| {
                    cpu::gather_rows(&w, i[0].as_slice()?, o[0].as_mut_slice()?);
                    Ok(())
                };
                host_call(&[&ids], &shape, f)
            }
            Weights::Mlx(parts) => parts[0].gather(&ids.array()),
            Weights::Packed(matrix) => matrix.gather(ids),
        }
    }
}

/// Tokens that rows are wanted of.
#[derive(Clone, Debug)]
pub enum Ids {
    /// These.
    Known(Vec<u32>),
    /// u32 or i32 [M], which the graph will give.
    Drawn(Array),
}

impl From<&[u32]> for Ids {
    fn from(ids: &[u32]) -> Self {
        Self::Known(ids.to_vec())
    }
}

impl Ids {
    /// How many.
    #[must_use]
    pub fn count(&self) -> usize {
        match self {
            Self::Known(ids) => ids.len(),
            Self::Drawn(ids) => ids.size(),
        }
    }

    /// As u32 [M].
    fn array(&self) -> Array {
        match self {
            Self::Known(ids) => Array::from_slice(ids, &[ids.len() as i32]),
            Self::Drawn(ids) => ids.clone(),
        }
    }
}

impl Part {
    fn load(linear: &Linear, dtype: Dtype) -> Result<Self> {
        match &linear.format {
            Format::Dense(tensor) => {
                Ok(Self { weight: array(tensor)?.as_dtype(dtype)?, affine: None })
            }
            Format::Affine { bits, group, words, scales, biases } => Ok(Self {
                weight: array(words)?,
                affine: Some(Affine {
                    scales: array(scales)?.as_dtype(dtype)?,
                    biases: array(biases)?.as_dtype(dtype)?,
                    bits: *bits as i32,
                    group: *group as i32,
                }),
            }),
        }
    }

    /// Joins parts of one format into a single matrix, so that one launch computes them all.
    fn stack(parts: Vec<Self>) -> Result<Vec<Self>> {
        let format = |p: &Self| p.affine.as_ref().map(|a| (a.bits, a.group));
        let Some(first) = parts.first().map(format) else { return Ok(parts) };
        if parts.len() == 1 || parts.iter().any(|p| format(p) != first) {
            return Ok(parts);
        }
        let join = |pick: &dyn Fn(&Self) -> Option<Array>| -> Result<Array> {
            let arrays: Vec<Array> = parts.iter().filter_map(pick).collect();
            Ok(concatenate(&arrays, 0)?)
        };
        let weight = join(&|p| Some(p.weight.clone()))?;
        let affine = match first {
            None => None,
            Some((bits, group)) => Some(Affine {
                scales: join(&|p| p.affine.as_ref().map(|a| a.scales.clone()))?,
                biases: join(&|p| p.affine.as_ref().map(|a| a.biases.clone()))?,
                bits,
                group,
            }),
        };
        Ok(vec![Self { weight, affine }])
    }

    fn apply(&self, x: &Array) -> Result<Array> {
        Ok(match &self.affine {
            None => x.matmul(self.weight.transpose()?)?,
            Some(a) => {
                quantized_matmul(x, &self.weight, &a.scales, &a.biases, true, a.group, a.bits)?
            }
        })
    }

    fn gather(&self, ids: &Array) -> Result<Array> {
        let take = |a: &Array| a.take_axis(ids, 0);
        Ok(match &self.affine {
            None => take(&self.weight)?,
            Some(a) => {
                let biases = take(&a.biases)?;
                dequantize(take(&self.weight)?, take(&a.scales)?, &biases, a.group, a.bits)?
            }
        })
    }
}

/// Matrices of one input, stacked for the Rust kernels.
///
/// # Errors
/// When a part's format cannot be prepared.
#[cfg(target_os = "linux")]
pub fn host_matrix(parts: &[&Linear]) -> Result<cpu::Weight> {
    let parts = parts.iter().map(|p| host_weight(p)).collect::<Result<_>>()?;
    Ok(cpu::Weight::stack(parts)?)
}

#[cfg(target_os = "linux")]
fn host_weight(linear: &Linear) -> Result<cpu::Weight> {
    let (rows, cols) = (linear.out, linear.input);
    Ok(match &linear.format {
        // Half types stay half in memory: they are widened on the way into registers.
        Format::Dense(t) => match t.dtype() {
            checkpoint::Dtype::BF16 => cpu::Weight::bf16(&t.as_u16(), rows, cols)?,
            checkpoint::Dtype::F16 => cpu::Weight::f16(&t.as_u16(), rows, cols)?,
            checkpoint::Dtype::F32 | checkpoint::Dtype::U32 => {
                cpu::Weight::f32(&t.to_f32(), rows, cols)?
            }
        },
        Format::Affine { bits, group, words, scales, biases } => {
            let (words, scales, biases) = (words.as_u32(), scales.to_f32(), biases.to_f32());
            let (scales, biases) = (scales.as_slice(), biases.as_slice());
            let codes =
                cpu::Affine { bits: *bits as u32, group: *group, words: &words, scales, biases };
            cpu::Weight::affine(codes, rows, cols)?
        }
    })
}

/// A tensor of the checkpoint as an array of its own type.
///
/// # Errors
/// When MLX fails.
pub(crate) fn array(tensor: &Tensor) -> Result<Array> {
    let shape: Vec<i32> = tensor.shape().iter().map(|&n| n as i32).collect();
    Ok(match tensor.dtype() {
        checkpoint::Dtype::F32 => Array::from_slice(&tensor.to_f32(), &shape),
        checkpoint::Dtype::U32 => Array::from_slice(&tensor.as_u32(), &shape),
        checkpoint::Dtype::BF16 => {
            Array::from_slice(&tensor.as_u16(), &shape).view_dtype(Dtype::Bfloat16)?
        }
        checkpoint::Dtype::F16 => {
            Array::from_slice(&tensor.as_u16(), &shape).view_dtype(Dtype::Float16)?
        }
    })
}

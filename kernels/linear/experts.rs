//! Matrices of many experts, of which each token meets a few.

use mlx_rs::Array;
use mlx_rs::ops::{concatenate, gather_mm, gather_qmm};

use super::Part;
use crate::checkpoint::Linear;
use crate::error::{Error, Result};
use crate::place::Place;

/// The matrices [N, K] of E experts, or several of one input joined along N. On MLX only: the Rust
/// kernels take the experts one by one.
#[derive(Debug)]
pub struct ExpertMatrix {
    /// Joined into one, unless their formats differ.
    parts: Vec<Part>,
}

impl ExpertMatrix {
    /// `matrices` of one input each hold one matrix for every expert.
    ///
    /// # Errors
    /// When the experts are stored in different ways, or MLX fails.
    pub fn load(place: Place, matrices: &[Vec<&Linear>]) -> Result<Self> {
        let experts = matrices.first().map_or(0, Vec::len);
        let all = (0..experts).flat_map(|e| matrices.iter().filter_map(move |m| m.get(e).copied()));
        let all: Vec<&Linear> = all.collect();
        let parts = match Self::join(place, &all, experts)? {
            Some(only) => vec![only],
            None => {
                let join =
                    |of: &Vec<&Linear>| Self::join(place, of, experts)?.ok_or_else(|| unlike(of));
                matrices.iter().map(join).collect::<Result<_>>()?
            }
        };
        Ok(Self { parts })
    }

    /// One array [E, N, K] of matrices that follow each other expert by expert; `None` where their
    /// formats differ.
    fn join(place: Place, matrices: &[&Linear], experts: usize) -> Result<Option<Part>> {
        let parts = matrices.iter().map(|m| Part::load(m, place.dtype())).collect::<Result<_>>()?;
        let Ok([joined]) = <[Part; 1]>::try_from(Part::stack(parts)?) else { return Ok(None) };
        let cube = |a: &Array| a.reshape(&[experts as i32, -1, a.dim(-1)]);
        let Part { weight, affine } = joined;
        let (weight, mut affine) = (cube(&weight)?, affine);
        if let Some(affine) = &mut affine {
            affine.scales = cube(&affine.scales)?;
            affine.biases = cube(&affine.biases)?;
        }
        let rest = affine.iter().flat_map(|affine| [&affine.scales, &affine.biases]);
        // Made real at once: a graph would hold every expert's own copy until the first pass.
        crate::place::eval([&weight].into_iter().chain(rest))?;
        Ok(Some(Part { weight, affine }))
    }

    /// `x [.., 1, K]`, whose leading axes are broadcast against those of `experts`, u32: the result
    /// is `[experts.., 1, N]`. `sorted` says that `experts` rise.
    ///
    /// # Errors
    /// When shapes disagree or MLX fails.
    pub fn apply(&self, x: &Array, experts: &Array, sorted: bool) -> Result<Array> {
        let apply = |part: &Part| -> Result<Array> {
            let Part { weight, affine } = part;
            Ok(match affine {
                None => gather_mm(x, weight.swap_axes(-1, -2)?, None, experts, sorted)?,
                Some(a) => gather_qmm(
                    x, weight, &a.scales, &a.biases, None, experts, true, a.group, a.bits, sorted,
                )?,
            })
        };
        let y: Vec<Array> = self.parts.iter().map(apply).collect::<Result<_>>()?;
        match y.as_slice() {
            [only] => Ok(only.clone()),
            several => Ok(concatenate(several, -1)?),
        }
    }
}

fn unlike(matrices: &[&Linear]) -> Error {
    let path = matrices.first().map_or("experts", |m| m.path.as_str());
    Error::Plan(format!("{path} and its siblings are not all stored in one way"))
}

//! The feed-forward block: `x + down(silu(gate n) · up n)` with `n = rms(x)`.

use mlx_rs::Array;

use crate::checkpoint::Mlp;
use crate::error::Result;
use crate::linear::Matrix;
use crate::norm::Norm;
use crate::place::Place;
#[cfg(target_os = "linux")]
use crate::{cpu, host, scratch};
#[cfg(target_os = "linux")]
use std::sync::Arc;

/// One block's weights.
#[derive(Debug)]
pub struct Ffn(Core);

#[derive(Debug)]
enum Core {
    #[cfg(target_os = "linux")]
    Host(Arc<HostFfn>),
    Mlx(Box<MlxFfn>),
}

#[derive(Debug)]
struct MlxFfn {
    norm: Norm,
    gate_up: Matrix,
    down: Matrix,
}

#[cfg(target_os = "linux")]
#[derive(Debug)]
struct HostFfn {
    gain: Vec<f32>,
    eps: f32,
    gate_up: cpu::Weight,
    down: cpu::Weight,
}

impl Ffn {
    /// Prepares a block; `gain` [H] is the effective one of the norm before it.
    ///
    /// # Errors
    /// When weights cannot be prepared.
    pub fn load(place: Place, gain: &[f32], eps: f32, w: &Mlp) -> Result<Self> {
        Ok(Self(match place {
            #[cfg(target_os = "linux")]
            Place::Host => Core::Host(Arc::new(HostFfn {
                gain: gain.to_vec(),
                eps,
                gate_up: crate::linear::host_matrix(&[&w.gate, &w.up])?,
                down: crate::linear::host_matrix(&[&w.down])?,
            })),
            Place::Mlx(_) => Core::Mlx(Box::new(MlxFfn {
                norm: Norm::load(place, gain, eps)?,
                gate_up: Matrix::load_gated(place, &w.gate, &w.up)?,
                down: Matrix::load(place, &[&w.down])?,
            })),
        }))
    }

    /// `[M, H]` → `[M, H]`, the residual included.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn apply(&self, x: &Array) -> Result<Array> {
        match &self.0 {
            #[cfg(target_os = "linux")]
            Core::Host(ffn) => {
                let (ffn, m) = (Arc::clone(ffn), x.dim(0) as usize);
                host::call_one(&[x], x.shape(), move |i, o| {
                    let (x, out) = (i[0].as_slice()?, o[0].as_mut_slice()?);
                    ffn.apply(m, x, out);
                    Ok(())
                })
            }
            Core::Mlx(ffn) => {
                let gated = ffn.gate_up.apply_gated(&ffn.norm.apply(x)?)?;
                ffn.down.apply_add(&gated, x)
            }
        }
    }
}

#[cfg(target_os = "linux")]
impl HostFfn {
    fn apply(&self, m: usize, x: &[f32], out: &mut [f32]) {
        let (wide, width) = (self.gate_up.rows(), self.down.cols());
        scratch::with([x.len(), m * wide, m * width], |[n, gate_up, gated]| {
            cpu::rms_norm(x, &self.gain, self.eps, n);
            cpu::linear(n, &self.gate_up, gate_up);
            cpu::silu_mul(gate_up, width, gated);
            cpu::linear_add(gated, &self.down, x, out);
        });
    }
}

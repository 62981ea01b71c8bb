//! The feed-forward block: `x + ffn(n)` with `n = rms(x)`, either dense,
//! `down(silu(gate n) · up n)`, or a mixture of such blocks.

use mlx_rs::Array;
use mlx_rs::ops::sigmoid;

use crate::checkpoint::{FeedForward, Mlp, ModelConfig};
use crate::error::Result;
use crate::linear::Matrix;
use crate::norm::Norm;
use crate::place::Place;
#[cfg(target_os = "linux")]
use crate::{cpu, host, scratch};
use moe::MlxMoe;
#[cfg(target_os = "linux")]
use std::sync::Arc;

mod moe;

/// One block's weights.
#[derive(Debug)]
pub struct Ffn(Core);

#[derive(Debug)]
enum Core {
    #[cfg(target_os = "linux")]
    Host(Arc<HostFfn>),
    #[cfg(target_os = "linux")]
    HostMoe(Arc<moe::HostMoe>),
    Mlx(Box<MlxFfn>),
    MlxMoe(Box<MlxMoe>),
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
    pub fn load(place: Place, gain: &[f32], w: &FeedForward, config: &ModelConfig) -> Result<Self> {
        Ok(Self(match w {
            FeedForward::Dense(w) => Core::load(place, gain, config.norm_eps, w)?,
            FeedForward::Experts(w) => match place {
                #[cfg(target_os = "linux")]
                Place::Host => Core::HostMoe(Arc::new(moe::HostMoe::load(gain, w, config)?)),
                Place::Mlx(_) => Core::MlxMoe(Box::new(MlxMoe::load(place, gain, w, config)?)),
            },
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
            #[cfg(target_os = "linux")]
            Core::HostMoe(moe) => {
                let moe = Arc::clone(moe);
                host::call_one(&[x], x.shape(), move |i, o| {
                    moe.apply(i[0].as_slice()?, o[0].as_mut_slice()?);
                    Ok(())
                })
            }
            Core::Mlx(ffn) => {
                let gated = ffn.gate_up.apply_gated(&ffn.norm.apply(x)?)?;
                ffn.down.apply_add(&gated, x)
            }
            Core::MlxMoe(moe) => moe.apply(x),
        }
    }
}

impl Core {
    fn load(place: Place, gain: &[f32], eps: f32, w: &Mlp) -> Result<Self> {
        Ok(match place {
            #[cfg(target_os = "linux")]
            Place::Host => Self::Host(Arc::new(HostFfn {
                gain: gain.to_vec(),
                eps,
                gate_up: crate::linear::host_matrix(&[&w.gate, &w.up])?,
                down: crate::linear::host_matrix(&[&w.down])?,
            })),
            Place::Mlx(_) => Self::Mlx(Box::new(MlxFfn {
                norm: Norm::load(place, gain, eps)?,
                gate_up: Matrix::load_gated(place, &w.gate, &w.up)?,
                down: Matrix::load(place, &[&w.down])?,
            })),
        })
    }
}

/// `silu(gate) · up` of `gate | up` along the last axis.
fn gated(gate_up: &Array) -> Result<Array> {
    let halves = gate_up.split_equal(2, -1)?;
    let gate = &halves[0];
    Ok(gate.multiply(sigmoid(gate)?)?.multiply(&halves[1])?)
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

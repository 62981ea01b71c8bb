//! RMS normalisation and the gate of the feed-forward block.

use mlx_rs::ops::{concatenate, sigmoid};
use mlx_rs::{Array, fast};

use crate::error::Result;
use crate::place::Place;
#[cfg(target_os = "linux")]
use crate::{
    cpu,
    host::{Input, Output, call_one as host_call},
};
#[cfg(target_os = "linux")]
use std::sync::Arc;

/// `x · rsqrt(mean(x²) + eps) · gain` over the last axis, statistics in fp32.
#[derive(Debug)]
pub struct Norm {
    gain: Gain,
    eps: f32,
}

#[derive(Debug)]
enum Gain {
    #[cfg(target_os = "linux")]
    Host(Arc<[f32]>),
    Mlx(Array),
}

impl Norm {
    /// `gain` is the effective one, [H].
    ///
    /// # Errors
    /// When MLX fails.
    pub fn load(place: Place, gain: &[f32], eps: f32) -> Result<Self> {
        let gain = match place {
            #[cfg(target_os = "linux")]
            Place::Host => Gain::Host(gain.into()),
            Place::Mlx(dtype) => {
                Gain::Mlx(Array::from_slice(gain, &[gain.len() as i32]).as_dtype(dtype)?)
            }
        };
        Ok(Self { gain, eps })
    }

    /// `[M, H]` → `[M, H]`.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn apply(&self, x: &Array) -> Result<Array> {
        match &self.gain {
            #[cfg(target_os = "linux")]
            Gain::Host(gain) => {
                let (gain, eps) = (Arc::clone(gain), self.eps);
                let f = move |i: &[Input<'_>], o: &mut [Output<'_>]| {
                    cpu::rms_norm(i[0].as_slice()?, &gain, eps, o[0].as_mut_slice()?);
                    Ok(())
                };
                host_call(&[x], x.shape(), f)
            }
            Gain::Mlx(gain) => Ok(fast::rms_norm(x, Some(gain), self.eps)?),
        }
    }
}

/// `rms(a) | rms(b)`: `[M, Ha]`, `[M, Hb]` → `[M, Ha + Hb]`, the input of the MTP head's `fc`.
///
/// # Errors
/// When MLX fails.
pub fn norm_pair(a: (&Array, &Norm), b: (&Array, &Norm)) -> Result<Array> {
    Ok(concatenate(&[a.1.apply(a.0)?, b.1.apply(b.0)?], -1)?)
}

/// `silu(gate) · up` of a stacked product `[M, gate I | up I]` → `[M, I]`.
///
/// # Errors
/// When MLX fails.
pub fn silu_mul(place: Place, gate_up: &Array) -> Result<Array> {
    let width = gate_up.dim(1) / 2;
    match place {
        #[cfg(target_os = "linux")]
        Place::Host => {
            let shape = [gate_up.dim(0), width];
            let f = move |i: &[Input<'_>], o: &mut [Output<'_>]| {
                cpu::silu_mul(i[0].as_slice()?, width as usize, o[0].as_mut_slice()?);
                Ok(())
            };
            host_call(&[gate_up], &shape, f)
        }
        Place::Mlx(_) => {
            let halves = gate_up.split_equal(2, -1)?;
            let gate = &halves[0];
            Ok(gate.multiply(sigmoid(gate)?)?.multiply(&halves[1])?)
        }
    }
}

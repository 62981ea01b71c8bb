//! RMS normalisation.

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

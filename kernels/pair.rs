//! The input of the MTP head: `fc(rms(embedding) | rms(hidden))`, the embedding first.

use mlx_rs::Array;
use mlx_rs::ops::concatenate;

use crate::checkpoint::MtpWeights;
use crate::error::Result;
use crate::linear::Matrix;
use crate::norm::Norm;
use crate::place::Place;
#[cfg(target_os = "linux")]
use crate::{cpu, host, scratch};
#[cfg(target_os = "linux")]
use std::sync::Arc;

/// Its weights.
#[derive(Debug)]
pub struct PairInput(Core);

#[derive(Debug)]
enum Core {
    #[cfg(target_os = "linux")]
    Host(Arc<HostPair>),
    Mlx {
        embedding: Norm,
        hidden: Norm,
        fc: Matrix,
    },
}

#[cfg(target_os = "linux")]
#[derive(Debug)]
struct HostPair {
    embedding: Vec<f32>,
    hidden: Vec<f32>,
    eps: f32,
    fc: cpu::Weight,
}

impl PairInput {
    /// Prepares it for a place.
    ///
    /// # Errors
    /// When weights cannot be prepared.
    pub fn load(place: Place, w: &MtpWeights, eps: f32) -> Result<Self> {
        Ok(Self(match place {
            #[cfg(target_os = "linux")]
            Place::Host => Core::Host(Arc::new(HostPair {
                embedding: w.embedding_norm.clone(),
                hidden: w.hidden_norm.clone(),
                eps,
                fc: crate::linear::host_matrix(&[&w.fc])?,
            })),
            Place::Mlx(_) => Core::Mlx {
                embedding: Norm::load(place, &w.embedding_norm, eps)?,
                hidden: Norm::load(place, &w.hidden_norm, eps)?,
                fc: Matrix::load(place, &[&w.fc])?,
            },
        }))
    }

    /// `embedding [M, H]` of tokens and the trunk's `hidden [M, H]` before them → `[M, H]`.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn apply(&self, embedding: &Array, hidden: &Array) -> Result<Array> {
        match &self.0 {
            #[cfg(target_os = "linux")]
            Core::Host(pair) => {
                let pair = Arc::clone(pair);
                host::call_one(&[embedding, hidden], hidden.shape(), move |i, o| {
                    let (embedding, hidden) = (i[0].as_slice()?, i[1].as_slice()?);
                    let out = o[0].as_mut_slice()?;
                    scratch::with([2 * hidden.len(), 0, 0], |[both, ..]| {
                        let (a, b) = ((embedding, &*pair.embedding), (hidden, &*pair.hidden));
                        cpu::rms_norm_pair(a, b, pair.eps, both);
                        cpu::linear(both, &pair.fc, out);
                    });
                    Ok(())
                })
            }
            Core::Mlx { embedding: e, hidden: h, fc } => {
                fc.apply(&concatenate(&[e.apply(embedding)?, h.apply(hidden)?], -1)?)
            }
        }
    }
}

//! What can go wrong between a plan and its outcome.

use mlx_rs::error::Exception;
use mtplx_core::engine::Fault;

/// A failure of MLX, of a kernel or of the plan.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// MLX refused or failed.
    #[error("MLX: {0}")]
    Mlx(#[from] Exception),
    /// Weights that the kernels cannot use.
    #[cfg(target_os = "linux")]
    #[error("weights: {0}")]
    Weight(#[from] crate::cpu::WeightError),
    /// The checkpoint cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] crate::checkpoint::Error),
    /// MLX came for a GPU that is not there.
    #[error("no GPU: {0}")]
    NoGpu(&'static str),
    /// The plan contradicts the engine's state.
    #[error("plan: {0}")]
    Plan(String),
}

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

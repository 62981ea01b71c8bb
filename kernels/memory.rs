//! What MLX holds of the machine's memory, all engines of the process together. Weights and
//! scratch of the Rust kernels are outside MLX and not counted.

use crate::error::Result;

/// Bytes by what becomes of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// In arrays that are alive.
    pub active: usize,
    /// Kept for arrays to come.
    pub cached: usize,
    /// The most that was ever active.
    pub peak: usize,
}

impl Memory {
    /// As it is now; may be asked on any thread.
    ///
    /// # Errors
    /// When MLX cannot tell.
    pub fn now() -> Result<Self> {
        use mlx_rs::memory::{active_memory, cache_memory, peak_memory};
        Ok(Self { active: active_memory()?, cached: cache_memory()?, peak: peak_memory()? })
    }
}

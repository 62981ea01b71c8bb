//! What mtplx computes: the model on MLX, behind the core's [`mtplx_core::engine::Engine`].
//!
//! Every operation of the model stands in a file of its own with one contract and several ways of
//! doing it: MLX's own operations (any device), and on Linux's CPU the Rust kernels of [`cpu`],
//! which run inside MLX's graph through [`host`].

pub mod attention;
pub mod checkpoint;
#[cfg(target_os = "linux")]
pub mod cpu;
pub mod draft;
pub mod engine;
pub mod error;
pub mod ffn;
pub mod gdn;
pub mod gpu;
#[cfg(target_os = "linux")]
pub mod host;
pub mod linear;
pub mod memory;
pub mod model;
pub mod norm;
pub mod pair;
pub mod place;
mod pool;
pub mod preflight;
#[cfg(target_os = "linux")]
mod scratch;
pub mod shape;

pub use draft::DraftHeadOptions;
pub use engine::{EngineOptions, MlxEngine, open, place_of};

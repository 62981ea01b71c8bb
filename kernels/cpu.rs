//! Kernels for the CPU: plain functions over slices, with neither MLX nor a thread of their own.
//!
//! One law holds for all: **the result of a row depends on that row alone.** Not on how many
//! rows travel with it, nor on threads, nor on how tokens are cut into calls, nor on where a
//! cache's pages lie, it is the same to the bit. So every output is reduced in one fixed order.
//!
//! Slices are row-major and fp32. A wrong shape is a programmer's error and panics.

mod attention;
mod experts;
mod gate;
mod gdn;
mod linear;
mod norm;
mod parallel;
mod pool;
mod simd;
#[cfg(test)]
mod testing;
mod weight;

pub use attention::{
    Attention, AttentionDims, AttentionParams, AttentionRow, KvPools, append_kv, attention,
};
pub use experts::{Expert, Experts, mix_experts};
pub use gate::silu_mul;
pub use gdn::{Gdn, GdnDims, GdnParams, GdnPools, GdnRow, gated_delta};
pub use linear::{linear, linear_add};
pub use norm::{add_rms_norm, rms_norm, rms_norm_pair};
pub use pool::Pool;
pub use simd::numerics;
pub use weight::{Affine, Weight, WeightError, gather_rows};

//! Models of a full shape with random weights, what their single blocks cost, and the machine under
//! them: for benches, which need no checkpoint to tell how fast one would be.

mod blocks;
mod device;
mod products;
mod random;

pub use blocks::{BlockTime, bandwidth, blocks};
pub use device::{device_name, mlx_version};
pub use products::{ProductTime, products};
pub use random::{Noise, PRESETS, Scheme, pass_bytes, preset};

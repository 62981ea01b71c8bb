//! The engine against what it must equal. One binary:
//!
//! * `golden`: logits and hidden states of trunk and MTP head against mlx-lm's;
//! * `lossless`: the same text at every depth, in every company, warm and cold;
//! * `law`: sampled tokens with speculation follow the plain distribution;
//! * `sources`: the GPU kernels, compiled for the CPU and run beside references.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    unreachable_pub,
    reason = "this is a test: what fails must fail loudly, and figures are printed"
)]

mod golden;
mod house;
mod law;
mod lossless;
#[cfg(target_os = "linux")]
mod sources;

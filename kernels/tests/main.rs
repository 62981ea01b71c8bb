//! The engine against what it must equal. One binary:
//!
//! * `carry`: states that are shared, parked, carried out and in again, to the bit;
//! * `draft_head`: a cheaper head for drafts changes how many are accepted, and no text;
//! * `effort`: how often a cycle waits for the device, and what it compiles;
//! * `golden`: logits and hidden states of trunk and MTP head against mlx-lm's;
//! * `grammar`: the same text under a grammar, whatever is drafted and whoever else is served;
//! * `lossless`: the same text at every depth, in every company, warm and cold;
//! * `law`: sampled tokens with speculation follow the plain distribution;
//! * `moe`: mixtures of experts, Qwen3.5's and Qwen3-Next, against mlx-lm and against themselves.
//! * `team`: rows that step back for other clients, to the bit.
//! * `sources`: the GPU kernels, compiled for the CPU and run beside references.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    unreachable_pub,
    reason = "this is a test: what fails must fail loudly, and figures are printed"
)]

mod carry;
mod draft_head;
mod effort;
mod golden;
mod grammar;
mod house;
mod law;
mod lossless;
mod moe;
#[cfg(target_os = "linux")]
mod sources;
mod team;

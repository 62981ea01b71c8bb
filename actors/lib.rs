//! The actors: they wait, and decide nothing. What is to be decided, `mtplx_core` decides.
//!
//! ```text
//!   the door                              root
//!      │                  ┌──────────┬─────┴────┬───────────┐
//!   ingress ───Open───► bank ─Admit─► decode    tuner    thermal
//!                         ◄─Deposit─┤  ├─Report─►           │
//!                         ─Release──►  ◄──Tune──┤◄──Ceiling─┘
//!   streams ◄──────────events───────┘
//! ```
//!
//! Work moves by `cast` in one direction; `call` is for questions. `bank`, `decode` and `tuner` are
//! one generation: they live and die together. `ingress` and `thermal` outlive it; the
//! root tells the door who serves, and thermal whom to tell. With several machines ([`node`]) the
//! door has a way to the bank of each.

pub mod admission;
pub mod bank;
pub mod decode;
pub mod flight;
pub mod heart;
pub mod ingress;
pub mod metrics;
pub mod node;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod probe;
pub mod root;
pub mod thermal;
pub mod tuner;

/// Tests measure what an input takes.
#[cfg(test)]
#[global_allocator]
static COUNTING: mtplx_fuzz::memory::Counting = mtplx_fuzz::memory::Counting;

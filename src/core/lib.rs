//! What mtplx decides, and nothing else: no clock, no thread, no I/O, no device, no async.
//!
//! A step of the engine is three calls around one device call:
//!
//! ```text
//! batch.plan(knobs) -> Plan
//! engine.run(&plan, rows) -> Outcome
//! batch.settle(&plan, outcome) -> Settled
//! ```
//!
//! Everything here is a plain value that prints and compares, so a whole server can be simulated
//! from a seed. The laws that the simulation holds us to have names:
//!
//! * **L1 lossless**: the text of a request depends on the request alone, never on who else is
//!   served, on the draft depth (greedy and [`accept::Rule::Coupled`]) or on what was warm.
//! * **L2 tokens out equal tokens settled**: every settled token is published once, in order.
//! * **L3 one writer**: a page of the KV cache is written by one row only; who shares it reads.
//! * **L4 nothing leaks**: free, owned and shared pages, slots and snapshots add up at all times.
//! * **L5 no starvation**: every admitted request reaches its end in a bounded number of steps.

pub mod accept;
pub mod batch;
pub mod cost;
pub mod drain;
pub mod engine;
pub mod fairness;
pub mod grammar;
pub mod guard;
pub mod image;
pub mod knobs;
pub mod ledger;
pub mod logprobs;
pub mod prefix;
pub mod preflight;
pub mod quota;
pub mod random;
pub mod recall;
mod recent;
pub mod request;
pub mod retries;
pub mod route;
pub mod sample;
#[cfg(feature = "scripted")]
pub mod scripted;
pub mod stop;
pub mod thermal;
pub mod tune;

/// An id of the model's vocabulary.
pub type Token = u32;

/// Whose prompts are whose: what one tenant left warm, no other starts from. 0 is the public one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tenant(pub u64);

/// Names a request for its whole life; unique within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// A place of the engine that holds one running sequence: recurrent state, conv window, carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u16);

/// A page of the KV cache: `page_tokens` consecutive positions of every attention layer and of
/// the MTP head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Page(pub u32);

/// Names a parked copy of a sequence's state; never reused within an engine's generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId(pub u64);

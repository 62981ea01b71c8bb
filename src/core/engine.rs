//! The port to whatever computes: a [`Plan`] of integers in, an [`Outcome`] of integers out.
//! Nothing above it has seen a tensor.

use std::collections::BTreeMap;
use std::fmt;

use crate::batch::Row;
use crate::guard::Budget;
use crate::image::{Image, Unfit};
use crate::logprobs::Logprobs;
use crate::sample::NotFinite;
use crate::{Page, Slot, SnapshotId, Token};

/// Running rows by the slot they own.
pub type Rows = BTreeMap<Slot, Row>;

/// What computes. It owns the tensors; the batch owns every decision about them.
pub trait Engine {
    /// Fixed facts, known once it is open.
    fn info(&self) -> &EngineInfo;

    /// Carries out the moves in order, then one forward pass over all prefill chunks and verify
    /// rows, drafting before and accepting after it.
    ///
    /// # Errors
    /// [`Fault`] when the device or the plan is broken; the engine is not to be used again.
    fn run(&mut self, plan: &Plan, rows: &Rows) -> Result<Outcome, Fault>;

    /// Bytes in use, by the worst of the ways to count them; 0 where nobody can tell.
    fn memory(&self) -> u64 {
        0
    }

    /// Gives back what it keeps for later use only.
    fn trim(&mut self) {}

    /// Takes more of a parked state out, as bytes: behind what `image` holds of it already, and
    /// about `most` bytes, so that nobody waits for all of a large one. True once it is whole.
    ///
    /// # Errors
    /// [`Unfit`] when it cannot; the engine goes on.
    fn export(&mut self, at: Parcel<'_>, image: &mut Image, most: usize) -> Result<bool, Unfit> {
        let bytes = image.bytes();
        Err(Unfit(format!("this engine gives no {:?} ({bytes}, {most})", at.snapshot)))
    }

    /// Brings more of a state in that [`Engine::export`] gave, maybe in another process, into these
    /// pages: behind the first `done` bytes, and about `most`. It is checked as a whole before the
    /// first. True once it is parked under its name. One comes after the other: where another is
    /// begun, what has come of the one before is forgotten.
    ///
    /// # Errors
    /// [`Unfit`] when it is not what this engine would have given; nothing is parked then.
    fn import(&mut self, at: Parcel<'_>, image: &Image, part: Stretch<'_>) -> Result<bool, Unfit> {
        let Stretch { done, most } = part;
        let bytes = image.bytes();
        Err(Unfit(format!("this engine takes no {:?} ({bytes}, {done}, {most})", at.snapshot)))
    }
}

/// How much of an image is brought in, and how much more is to be.
#[derive(Debug)]
pub struct Stretch<'a> {
    /// Bytes that are; counted on by whoever brings more.
    pub done: &'a mut u64,
    /// Bytes of one call, about.
    pub most: usize,
}

/// Where a state is parked that leaves the engine or comes into it.
#[derive(Clone, Copy, Debug)]
pub struct Parcel<'a> {
    /// Its name.
    pub snapshot: SnapshotId,
    /// Tokens it covers.
    pub tokens: usize,
    /// Its pages, in order of position.
    pub pages: &'a [Page],
}

/// What an engine is and can hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineInfo {
    /// Size of the vocabulary.
    pub vocab: usize,
    /// Most tokens of one sequence, prompt and output together.
    pub context_tokens_max: usize,
    /// Sequences that can run at once.
    pub slots: usize,
    /// Positions of one KV page.
    pub page_tokens: usize,
    /// Pages in all.
    pub pages_max: usize,
    /// Of these, pages that running rows may have for themselves; the rest is the bank's, so that
    /// neither takes the other's.
    pub rows_pages_max: usize,
    /// Bytes of one page over all layers.
    pub page_bytes: u64,
    /// Bytes of a snapshot besides its pages: recurrent state, conv window, carry.
    pub snapshot_bytes: u64,
    /// Memory it may use, and what of that is gone already.
    pub budget: Budget,
    /// Most tokens it can draft a cycle; 0 without an MTP head.
    pub depth_max: u8,
    /// Whether it can set a state aside in the middle of a chunk, so that no chunk has to end for
    /// a state to be kept.
    pub marks: bool,
    /// Why there is no MTP head, if there is none.
    pub mtp_absent: Option<String>,
    /// What it runs on, for people: device, numerics.
    pub device: String,
    /// Its own kernels that were tried on this device.
    pub kernels: Vec<Kernel>,
    /// Names model, quantisation and numerics: states of equal tokens are equal to the bit between
    /// engines of one identity only.
    pub identity: String,
}

/// A kernel of the engine's own, beside which there is always a plain path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// What it computes, and for which form.
    pub name: String,
    /// Why it is switched off, if it is.
    pub fault: Option<String>,
}

/// One step. Printable, comparable, replayable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Counts steps from 1.
    pub step: u64,
    /// State to be moved before anything is computed, in this order.
    pub moves: Vec<Move>,
    /// Prompt chunks.
    pub prefill: Vec<Prefill>,
    /// Rows that draft and verify.
    pub verify: Vec<Verify>,
}

/// A movement of state between slots, pages and snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// The slot begins an empty sequence.
    Clear {
        /// The slot.
        slot: Slot,
    },
    /// The slot goes on from a snapshot; its pages are the row's already.
    Restore {
        /// The slot.
        slot: Slot,
        /// Where the state comes from; it stays as it is.
        snapshot: SnapshotId,
    },
    /// The slot's state after exactly `len` tokens is copied out.
    Save {
        /// The slot.
        slot: Slot,
        /// The new snapshot's name.
        snapshot: SnapshotId,
        /// Tokens it covers: at most one verify cycle behind what was computed, or where the last
        /// step set the state aside.
        len: usize,
    },
    /// A page is copied because a second row is going to write into it.
    CopyPage {
        /// Source.
        from: Page,
        /// Destination.
        to: Page,
    },
    /// The snapshot is not needed any more.
    Forget {
        /// The snapshot.
        snapshot: SnapshotId,
    },
}

/// Feeds `tokens[start..end]` of a row's prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefill {
    /// The row.
    pub slot: Slot,
    /// First position fed.
    pub start: usize,
    /// One past the last; may equal `start` when a snapshot covers the whole prompt.
    pub end: usize,
    /// Whether the prompt ends here, so that the first token is to be drawn.
    pub sample: bool,
    /// A position within, at which the state is set aside for the next step to save; for one
    /// chunk of a plan at most, and only where the engine [marks](EngineInfo::marks).
    pub mark: Option<usize>,
}

/// Drafts `depth` tokens and verifies them together with the pending token at `position`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verify {
    /// The row.
    pub slot: Slot,
    /// Position of the pending token: all before it have been fed and stand.
    pub position: usize,
    /// Tokens to draft; 0 is plain decoding.
    pub depth: u8,
}

/// What a step gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// One entry for every prefill that sampled and for every verify, in the plan's order.
    pub rows: Vec<RowOutcome>,
    /// Where the time went.
    pub phases: Phases,
    /// How often the pass waited for the device; states that are saved and pages that are copied
    /// before it are not counted.
    pub synchronisations: u64,
    /// Kernels that were compiled.
    pub compilations: u64,
}

/// What a step gave one row.
#[derive(Clone, Debug, PartialEq)]
pub struct RowOutcome {
    /// The row.
    pub slot: Slot,
    /// New tokens, or that the device returned nonsense for this row alone.
    pub result: Result<Emitted, NotFinite>,
}

/// New tokens of a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Emitted {
    /// Accepted drafts and the token drawn after them: never empty.
    pub tokens: Vec<Token>,
    /// Tokens drafted.
    pub drafted: usize,
    /// One for each token, where the request asks for them.
    pub logprobs: Vec<Logprobs>,
}

/// Microseconds by phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases {
    /// Drafting; where drafts are drawn within the trunk's graph, putting it together.
    pub draft_us: u64,
    /// The trunk's forward pass, with the drafts in its graph.
    pub verify_us: u64,
    /// Sampling and acceptance.
    pub accept_us: u64,
    /// Of all these, time in which the device (or the CPU backend) was evaluating.
    pub device_us: u64,
}

/// The engine is broken; the generation ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault(pub String);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "engine fault: {}", self.0)
    }
}

impl std::error::Error for Fault {}

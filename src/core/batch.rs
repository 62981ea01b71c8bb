//! The scheduler: which rows run, what each step feeds and drafts, what its outcome means.
//!
//! `plan` and `settle` alternate. Between them the engine runs the plan; nothing here waits for it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use crate::cost::Costs;
use crate::engine::{EngineInfo, Move, Outcome, Phases, Plan, Prefill, RowOutcome, Rows, Verify};
use crate::fairness::{Class, Fairness};
use crate::grammar::Mask;
use crate::guard::Shortage;
use crate::ledger::{Holding, Ledger};
use crate::logprobs::Logprobs;
use crate::prefix::Prefix;
use crate::request::{Drafts, Finish, Request, Usage};
use crate::sample::{NotFinite, Seen, TEMPERATURES};
use crate::{Page, RequestId, Slot, SnapshotId, Token};

pub use self::books::Books;
pub use self::row::Row;
pub use crate::knobs::{Depths, Knobs};

mod back;
mod books;
#[cfg(all(test, feature = "scripted"))]
mod distribution;
#[cfg(all(test, feature = "scripted"))]
mod pacing;
mod pause;
mod row;
mod seat;
mod settle;
mod share;
#[cfg(all(test, feature = "scripted"))]
mod simulate;
#[cfg(all(test, feature = "scripted"))]
mod team;
#[cfg(all(test, feature = "scripted"))]
mod tests;

/// Bounds of the scheduler, fixed at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Most snapshots alive at once; beyond it finished states are dropped instead of deposited.
    pub snapshots_max: usize,
    /// Chunks of a prompt end at multiples of this position. Where the engine's kernels walk a
    /// chunk in blocks, whole blocks let warm and cold runs see the same arithmetic; where they
    /// walk token by token, as all on the CPU do, any cut gives the same bits and a small grain
    /// keeps steps short.
    pub chunk_grain: usize,
}

/// Which snapshot a request may start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Warm {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Prompt tokens it covers.
    pub len: usize,
}

#[derive(Clone, Debug)]
struct Waiting {
    request: Request,
    warm: Option<Warm>,
    /// How many states had been named when it was last looked for a longer one; `None` if it is to
    /// start cold.
    looked: Option<u64>,
    /// The time by which it ages, of its arrival.
    arrived: u64,
    /// Where it stood when it stepped back, if it did.
    begun: Option<row::Begun>,
}

impl Waiting {
    /// The tokens it will go on from.
    fn tokens(&self) -> &[Token] {
        self.begun.as_ref().map_or(&self.request.prompt, |begun| &begun.tokens)
    }
}

/// What a step meant, to be published.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settled {
    /// News of rows, in the plan's order.
    pub events: Vec<(RequestId, RowEvent)>,
    /// States worth keeping.
    pub deposits: Vec<Deposit>,
    /// Kept states that rows started from, beyond those their admission named.
    pub used: Vec<SnapshotId>,
    /// For tuner and metrics.
    pub report: Report,
}

/// News of one row.
#[derive(Clone, Debug, PartialEq)]
pub enum RowEvent {
    /// It has a slot; its prompt is being fed. Told by whoever publishes, once.
    Seated,
    /// What the model thought of the tokens that the next event shows, where that is asked for.
    Logprobs(Vec<Logprobs>),
    /// Tokens to show, in order, never empty; and what the row cost and gave so far, because one
    /// that is taken out says nothing more.
    Tokens(Vec<Token>, Usage),
    /// The row has left.
    Finished(Finish, Usage),
    /// There is no memory for it and none will come; it never ran.
    Refused(Shortage),
    /// It found no slot for longer than anybody is to wait; it never ran.
    Late,
}

/// A parked state for the session bank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deposit {
    /// Its name; the bank holds it until it says `release`.
    pub snapshot: SnapshotId,
    /// The tokens it covers, exactly, and whose they are.
    pub prefix: Prefix,
    /// Why it is kept.
    pub kind: Kind,
    /// Bytes it keeps alive.
    pub bytes: u64,
}

/// Why a state is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The end of what whole groups of conversations begin with.
    Root,
    /// A place in a prompt where others leave it.
    Boundary,
    /// The end of a prompt.
    Prompt,
    /// The end of a reply.
    Reply,
}

/// One step in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Rows that drafted or decoded.
    pub rows: usize,
    /// Prompt tokens fed.
    pub prefilled: usize,
    /// Prompt tokens that rows took over from states which did not exist when they were admitted.
    pub taken_over: usize,
    /// Tokens settled.
    pub emitted: usize,
    /// Rows that began to decode though what was fed and what was restored do not make up their
    /// prompt: a bug.
    pub unaccounted: usize,
    /// Rows that stepped back before it, for clients that had none.
    pub stepped_back: usize,
    /// States not kept because too many are alive already.
    pub dropped_deposits: usize,
    /// Largest depth of the step.
    pub depth: u8,
    /// Whether every row drafted so deep because the tuner said so: only then does the step's cost
    /// say what that depth costs.
    pub uniform: bool,
    /// Tokens of the rows that decode, on average.
    pub context: usize,
    /// Rows that decode, by the band of their temperature.
    pub temperatures: [usize; TEMPERATURES],
    /// For each draft position, how many rows tried it and how many accepted it.
    pub positions: Vec<Tried>,
    /// The same by bands of temperature.
    pub judged: [Vec<Tried>; TEMPERATURES],
    /// Time by phase.
    pub phases: Phases,
    /// Microseconds from plan to what follows from it; 0 where nobody looked at a clock.
    pub wall_us: u64,
    /// How often the pass waited for the device.
    pub synchronisations: u64,
    /// Kernels that were compiled.
    pub compilations: u64,
}

/// How a draft position fared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tried {
    /// Rows in which all drafts before it stood and it was judged.
    pub tried: u32,
    /// Rows in which it stood.
    pub accepted: u32,
}

/// Queue, rows and books of one engine generation.
#[derive(Clone, Debug)]
pub struct Batch {
    info: EngineInfo,
    limits: BatchLimits,
    rows: Rows,
    waiting: VecDeque<Waiting>,
    fairness: Fairness,
    ledger: Ledger,
    moves: Vec<Move>,
    step: u64,
    costs: Costs,
    /// Whether the last step left out prompts to learn what it costs without.
    measured: bool,
    /// Whether the last step left out rows for somebody's prompt.
    paused: bool,
    memory: seat::Measured,
    /// What the next [`Settled`] says of states that were used.
    used: Vec<SnapshotId>,
    taken_over: usize,
    books: Books,
    stepped_back: usize,
    /// Whether somebody would have stepped back, had there been room to park its state.
    cramped: bool,
}

/// A prompt may be passed by shorter ones of its client until so many times its own length was fed
/// to those. So one of L tokens that finds R left of all others of its client is done before
/// (PASSED + slots) · L + R further prompt tokens of its client are fed: R and PASSED · L at most
/// before none seated later passes it any more, and less than L for each that did. Between clients
/// it is [`Fairness`] that decides.
const PASSED: u64 = 4;

impl Batch {
    /// An empty batch over an engine that holds nothing.
    #[must_use]
    pub fn new(info: EngineInfo, limits: BatchLimits) -> Self {
        let ledger = Ledger::new(info.slots, info.page_tokens, info.pages_max);
        let ledger = ledger.with_rows_max(info.rows_pages_max);
        let (rows, waiting) = (Rows::new(), VecDeque::new());
        Self {
            info,
            limits,
            rows,
            waiting,
            fairness: Fairness::default(),
            ledger,
            moves: Vec::new(),
            step: 0,
            costs: Costs::default(),
            measured: false,
            paused: false,
            memory: seat::Measured::default(),
            used: Vec::new(),
            taken_over: 0,
            books: Books::default(),
            stepped_back: 0,
            cramped: false,
        }
    }

    /// Queues a request. Its bounds were checked at the door; a snapshot that is gone meanwhile
    /// only makes it cold.
    pub fn admit(&mut self, request: Request, warm: Option<Warm>) {
        debug_assert!(!request.prompt.is_empty(), "the door refuses empty prompts");
        let warm = warm.filter(|w| {
            let held = self.ledger.hold(w.snapshot);
            debug_assert!(held.is_none_or(|len| len == w.len));
            held.is_some()
        });
        self.fairness.enter(request.standing);
        let arrived = self.fairness.now();
        self.waiting.push_back(Waiting { request, warm, looked: Some(0), arrived, begun: None });
    }

    /// Takes a request out, running or waiting. False if it is not here.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        if let Some(i) = self.waiting.iter().position(|w| w.request.id == id) {
            self.take_out(i);
            return true;
        }
        let slot = self.rows.iter().find(|(_, row)| row.request.id == id).map(|(&slot, _)| slot);
        if let Some(slot) = slot {
            self.leave(slot);
        }
        slot.is_some()
    }

    /// The bank lets go of a snapshot.
    pub fn release(&mut self, snapshot: SnapshotId) {
        if self.ledger.unbank(snapshot) {
            self.moves.push(Move::Forget { snapshot });
        }
    }

    /// Holds a snapshot beside the bank, until [`Batch::let_go`]. False if it is gone.
    pub fn hold(&mut self, snapshot: SnapshotId) -> bool {
        self.ledger.hold(snapshot).is_some()
    }

    /// Somebody who held a snapshot beside the bank lets go of it.
    pub fn let_go(&mut self, snapshot: SnapshotId) {
        if self.ledger.release(snapshot) {
            self.moves.push(Move::Forget { snapshot });
        }
    }

    /// Whether another step has anything to do.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !(self.rows.is_empty() && self.waiting.is_empty() && self.moves.is_empty())
    }

    /// Rows running, for the engine.
    #[must_use]
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// Requests that wait for a slot or for pages.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The books, for metrics.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Proves L3 and L4.
    ///
    /// # Errors
    /// The first contradiction, in words.
    pub fn check_integrity(&self) -> Result<(), String> {
        self.ledger.check_integrity(self.rows.iter().map(|(&slot, row)| (slot, &row.holding)))
    }

    /// The next step.
    pub fn plan(&mut self, knobs: Knobs) -> Plan {
        self.seat(knobs.rows_max);
        self.elect();
        self.step += 1;
        let pause = self.pause(&knobs);
        let verify = self.plan_verify(&knobs.depths, &pause.rows);
        let budget = self.prefill_budget(&knobs, &verify, pause.tokens);
        self.paused = !pause.rows.is_empty();
        let prefill = self.plan_prefill(budget);
        Plan { step: self.step, moves: std::mem::take(&mut self.moves), prefill, verify }
    }

    /// Prompt tokens for a step that verifies so much; 0 for once, never twice in a row, where it
    /// is not known what the step costs without; as many as others pause for, where they do.
    fn prefill_budget(&mut self, knobs: &Knobs, verify: &[Verify], paused_for: usize) -> usize {
        let verified: usize = verify.iter().map(|v| 1 + usize::from(v.depth)).sum();
        let most = knobs.prefill_idle.saturating_sub(verified).max(1);
        if paused_for > 0 {
            return paused_for.min(most);
        }
        let depth = verify.iter().map(|v| v.depth).max();
        let (Some(depth), Some(stretch)) = (depth, knobs.stretch) else {
            return if verify.is_empty() { most } else { knobs.prefill_busy.clamp(1, most) };
        };
        self.measured = !self.measured && self.costs.is_unknown(verify.len(), depth);
        if self.measured {
            return 0;
        }
        let within = self.costs.prefill_within(verify.len(), depth, stretch);
        within.unwrap_or(knobs.prefill_busy).clamp(1, most)
    }

    fn plan_verify(&mut self, depths: &Depths, pausing: &BTreeSet<Slot>) -> Vec<Verify> {
        let decoding = self.rows.values().filter(|row| row.is_decoding()).count();
        let depth = depths.at(decoding - pausing.len());
        let mut verify = Vec::new();
        for (&slot, row) in &mut self.rows {
            if !row.is_decoding() || pausing.contains(&slot) {
                continue;
            }
            let wanted = row.request.prompt.len() + row.request.limits.new_tokens_max;
            let room = wanted.min(self.info.context_tokens_max) - row.tokens.len();
            // The token after the drafts needs room too.
            let most = self.info.depth_max.min(u8::try_from(room - 1).unwrap_or(u8::MAX));
            let asked = row.request.draft_tokens.depth(depth).min(most);
            let depth = asked.max(row.sure(most));
            self.ledger.grow(&mut row.holding, row.computed + 1 + usize::from(depth));
            verify.push(Verify { slot, position: row.computed, depth });
        }
        verify
    }

    /// Chunks within the budget. Clients come by what they got so far; of one client, whoever needs
    /// least is first, so that short prompts pass long ones; but a prompt ages with every token fed
    /// to others of its client (see [`PASSED`]).
    fn plan_prefill(&mut self, mut budget: usize) -> Vec<Prefill> {
        let mut prefill = Vec::new();
        let mut slots = self.turns();
        slots.sort_unstable();
        let (mut must, mut marks) = (budget > 0, self.info.marks);
        for (.., slot) in slots {
            let Some(row) = self.rows.get_mut(&slot) else { continue };
            let start = row.computed;
            // Only the first may go beyond a budget that is below the grain.
            let end = row.chunk_end(start, budget, (must, self.limits.chunk_grain));
            // Where the engine sets a state aside on its way, one chunk need not end there.
            let mark = Some(end).filter(|&end| marks && end > start);
            let further = mark.map_or(end, |mark| {
                let left = budget.saturating_sub(mark - start);
                row.chunk_end(mark, left, (false, self.limits.chunk_grain))
            });
            let mark = mark.filter(|&mark| further > mark && row.is_kept_at(mark));
            let end = if mark.is_some() { further } else { end };
            marks &= mark.is_none();
            let sample = end == row.start;
            if end == start && !sample {
                continue;
            }
            if end > start {
                (budget, must) = (budget.saturating_sub(end - start), false);
            }
            self.ledger.grow(&mut row.holding, end);
            self.fairness.feed(row.request.standing.client, end - start);
            prefill.push(Prefill { slot, start, end, sample, mark });
        }
        prefill
    }

    /// Takes a row out and gives back what it held.
    fn leave(&mut self, slot: Slot) -> Option<Row> {
        let mut row = self.rows.remove(&slot)?;
        self.books.leave(&row.request, row.reached);
        self.ledger.close(slot, std::mem::take(&mut row.holding));
        self.fairness.leave(row.request.standing.client);
        Some(row)
    }

    /// Takes one out that waits.
    fn take_out(&mut self, i: usize) -> Option<Request> {
        let Waiting { request, warm, begun, .. } = self.waiting.remove(i)?;
        if let Some(begun) = begun {
            self.books.leave(&request, begun.reached);
        }
        if let Some(warm) = warm {
            self.let_go(warm.snapshot);
        }
        self.fairness.leave(request.standing.client);
        Some(request)
    }
}

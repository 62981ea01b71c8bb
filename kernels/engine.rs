//! The [`Engine`] on MLX: one plan becomes one graph, drafts and trunk, and its results become
//! integers again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use mlx_rs::Array;
use mtplx_core::engine::{
    Engine, EngineInfo, Fault, Move, Outcome, Parcel, Phases, Plan, Rows, Stretch,
};
use mtplx_core::image::{Image, Unfit};
use mtplx_core::{Slot, SnapshotId};

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::gdn::GdnSnapshot;
use crate::linear::Ids;
use crate::model::{FeedRow, Model, Pools, take_rows};
use crate::place::Place;

mod carry;
mod cycle;
mod drafts;
mod draws;
mod feed;
mod open;
mod scores;
mod verdicts;

pub use open::EngineOptions;

/// Weights, state of all sequences and parked snapshots. Lives on the thread that made it.
#[derive(Debug)]
pub struct MlxEngine {
    info: EngineInfo,
    place: Place,
    model: Model,
    pools: Pools,
    slots: Vec<SlotState>,
    snapshots: BTreeMap<SnapshotId, Snapshot>,
    /// Of the state that is being brought in: what has come of it and is not in pages.
    arriving: Vec<Array>,
    /// What the last step set aside on its way.
    aside: Option<Aside>,
    hidden: usize,
    /// Time of the running step.
    phases: Phases,
    /// For benches of shapes alone: how often a draft at each place is to be accepted.
    forced: Vec<f64>,
    /// For them, too: the token that all drafts are, the head unasked.
    made_up: Option<u32>,
}

/// Where a sequence stands, as far as its tensors go.
#[derive(Debug)]
struct SlotState {
    /// Tokens covered by the committed recurrent state; later ones are on the tape.
    committed: usize,
    /// First token that the MTP head has not seen yet. The head's entry i needs token i and the
    /// hidden state of token i − 1, so entry 0 does not exist.
    head_next: usize,
    /// Hidden states of tokens `head_next − 1 ..` as far as they were fed, `[n, H]`.
    tail: Option<Array>,
    /// Tokens `head_next ..` as far as they were fed, whether they stand or not.
    fed: Vec<u32>,
    /// Its KV pages.
    pages: Arc<[u32]>,
}

impl Default for SlotState {
    fn default() -> Self {
        Self { committed: 0, head_next: 1, tail: None, fed: Vec::new(), pages: Arc::new([]) }
    }
}

/// A parked state. Its KV pages are the ledger's business.
#[derive(Debug)]
struct Snapshot {
    len: usize,
    gdn: Vec<GdnSnapshot>,
    /// Hidden state of its last token, `[1, H]`.
    carry: Array,
}

/// A state in the middle of a chunk; what is recurrent of it is in the spare slot.
#[derive(Debug)]
struct Aside {
    slot: usize,
    len: usize,
    /// Hidden state of its last token, `[1, H]`.
    carry: Array,
}

impl Engine for MlxEngine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn run(&mut self, plan: &Plan, rows: &Rows) -> Result<Outcome, Fault> {
        Ok(self.step(plan, rows)?)
    }

    fn memory(&self) -> u64 {
        crate::memory::used()
    }

    fn trim(&mut self) {
        crate::memory::trim();
    }

    fn export(&mut self, at: Parcel<'_>, image: &mut Image, most: usize) -> Result<bool, Unfit> {
        Ok(self.give(at, image, most)?)
    }

    fn import(&mut self, at: Parcel<'_>, image: &Image, part: Stretch<'_>) -> Result<bool, Unfit> {
        Ok(self.take(at, image, part)?)
    }
}

impl MlxEngine {
    /// Accepts drafts from now on as often as `rates` says, place by place, whatever their tokens
    /// are: for benches with random weights, whose text means nothing anyway.
    pub fn force_acceptance(&mut self, rates: &[f64]) {
        self.forced = rates.to_vec();
    }

    /// Takes `token` for every draft from now on and leaves the head unasked, or asks it again: so
    /// that benches can tell what verification costs without drafting.
    pub fn make_up_drafts(&mut self, token: Option<u32>) {
        self.made_up = token;
    }

    fn step(&mut self, plan: &Plan, rows: &Rows) -> Result<Outcome> {
        self.phases = Phases::default();
        for &step in &plan.moves {
            self.carry_out(step)?;
        }
        // What nobody saved by now is not wanted.
        self.aside = None;
        let before = (crate::place::evaluations(), crate::gpu::gpu().compilations());
        self.take_pages(rows)?;
        let rows = self.cycle(plan, rows)?;
        let synchronisations = crate::place::evaluations() - before.0;
        let compilations = crate::gpu::gpu().compilations() - before.1;
        Ok(Outcome { rows, phases: self.phases, synchronisations, compilations })
    }

    fn carry_out(&mut self, step: Move) -> Result<()> {
        match step {
            Move::Clear { slot } => self.restore(slot, None),
            Move::Restore { slot, snapshot } => self.restore(slot, Some(snapshot)),
            Move::Save { slot, snapshot, len } => self.save(slot, snapshot, len),
            Move::CopyPage { from, to } => {
                self.make_room(to.0 as usize + 1)?;
                self.pools.copy_page(from.0 as usize, to.0 as usize)
            }
            Move::Forget { snapshot } => {
                self.snapshots.remove(&snapshot);
                Ok(())
            }
        }
    }

    fn restore(&mut self, slot: Slot, from: Option<SnapshotId>) -> Result<()> {
        let unknown = |id| Error::Plan(format!("{id:?} is not parked"));
        let snapshot = from.map(|id| self.snapshots.get(&id).ok_or_else(|| unknown(id)));
        let snapshot = snapshot.transpose()?;
        let index = usize::from(slot.0);
        for (i, pool) in self.pools.gdn.iter_mut().enumerate() {
            pool.restore(index, snapshot.map(|s| &s.gdn[i]))?;
        }
        self.slots[index] = match snapshot {
            None => SlotState::default(),
            Some(s) => SlotState {
                committed: s.len,
                head_next: s.len,
                tail: Some(s.carry.clone()),
                ..SlotState::default()
            },
        };
        Ok(())
    }

    fn save(&mut self, slot: Slot, id: SnapshotId, len: usize) -> Result<()> {
        let index = usize::from(slot.0);
        if let Some(aside) = self.aside.take_if(|a| (a.slot, a.len) == (index, len)) {
            let spare = self.info.slots;
            return self.park(id, len, (spare, aside.carry));
        }
        let state = &self.slots[index];
        let behind = |what: &str| Error::Plan(format!("{slot:?} cannot be saved at {len}: {what}"));
        let keep = len.checked_sub(state.committed).ok_or_else(|| behind("already past it"))?;
        if keep > 0 {
            self.model.fold(index, keep, &mut self.pools)?;
        }
        self.remember_until(index, len)?;
        let state = &mut self.slots[index];
        state.committed = len;
        let tail = state.tail.as_ref().ok_or_else(|| behind("nothing was fed"))?;
        let carry = take_rows(tail, &[(len - state.head_next) as i32])?;
        self.park(id, len, (index, carry))
    }

    /// Copies out what a slot holds.
    fn park(&mut self, id: SnapshotId, len: usize, (slot, carry): (usize, Array)) -> Result<()> {
        let gdn: Vec<GdnSnapshot> =
            self.pools.gdn.iter().map(|pool| pool.save(slot)).collect::<Result<_>>()?;
        // The copies are real before anything writes into the pools again.
        let copies = gdn.iter().flat_map(|s| [&s.state, &s.window]);
        let arrays = copies.chain([&carry]).chain(self.pools.arrays());
        Self::eval(&mut self.phases, arrays)?;
        self.snapshots.insert(id, Snapshot { len, gdn, carry });
        Ok(())
    }

    /// Lets the MTP head see the fed tokens below index `until` that it has not seen.
    fn remember_until(&mut self, index: usize, until: usize) -> Result<()> {
        let state = &mut self.slots[index];
        let pending = until.saturating_sub(state.head_next);
        let Some(tail) = state.tail.clone().filter(|_| pending > 0) else { return Ok(()) };
        let seen: Vec<i32> = (0..pending as i32).collect();
        let rest: Vec<i32> = (pending as i32..tail.dim(0)).collect();
        let row = FeedRow {
            slot: index,
            start: 0,
            len: pending,
            position: state.head_next,
            keep: 0,
            commit: true,
            mark: None,
            pages: Arc::clone(&state.pages),
        };
        if self.model.has_mtp() {
            let hidden = take_rows(&tail, &seen)?;
            let pools = &mut self.pools;
            let tokens = Ids::from(&state.fed[..pending]);
            self.model.remember(&hidden, &tokens, &[row], pools)?;
        }
        state.tail = Some(take_rows(&tail, &rest)?);
        state.fed.drain(..pending);
        state.head_next = until;
        Ok(())
    }

    /// Notes the pages of all rows and makes room for them.
    fn take_pages(&mut self, rows: &Rows) -> Result<()> {
        let mut most = 0;
        for (slot, row) in rows {
            let held = &self.slots[usize::from(slot.0)].pages;
            // Pages of a row only ever grow, but for a slot that changed hands.
            let same = held.len() == row.pages().len()
                && held.iter().zip(row.pages()).all(|(a, b)| *a == b.0);
            if !same {
                let pages: Arc<[u32]> = row.pages().iter().map(|p| p.0).collect();
                most = most.max(pages.iter().max().map_or(0, |&p| p as usize + 1));
                self.slots[usize::from(slot.0)].pages = pages;
            }
        }
        self.make_room(most)
    }

    /// Grows the caches by doubling, so that memory follows the tokens in use; by less where the
    /// budget is nearly used up, since what is admitted was only promised the pages it needs.
    fn make_room(&mut self, pages: usize) -> Result<()> {
        let have = self.pools.pages();
        if pages <= have {
            return Ok(());
        }
        if pages > self.info.pages_max {
            return Err(Error::Plan(format!("page {pages} of {}", self.info.pages_max)));
        }
        let budget = self.info.budget;
        let spare = budget.bytes.saturating_sub(self.memory()).saturating_sub(budget.step);
        let spare = usize::try_from(spare / self.info.page_bytes.max(1)).unwrap_or(usize::MAX);
        let more = have.min(spare / 2);
        self.pools.grow((have + more).max(pages).min(self.info.pages_max))
    }

    /// Evaluates and counts the time as the device's.
    fn eval<'a>(phases: &mut Phases, arrays: impl IntoIterator<Item = &'a Array>) -> Result<()> {
        let start = Instant::now();
        crate::place::eval(arrays)?;
        phases.device_us += micros(start);
        Ok(())
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Opens a checkpoint on the best place this process has; to be called on the thread that will own
/// the engine.
///
/// # Errors
/// When the checkpoint cannot be used or MLX fails.
pub fn open(checkpoint: &Checkpoint, options: &EngineOptions) -> Result<MlxEngine> {
    MlxEngine::open(checkpoint, place_of(checkpoint, options)?, options)
}

/// Where [`open`] would run a checkpoint.
///
/// # Errors
/// When MLX cannot tell its devices.
pub fn place_of(checkpoint: &Checkpoint, options: &EngineOptions) -> Result<Place> {
    options.place.map_or_else(|| Place::detect(open::checkpoint_dtype(checkpoint)), Ok)
}

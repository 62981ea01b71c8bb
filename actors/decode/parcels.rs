//! States that leave the engine for the bank's files, and come back: a stretch of bytes between
//! two cycles, so that nobody who reads along waits for all of a large one. How long a stretch is
//! follows from what cycles and copies take (see [`pace`]).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mtplx_core::SnapshotId;
use mtplx_core::batch::{Deposit, Kind};
use mtplx_core::engine::{Engine, Stretch};
use mtplx_core::image::{Image, Unfit};
use mtplx_core::prefix::Prefix;
use ractor::{ActorProcessingErr, ActorRef, RpcReplyPort};

use super::State;
use crate::bank::{self, Fate, Label, Passage, Store};
use crate::metrics;

mod pace;

use pace::{Pace, Way};

/// At the end of a house nothing runs that waiting for the disk could hold up; this is for each
/// state that finds the way there full.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// States on their way to the disk at once: they keep their pages until they are there, so beyond
/// it those that the bank let go of are dropped instead.
const LEAVING_MAX: usize = 8;

/// Where a state goes.
#[derive(Debug)]
pub enum Outlet {
    /// To disk, by this name, if it is still wanted there.
    Disk(Arc<Store>, Label, Arc<Fate>),
    /// To whoever asked; `None` if it is gone.
    Answer(RpcReplyPort<Option<Image>>),
}

/// A state that comes back.
#[derive(Debug)]
pub struct Arrival {
    /// What it covers.
    pub prefix: Prefix,
    /// Why it was kept.
    pub kind: Kind,
    /// Its bytes.
    pub image: Arc<Image>,
    /// How far it has come, for those who wait for it; and whether it is still wanted.
    pub passage: Arc<Passage>,
    /// Where its name goes.
    pub home: ActorRef<bank::Message>,
    /// Told how it went, behind the name: whether there was room, or why the engine refused.
    pub told: RpcReplyPort<Result<bool, String>>,
}

/// States on their way out and in.
#[derive(Debug, Default)]
pub(super) struct Parcels {
    leaving: VecDeque<Leaving>,
    arriving: VecDeque<Arriving>,
    pub(super) pace: Pace,
}

#[derive(Debug)]
struct Leaving {
    snapshot: SnapshotId,
    outlet: Outlet,
    image: Image,
}

#[derive(Debug)]
struct Arriving {
    deposit: Deposit,
    image: Arc<Image>,
    done: u64,
    passage: Arc<Passage>,
    home: ActorRef<bank::Message>,
    told: RpcReplyPort<Result<bool, String>>,
}

impl Parcels {
    pub(super) fn is_empty(&self) -> bool {
        self.leaving.is_empty() && self.arriving.is_empty()
    }
}

impl<E: Engine> State<E> {
    /// Notes that a state is to be carried out once it is saved.
    pub(super) fn export(&mut self, snapshot: SnapshotId, outlet: Outlet) {
        let to_disk = matches!(outlet, Outlet::Disk(..));
        let full = to_disk && !self.draining && self.parcels.leaving.len() >= LEAVING_MAX;
        if !full && self.batch.hold(snapshot) {
            let image = Image::default();
            self.parcels.leaving.push_back(Leaving { snapshot, outlet, image });
        } else {
            outlet.deliver(None);
        }
    }

    /// Whether states that the bank let go of give their pages back once they are carried out.
    pub(super) fn is_making_room(&self) -> bool {
        let mut leaving = self.parcels.leaving.iter();
        leaving.any(|leaving| !self.batch.ledger().is_banked(leaving.snapshot))
    }

    /// Takes a state in, if there is room.
    pub(super) fn import(&mut self, arrival: Arrival) {
        let Arrival { prefix, kind, image, passage, home, told } = arrival;
        match self.batch.import(prefix, kind) {
            Some(deposit) => {
                let arriving = Arriving { deposit, image, done: 0, passage, home, told };
                self.parcels.arriving.push_back(arriving);
            }
            // Whoever asked may have gone.
            None => drop(told.send(Ok(false))),
        }
    }

    /// Carries one stretch: of a state that somebody waits for first. True if anything moved.
    pub(super) fn carry(&mut self) -> Result<bool, ActorProcessingErr> {
        let idle = self.batch.rows().is_empty();
        let began = Instant::now();
        let moved = self.carry_in(idle)? || self.carry_out(idle);
        if moved {
            metrics::carried(began.elapsed());
        }
        Ok(moved)
    }

    fn carry_in(&mut self, idle: bool) -> Result<bool, ActorProcessingErr> {
        let Some(mut arriving) = self.parcels.arriving.pop_front() else { return Ok(false) };
        let snapshot = arriving.deposit.snapshot;
        let parcel = self.batch.parcel(snapshot).ok_or("a state without a place")?;
        let (before, began) = (arriving.done, Instant::now());
        let most = self.parcels.pace.stretch(Way::In, idle);
        let stretch = Stretch { done: &mut arriving.done, most };
        let result = self.engine.import(parcel, &arriving.image, stretch);
        let bytes = arriving.done.saturating_sub(before);
        self.parcels.pace.carried(Way::In, bytes as usize, began.elapsed());
        arriving.passage.moved(bytes);
        // Those behind it come nearer.
        self.parcels.arriving.iter().for_each(|behind| behind.passage.moved(0));
        let answer = match result {
            Ok(false) => {
                self.parcels.arriving.push_front(arriving);
                return Ok(true);
            }
            Ok(true) if !arriving.passage.is_wanted() => {
                // Dropped on its way: the engine has it, and nobody ever finds it.
                self.batch.arrived(snapshot);
                self.batch.release(snapshot);
                Ok(false)
            }
            Ok(true) => {
                self.batch.arrived(snapshot);
                arriving.home.cast(bank::Message::Deposit(arriving.deposit))?;
                Ok(true)
            }
            Err(unfit) => {
                tracing::warn!(%unfit, "a state could not be taken in");
                self.batch.forget_import(snapshot);
                Err(unfit.to_string())
            }
        };
        // Whoever asked may have gone.
        let _ = arriving.told.send(answer);
        Ok(true)
    }

    fn carry_out(&mut self, idle: bool) -> bool {
        // One that the next step saves only waits for it; those behind it may be saved.
        let saved = |l: &Leaving| self.batch.parcel(l.snapshot).is_some();
        let Some(at) = self.parcels.leaving.iter().position(saved) else { return false };
        let Some(mut leaving) = self.parcels.leaving.remove(at) else { return false };
        let Some(parcel) = self.batch.parcel(leaving.snapshot) else { return false };
        let bytes = self.batch.bytes_of(parcel.tokens);
        let begun = !leaving.image.parts.is_empty();
        let image = if begun || leaving.outlet.wants(bytes, self.draining) {
            let (before, began) = (leaving.image.bytes(), Instant::now());
            let most = self.parcels.pace.stretch(Way::Out, idle);
            let result = self.engine.export(parcel, &mut leaving.image, most);
            let bytes = leaving.image.bytes().saturating_sub(before);
            self.parcels.pace.carried(Way::Out, bytes as usize, began.elapsed());
            match result {
                Ok(false) if leaving.outlet.is_wanted() => {
                    self.parcels.leaving.push_front(leaving);
                    return true;
                }
                Ok(whole) => whole.then_some(leaving.image),
                Err(Unfit(reason)) => {
                    tracing::warn!(reason, "a state could not be taken out");
                    None
                }
            }
        } else {
            None
        };
        leaving.outlet.deliver(image);
        self.batch.let_go(leaving.snapshot);
        true
    }
}

impl Outlet {
    /// Whether it is worth copying so many bytes for it.
    fn wants(&self, bytes: u64, last: bool) -> bool {
        match self {
            Self::Disk(store, ..) if last && !store.has_room(bytes) => store.flush(LAST_WAIT),
            Self::Disk(store, ..) => self.is_wanted() && store.has_room(bytes),
            Self::Answer(_) => true,
        }
    }

    /// Whether nobody has changed their mind.
    fn is_wanted(&self) -> bool {
        match self {
            Self::Disk(_, _, fate) => fate.is_wanted(),
            Self::Answer(port) => !port.is_closed(),
        }
    }

    fn deliver(self, image: Option<Image>) {
        match self {
            Self::Disk(store, label, fate) => {
                let id = label.id();
                let taken = image.is_some_and(|image| fate.is_wanted() && store.put(label, image));
                // What was not taken may be tried again.
                fate.arrived(taken || store.has_or_expects(id));
                // Whoever dropped it found nothing in the store before; it may be written already.
                if !fate.is_wanted() {
                    store.remove(id);
                }
            }
            // Whoever asked may have gone.
            Self::Answer(port) => drop(port.send(image)),
        }
    }
}

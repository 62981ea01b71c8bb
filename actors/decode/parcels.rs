//! States that leave the engine for the bank's files, and come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mtplx_core::SnapshotId;
use mtplx_core::batch::Kind;
use mtplx_core::engine::Engine;
use mtplx_core::image::Image;
use mtplx_core::prefix::Prefix;
use ractor::{ActorProcessingErr, ActorRef, RpcReplyPort};

use super::State;
use crate::bank::{self, Label, Store};

/// At the end of a house nothing runs that waiting for the disk could hold up; this is for each
/// state that finds the way there full.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// Where a state goes.
#[derive(Debug)]
pub enum Outlet {
    /// To disk, by this name; the flag is cleared if there is no room on the way there now.
    Disk(Arc<Store>, Label, Arc<AtomicBool>),
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
    pub image: Image,
    /// Where its name goes.
    pub home: ActorRef<bank::Message>,
    /// Told how it went: whether there was room, or why the engine refused.
    pub told: Option<RpcReplyPort<Result<bool, String>>>,
}

impl<E: Engine> State<E> {
    /// Sends a state on its way, or notes that it is to be sent once it is saved.
    pub(super) fn export(&mut self, snapshot: SnapshotId, outlet: Outlet) {
        if self.batch.hold(snapshot) {
            self.parcels.push((snapshot, outlet));
            self.send_parcels();
        } else {
            outlet.deliver(None);
        }
    }

    /// Sends all that are saved by now.
    pub(super) fn send_parcels(&mut self) {
        for (snapshot, outlet) in std::mem::take(&mut self.parcels) {
            let Some(parcel) = self.batch.parcel(snapshot) else {
                self.parcels.push((snapshot, outlet));
                continue;
            };
            let bytes = self.batch.bytes_of(parcel.tokens);
            let wanted = outlet.wants(bytes, self.draining);
            let image = wanted.then(|| self.engine.export(parcel));
            let image = image.transpose().unwrap_or_else(|unfit| {
                tracing::warn!(%unfit, "a state could not be taken out");
                None
            });
            if !wanted {
                outlet.refuse();
            }
            outlet.deliver(image);
            self.batch.let_go(snapshot);
        }
    }

    /// Takes a state in, if there is room.
    pub(super) fn import(&mut self, arrival: Arrival) -> Result<(), ActorProcessingErr> {
        let Arrival { prefix, kind, image, home, told } = arrival;
        let mut answer = Ok(false);
        if let Some(deposit) = self.batch.import(prefix, kind) {
            let snapshot = deposit.snapshot;
            let parcel = self.batch.parcel(snapshot).ok_or("a state without a place")?;
            answer = self.engine.import(parcel, &image).map(|()| true);
            match &answer {
                Ok(_) => home.cast(bank::Message::Deposit(deposit))?,
                Err(unfit) => {
                    tracing::warn!(%unfit, "a state could not be taken in");
                    self.batch.forget_import(snapshot);
                }
            }
        }
        if let Some(told) = told {
            // Whoever asked may have gone.
            let _ = told.send(answer.map_err(|unfit| unfit.to_string()));
        }
        Ok(())
    }
}

impl Outlet {
    /// Whether it is worth copying so many bytes for it.
    fn wants(&self, bytes: u64, last: bool) -> bool {
        match self {
            Self::Disk(store, ..) if last && !store.has_room(bytes) => store.flush(LAST_WAIT),
            Self::Disk(store, ..) => store.has_room(bytes),
            Self::Answer(_) => true,
        }
    }

    /// It may be tried again.
    fn refuse(&self) {
        if let Self::Disk(_, _, written) = self {
            written.store(false, Ordering::Relaxed);
        }
    }

    fn deliver(self, image: Option<Image>) {
        match self {
            Self::Disk(store, label, written) => {
                if let Some(image) = image
                    && !store.put(label, image)
                {
                    written.store(false, Ordering::Relaxed);
                }
            }
            // Whoever asked may have gone.
            Self::Answer(port) => drop(port.send(image)),
        }
    }
}

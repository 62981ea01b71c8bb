//! The rows that make one answer, one after another. An answer goes on in another row where its
//! thinking reaches its bound, and where an engine was lost in the middle of it: as randomness has
//! no state, its text goes on as though nothing had happened.
//!
//! A request that kills every engine it comes to must not take the house along, nor those who were
//! there with it. So whoever lost two engines is tried alone: one at a time, until its first news.
//! Whoever loses engines while tried alone is not tried again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mtplx_core::batch::RowEvent;
use mtplx_core::request::Request;
use mtplx_core::{RequestId, Token};
use ractor::ActorRef;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use crate::admission::Admission;
use crate::ingress::admission::Readiness;
use crate::{bank, metrics};

/// Engines that an answer may lose in all.
const LOST_MAX: u32 = 8;
/// Of these, while it was tried alone.
const SUSPECTED_MAX: u32 = 2;

type Bank = ActorRef<bank::Message>;

/// The ways into an engine, for rows that follow on others.
#[derive(Clone)]
pub(crate) struct Ways {
    /// Who serves.
    pub(crate) readiness: watch::Receiver<Readiness>,
    /// The house's permits. A row's comes back when it has left.
    pub(crate) permits: Arc<Semaphore>,
    /// Whose turn it is to be tried alone.
    pub(crate) trial: Arc<Semaphore>,
    /// Where names of rows come from.
    pub(crate) last_id: Arc<AtomicU64>,
    /// How long to wait for another engine.
    pub(crate) patience: Duration,
}

/// The way of one answer.
pub(crate) struct Course {
    /// The first row's.
    request: Request,
    /// What was made so far, and what was put between.
    tokens: Vec<Token>,
    ways: Ways,
    /// Whose the row is; nobody's while it waits.
    bank: Arc<OnceLock<Bank>>,
    lost: u32,
    suspected: u32,
    /// While it is tried alone. Dropped, it gives the turn to the next.
    trial: Option<oneshot::Sender<()>>,
}

impl Course {
    /// A course whose first row is on its way to this bank.
    pub(crate) fn new(request: Request, bank: Bank, ways: Ways) -> Self {
        let (tokens, bank) = (Vec::new(), Arc::new(OnceLock::from(bank)));
        Self { request, tokens, ways, bank, lost: 0, suspected: 0, trial: None }
    }

    /// One that leads nowhere else.
    #[cfg(test)]
    pub(crate) fn nowhere() -> Self {
        let ways = Ways {
            readiness: watch::channel(Readiness::Over(String::new())).1,
            permits: Arc::new(Semaphore::new(0)),
            trial: Arc::new(Semaphore::new(0)),
            last_id: Arc::default(),
            patience: Duration::ZERO,
        };
        let (tokens, bank) = (Vec::new(), Arc::default());
        let request = crate::oracle::request(0, &[1], 1);
        Self { request, tokens, ways, bank, lost: 0, suspected: 0, trial: None }
    }

    /// The row made this.
    pub(crate) fn take(&mut self, token: Token) {
        self.tokens.push(token);
    }

    /// There is news of the row.
    pub(crate) fn heard(&mut self) {
        self.trial = None;
    }

    /// Goes on behind what was made, with `put` after it, while the row before is leaving. `None`
    /// if there is no room for more.
    pub(crate) fn go_on(&mut self, put: &[Token]) -> Option<mpsc::Receiver<RowEvent>> {
        self.tokens.extend(put);
        let (request, events, receiver) = self.row()?;
        let bank = self.bank.get()?.clone();
        let permits = Arc::clone(&self.ways.permits);
        tokio::spawn(async move {
            // Who waits is served before whoever comes after.
            let Ok(permit) = permits.acquire_owned().await else { return };
            if !events.is_closed() {
                // A bank that is gone drops it, which is how one hears that it is gone.
                let _ = bank.cast(bank::Message::Open(Admission { request, events, permit }));
            }
        });
        Some(receiver)
    }

    /// Goes on where the row was lost, with the next engine. `None` if there is no next one, or if
    /// this answer had better not come to it.
    pub(crate) fn resume(&mut self) -> Option<mpsc::Receiver<RowEvent>> {
        // A row that never found an engine is not lost: there is none.
        let last = self.bank.get()?.clone();
        self.lost += 1;
        self.suspected += u32::from(self.trial.take().is_some());
        let id = self.request.id.0;
        if self.suspected == SUSPECTED_MAX || self.lost > LOST_MAX {
            tracing::error!(request = id, lost = self.lost, "engines end with it: it is given up");
            return None;
        }
        let (request, events, receiver) = self.row()?;
        tracing::warn!(request = id, as_ = request.id.0, made = self.tokens.len(), "resumed");
        self.bank = Arc::default();
        let (trial, proved) = (self.lost > 1).then(oneshot::channel).unzip();
        self.trial = trial;
        let (ways, bank) = (self.ways.clone(), Arc::clone(&self.bank));
        tokio::spawn(async move {
            let entered = tokio::select! {
                entered = ways.enter(&last, proved.is_some()) => entered,
                () = events.closed() => None,
            };
            let Some(Place { permit, turn, bank: next }) = entered else { return };
            metrics::resumed();
            // Before there can be news of it.
            let _ = bank.set(next.clone());
            // One that is gone again drops it.
            let _ = next.cast(bank::Message::Open(Admission { request, events, permit }));
            if let Some(proved) = proved {
                let _ = proved.await;
            }
            drop(turn);
        });
        Some(receiver)
    }

    /// The next row.
    fn row(&self) -> Option<(Request, mpsc::Sender<RowEvent>, mpsc::Receiver<RowEvent>)> {
        let id = RequestId(self.ways.last_id.fetch_add(1, Ordering::Relaxed) + 1);
        let request = self.request.resume(id, &self.tokens)?;
        let (events, receiver) = channel(&request);
        Some((request, events, receiver))
    }
}

/// A place in the house, for a row that lost its own.
struct Place {
    permit: OwnedSemaphorePermit,
    /// The turn of one that is tried alone.
    turn: Option<OwnedSemaphorePermit>,
    bank: Bank,
}

impl Ways {
    /// Waits for a place, for its turn where it is to be tried alone, and for another engine than
    /// the last.
    async fn enter(mut self, last: &Bank, alone: bool) -> Option<Place> {
        let permit = self.permits.acquire_owned().await.ok()?;
        let turn = if alone { Some(self.trial.acquire_owned().await.ok()?) } else { None };
        let is_last = |bank: &Bank| bank.get_id() == last.get_id();
        let next = self.readiness.wait_for(|readiness| match readiness {
            Readiness::Between(_) => false,
            Readiness::Serving(engine) => !is_last(&engine.bank),
            Readiness::Over(_) => true,
        });
        let next = tokio::time::timeout(self.patience, next).await.ok()?.ok()?;
        match &*next {
            Readiness::Serving(engine) => Some(Place { permit, turn, bank: engine.bank.clone() }),
            Readiness::Between(_) | Readiness::Over(_) => None,
        }
    }
}

/// A stream with room for every event there can be. It takes memory for those that are in it only,
/// in blocks of 32.
pub(crate) fn channel(request: &Request) -> (mpsc::Sender<RowEvent>, mpsc::Receiver<RowEvent>) {
    let each = 1 + usize::from(request.sampling.logprobs.is_some());
    mpsc::channel(each * request.limits.new_tokens_max + 2)
}

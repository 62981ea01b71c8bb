//! The rows that make one answer, one after another. An answer goes on in another row where its
//! thinking reaches its bound, and where an engine was lost in the middle of it: as randomness has
//! no state, its text goes on as though nothing had happened.
//!
//! A request that kills every engine it comes to must not take the house along, nor those who are
//! there with it. Whoever was running when an engine was lost, and is again at the same place of
//! its text when the next one is, goes on alone: one at a time until there is news of it, and
//! while somebody is tried so, nobody else is to blame. Whoever loses engine after engine at the
//! same place is given up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use mtplx_core::batch::RowEvent;
use mtplx_core::request::Request;
use mtplx_core::{RequestId, Token};
use ractor::{ActorId, ActorRef};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use crate::admission::Admission;
use crate::ingress::admission::Readiness;
use crate::{bank, metrics};

/// Engines that an answer may lose at one place of its text: fewer than a house bears by default.
const STRIKES_MAX: u32 = 4;
/// Tokens that are the same place: what one cycle may make.
const PLACE: usize = 5;

type Bank = ActorRef<bank::Message>;

/// One after another.
pub(crate) struct Trial {
    turn: Arc<Semaphore>,
    /// The last engine on which somebody was tried of whom there was no news.
    engine: Mutex<Option<ActorId>>,
}

impl Trial {
    pub(crate) fn new() -> Self {
        Self { turn: Arc::new(Semaphore::new(1)), engine: Mutex::default() }
    }

    fn engine(&self) -> MutexGuard<'_, Option<ActorId>> {
        // Nothing can go wrong while it is held.
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The ways into an engine, for rows that follow on others.
#[derive(Clone)]
pub(crate) struct Ways {
    /// Who serves.
    pub(crate) readiness: watch::Receiver<Readiness>,
    /// The house's permits. A row's comes back when it has left.
    pub(crate) permits: Arc<Semaphore>,
    /// Where those are tried who may be to blame.
    pub(crate) trial: Arc<Trial>,
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
    /// Whether the row has a slot.
    seated: bool,
    /// Engines lost at this place, in a row.
    strikes: u32,
    place: usize,
    /// While it is tried alone: who waits for news of it.
    trial: Option<oneshot::Sender<()>>,
}

impl Course {
    /// A course whose first row is on its way to this bank.
    pub(crate) fn new(request: Request, bank: Bank, ways: Ways) -> Self {
        Self::by(Arc::new(OnceLock::from(bank)), request, ways)
    }

    fn by(bank: Arc<OnceLock<Bank>>, request: Request, ways: Ways) -> Self {
        let (tokens, seated, strikes, place, trial) = (Vec::new(), false, 0, 0, None);
        Self { request, tokens, ways, bank, seated, strikes, place, trial }
    }

    /// One that leads nowhere else.
    #[cfg(test)]
    pub(crate) fn nowhere() -> Self {
        let ways = Ways {
            readiness: watch::channel(Readiness::Over(String::new())).1,
            permits: Arc::new(Semaphore::new(0)),
            trial: Arc::new(Trial::new()),
            last_id: Arc::default(),
            patience: Duration::ZERO,
        };
        Self::by(Arc::default(), crate::oracle::request(0, &[1], 1), ways)
    }

    /// The row made this.
    pub(crate) fn take(&mut self, token: Token) {
        self.tokens.push(token);
    }

    /// The row has a slot.
    pub(crate) fn seated(&mut self) {
        self.seated = true;
    }

    /// There is news of the row.
    pub(crate) fn heard(&mut self) {
        if let Some(trial) = self.trial.take() {
            // Who waits for it may wait no more.
            let _ = trial.send(());
        }
    }

    /// Goes on behind what was made, with `put` after it, while the row before is leaving. `None`
    /// if there is no room for more.
    pub(crate) fn go_on(&mut self, put: &[Token]) -> Option<mpsc::Receiver<RowEvent>> {
        self.tokens.extend(put);
        let (request, events, receiver) = self.row()?;
        let bank = self.bank.get()?.clone();
        self.seated = false;
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
        self.judge(&last);
        if self.strikes == STRIKES_MAX {
            let (request, made) = (self.request.id.0, self.tokens.len());
            tracing::error!(request, made, "every engine ends with it: it is given up");
            return None;
        }
        let (request, events, receiver) = self.row()?;
        tracing::warn!(request = self.request.id.0, row = request.id.0, "going on elsewhere");
        (self.bank, self.seated) = (Arc::default(), false);
        let (trial, news) = (self.strikes > 1).then(oneshot::channel).unzip();
        self.trial = trial;
        let (ways, bank) = (self.ways.clone(), Arc::clone(&self.bank));
        tokio::spawn(async move {
            let entered = tokio::select! {
                entered = ways.clone().enter(&last, news.is_some()) => entered,
                () = events.closed() => None,
            };
            let Some(Place { permit, turn, bank: next }) = entered else { return };
            if turn.is_some() {
                *ways.trial.engine() = Some(next.get_id());
            }
            metrics::resumed();
            // Before there can be news of it.
            let _ = bank.set(next.clone());
            // One that is gone again drops it.
            let _ = next.cast(bank::Message::Open(Admission { request, events, permit }));
            if let Some(news) = news
                && news.await.is_ok()
            {
                *ways.trial.engine() = None;
            }
            drop(turn);
        });
        Some(receiver)
    }

    /// Whether the loss of its engine tells against it.
    fn judge(&mut self, last: &Bank) {
        let tried = self.trial.take().is_some();
        let other = !tried && *self.ways.trial.engine() == Some(last.get_id());
        if !self.seated || other {
            return;
        }
        let here = self.tokens.len();
        let same = self.strikes > 0 && here - self.place < PLACE;
        self.strikes = if same { self.strikes + 1 } else { 1 };
        self.place = here;
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
        let turn = match alone {
            true => Some(Arc::clone(&self.trial.turn).acquire_owned().await.ok()?),
            false => None,
        };
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
    mpsc::channel(each * request.limits.new_tokens_max + 3)
}

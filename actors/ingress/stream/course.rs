//! The rows that make one answer, one after another. An answer goes on in another row where its
//! thinking reaches its bound, and where an engine was lost in the middle of it: as randomness has
//! no state, its text goes on as though nothing had happened.
//!
//! A request that kills every engine it comes to must not take the house along, nor those who are
//! there with it. Whoever was running when an engine was lost, and is again at the same place of
//! its text when the next one is, goes on alone: one at a time until there is news of it, and
//! while somebody is tried so, nobody else is to blame. Whoever loses engine after engine at the
//! same place is given up.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use moka::sync::Cache;
use mtplx_core::batch::RowEvent;
use mtplx_core::request::Request;
use mtplx_core::{RequestId, Token};
use ractor::ActorId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::Span;

use crate::admission::{Admission, AtWork, Entry};
use crate::ingress::admission::Readiness;
use crate::metrics;

/// Tokens that are the same place: what one cycle may make.
const PLACE: usize = 5;

/// How long it is remembered what became of a text, and of how many.
const REMEMBERED: Duration = Duration::from_secs(300);
const REMEMBERED_MAX: u64 = 1024;
/// So many of the last engines on which somebody was tried are known.
const TRIED_MAX: usize = 16;

/// Who may be to blame for lost engines: tried one after another.
pub(crate) struct Trial {
    turn: Arc<Semaphore>,
    /// Engines that a text may lose at one place.
    strikes_max: AtomicU32,
    /// Engines on which somebody was tried of whom there was no news.
    engines: Mutex<VecDeque<ActorId>>,
    /// By what was asked, also for whoever asks it again.
    records: Cache<u64, Record>,
}

/// Engines lost in a row at one place of a text.
#[derive(Clone, Copy, Default)]
struct Record {
    strikes: u32,
    place: usize,
}

impl Trial {
    pub(crate) fn new(strikes_max: u32) -> Self {
        let records = Cache::builder().max_capacity(REMEMBERED_MAX).time_to_live(REMEMBERED);
        let (turn, engines) = (Arc::new(Semaphore::new(1)), Mutex::default());
        let strikes_max = AtomicU32::new(strikes_max);
        Self { turn, strikes_max, engines, records: records.build() }
    }

    /// From now on a text may lose so many.
    pub(crate) fn allow(&self, strikes_max: u32) {
        self.strikes_max.store(strikes_max, Ordering::Relaxed);
    }

    fn begin(&self, engine: ActorId) {
        let mut engines = self.engines();
        engines.truncate(TRIED_MAX - 1);
        engines.push_front(engine);
    }

    /// There is news of who was tried there, or nobody waits for it any more.
    fn clear(&self, engine: ActorId) {
        self.engines().retain(|tried| *tried != engine);
    }

    fn engines(&self) -> MutexGuard<'_, VecDeque<ActorId>> {
        // Nothing can go wrong while it is held.
        self.engines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is asked, by whom it may be asked again.
fn key(request: &Request) -> u64 {
    let mut hasher = DefaultHasher::new();
    (request.sharing.tenant.0, &request.prompt).hash(&mut hasher);
    hasher.finish()
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
    /// Of the HTTP request.
    span: Span,
    /// Whose the row is; nobody's while it waits.
    entry: Arc<OnceLock<Entry>>,
    /// Whether an engine is at work on the row.
    work: AtWork,
    /// When the first came.
    since: Instant,
    record: Record,
    /// While it is tried alone: whoever waits for news of it.
    trial: Option<oneshot::Sender<()>>,
}

impl Course {
    /// A course whose first row, which came then, is on its way in.
    pub(crate) fn new(request: Request, since: Instant, entry: Entry, ways: Ways) -> Self {
        Self::by(Arc::new(OnceLock::from(entry)), request, since, ways)
    }

    fn by(entry: Arc<OnceLock<Entry>>, request: Request, since: Instant, ways: Ways) -> Self {
        let record = ways.trial.records.get(&key(&request)).unwrap_or_default();
        let (tokens, work, span) = (Vec::new(), AtWork::default(), Span::current());
        Self { request, tokens, ways, span, entry, work, since, record, trial: None }
    }

    /// One that leads nowhere else.
    #[cfg(test)]
    pub(crate) fn nowhere() -> Self {
        let ways = Ways {
            readiness: watch::channel(Readiness::Over(String::new())).1,
            permits: Arc::new(Semaphore::new(0)),
            trial: Arc::new(Trial::new(1)),
            last_id: Arc::default(),
            patience: Duration::ZERO,
        };
        Self::by(Arc::default(), crate::oracle::request(0, &[1], 1), Instant::now(), ways)
    }

    /// The row made this.
    pub(crate) fn take(&mut self, token: Token) {
        self.tokens.push(token);
    }

    /// The row has a slot.
    pub(crate) fn seated(&self) {
        self.entry.get().into_iter().for_each(Entry::seated);
    }

    /// Where an engine that is at work on the first row says so.
    pub(crate) fn work(&self) -> AtWork {
        self.work.clone()
    }

    /// Whether engine after engine ended with it, of late.
    pub(crate) fn is_given_up(&self) -> bool {
        self.record.strikes >= self.ways.trial.strikes_max.load(Ordering::Relaxed)
    }

    /// There is news of the row, or nobody waits for any: it gives the turn to the next.
    pub(crate) fn acquit(&mut self) {
        if self.trial.take().is_some()
            && let Some(entry) = self.entry.get()
        {
            self.ways.trial.clear(entry.id());
        }
    }

    /// Goes on behind what was made, with `put` after it, while the row before is leaving. `None`
    /// if there is no room for more.
    pub(crate) fn go_on(&mut self, put: &[Token]) -> Option<mpsc::Receiver<RowEvent>> {
        self.tokens.extend(put);
        let (request, events, receiver) = self.row()?;
        let entry = self.entry.get()?.clone();
        self.work = AtWork::default();
        let (since, work) = (self.since(), self.work.clone());
        let (permits, span) = (Arc::clone(&self.ways.permits), self.span.clone());
        tokio::spawn(async move {
            // Who waits is served before whoever comes after.
            let Ok(permit) = permits.acquire_owned().await else { return };
            if !events.is_closed() {
                entry.open(Admission { request, events, permit, since, work, span });
            }
        });
        Some(receiver)
    }

    /// Goes on where the row was lost, with the next engine. `None` if there is no next one, or if
    /// this answer had better not come to it.
    pub(crate) fn resume(&mut self) -> Option<mpsc::Receiver<RowEvent>> {
        // A row that never found an engine is not lost: there is none.
        let last = self.entry.get()?.id();
        self.judge(last);
        if self.is_given_up() {
            let (request, made) = (self.request.id.0, self.tokens.len());
            tracing::error!(request, made, "every engine ends with it: it is given up");
            return None;
        }
        let (request, events, receiver) = self.row()?;
        tracing::warn!(request = self.request.id.0, row = request.id.0, "going on elsewhere");
        (self.entry, self.work) = (Arc::default(), AtWork::default());
        // Who has made something waits for a slot from when an engine is there to have one.
        let came = self.tokens.is_empty().then_some(self.since);
        let work = self.work.clone();
        let (trial, news) = (self.record.strikes > 1).then(oneshot::channel).unzip();
        self.trial = trial;
        let (ways, own) = (self.ways.clone(), Arc::clone(&self.entry));
        let span = self.span.clone();
        tokio::spawn(async move {
            let entered = tokio::select! {
                entered = ways.clone().enter(&request, last, news.is_some()) => entered,
                () = events.closed() => None,
            };
            let Some(Place { permit, turn, entry }) = entered else { return };
            if turn.is_some() {
                ways.trial.begin(entry.id());
            }
            metrics::resumed();
            // Before there can be news of it.
            let _ = own.set(entry.clone());
            let since = came.unwrap_or_else(Instant::now);
            // One that is gone again drops it.
            entry.open(Admission { request, events, permit, since, work, span });
            // It is the answer's from now on, and counts as long as that is there.
            drop(entry);
            if let Some(news) = news {
                // It ends by being dropped.
                let _ = news.await;
            }
            drop(turn);
        });
        Some(receiver)
    }

    /// Whether the loss of its engine tells against it.
    fn judge(&mut self, last: ActorId) {
        let tried = self.trial.take().is_some();
        let other = !tried && self.ways.trial.engines().contains(&last);
        if !self.work.is() || other {
            return;
        }
        let (here, Record { strikes, place }) = (self.tokens.len(), self.record);
        let same = strikes > 0 && here.abs_diff(place) < PLACE;
        self.record = Record { strikes: if same { strikes + 1 } else { 1 }, place: here };
        self.ways.trial.records.insert(key(&self.request), self.record);
    }

    /// Since when it waits: one that made something does so anew.
    fn since(&self) -> Instant {
        if self.tokens.is_empty() { self.since } else { Instant::now() }
    }

    /// The next row.
    fn row(&self) -> Option<(Request, mpsc::Sender<RowEvent>, mpsc::Receiver<RowEvent>)> {
        let id = RequestId(self.ways.last_id.fetch_add(1, Ordering::Relaxed) + 1);
        let request = self.request.resume(id, &self.tokens)?;
        let (events, receiver) = channel(&request);
        Some((request, events, receiver))
    }
}

impl Drop for Course {
    fn drop(&mut self) {
        self.acquit();
    }
}

/// A place in the house, for a row that lost its own.
struct Place {
    permit: OwnedSemaphorePermit,
    /// The turn of one that is tried alone.
    turn: Option<OwnedSemaphorePermit>,
    entry: Entry,
}

impl Ways {
    /// Waits for a place, for its turn where it is to be tried alone, and for another engine than
    /// the last.
    async fn enter(mut self, request: &Request, last: ActorId, alone: bool) -> Option<Place> {
        let permit = self.permits.acquire_owned().await.ok()?;
        let mut over = self.readiness.clone();
        let turn = match alone {
            true => tokio::select! {
                turn = Arc::clone(&self.trial.turn).acquire_owned() => Some(turn.ok()?),
                _ = over.wait_for(|readiness| matches!(readiness, Readiness::Over(_))) => None?,
            },
            false => None,
        };
        let next = async {
            loop {
                let entry = match &*self.readiness.borrow_and_update() {
                    Readiness::Between(_) => None,
                    Readiness::Serving(served) => served.entry(request, Some(last)),
                    Readiness::Over(_) => return None,
                };
                match entry {
                    Some(entry) => return Some(entry),
                    None => self.readiness.changed().await.ok()?,
                }
            }
        };
        let entry = tokio::time::timeout(self.patience, next).await.ok()??;
        Some(Place { permit, turn, entry })
    }
}

/// A stream with room for every event there can be. It takes memory for those that are in it only,
/// in blocks of 32.
pub(crate) fn channel(request: &Request) -> (mpsc::Sender<RowEvent>, mpsc::Receiver<RowEvent>) {
    let each = 1 + usize::from(request.sampling.logprobs.is_some());
    mpsc::channel(each * request.limits.new_tokens_max + 3)
}

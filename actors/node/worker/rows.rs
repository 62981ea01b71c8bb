//! The rows that a node makes for its gateway: from the order to the news of them.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mtplx_core::RequestId;
use mtplx_core::batch::RowEvent;
use mtplx_core::request::{Finish, Usage};
use ractor::ActorRef;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::Span;

use super::{Link, Message, Ready, State};
use crate::admission::{Admission, AtWork, Served};
use crate::bank;
use crate::ingress::{Bound, channel};
use crate::node::wire::{self, Asked, Letter, News, Order, Word};

/// What rows make within this goes as one message: it is what a cycle makes.
const GATHER_TIME: Duration = Duration::from_millis(1);
/// News in one message.
const NEWS_MAX: usize = 4096;

/// A row that is made here.
pub(super) struct Made {
    /// Dropped with it, which cancels it.
    _cancel: oneshot::Sender<()>,
    /// Whether the engine is at work on it.
    work: AtWork,
}

/// What rows have made and was not sent yet; clones are the same.
#[derive(Clone)]
pub(super) struct Outbox {
    pub(super) news: Arc<Mutex<Vec<(u64, News)>>>,
    pub(super) worker: ActorRef<Message>,
}

impl Outbox {
    fn put(&self, row: u64, news: News) {
        let mut all = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        all.push((row, news));
        if all.len() == 1 {
            // Its handle need not be kept: it ends by itself.
            drop(self.worker.send_after(GATHER_TIME, || Message::Send));
        }
    }

    fn take(&self) -> Vec<(u64, News)> {
        std::mem::take(&mut self.news.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    pub(super) fn hear(&mut self, myself: &ActorRef<Message>, bytes: &[u8]) {
        let Some(Letter::<Order> { epoch, what }) = wire::read(bytes) else {
            tracing::warn!(bytes = bytes.len(), "the gateway said what nobody understands");
            return;
        };
        let Link::Member(member) = &mut self.link else { return };
        if member.of.epoch != epoch {
            return;
        }
        member.heard = Instant::now();
        match what {
            Order::Open { row, asked } => self.open(myself, row, *asked),
            Order::Cancel(rows) => {
                for row in rows {
                    // What is dropped is cancelled; that it has left is said when it has.
                    member.rows.remove(&row);
                }
                self.rest();
            }
            Order::Beat(stamp) => self.say(Word::Beat(stamp)),
            Order::Drain => {
                self.draining = true;
                self.rest();
            }
            Order::Resume => self.draining = false,
            Order::Part => {
                tracing::warn!(gateway = self.of.gateway, "the gateway ended the membership");
                self.link = Link::Apart;
                self.rest();
                myself.send_after(self.pause, || Message::Join);
            }
        }
    }

    fn open(&mut self, myself: &ActorRef<Message>, row: u64, mut asked: Asked) {
        let Link::Member(member) = &mut self.link else { return };
        let outbox = member.outbox.clone();
        let Some(info) = self.engine.as_ref().map(|engine| Arc::clone(&engine.info)) else {
            return outbox.put(row, News::Left(false));
        };
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            return outbox.put(row, News::Left(false));
        };
        if !asked.is_sound(info.vocab, info.context_tokens_max) {
            tracing::error!(row, "the gateway asks for what cannot be");
            outbox.put(row, News::Finished(Finish::Fault.into(), Usage::default().into()));
            return outbox.put(row, News::Left(false));
        }
        let (cancel, cancelled) = oneshot::channel();
        let work = AtWork::default();
        member.rows.insert(row, Made { _cancel: cancel, work: work.clone() });
        let epoch = member.of.epoch;
        let id = RequestId(self.last_id.fetch_add(1, Ordering::Relaxed) + 1);
        let (grammars, myself) = (Arc::clone(&self.grammars), myself.clone());
        let ready = async move {
            let (grammar, bound) = match asked.grammar.take() {
                Some(source) => grammars
                    .constraint(source, info.vocab)
                    .await
                    .map(|(g, b)| (Some(g), Some(b)))?,
                None => (None, None),
            };
            let request = asked.request(id, grammar);
            let (sender, events) = channel(&request);
            let (since, span) = (Instant::now(), Span::none());
            let admission = Some(Admission { request, events: sender, permit, since, work, span });
            Some(Ready { epoch, row, admission, events, bound, cancelled })
        };
        tokio::spawn(async move {
            match ready.await {
                // A worker that is gone runs nothing.
                Some(ready) => drop(myself.cast(Message::Ready(Box::new(ready)))),
                None => {
                    tracing::error!(row, "a grammar that the gateway compiled does not compile");
                    outbox.put(row, News::Finished(Finish::Fault.into(), Usage::default().into()));
                    outbox.put(row, News::Left(false));
                }
            }
        });
    }

    pub(super) fn run(&mut self, ready: Ready) {
        let Link::Member(member) = &self.link else { return };
        if member.of.epoch != ready.epoch {
            return;
        }
        let outbox = member.outbox.clone();
        let bank = self.engine.as_ref().and_then(Served::bank);
        let Ready { row, admission, events, bound, cancelled, .. } = ready;
        let work = admission.as_ref().map(|admission| admission.work.clone()).unwrap_or_default();
        if let (Some(bank), Some(admission)) = (bank, admission) {
            // One that is gone drops it, which ends what is carried.
            let _ = bank.cast(bank::Message::Open(admission));
        }
        let carried = async move {
            carry(row, events, bound, cancelled, &outbox).await;
            outbox.put(row, News::Left(work.is()));
        };
        tokio::spawn(carried);
    }

    /// Says of all rows that they have left with their engine. It is gone before its streams are
    /// found to be closed: who waited for that would blame nobody.
    pub(super) fn leave(&mut self) {
        let Link::Member(member) = &mut self.link else { return };
        let failed = self.leaving.is_empty();
        let left = |(row, made): (u64, Made)| (row, News::Left(failed && made.work.is()));
        let left: Vec<_> = std::mem::take(&mut member.rows).into_iter().map(left).collect();
        if !left.is_empty() {
            self.say(Word::News(left));
        }
    }

    /// Sends what was gathered, and forgets those that have left.
    pub(super) fn send(&mut self) {
        let Link::Member(member) = &mut self.link else { return };
        let mut news = member.outbox.take();
        for (row, news) in &mut news {
            if let News::Left(at_work) = news {
                member.rows.remove(row);
                // An engine that is told to end did not fail.
                *at_work &= self.leaving.is_empty();
            }
        }
        while !news.is_empty() {
            let rest = news.split_off(news.len().min(NEWS_MAX));
            self.say(Word::News(std::mem::replace(&mut news, rest)));
        }
        self.rest();
    }
}

/// Takes what a row makes to the outbox, until it has left.
async fn carry(
    row: u64,
    mut events: mpsc::Receiver<RowEvent>,
    bound: Option<Bound>,
    mut cancelled: oneshot::Receiver<()>,
    outbox: &Outbox,
) {
    let mut wanted = true;
    loop {
        let event = tokio::select! {
            // What is dropped without a word is cancelled, too.
            _ = &mut cancelled, if wanted => {
                wanted = false;
                events.close();
                continue;
            }
            event = events.recv() => event,
        };
        let Some(event) = event else { break };
        if !wanted {
            continue;
        }
        if let (RowEvent::Finished(Finish::Fault, _), Some(why)) =
            (&event, bound.as_ref().and_then(|bound| bound.why()))
        {
            outbox.put(row, News::GaveUp(why.to_owned()));
        }
        outbox.put(row, event.into());
    }
}

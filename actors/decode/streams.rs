//! The streams of those who are served, by request.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mtplx_core::RequestId;
use mtplx_core::batch::RowEvent;
use mtplx_core::request::{Request, Usage};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant;
use tracing::field::Empty;
use tracing::{Span, info_span};

use crate::admission::{Admission, AtWork};
use crate::metrics;

#[derive(Debug)]
struct Stream {
    events: Sender<RowEvent>,
    /// Given back when the stream is dropped.
    _permit: OwnedSemaphorePermit,
    since: Instant,
    work: AtWork,
    /// When it got its slot, if it has one.
    seated: Option<Instant>,
    /// When its first tokens came.
    first: Option<Instant>,
    /// Of the HTTP request, and within it of what happens now.
    span: Span,
    phase: Span,
    /// Cycles that gave it tokens.
    cycles: u64,
    /// What its row cost so far, for the books if it is taken out before its end. Until its first
    /// tokens it counts for nothing.
    usage: Option<Usage>,
}

/// Open streams.
#[derive(Debug, Default)]
pub(super) struct Streams(BTreeMap<RequestId, Stream>);

/// The stream had no room, against the promise of its admission. It was dropped.
#[derive(Debug)]
pub(super) struct Full;

impl Streams {
    /// Keeps what a request came with, and gives it back.
    pub(super) fn open(&mut self, admission: Admission) -> Request {
        let Admission { request, events, permit, since, work, span } = admission;
        let stream = Stream {
            events,
            _permit: permit,
            since,
            work,
            seated: None,
            first: None,
            phase: info_span!(parent: &span, "queue"),
            span,
            cycles: 0,
            usage: None,
        };
        self.0.insert(request.id, stream);
        request
    }

    /// Drops the streams whose clients have left and says whose they were.
    pub(super) fn take_closed(&mut self) -> Vec<RequestId> {
        let closed = self.0.iter().filter(|(_, stream)| stream.events.is_closed());
        let closed: Vec<RequestId> = closed.map(|(&id, _)| id).collect();
        for id in &closed {
            if let Some(usage) = self.0.remove(id).and_then(|stream| stream.usage) {
                metrics::row_finished(&usage);
            }
        }
        closed
    }

    /// Tells those who have waited for a slot as long as anybody is to, and says whose they are.
    pub(super) fn take_late(&mut self, most: Duration) -> Vec<RequestId> {
        let late = self.0.iter().filter(|(_, s)| s.seated.is_none() && s.since.elapsed() >= most);
        let late: Vec<RequestId> = late.map(|(&id, _)| id).collect();
        for &id in &late {
            // Its stream is empty yet.
            let _ = self.publish(id, RowEvent::Late);
        }
        late
    }

    /// These rows have a slot, and no others.
    pub(super) fn seat(&mut self, rows: impl Iterator<Item = RequestId>) {
        let rows: BTreeSet<RequestId> = rows.collect();
        for (id, stream) in &mut self.0 {
            let has_slot = rows.contains(id);
            stream.work.set(has_slot);
            if has_slot && stream.seated.is_none() {
                stream.seated = Some(Instant::now());
                stream.phase = info_span!(parent: &stream.span, "prefill");
                metrics::seated(stream.since.elapsed());
                // There is room for all that a row may say; who left is found by the next cycle.
                let _ = stream.events.try_send(RowEvent::Seated);
            }
        }
    }

    /// A span of a chunk of this row's prompt.
    pub(super) fn chunk(&self, id: RequestId, start: usize, end: usize) -> Span {
        match self.0.get(&id) {
            Some(stream) => info_span!(parent: &stream.phase, "chunk", start, end),
            None => Span::none(),
        }
    }

    /// Sends an event; the last one closes the stream. A client that has left is not missed here:
    /// its row goes before the next cycle.
    pub(super) fn publish(&mut self, id: RequestId, event: RowEvent) -> Result<(), Full> {
        let Some(stream) = self.0.get_mut(&id) else { return Ok(()) };
        let (usage, last) = match &event {
            RowEvent::Logprobs(_) | RowEvent::Seated => (stream.usage, false),
            RowEvent::Tokens(_, usage) => (Some(*usage), false),
            RowEvent::Finished(_, usage) => (Some(*usage), true),
            // It never ran.
            RowEvent::Refused(_) | RowEvent::Late => (None, true),
        };
        stream.usage = usage;
        stream.measure(&event);
        if last {
            // Before its client hears of it and may look.
            usage.iter().for_each(metrics::row_finished);
        }
        let full = matches!(stream.events.try_send(event), Err(TrySendError::Full(_)));
        if full && !last {
            usage.iter().for_each(metrics::row_finished);
        }
        if last || full {
            self.0.remove(&id);
        }
        if full { Err(Full) } else { Ok(()) }
    }
}

impl Stream {
    /// Its first tokens, and its last.
    fn measure(&mut self, event: &RowEvent) {
        let now = Instant::now();
        match event {
            RowEvent::Tokens(_, usage) => {
                if let (Some(seated), None) = (self.seated, self.first) {
                    metrics::prefilled(now - seated);
                    self.first = Some(now);
                    self.phase = info_span!(
                        parent: &self.span, "decode", cycles = Empty, tokens = Empty,
                        drafted = Empty, accepted = Empty, cached = usage.cached
                    );
                }
                self.cycles += 1;
            }
            RowEvent::Finished(_, usage) => {
                if let Some(first) = self.first {
                    metrics::decoded(now - first);
                }
                self.phase.record("cycles", self.cycles).record("tokens", usage.generated);
                self.phase.record("drafted", usage.drafted).record("accepted", usage.accepted);
            }
            RowEvent::Logprobs(_) | RowEvent::Seated | RowEvent::Refused(_) | RowEvent::Late => {}
        }
    }
}

#[cfg(test)]
mod tests;

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

use crate::admission::{Admission, AtWork};
use crate::metrics;

#[derive(Debug)]
struct Stream {
    events: Sender<RowEvent>,
    /// Given back when the stream is dropped.
    _permit: OwnedSemaphorePermit,
    since: Instant,
    work: AtWork,
    /// Whether it has no slot yet.
    waiting: bool,
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
        let Admission { request, events, permit, since, work } = admission;
        let stream = Stream { events, _permit: permit, since, work, waiting: true, usage: None };
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
        let late = self.0.iter().filter(|(_, s)| s.waiting && s.since.elapsed() >= most);
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
            if has_slot && std::mem::take(&mut stream.waiting) {
                metrics::seated(stream.since.elapsed());
                // There is room for all that a row may say; who left is found by the next cycle.
                let _ = stream.events.try_send(RowEvent::Seated);
            }
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

#[cfg(test)]
mod tests;

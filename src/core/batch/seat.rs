//! Who gets a seat: slots, pages and memory for those who wait, and the end of those who would wait
//! for ever.

use super::{
    Batch, Finish, Move, Request, RequestId, Row, RowEvent, Shortage, Usage, Waiting, Warm,
};
use crate::guard;

/// What the engine said of its memory.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Measured {
    bytes: u64,
    /// Pages that had been touched by then.
    pages: usize,
}

impl Batch {
    /// The engine uses so many bytes now. States that are saved by the next step are not in it.
    pub fn measured(&mut self, bytes: u64) {
        let saves = self.moves.iter().filter(|m| matches!(m, Move::Save { .. })).count() as u64;
        let (pages, _) = self.ledger.touched();
        self.memory = Measured { bytes: bytes + saves * self.info.snapshot_bytes, pages };
    }

    /// Bytes in use by the worse of two counts: what was measured, and taken since; and the books.
    #[must_use]
    pub fn used(&self) -> u64 {
        let (pages, states) = self.ledger.touched();
        let new = pages.saturating_sub(self.memory.pages) as u64;
        let books = pages as u64 * self.info.page_bytes + states as u64 * self.info.snapshot_bytes;
        let measured = self.memory.bytes.saturating_add(new * self.info.page_bytes);
        measured.max(self.info.budget.base.saturating_add(books))
    }

    /// Whether another state may be parked beside what running rows were promised.
    pub(super) fn may_park(&self) -> bool {
        let needed = guard::needed(&self.info, self.ledger.rise(0, None));
        guard::check(&self.info, self.used(), needed).is_ok()
    }

    /// One was.
    pub(super) fn parked(&mut self) {
        self.memory.bytes = self.memory.bytes.saturating_add(self.info.snapshot_bytes);
    }

    /// Why the first in the queue is not seated for want of memory, if that is so.
    #[must_use]
    pub fn shortage(&self) -> Option<Shortage> {
        let Waiting { request, warm, .. } = self.waiting.front()?;
        let rise = self.ledger.rise(self.tokens_max(request), warm.map(|w| w.snapshot));
        guard::check(&self.info, self.used(), guard::needed(&self.info, rise)).err()
    }

    /// Whether the bank is of use to the first in the queue: it would find room if all states went
    /// that nobody else holds. If not, it waits for a row to end, and they stay warm. When nothing
    /// runs the bank is always asked: its last answer is how a request that fits nowhere is found.
    #[must_use]
    pub fn letting_go_helps(&self) -> bool {
        let Some(Waiting { request, warm, .. }) = self.waiting.front() else { return false };
        if self.rows.is_empty() {
            return true;
        }
        let own = self.ledger.own(self.tokens_max(request), warm.map(|w| w.snapshot));
        let ((states, pages), (_, free)) = (self.ledger.idle(), self.ledger.free());
        let used = self.used().saturating_sub(states as u64 * self.info.snapshot_bytes);
        let needed = guard::needed(&self.info, self.ledger.rise_after(pages, own));
        // Where rows have all that is theirs, only the end of one of them helps.
        self.ledger.may_own(own)
            && own <= free + pages
            && guard::check(&self.info, used, needed).is_ok()
    }

    /// Takes out the first in the queue if it would wait for ever, because nothing runs, no state
    /// is parked, and still there are too few pages or too little memory for it; and what its
    /// stream is told.
    pub fn give_up(&mut self) -> Option<(RequestId, RowEvent)> {
        if !self.rows.is_empty() || self.ledger.snapshots() > 0 {
            return None;
        }
        let pages = self.tokens_max(&self.waiting.front()?.request).div_ceil(self.info.page_tokens);
        let (_, free) = self.ledger.free();
        let shortage = self.shortage();
        if pages <= free && shortage.is_none() {
            return None;
        }
        let request = self.waiting.pop_front()?.request;
        let usage = Usage { prompt: request.prompt.len(), ..Usage::default() };
        let event = match shortage {
            Some(shortage) => RowEvent::Refused(shortage),
            None => RowEvent::Finished(Finish::Fault, usage),
        };
        Some((request.id, event))
    }

    /// Gives free slots to those who wait, in order of arrival: the front of the queue is who is
    /// next, and nobody else decides that.
    pub(super) fn seat(&mut self, rows_max: usize) {
        while self.rows.len() < rows_max.max(1) {
            self.rewarm();
            let Some(first) = self.waiting.front() else { return };
            if self.shortage().is_some() {
                // What is let go here is memory by the next step only.
                if self.rows.is_empty() {
                    self.cool_one();
                }
                return;
            }
            let tokens_max = self.tokens_max(&first.request);
            let warm = first.warm.map(|w| w.snapshot);
            let Some((slot, holding, copy)) = self.ledger.open(tokens_max, warm) else {
                if self.rows.is_empty() && self.cool_one() {
                    continue;
                }
                return;
            };
            let Some(Waiting { request, warm, .. }) = self.waiting.pop_front() else { return };
            if let Some(copy) = copy {
                self.moves.push(Move::CopyPage { from: copy.from, to: copy.to });
            }
            match warm {
                Some(Warm { snapshot, .. }) => {
                    self.moves.push(Move::Restore { slot, snapshot });
                    self.let_go(snapshot);
                }
                None => self.moves.push(Move::Clear { slot }),
            }
            let cached = warm.map_or(0, |w| w.len);
            self.books.seat(request.prompt.len(), cached);
            self.rows.insert(slot, Row::start(request, holding, cached, self.fed));
        }
    }

    /// Gives the first in the queue the longest state there is for it now: one may have become warm
    /// since the bank looked.
    fn rewarm(&mut self) {
        let named = self.ledger.named();
        let Some(first) = self.waiting.front_mut() else { return };
        if first.looked.is_none_or(|seen| seen == named) {
            return;
        }
        first.looked = Some(named);
        let Request { prompt, sharing, .. } = &first.request;
        let known = first.warm.map_or(0, |w| w.len);
        let found = self.ledger.find(sharing.tenant, prompt);
        let Some((snapshot, len)) = found.filter(|&(_, len)| len > known) else { return };
        self.ledger.hold(snapshot);
        let before = first.warm.replace(Warm { snapshot, len });
        (self.taken_over, _) = (self.taken_over + len - known, self.used.push(snapshot));
        if let Some(before) = before {
            self.let_go(before.snapshot);
        }
    }

    /// Nothing runs and the first in the queue finds no pages: the states that waiting requests
    /// hold to start warm may be what is in the way. The last of them will start cold (L5).
    fn cool_one(&mut self) -> bool {
        let warm = self.waiting.iter_mut().rev().find_map(|w| {
            let warm = w.warm.take();
            // Or it would be given the same again.
            w.looked = w.looked.filter(|_| warm.is_none());
            warm
        });
        if let Some(warm) = warm {
            self.let_go(warm.snapshot);
        }
        warm.is_some()
    }

    /// Tokens a request may come to. One verify cycle may write past the last token it keeps, but
    /// never past this: depth is limited by what is still wanted.
    pub(super) fn tokens_max(&self, request: &Request) -> usize {
        let wanted = request.prompt.len() + request.limits.new_tokens_max;
        wanted.min(self.info.context_tokens_max)
    }
}

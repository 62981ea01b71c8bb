//! Who gets a seat: slots, pages and memory for those who wait, and the end of those who would wait
//! for ever.

use super::{
    Batch, Finish, Move, Request, RequestId, Row, RowEvent, Shortage, Usage, Waiting, Warm,
};
use crate::fairness::Rank;
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
        self.lacks(self.first()?)
    }

    /// The same of another.
    fn lacks(&self, i: usize) -> Option<Shortage> {
        let Waiting { request, warm, .. } = self.waiting.get(i)?;
        let rise = self.ledger.rise(self.tokens_max(request), warm.map(|w| w.snapshot));
        guard::check(&self.info, self.used(), guard::needed(&self.info, rise)).err()
    }

    /// Whether the bank is of use to the first in the queue: it would find room if all states went
    /// that nobody else holds. If not, it waits for a row to end, and they stay warm. When nothing
    /// runs the bank is always asked: its last answer is how a request that fits nowhere is found.
    #[must_use]
    pub fn letting_go_helps(&self) -> bool {
        let first = self.first().and_then(|i| self.waiting.get(i));
        let Some(Waiting { request, warm, .. }) = first else { return false };
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
        let first = self.first()?;
        let pages = self.tokens_max(&self.waiting[first].request).div_ceil(self.info.page_tokens);
        let (_, free) = self.ledger.free();
        let shortage = self.shortage();
        if pages <= free && shortage.is_none() {
            return None;
        }
        let usage = Usage { prompt: self.waiting[first].request.prompt.len(), ..Usage::default() };
        let request = self.take_out(first)?;
        let event = match shortage {
            Some(shortage) => RowEvent::Refused(shortage),
            None => RowEvent::Finished(Finish::Fault, usage),
        };
        Some((request.id, event))
    }

    /// Who is next: of those who wait, the one whose client got least; nobody else decides that.
    pub(super) fn first(&self) -> Option<usize> {
        let mut best: Option<(usize, Rank)> = None;
        for (i, waiting) in self.waiting.iter().enumerate() {
            let standing = waiting.request.standing;
            let before = best.map(|(i, _)| self.waiting[i].request.standing);
            // Whoever came later is not before its like: the queue is in order of arrival.
            if before == Some(standing) {
                continue;
            }
            let rank = self.fairness.rank(standing, waiting.arrived);
            if best.is_none_or(|(_, least)| rank < least) {
                best = Some((i, rank));
            }
        }
        best.map(|(i, _)| i)
    }

    /// Gives free slots to those who wait. Where there is none, one row may step back.
    pub(super) fn seat(&mut self, rows_max: usize) {
        let (rows_max, mut stepped_back) = (rows_max.max(1), false);
        self.cramped = false;
        while let Some(first) = self.first() {
            self.rewarm(first);
            if self.rows.len() < rows_max {
                if self.lacks(first).is_some() {
                    // What is let go here is memory by the next step only.
                    if self.rows.is_empty() {
                        self.cool_one();
                        return;
                    }
                } else if self.give_slot(first) || self.rows.is_empty() && self.cool_one() {
                    continue;
                }
            }
            if stepped_back || !self.step_back(first, rows_max) {
                return;
            }
            stepped_back = true;
        }
    }

    /// Seats one who waits, if there are a slot and pages.
    fn give_slot(&mut self, i: usize) -> bool {
        let Some(Waiting { request, warm, .. }) = self.waiting.get(i) else { return false };
        let opened = self.ledger.open(self.tokens_max(request), warm.map(|w| w.snapshot));
        let Some((slot, holding, copy)) = opened else { return false };
        let Some(waiting) = self.waiting.remove(i) else { return false };
        let Waiting { request, warm, begun, arrived, .. } = waiting;
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
        let since = self.fairness.fed(request.standing.client);
        let restored = warm.map_or(0, |w| w.len);
        let (new, reached) = match &begun {
            Some(begun) => (0, begun.reached),
            None => (request.prompt.len(), 0),
        };
        let row = Row::start((request, begun, arrived), holding, restored, since);
        self.books.seat(new, row.reached - reached);
        self.rows.insert(slot, row);
        true
    }

    /// Gives one who waits the longest state there is for it now: one may have become warm since
    /// the bank looked.
    fn rewarm(&mut self, i: usize) {
        let named = self.ledger.named();
        let Some(waiting) = self.waiting.get_mut(i) else { return };
        if waiting.looked.is_none_or(|seen| seen == named) {
            return;
        }
        waiting.looked = Some(named);
        let known = waiting.warm.map_or(0, |w| w.len);
        let found = self.ledger.find(waiting.request.sharing.tenant, waiting.tokens());
        let Some((snapshot, len)) = found.filter(|&(_, len)| len > known) else { return };
        self.ledger.hold(snapshot);
        let before = waiting.warm.replace(Warm { snapshot, len });
        (self.taken_over, _) = (self.taken_over + len - known, self.used.push(snapshot));
        if let Some(before) = before {
            self.let_go(before.snapshot);
        }
    }

    /// Nothing runs and the first in the queue finds no pages: the states that waiting requests
    /// hold to start warm may be what is in the way. The last of them will start cold (L5); one
    /// that stepped back computes all again, and will not step back once more.
    fn cool_one(&mut self) -> bool {
        let warm = self.waiting.iter_mut().rev().find_map(|w| {
            let warm = w.warm.take();
            if warm.is_some() {
                // Or it would be given the same again.
                w.looked = None;
                w.begun.iter_mut().for_each(|begun| begun.firm = true);
            }
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

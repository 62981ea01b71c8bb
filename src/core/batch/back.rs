//! Rows that step back: a client that has none gets a slot although others have all of them.
//!
//! A row of a client that has more than its share of slots is parked and waits, and goes on later
//! where it stood. Its text stays what it is: a state is parked exactly, and a number drawn is a
//! function of seed and position. It is bounded: one row a step, none that others wait for, none
//! before it has got something done, and never for another request of its own client, unless it is
//! background work, which gives way to whatever somebody waits for.

use super::row::Begun;
use super::{Arc, Batch, Class, Move, Prefix, Row, Slot, Waiting, Warm};
use crate::guard;

/// Tokens that a row may generate before it steps back.
pub(super) const MADE_MIN: usize = 64;

/// Tokens of a prompt that may be fed before it steps back. One of which nothing was fed may do so
/// at once: it has got nothing done.
pub(super) const FED_MIN: usize = 4096;

impl Batch {
    /// Whether a row would have stepped back if its state could have been parked: then the bank is
    /// of use.
    #[must_use]
    pub fn is_cramped(&self) -> bool {
        self.cramped && self.ledger.idle().0 > 0
    }

    /// Makes a row step back for one who waits, if there is one that should.
    pub(super) fn step_back(&mut self, i: usize, rows_max: usize) -> bool {
        let Some(first) = self.waiting.get(i) else { return false };
        let client = first.request.standing.client;
        let has_row = self.rows.values().any(|row| row.request.standing.client == client);
        // Where there are more rows than there may be, one that leaves is not replaced.
        if self.rows.len() > rows_max {
            return false;
        }
        let parts = self.rows.iter().filter(|(_, row)| self.should_step_back(row, first));
        let parts = parts.filter(|(_, row)| !has_row || self.gives_way(row, first));
        let parts = parts.filter(|(_, row)| self.fits_instead(row, first));
        // Of equals the youngest, which lost least.
        let slot = parts.max_by_key(|(_, row)| {
            (self.rank(row), row.fed == 0 && !row.is_decoding(), row.request.id)
        });
        let Some((&slot, row)) = slot else { return false };
        if row.computed > 0 && self.known(row).is_none() && !self.has_room() {
            self.cramped = true;
            return false;
        }
        self.park(slot);
        true
    }

    /// Whether a row is of those that have time, and the one who waits is not.
    fn gives_way(&self, row: &Row, first: &Waiting) -> bool {
        let (first_class, ..) = self.fairness.rank(first.request.standing, first.arrived);
        self.rank(row).0 == Class::Background && first_class == Class::Interactive
    }

    /// Whether a row has had its turn and its client more than its share.
    fn should_step_back(&self, row: &Row, first: &Waiting) -> bool {
        let (mine, theirs) = (row.request.standing, first.request.standing);
        let had = if row.is_decoding() {
            row.tokens.len() - row.start >= MADE_MIN
        } else {
            row.fed == 0 || row.fed >= FED_MIN
        };
        let id = row.request.id;
        let led = || self.rows.values().any(|r| r.follows.is_some_and(|f| f.leader == id));
        if row.firm || !had || led() {
            return false;
        }
        let (class, counter) = self.rank(row);
        let (first_class, least, _) = self.fairness.rank(theirs, first.arrived);
        if class != first_class {
            return self.gives_way(row, first);
        }
        let own = |r: &&Row| r.request.standing.client == mine.client;
        let rows = self.rows.values().filter(own).count();
        // As many as run are all there is room for.
        let seats = self.rows.len();
        counter > least && self.fairness.is_beyond_share(mine.client, rows, seats)
    }

    /// Whether one who waits would find pages and memory in place of a row that is parked.
    fn fits_instead(&self, row: &Row, first: &Waiting) -> bool {
        let own = self.ledger.own(self.tokens_max(&first.request), first.warm.map(|w| w.snapshot));
        let rise = self.ledger.rise_without(&row.holding, own);
        let parked = if row.computed > 0 { self.info.snapshot_bytes } else { 0 };
        let used = self.used().saturating_add(parked);
        self.ledger.opens_without(&row.holding, own)
            && guard::check(&self.info, used, guard::needed(&self.info, rise)).is_ok()
    }

    fn prefix(row: &Row) -> Prefix {
        let tenant = row.request.sharing.tenant;
        Prefix { tenant, tokens: Arc::from(&row.tokens[..row.computed]) }
    }

    /// The state of exactly what a row has computed, if it is parked already.
    fn known(&self, row: &Row) -> Option<Warm> {
        let snapshot = self.ledger.same(&Self::prefix(row))?;
        Some(Warm { snapshot, len: row.computed })
    }

    /// Parks a row for itself alone; it waits where it stood by its arrival.
    fn park(&mut self, slot: Slot) {
        let Some(row) = self.rows.get(&slot) else { return };
        let (len, known) = (row.computed, self.known(row));
        let warm = match known {
            Some(Warm { snapshot, .. }) => {
                self.ledger.hold(snapshot);
                known
            }
            None if len == 0 => None,
            None => {
                let snapshot = self.ledger.park(&row.holding, Self::prefix(row));
                self.moves.push(Move::Save { slot, snapshot, len });
                // Held by whoever waits, not by the bank: nobody else starts from it.
                self.ledger.hold(snapshot);
                self.ledger.unbank(snapshot);
                self.parked();
                Some(Warm { snapshot, len })
            }
        };
        let Some(mut row) = self.rows.remove(&slot) else { return };
        self.ledger.close(slot, std::mem::take(&mut row.holding));
        let Row { request, tokens, seen, usage, reached, arrived, .. } = row;
        let begun = Some(Begun { tokens, seen, usage, reached, firm: false });
        let looked = Some(self.ledger.named());
        let place = self.waiting.partition_point(|waiting| waiting.arrived < arrived);
        self.waiting.insert(place, Waiting { request, warm, looked, arrived, begun });
        self.stepped_back += 1;
    }
}

//! Rows that pause: while a prompt is fed whose client got no more than theirs, rows of a client
//! that has more than its share of slots are left out of the step, so that the first token of who
//! takes little does not wait for what is made for who takes much.
//!
//! What is fed is charged, so such a client is soon the one that got more, and the others go on: a
//! short prompt costs them a step, a long one no more of them than its tokens weigh. Nobody pauses
//! for its own client, nor for work that has time.

use std::collections::BTreeSet;

use super::{Batch, Class, Row, Slot};

impl Batch {
    /// Rows that are left out of the next step.
    pub(super) fn pausing(&self) -> BTreeSet<Slot> {
        let fed = self.rows.values().filter(|row| !row.is_decoding() && row.follows.is_none());
        let fed = fed.filter(|row| !self.has_too_much(row)).map(|row| self.rank(row));
        let first = fed.filter(|(class, _)| *class == Class::Interactive).min();
        let Some(first) = first else { return BTreeSet::new() };
        let rows = self.rows.iter().filter(|(_, row)| row.is_decoding());
        let pausing = rows.filter(|(_, row)| self.rank(row) >= first && self.has_too_much(row));
        pausing.map(|(&slot, _)| slot).collect()
    }

    /// Whether a row's client has more than its share of the slots that are taken.
    fn has_too_much(&self, row: &Row) -> bool {
        let client = row.request.standing.client;
        let rows = self.rows.values().filter(|row| row.request.standing.client == client);
        self.fairness.is_beyond_share(client, rows.count(), self.rows.len())
    }
}

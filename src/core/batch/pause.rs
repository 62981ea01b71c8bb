//! Rows that pause: where a step could feed all of a prompt whose client got no more than others,
//! rows of clients that have more than their share of slots are left out of it, so that the first
//! token of who takes little does not wait for what is made for who takes much.
//!
//! Nobody pauses for its own client, for work that has time, twice in a row, or for a prompt that
//! takes longer than [`STRETCH`] says: a stream that pauses has a gap of few steps, and a long
//! prompt is fed beside it, chunk by chunk, until its rest is short.

use std::collections::BTreeSet;

use super::{Batch, Class, Knobs, Row, Slot};

/// How many times as long as without the prompt a stream that pauses may wait for its next token.
const STRETCH: f64 = 3.0;

/// What a step leaves out, and what for.
#[derive(Debug, Default)]
pub(super) struct Pause {
    /// Rows that decode, and not in this step.
    pub rows: BTreeSet<Slot>,
    /// Prompt tokens that are fed instead; 0 if nobody pauses.
    pub tokens: usize,
}

impl Batch {
    /// Who is left out of the next step.
    pub(super) fn pause(&self, knobs: &Knobs) -> Pause {
        let fed = self.rows.values().filter(|row| !row.is_decoding() && row.follows.is_none());
        let fed = fed.filter(|row| !self.has_too_much(row));
        let fed = fed.map(|row| (self.rank(row), row.start.saturating_sub(row.computed)));
        let mut fed: Vec<_> = fed.filter(|((class, _), _)| *class == Class::Interactive).collect();
        fed.sort_unstable();
        let Some(&(first, _)) = fed.first().filter(|_| !self.paused) else {
            return Pause::default();
        };
        let rows = self.rows.iter().filter(|(_, row)| row.is_decoding());
        let rows = rows.filter(|(_, row)| self.rank(row) >= first && self.has_too_much(row));
        let rows: BTreeSet<Slot> = rows.map(|(&slot, _)| slot).collect();
        let decoding = self.rows.values().filter(|row| row.is_decoding()).count();
        let depth = knobs.depths.at(decoding);
        // Without a stretch chunks are what settings say, and unknown costs are no leave for more.
        let within = knobs.stretch.and(self.costs.prefill_within(decoding, depth, STRETCH));
        let room = knobs.prefill_idle.saturating_sub(decoding * (1 + usize::from(depth)));
        let most = within.unwrap_or(knobs.prefill_busy).min(room);
        let sums = fed.iter().scan(0, |sum, (_, left)| {
            *sum += left;
            Some(*sum)
        });
        match sums.take_while(|&sum| sum <= most).last() {
            Some(tokens) if tokens > 0 && !rows.is_empty() => Pause { rows, tokens },
            _ => Pause::default(),
        }
    }

    /// Whether a row's client has more than its share of the slots that are taken.
    fn has_too_much(&self, row: &Row) -> bool {
        let client = row.request.standing.client;
        let rows = self.rows.values().filter(|row| row.request.standing.client == client);
        self.fairness.is_beyond_share(client, rows.count(), self.rows.len())
    }
}

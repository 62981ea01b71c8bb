//! Rows that pause: while a short prompt is fed whose client got no more than others, rows of
//! clients that have more than their share of slots are left out of every other step, so that the
//! first token of who takes little does not wait for what is made for who takes much.
//!
//! Nobody pauses for its own client, for work that has time, or twice in a row. A step without them
//! takes no longer than [`STRETCH`] says, and a prompt that wants more than [`PAUSES`] of these is
//! fed beside them all, chunk by chunk, until its rest is short: so a stream's gaps are few steps
//! long, and few in a row.

use std::collections::{BTreeMap, BTreeSet};

use super::{Batch, Class, Knobs, Slot};
use crate::fairness::Client;

/// How many times as long as a step that decodes one may take for which rows pause.
const STRETCH: f64 = 3.0;

/// A prompt is short that so many of these steps would do for; with others, or cut at a place where
/// its state is kept, it may have some more.
const PAUSES: usize = 4;

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
        if self.paused {
            return Pause::default();
        }
        let mut turns = self.turns();
        if turns.is_empty() {
            return Pause::default();
        }
        turns.sort_unstable();
        let (most, heavy) = (self.paused_for_most(knobs), self.heavy());
        let fed = turns.into_iter().filter_map(|(.., slot)| {
            let row = self.rows.get(&slot)?;
            let left = row.start.saturating_sub(row.computed);
            // One that a state covers takes nothing from the others.
            (left > 0).then(|| (self.rank(row), left, heavy.contains(&row.request.standing.client)))
        });
        // In the order in which they will be fed, as far as they are worth it.
        let mut fed = fed
            .take_while(|&((class, _), left, is_heavy)| {
                class == Class::Interactive && left <= PAUSES * most && !is_heavy
            })
            .peekable();
        let Some(&(first, ..)) = fed.peek() else { return Pause::default() };
        let tokens = fed.map(|(_, left, _)| left).sum::<usize>().min(most);
        let rows = self.rows.iter().filter(|(_, row)| row.is_decoding());
        let rows = rows.filter(|(_, row)| heavy.contains(&row.request.standing.client));
        let rows = rows.filter(|(_, row)| self.rank(row) >= first);
        let rows: BTreeSet<Slot> = rows.map(|(&slot, _)| slot).collect();
        if tokens == 0 || rows.is_empty() { Pause::default() } else { Pause { rows, tokens } }
    }

    /// Most prompt tokens of a step for which rows pause.
    fn paused_for_most(&self, knobs: &Knobs) -> usize {
        let decoding = self.rows.values().filter(|row| row.is_decoding()).count();
        let depth = knobs.depths.at(decoding);
        // Without a stretch chunks are what settings say, and unknown costs are no leave for more.
        let within = knobs.stretch.and(self.costs.prefill_within(decoding, depth, STRETCH));
        let room = knobs.prefill_idle.saturating_sub(decoding * (1 + usize::from(depth)));
        within.unwrap_or(knobs.prefill_busy).min(room)
    }

    /// Clients that have more than their share of the slots that are taken; nobody's only row is
    /// too much, however many wait.
    fn heavy(&self) -> BTreeSet<Client> {
        let mut clients: BTreeMap<Client, usize> = BTreeMap::new();
        for row in self.rows.values() {
            *clients.entry(row.request.standing.client).or_default() += 1;
        }
        let seats = self.rows.len();
        let beyond = |&(client, rows): &(Client, usize)| {
            rows > 1 && self.fairness.is_beyond_share(client, rows, seats)
        };
        clients.into_iter().filter(beyond).map(|(client, _)| client).collect()
    }
}

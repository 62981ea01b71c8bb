//! What several prompts begin with is computed once: of rows that have it in common one computes
//! it, the others wait for its state and go on from there.
//!
//! Who waits has its seat. It waits no longer than it would take itself: the one it waits for takes
//! its turn as early as the most urgent of those who wait. If that one leaves, or its state finds
//! no room, they go on by themselves. Only who does not wait is waited for, so nobody waits in a
//! circle.

use std::collections::BTreeMap;

use super::row::Turn;
use super::{Batch, Class, Move, RequestId, Row, Slot, SnapshotId};
use crate::prefix::common;

/// Fewer tokens than this are computed sooner than waited for.
const WORTH: usize = 32;

/// A boundary is preferred to a later place that is no further from it than this: its state is
/// kept anyway.
const NEAR: usize = 64;

/// A row waits for the state of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Follow {
    pub(super) leader: RequestId,
    /// Tokens that the state will cover.
    pub(super) at: usize,
}

impl Batch {
    /// Finds somebody to wait for, for each row that has nobody or lost whom it had.
    pub(super) fn elect(&mut self) {
        let mut rows: Vec<(RequestId, Slot)> =
            self.rows.iter().map(|(&slot, row)| (row.request.id, slot)).collect();
        rows.sort_unstable();
        for (_, slot) in rows {
            let Some(row) = self.rows.get(&slot) else { continue };
            let lost = row.follows.is_some_and(|follow| !self.is_coming(follow));
            if lost || row.is_fresh() {
                self.elect_for(slot);
            }
        }
    }

    /// Whether the state is still going to be kept.
    fn is_coming(&self, follow: Follow) -> bool {
        let mut rows = self.rows.values();
        let leader = rows.find(|row| row.request.id == follow.leader);
        leader.is_some_and(|leader| !leader.is_decoding() && leader.will_reach(follow.at))
    }

    fn elect_for(&mut self, slot: Slot) {
        let found = self.leader_for(slot);
        let Some(row) = self.rows.get_mut(&slot) else { return };
        row.looked = true;
        row.follows = found.map(|(leader, at)| Follow { leader, at });
        let Some((leader, at)) = found else { return };
        let mut rows = self.rows.values_mut();
        if let Some(leader) = rows.find(|row| row.request.id == leader) {
            leader.stops.push(at);
        }
    }

    /// Whose state covers most of what this row has still to compute, and how much it will cover.
    fn leader_for(&self, slot: Slot) -> Option<(RequestId, usize)> {
        let row = self.rows.get(&slot)?;
        if row.is_decoding() || !self.has_room() {
            return None;
        }
        let others = self.rows.iter().filter(|(other, leader)| {
            **other != slot
                && !leader.is_decoding()
                // Who has not looked yet may come to wait itself.
                && leader.looked
                && leader.follows.is_none()
                && !leader.request.sharing.background
                && leader.request.sharing.tenant == row.request.sharing.tenant
        });
        others
            .filter_map(|(_, leader)| {
                let at = self.meeting(row, leader)?;
                Some((leader.request.id, at))
            })
            .max_by_key(|&(id, at)| (at, std::cmp::Reverse(id)))
    }

    /// Where a row goes on from the leader's state.
    fn meeting(&self, row: &Row, leader: &Row) -> Option<usize> {
        let (mine, theirs) = (&row.request, &leader.request);
        let same = common(&mine.prompt, &theirs.prompt);
        let ends = [mine.prompt.len(), theirs.prompt.len()];
        let kept = mine.boundaries.iter().chain(&theirs.boundaries).chain(&leader.stops);
        let kept = kept.chain(&ends).copied().filter(|&at| at <= same).max().unwrap_or(0);
        let grain = self.limits.chunk_grain;
        let at = if same - kept <= NEAR { kept } else { same / grain * grain };
        let worth = at >= row.computed + WORTH && leader.will_reach(at);
        worth.then_some(at)
    }

    /// Lets those go on who waited for the state of the row in `slot` after `len` tokens.
    pub(super) fn hand_over(&mut self, slot: Slot, snapshot: SnapshotId, len: usize) {
        let Some(leader) = self.rows.get(&slot).map(|row| row.request.id) else { return };
        let waited = Some(Follow { leader, at: len });
        let slots: Vec<Slot> =
            self.rows.iter().filter(|(_, r)| r.follows == waited).map(|(&s, _)| s).collect();
        for slot in slots {
            let Some(row) = self.rows.get_mut(&slot) else { continue };
            let wanted = row.request.prompt.len() + row.request.limits.new_tokens_max;
            let tokens_max = wanted.min(self.info.context_tokens_max);
            let copy = self.ledger.take_over(&mut row.holding, tokens_max, snapshot);
            self.taken_over += len - row.computed;
            let reached = row.reached;
            row.go_on(len);
            self.books.restored += (row.reached - reached) as u64;
            if let Some(copy) = copy {
                self.moves.push(Move::CopyPage { from: copy.from, to: copy.to });
            }
            self.moves.push(Move::Restore { slot, snapshot });
            self.used.push(snapshot);
        }
    }

    /// Rows whose prompts are to be fed, by their turn. Who waits has none, but lends its own to
    /// the one it waits for.
    pub(super) fn turns(&self) -> Vec<Turn> {
        let mut lent: BTreeMap<RequestId, ((Class, u64), u64)> = BTreeMap::new();
        for (&slot, row) in &self.rows {
            if let (Some(follow), Some(turn)) = (row.follows, row.turn(slot, self.rank(row))) {
                let own = (turn.1, turn.2);
                let earliest = lent.entry(follow.leader).or_insert(own);
                *earliest = own.min(*earliest);
            }
        }
        let active = self.rows.iter().filter(|(_, row)| row.follows.is_none());
        active
            .filter_map(|(&slot, row)| {
                let (left, rank, due, id, slot) = row.turn(slot, self.rank(row))?;
                let own = (rank, due);
                let (rank, due) = lent.get(&id).map_or(own, |&lent| own.min(lent));
                Some((left, rank, due, id, slot))
            })
            .collect()
    }

    /// How a row's client stands by now.
    pub(super) fn rank(&self, row: &Row) -> (Class, u64) {
        let (class, counter, _) = self.fairness.rank(row.request.standing, row.arrived);
        (class, counter)
    }
}

impl Row {
    /// Whether it has to be seen whom it could wait for.
    fn is_fresh(&self) -> bool {
        !self.looked && self.follows.is_none() && !self.is_decoding()
    }

    /// Whether its state after `at` tokens is still to come.
    fn will_reach(&self, at: usize) -> bool {
        self.computed < at
    }
}

#[cfg(all(test, feature = "scripted"))]
mod tests;

//! What became of the prompts of all that got a seat: each of their tokens was fed, came out of a
//! state, or was neither because its row left before. Counted as it happens and each token once,
//! so that it adds up at any time, whoever leaves or steps back when.

use super::{Batch, Request};

/// Tokens of prompts, since the books were last taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Books {
    /// Of all that got a seat.
    pub seated: u64,
    /// Fed through the model.
    pub forwarded: u64,
    /// Taken over from a state.
    pub restored: u64,
    /// Neither: their rows left first.
    pub unfed: u64,
}

impl Batch {
    /// What was booked since the last time.
    pub fn take_books(&mut self) -> Books {
        std::mem::take(&mut self.books)
    }

    /// How many clients are here, and how far their virtual counters are apart.
    #[must_use]
    pub fn fairness_spread(&self) -> (usize, u64) {
        self.fairness.spread()
    }

    /// Takes all out: the engine broke. What they were owed stays in the books.
    pub fn abandon(&mut self) {
        let slots: Vec<_> = self.rows.keys().copied().collect();
        for slot in slots {
            self.leave(slot);
        }
        while self.take_out(0).is_some() {}
    }
}

impl Books {
    /// A row got its seat: one with so many tokens, unless it had one before, and a state brought
    /// it so many for the first time.
    pub(super) fn seat(&mut self, prompt: usize, restored: usize) {
        self.seated += prompt as u64;
        self.restored += restored as u64;
    }

    /// One who had a seat leaves, maybe before its prompt was done.
    pub(super) fn leave(&mut self, request: &Request, reached: usize) {
        self.unfed += (request.prompt.len() - reached) as u64;
    }
}

#[cfg(all(test, feature = "scripted"))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::super::tests::{knobs, request, step};
    use super::super::{BatchLimits, Warm};
    use super::*;
    use crate::RequestId;
    use crate::engine::Engine;
    use crate::scripted::{Script, Scripted};

    #[test]
    fn the_prompt_of_a_row_that_is_cancelled_half_way_adds_up() {
        let mut engine = Scripted::small(Script::default());
        let limits = BatchLimits { snapshots_max: 9, chunk_grain: 8 };
        let mut batch = Batch::new(engine.info().clone(), limits);
        let prompt = [7; 200];
        batch.admit(request(1, &prompt[..32], 2), None);
        let deposit = step(&mut engine, &mut batch).deposits.remove(0);
        let whole = Books { seated: 32, forwarded: 32, ..Books::default() };
        assert_eq!((deposit.prefix.tokens.len(), batch.take_books()), (32, whole));
        // It goes on from the first one's state and is fed one chunk of 64.
        let warm = Warm { snapshot: deposit.snapshot, len: 32 };
        batch.admit(request(2, &prompt, 2), Some(warm));
        while batch.books.forwarded == 0 {
            step(&mut engine, &mut batch);
        }
        assert!(batch.cancel(RequestId(2)));
        let books = batch.take_books();
        assert_eq!((books.seated, books.restored), (200, 32));
        assert!(books.forwarded > 0 && books.unfed > 0, "{books:?}");
        assert_eq!(books.forwarded + books.restored + books.unfed, 200);
        // Who never had a seat has no part in it, and who runs when the engine breaks has.
        batch.admit(request(3, &prompt, 2), None);
        assert!(batch.cancel(RequestId(3)));
        assert_eq!(batch.take_books(), Books::default());
        batch.admit(request(4, &[9; 200], 2), None);
        batch.plan(knobs());
        batch.abandon();
        assert_eq!(batch.take_books(), Books { seated: 200, unfed: 200, ..Books::default() });
    }
}

//! Retries: the same request once more, because its client has no patience left or lost its
//! connection. Where the first is still being answered nobody waits for it any more, so the second
//! takes its place instead of standing beside it.
//!
//! That two requests are equal is not enough: who wants two answers to one question asks twice. A
//! request is a retry only if it says so, by a count of attempts above 0 or by a key that an
//! earlier one had. Of several that it may be the retry of it is that of one: of the attempt right
//! before it, else of the latest before that; of equals, of the one that came first. A count alone
//! does not say whose retry it is: if an attempt right before it has ended, refused or otherwise,
//! it is that one's, and nobody who stands beside is let go for it.

use std::collections::{BTreeMap, VecDeque};

use crate::fairness::Client;

/// What an attempt says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Of all that is asked for.
    pub body: u64,
    /// Of the key by which its client knows it, if that gave one.
    pub key: Option<u64>,
    /// How many attempts went before it, as its client counts.
    pub attempt: u32,
}

/// Names an attempt that is being answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempt(u64);

/// Attempts that are being answered; they are forgotten at their end, so there are no more of them
/// than places in the house.
#[derive(Clone, Debug, Default)]
pub struct Retries {
    running: BTreeMap<Attempt, (Client, Mark)>,
    /// Those without a key that ended by themselves, the last of them.
    ended: VecDeque<(Client, Mark)>,
    last: u64,
}

/// Ended attempts that are remembered.
const ENDED_MAX: usize = 1024;

impl Retries {
    /// An attempt begins: its name, and whom it takes the place of.
    pub fn begin(&mut self, client: Client, mark: Mark) -> (Attempt, Option<Attempt>) {
        let follows = mark.key.is_none() && self.follows_an_end(client, mark);
        let earlier = if follows { None } else { self.earlier(client, mark) };
        self.last += 1;
        let attempt = Attempt(self.last);
        self.running.insert(attempt, (client, mark));
        if let Some(earlier) = earlier {
            // Nobody takes its place twice.
            self.running.remove(&earlier);
        }
        (attempt, earlier)
    }

    /// An attempt has ended, however it did.
    pub fn end(&mut self, attempt: Attempt) {
        let Some((client, mark)) = self.running.remove(&attempt) else { return };
        if mark.key.is_none() {
            self.ended.truncate(ENDED_MAX - 1);
            self.ended.push_front((client, mark));
        }
    }

    /// Whether an attempt right before this one has ended; a second one cannot have followed it.
    fn follows_an_end(&mut self, client: Client, mark: Mark) -> bool {
        let Some(before) = mark.attempt.checked_sub(1) else { return false };
        let before = (client, Mark { attempt: before, ..mark });
        let at = self.ended.iter().position(|ended| *ended == before);
        at.and_then(|at| self.ended.remove(at)).is_some()
    }

    /// Attempts that are being answered.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.len()
    }

    fn earlier(&self, client: Client, mark: Mark) -> Option<Attempt> {
        let equals = self.running.iter().filter(|(_, (whose, other))| {
            // A key that names another request says that this is not that one.
            let same = mark.body == other.body && mark.key == other.key;
            let says_so = mark.key.is_some() || mark.attempt > other.attempt;
            *whose == client && same && says_so
        });
        let latest = equals.max_by_key(|(attempt, (_, other))| {
            (other.attempt.min(mark.attempt), std::cmp::Reverse(**attempt))
        });
        latest.map(|(&attempt, _)| attempt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: Client = Client(1);

    fn mark(body: u64, key: Option<u64>, attempt: u32) -> Mark {
        Mark { body, key, attempt }
    }

    #[test]
    fn equal_requests_stand_beside_each_other_unless_one_says_that_it_is_a_retry() {
        let mut retries = Retries::default();
        let (first, none) = retries.begin(ANN, mark(7, None, 0));
        assert_eq!(none, None);
        assert_eq!(retries.begin(ANN, mark(7, None, 0)).1, None);
        assert_eq!(retries.begin(ANN, mark(7, None, 1)).1, Some(first));
        assert_eq!(retries.running(), 2, "the other goes on");
    }

    #[test]
    fn a_retry_takes_the_place_of_the_attempt_before_it() {
        let mut retries = Retries::default();
        let (first, _) = retries.begin(ANN, mark(7, None, 0));
        let (second, of) = retries.begin(ANN, mark(7, None, 1));
        assert_eq!(of, Some(first));
        // Another first attempt at the same; the third of the former is not its retry.
        let (other, _) = retries.begin(ANN, mark(7, None, 0));
        let (third, of) = retries.begin(ANN, mark(7, None, 2));
        assert_eq!(of, Some(second));
        retries.end(third);
        // One in between may not have come here.
        assert_eq!(retries.begin(ANN, mark(7, None, 2)).1, Some(other));
    }

    #[test]
    fn the_retry_of_a_refused_attempt_takes_the_place_of_nobody() {
        let mut retries = Retries::default();
        let all: Vec<_> = (0..10).map(|_| retries.begin(ANN, mark(7, None, 0)).0).collect();
        for &refused in &all[6..] {
            retries.end(refused);
        }
        for _ in 6..10 {
            assert_eq!(retries.begin(ANN, mark(7, None, 1)).1, None);
        }
        assert_eq!(retries.running(), 10);
        assert_eq!(retries.begin(ANN, mark(7, None, 1)).1, Some(all[0]), "no refused one is left");
    }

    #[test]
    fn neither_others_nor_other_bodies_nor_other_keys_are_touched() {
        let mut retries = Retries::default();
        retries.begin(ANN, mark(7, Some(5), 0));
        assert_eq!(retries.begin(Client(2), mark(7, Some(5), 1)).1, None);
        assert_eq!(retries.begin(ANN, mark(8, Some(5), 1)).1, None);
        assert_eq!(retries.begin(ANN, mark(7, Some(6), 1)).1, None);
    }

    #[test]
    fn an_equal_key_is_enough() {
        let mut retries = Retries::default();
        let (first, _) = retries.begin(ANN, mark(7, Some(5), 0));
        assert_eq!(retries.begin(ANN, mark(7, Some(5), 0)).1, Some(first));
    }

    #[test]
    fn what_has_ended_is_forgotten() {
        let mut retries = Retries::default();
        for i in 0..1000 {
            let (attempt, _) = retries.begin(ANN, mark(i % 3, None, 0));
            retries.end(attempt);
        }
        assert_eq!(retries.running(), 0);
        assert_eq!(retries.begin(ANN, mark(1, None, 9)).1, None);
    }
}

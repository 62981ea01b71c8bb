//! Why a prompt was not as warm as it might have been, and where: the bank's memory of what it was
//! asked and of what it let go, as hashes, bounded.

use std::collections::{BTreeSet, VecDeque};

use crate::Tenant;
use crate::prefix::Lengths;

/// What was asked is remembered at multiples of so many tokens.
pub const BLOCK: usize = 16;

/// Why tokens had to be computed that somebody might have hoped to find warm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// Nobody has asked for more than what is warm.
    NeverSeen,
    /// An earlier text goes along up to here, and then another way; there is no state at that
    /// place, and a recurrent state cannot be cut back to it.
    DivergedAt(usize),
    /// There was a state of so many tokens; it was let go.
    Evicted(usize),
    /// There is one, of another model, quantisation or numerics.
    Identity(usize),
}

impl Miss {
    /// Its name in metrics and logs.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::NeverSeen => "never_seen",
            Self::DivergedAt(_) => "diverged_at",
            Self::Evicted(_) => "evicted",
            Self::Identity(_) => "identity",
        }
    }

    /// The position it is about.
    #[must_use]
    pub fn position(self) -> Option<usize> {
        match self {
            Self::NeverSeen => None,
            Self::DivergedAt(at) | Self::Evicted(at) | Self::Identity(at) => Some(at),
        }
    }
}

/// The memory.
#[derive(Clone, Debug)]
pub struct Recall {
    blocks: Ring<(Tenant, u64)>,
    evicted: Ring<(Tenant, u64, usize)>,
    lengths: Lengths,
}

impl Recall {
    /// Remembers so many blocks, and a sixteenth of that of states let go.
    #[must_use]
    pub fn new(blocks_max: usize) -> Self {
        let (blocks, evicted) = (Ring::new(blocks_max), Ring::new(blocks_max / 16));
        Self { blocks, evicted, lengths: Lengths::default() }
    }

    /// Somebody asked for this text; `chain` are the hashes of its beginnings.
    pub fn asked(&mut self, tenant: Tenant, chain: &[u64]) {
        for &hash in chain.iter().step_by(BLOCK).skip(1) {
            self.blocks.add((tenant, hash));
        }
    }

    /// The state of these `len` tokens was let go.
    pub fn let_go(&mut self, tenant: Tenant, hash: u64, len: usize) {
        let (new, gone) = self.evicted.add((tenant, hash, len));
        if new {
            self.lengths.add(len);
        }
        if let Some((_, _, len)) = gone {
            self.lengths.remove(len);
        }
    }

    /// Why no more than `warm` tokens of a text are warm; to be asked before [`Recall::asked`].
    /// `foreign` is the length of a state of another identity that would have fitted.
    #[must_use]
    pub fn explain(
        &self,
        tenant: Tenant,
        chain: &[u64],
        warm: usize,
        foreign: Option<usize>,
    ) -> Miss {
        let whole = chain.len() - 1;
        let was = |len: &usize| self.evicted.has(&(tenant, chain[*len], *len));
        let lengths = self.lengths.descending(whole).take_while(|&len| len > warm);
        if let Some(len) = lengths.into_iter().find(was) {
            return Miss::Evicted(len);
        }
        if let Some(len) = foreign.filter(|&len| len > warm) {
            return Miss::Identity(len);
        }
        match self.seen(tenant, chain) {
            seen if seen > warm => Miss::DivergedAt(seen),
            _ => Miss::NeverSeen,
        }
    }

    /// How far somebody's text went along with this one, in whole blocks.
    fn seen(&self, tenant: Tenant, chain: &[u64]) -> usize {
        let blocks = (chain.len() - 1) / BLOCK;
        let known = |block: usize| self.blocks.has(&(tenant, chain[block * BLOCK]));
        // The oldest are forgotten first, so a later block may be known where an earlier is not.
        (1..=blocks).rev().find(|&block| known(block)).map_or(0, |block| block * BLOCK)
    }
}

/// The last so many different values, in order of their first coming.
#[derive(Clone, Debug)]
struct Ring<T> {
    max: usize,
    order: VecDeque<T>,
    all: BTreeSet<T>,
}

impl<T: Copy + Ord> Ring<T> {
    fn new(max: usize) -> Self {
        Self { max: max.max(1), order: VecDeque::new(), all: BTreeSet::new() }
    }

    fn has(&self, value: &T) -> bool {
        self.all.contains(value)
    }

    /// Whether it is new, and which one it took the place of.
    fn add(&mut self, value: T) -> (bool, Option<T>) {
        if !self.all.insert(value) {
            return (false, None);
        }
        self.order.push_back(value);
        if self.order.len() <= self.max {
            return (true, None);
        }
        let gone = self.order.pop_front();
        if let Some(gone) = &gone {
            self.all.remove(gone);
        }
        (true, gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Token;
    use crate::prefix::chain;

    const HOUSE: Tenant = Tenant(0);

    fn text(tail: Token) -> Vec<Token> {
        (0..40).chain([tail; 20]).collect()
    }

    #[test]
    fn each_miss_has_its_reason_and_place() {
        let mut recall = Recall::new(1000);
        let (first, second) = (chain(&text(1)), chain(&text(2)));
        assert_eq!(recall.explain(HOUSE, &first, 0, None), Miss::NeverSeen);
        recall.asked(HOUSE, &first);
        assert_eq!(recall.explain(HOUSE, &second, 0, None), Miss::DivergedAt(32));
        assert_eq!(recall.explain(HOUSE, &second, 32, None), Miss::NeverSeen);
        assert_eq!(recall.explain(Tenant(1), &second, 0, None), Miss::NeverSeen);
        assert_eq!(recall.explain(HOUSE, &second, 0, Some(40)), Miss::Identity(40));
        recall.let_go(HOUSE, first[37], 37);
        assert_eq!(recall.explain(HOUSE, &second, 0, Some(40)), Miss::Evicted(37));
        assert_eq!(recall.explain(HOUSE, &second, 37, None), Miss::NeverSeen);
        assert_eq!(recall.explain(HOUSE, &chain(&[9; 60]), 0, None), Miss::NeverSeen);
    }

    #[test]
    fn the_memory_is_bounded_and_forgets_the_oldest() {
        let mut recall = Recall::new(32);
        for tail in 0..100 {
            recall.asked(HOUSE, &chain(&[tail; 48]));
            recall.let_go(HOUSE, chain(&[tail; 48])[48], 48);
        }
        assert_eq!((recall.blocks.all.len(), recall.evicted.all.len()), (32, 2));
        assert_eq!(recall.explain(HOUSE, &chain(&[99; 48]), 0, None), Miss::Evicted(48));
        assert_eq!(recall.explain(HOUSE, &chain(&[5; 48]), 0, None), Miss::NeverSeen);
        assert_eq!(recall.lengths.descending(99).collect::<Vec<_>>(), [48]);
    }
}

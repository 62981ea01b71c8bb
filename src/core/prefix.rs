//! Prefixes as keys: a chained hash of every prefix of a token list, and the set of stored lengths
//! that makes the longest warm match a handful of look-ups. Hashes only find candidates; whoever
//! stores a prefix compares its tokens.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::{Tenant, Token};

/// The first tokens of somebody's texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Whose.
    pub tenant: Tenant,
    /// Which.
    pub tokens: Arc<[Token]>,
}

/// How many tokens two texts begin with in common.
#[must_use]
pub fn common(a: &[Token], b: &[Token]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// `chain(t)[i]` is the hash of `t[..i]`; computed in one pass.
#[must_use]
pub fn chain(tokens: &[Token]) -> Vec<u64> {
    let mut hashes = Vec::with_capacity(tokens.len() + 1);
    let mut hash = 0x6d74_706c_7821_0001_u64;
    hashes.push(hash);
    for &token in tokens {
        hash = (hash ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 29;
        hashes.push(hash);
    }
    hashes
}

/// How many stored prefixes have each length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lengths {
    counts: BTreeMap<usize, usize>,
}

impl Lengths {
    /// One more prefix of `len` tokens.
    pub fn add(&mut self, len: usize) {
        *self.counts.entry(len).or_default() += 1;
    }

    /// One less.
    pub fn remove(&mut self, len: usize) {
        if let Some(count) = self.counts.get_mut(&len) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&len);
            }
        }
    }

    /// Stored lengths up to `max`, longest first.
    pub fn descending(&self, max: usize) -> impl Iterator<Item = usize> + '_ {
        self.counts.range(..=max).rev().map(|(&len, _)| len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_prefixes_have_equal_hashes_and_others_differ() {
        let (a, b) = (chain(&[1, 2, 3]), chain(&[1, 2, 4, 3]));
        assert_eq!(a[..3], b[..3]);
        assert_ne!(a[3], b[3]);
        assert_ne!(chain(&[2, 1])[2], chain(&[1, 2])[2]);
    }

    #[test]
    fn lengths_come_longest_first_and_only_while_stored() {
        let mut lengths = Lengths::default();
        [3, 9, 9, 5].into_iter().for_each(|n| lengths.add(n));
        assert_eq!(lengths.descending(9).collect::<Vec<_>>(), [9, 5, 3]);
        lengths.remove(9);
        lengths.remove(5);
        assert_eq!(lengths.descending(100).collect::<Vec<_>>(), [9, 3]);
        assert_eq!(lengths.descending(8).collect::<Vec<_>>(), [3]);
    }
}

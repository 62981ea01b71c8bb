//! An output head for drafts alone. A draft reads the head's own layer and the model's whole
//! output matrix, and the matrix is the larger part; but drafts may be drawn from any distribution,
//! so this copy may have fewer bits, or the rows of frequent tokens alone. The target's head stays
//! as it is.
//!
//! Ids of byte-pair vocabularies count merges in the order they were learnt, the most frequent pair
//! first: low ids are frequent tokens. Special tokens come after all merges, and padding after
//! those, so the last ids are kept as well.

use mlx_rs::Array;
use mtplx_core::Token;
use mtplx_core::batch::Row;
use mtplx_core::grammar::Mask;
use mtplx_core::sample::{Dist, NotFinite, Sampling, Seen};

use crate::checkpoint::Linear;
use crate::error::{Error, Result};
use crate::linear::Matrix;
use crate::place::Place;

/// Ids at the end of the vocabulary that are always kept. Qwen3's special tokens begin 293 ids
/// before the end, Qwen3.5's 276.
const LAST: usize = 320;
/// Columns that share a scale.
const GROUP: usize = 64;
/// A logit that leaves a token without a chance, and stays finite under every penalty.
const NEVER: f32 = -1e30;

/// What the drafts' head is to be; the default is the target's own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DraftHeadOptions {
    /// Bits of its codes; as stored if `None`.
    pub bits: Option<usize>,
    /// Share of the vocabulary that drafts come from, above 0; 1 for all.
    pub share: f32,
}

impl Default for DraftHeadOptions {
    fn default() -> Self {
        Self { bits: None, share: 1.0 }
    }
}

/// The prepared copy.
#[derive(Debug)]
pub struct DraftHead {
    matrix: Matrix,
    ids: DraftIds,
}

/// Which tokens the rows of drafts' logits belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DraftIds {
    vocab: usize,
    /// Rows up to here are the ids themselves; the others are the vocabulary's last.
    low: usize,
    /// Ids left out in between.
    skipped: usize,
}

impl DraftHead {
    /// Prepares a copy of `head` [V, H]; `None` where the target's own is what was asked for.
    ///
    /// # Errors
    /// When the copy cannot be made.
    pub fn load(place: Place, head: &Linear, options: DraftHeadOptions) -> Result<Option<Self>> {
        let ids = DraftIds::new(head.out, options.share);
        if ids.skipped == 0 && options.bits.is_none() {
            return Ok(None);
        }
        let refuse = |what: String| Error::Plan(format!("the drafts' head: {what}"));
        let mut linear = head.clone();
        if ids.skipped > 0 {
            let rows = [0..ids.low, ids.low + ids.skipped..ids.vocab];
            let few = head.rows("draft_head".into(), &rows);
            linear = few.ok_or_else(|| refuse(format!("{} rows are too few", head.out)))?;
        }
        if let Some(bits) = options.bits {
            let coded = linear.requantized(bits, GROUP);
            linear = coded.ok_or_else(|| refuse(format!("{bits} bits of {} wide", head.input)))?;
        }
        Ok(Some(Self { matrix: Matrix::load(place, &[&linear])?, ids }))
    }

    /// Hidden states `[M, H]` → logits `[M, rows]` of [`Self::ids`].
    ///
    /// # Errors
    /// When MLX fails.
    pub fn logits(&self, hidden: &Array) -> Result<Array> {
        self.matrix.apply(hidden)
    }

    /// What the columns of its logits mean.
    #[must_use]
    pub fn ids(&self) -> DraftIds {
        self.ids
    }
}

impl DraftIds {
    /// A share of `vocab` tokens, all of them if it is 1.
    #[must_use]
    pub fn new(vocab: usize, share: f32) -> Self {
        let kept = ((vocab as f64 * f64::from(share)).ceil() as usize).max(2 * LAST).min(vocab);
        let low = if kept == vocab { vocab } else { kept - LAST };
        Self { vocab, low, skipped: vocab - kept }
    }

    /// Whether every token has a row.
    #[must_use]
    pub fn are_all(self) -> bool {
        self.skipped == 0
    }

    /// The distribution that a row's request makes of `logits`, over ids of the whole vocabulary.
    ///
    /// # Errors
    /// As [`Row::dist`].
    pub fn dist(self, logits: &[f32], row: &Row, ahead: &[Token]) -> Result<Dist, NotFinite> {
        let mask = row.mask(ahead)?;
        self.masked(logits, &row.request().sampling, (row.seen(), ahead), mask.as_ref())
    }

    fn masked(
        self,
        logits: &[f32],
        sampling: &Sampling,
        (seen, ahead): (&Seen, &[Token]),
        mask: Option<&Mask>,
    ) -> Result<Dist, NotFinite> {
        if self.are_all() {
            return Dist::masked(logits, sampling, (seen, ahead), mask);
        }
        let (low, last) = logits.split_at(self.low);
        if sampling.has_penalties() || !sampling.logit_bias.is_empty() || mask.is_some() {
            // They speak of tokens by id.
            let all = [low, &vec![NEVER; self.skipped], last].concat();
            return Dist::masked(&all, sampling, (seen, ahead), mask);
        }
        let few = Dist::from_logits(logits, sampling, seen, ahead)?;
        let id = |row: Token| match row as usize >= self.low {
            true => row + self.skipped as Token,
            false => row,
        };
        let ids = few.ids().iter().map(|&row| id(row));
        Dist::from_weights(ids.zip(few.probs().iter().copied()).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const VOCAB: usize = 2000;

    fn ids() -> DraftIds {
        DraftIds::new(VOCAB, 0.5)
    }

    /// Logits that fall from the first row to the last, but for one.
    fn logits(top: usize) -> Vec<f32> {
        let mut logits: Vec<f32> = (0..1000).map(|i| -(i as f32) / 100.0).collect();
        logits[top] = 3.0;
        logits
    }

    fn dist(top: usize, sampling: &Sampling, seen: &Seen) -> Dist {
        ids().masked(&logits(top), sampling, (seen, &[]), None).unwrap()
    }

    #[test]
    fn a_share_keeps_low_ids_and_the_last_ones() {
        assert_eq!(ids(), DraftIds { vocab: VOCAB, low: 680, skipped: 1000 });
        assert_eq!(DraftIds::new(VOCAB, 1.0).skipped, 0);
        assert_eq!(DraftIds::new(100, 0.1).skipped, 0, "too few to leave any out");
        assert_eq!(DraftIds::new(VOCAB, 0.01).low, LAST);
    }

    #[test]
    fn rows_become_ids_of_the_whole_vocabulary() {
        for (row, id) in [(5, 5), (679, 679), (680, 1680), (999, 1999)] {
            let greedy = dist(row, &Sampling::greedy(), &Seen::default());
            assert_eq!(greedy, Dist::one_hot(id));
            let sampling = Sampling { top_k: 3, ..Sampling::default() };
            let sampled = dist(row, &sampling, &Seen::default());
            assert_eq!(sampled.ids().len(), 3);
            assert!(sampled.prob(id) > 0.8, "{sampled:?}");
        }
    }

    #[test]
    fn a_mask_speaks_of_the_whole_vocabulary() {
        let seen = Seen::default();
        let masked = |tokens: &[Token]| {
            let mask: Mask = tokens.iter().copied().collect();
            ids().masked(&logits(3), &Sampling::greedy(), (&seen, &[]), Some(&mask)).unwrap()
        };
        assert_eq!(masked(&[900, 1690, 1999]), Dist::one_hot(1690));
        assert_eq!(masked(&[900]), Dist::one_hot(900), "it has no row, but nothing else may come");
    }

    #[test]
    fn penalties_and_bias_find_their_tokens() {
        // Token 700 has no row; row 700 is token 1700.
        let mut seen = Seen::default();
        seen.add_output(&[700, 1700]);
        let sampling = Sampling {
            presence_penalty: 2.0,
            repetition_penalty: 100.0,
            temperature: 0.0,
            ..Sampling::default()
        };
        assert_eq!(dist(700, &sampling, &seen), Dist::one_hot(0));
        let bias = Sampling { logit_bias: Arc::new([(1690, 90.0)].into()), ..Sampling::default() };
        let biased = dist(3, &bias, &Seen::default());
        assert!(biased.prob(1690) > 0.99);
        assert_eq!(biased.prob(800), 0.0);
    }
}

//! What a pass says of the next tokens of its rows: all logits, or where a GPU kernel picks them
//! and nobody asks for more, the largest ones alone.

use mlx_rs::{Array, Dtype};
use mtplx_core::sample::{Dist, NotFinite, Sampling, Seen};
use mtplx_core::{Token, batch::Row};

use crate::error::Result;
use crate::gpu::gpu;
use crate::gpu::top::{self, KEPT, Top};

/// Logits on their way.
pub(super) struct Asked {
    /// [rows, V], in the type of activations.
    logits: Array,
    /// What is evaluated and read.
    wanted: Wanted,
}

enum Wanted {
    /// fp32 [rows, V].
    All(Array),
    Top(Array),
}

/// Logits on the host.
pub(super) enum Scores {
    All { logits: Array, vocab: usize },
    Top(Vec<Top>),
}

/// One row of them.
#[derive(Clone, Copy)]
pub(super) enum Score<'a> {
    All(&'a [f32]),
    Top(&'a Top),
}

impl Asked {
    /// `rows` are those whose tokens will be drawn.
    pub(super) fn new<'a>(logits: Array, mut rows: impl Iterator<Item = &'a Row>) -> Result<Self> {
        let found = match rows.all(|row| is_content_with_top(&row.request().sampling)) {
            true => top::search(&gpu(), &logits)?,
            false => None,
        };
        let wanted = match found {
            Some(found) => Wanted::Top(found),
            None => Wanted::All(logits.as_dtype(Dtype::Float32)?),
        };
        Ok(Self { logits, wanted })
    }

    /// All logits, of whatever they are.
    pub(super) fn all(logits: Array) -> Result<Self> {
        let wanted = Wanted::All(logits.as_dtype(Dtype::Float32)?);
        Ok(Self { logits, wanted })
    }

    /// What is to be evaluated before [`Self::read`].
    pub(super) fn array(&self) -> &Array {
        match &self.wanted {
            Wanted::All(array) | Wanted::Top(array) => array,
        }
    }

    pub(super) fn read(self) -> Result<Scores> {
        let vocab = self.logits.dim(-1) as usize;
        let all = match self.wanted {
            Wanted::All(all) => all,
            Wanted::Top(found) => match top::read(&found) {
                Some(tops) => return Ok(Scores::Top(tops)),
                None => self.logits.as_dtype(Dtype::Float32)?,
            },
        };
        crate::place::eval([&all])?;
        Ok(Scores::All { logits: all, vocab })
    }
}

/// Whether the largest logits are all that these settings look at.
fn is_content_with_top(s: &Sampling) -> bool {
    let plain = !s.has_penalties() && s.logit_bias.is_empty();
    plain && (s.temperature == 0.0 || (1..=KEPT).contains(&s.top_k))
}

impl Scores {
    /// For a pass that nobody draws from.
    pub(super) fn none() -> Self {
        Self::Top(Vec::new())
    }

    pub(super) fn rows(&self) -> Vec<Score<'_>> {
        match self {
            Self::All { logits, vocab } => {
                logits.as_slice::<f32>().chunks_exact(*vocab).map(Score::All).collect()
            }
            Self::Top(tops) => tops.iter().map(Score::Top).collect(),
        }
    }
}

impl Score<'_> {
    /// As [`Dist::from_logits`].
    pub(super) fn dist(
        self,
        sampling: &Sampling,
        seen: &Seen,
        ahead: &[Token],
    ) -> Result<Dist, NotFinite> {
        match self {
            Self::All(logits) => Dist::from_logits(logits, sampling, seen, ahead),
            Self::Top(top) => {
                // Places ascend as their ids do, so ties fall to the same tokens.
                let places = Dist::from_logits(&top.logits, sampling, seen, ahead)?;
                let pairs = places.ids().iter().zip(places.probs());
                Dist::from_weights(pairs.map(|(&i, &p)| (top.ids[i as usize], p)).collect())
            }
        }
    }

    /// How many numbers a draw looks at.
    pub(super) fn len(self) -> usize {
        match self {
            Self::All(logits) => logits.len(),
            Self::Top(top) => top.ids.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_largest_logits_gives_the_same_distribution_as_all_of_them() {
        let logits: Vec<f32> =
            (0..500_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as f32 / 20.0).collect();
        let mut ids: Vec<u32> = (0..500).collect();
        ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
        ids.truncate(KEPT);
        ids.sort_unstable();
        let top = Top { logits: ids.iter().map(|&i| logits[i as usize]).collect(), ids };
        let seen = Seen::default();
        for (temperature, top_k, top_p) in [(0.0, 0, 1.0), (0.6, 20, 0.95), (1.0, 64, 1.0)] {
            let s = Sampling { temperature, top_k, top_p, ..Sampling::default() };
            assert!(is_content_with_top(&s));
            let all = Score::All(&logits).dist(&s, &seen, &[]).unwrap();
            let few = Score::Top(&top).dist(&s, &seen, &[]).unwrap();
            assert_eq!(all.ids(), few.ids());
            for (a, b) in all.probs().iter().zip(few.probs()) {
                assert!((a - b).abs() <= 2.0 * f32::EPSILON * a, "{a} and {b}");
            }
        }
        assert!(!is_content_with_top(&Sampling::default()), "all tokens have a chance");
    }
}

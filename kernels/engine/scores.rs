//! What a pass says of the next tokens of its rows: all logits, or where a GPU kernel picks them
//! and nobody asks for more, the largest ones alone.
//!
//! Under a grammar the largest logits are enough where enough of their tokens are allowed: as many
//! as are drawn from, or all that are. Of rows where they are not, the whole is fetched afterwards;
//! and of those whose request wants to know what the model thought, which takes a sum over all.

use mlx_rs::{Array, Dtype};
use mtplx_core::grammar::Mask;
use mtplx_core::logprobs::Logprobs;
use mtplx_core::sample::{Dist, NotFinite, Sampling, Seen, TEMPERATURE_MIN};
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
    /// Nobody draws.
    None,
    All {
        logits: Array,
        vocab: usize,
    },
    Top {
        /// [rows, V], where they were made.
        logits: Array,
        rows: Vec<Found>,
    },
}

/// A row of a pass that was searched.
pub(super) enum Found {
    Top(Top),
    /// What was found did not do.
    All(Vec<f32>),
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

    /// The largest logits of each row, where nothing else is wanted.
    pub(super) fn found(&self) -> Option<&Array> {
        match &self.wanted {
            Wanted::Top(found) => Some(found),
            Wanted::All(_) => None,
        }
    }

    /// All of them, [rows, V].
    pub(super) fn logits(&self) -> &Array {
        &self.logits
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
                Some(tops) => {
                    let rows = tops.into_iter().map(Found::Top).collect();
                    return Ok(Scores::Top { logits: self.logits, rows });
                }
                None => {
                    let all = self.logits.as_dtype(Dtype::Float32)?;
                    crate::place::eval([&all])?;
                    all
                }
            },
        };
        Ok(Scores::All { logits: all, vocab })
    }
}

/// Whether the largest logits are all that these settings look at, but for a grammar.
pub(super) fn is_content_with_top(s: &Sampling) -> bool {
    let plain = !s.has_penalties() && s.logit_bias.is_empty();
    plain && (s.temperature < TEMPERATURE_MIN || (1..=KEPT).contains(&s.top_k))
}

/// The distribution over the largest logits that are allowed.
fn of_largest(top: &Top, sampling: &Sampling, mask: Option<&Mask>) -> Result<Dist, NotFinite> {
    let found = top.ids.iter().zip(&top.logits);
    let allowed = found.filter(|&(&id, _)| mask.is_none_or(|mask| mask.allows(id)));
    let (ids, logits): (Vec<Token>, Vec<f32>) = allowed.unzip();
    // Places ascend as their ids do, so ties fall to the same tokens.
    let places = Dist::from_logits(&logits, sampling, &Seen::default(), &[])?;
    let pairs = places.ids().iter().zip(places.probs());
    Dist::from_weights(pairs.map(|(&i, &p)| (ids[i as usize], p)).collect())
}

impl Scores {
    /// Fetches the whole of those rows whose largest logits do not settle the draw, and of those
    /// that are `told`. `drawn` gives each its sequence and the drafts before it.
    pub(super) fn settle<'a>(
        &mut self,
        drawn: impl Iterator<Item = (&'a Row, &'a [Token])>,
        told: impl Fn(&Row) -> bool,
    ) -> Result<()> {
        let Self::Top { logits, rows } = self else { return Ok(()) };
        let mut short = Vec::new();
        for (i, ((row, ahead), found)) in drawn.zip(rows.iter()).enumerate() {
            let is_settled = match (row.mask(ahead), found) {
                (Ok(Some(mask)), Found::Top(top)) => {
                    is_settled_by(top, &row.request().sampling, &mask)
                }
                // A mask that cannot be had is noticed where the row is drawn from.
                (Ok(_) | Err(NotFinite), _) => true,
            };
            if !is_settled || told(row) {
                short.push(i);
            }
        }
        if short.is_empty() {
            return Ok(());
        }
        let index: Vec<i32> = short.iter().map(|&i| i as i32).collect();
        let whole = crate::model::take_rows(logits, &index)?.as_dtype(Dtype::Float32)?;
        crate::place::eval([&whole])?;
        let vocab = whole.dim(-1) as usize;
        for (i, logits) in short.into_iter().zip(whole.as_slice::<f32>().chunks_exact(vocab)) {
            rows[i] = Found::All(logits.to_vec());
        }
        Ok(())
    }

    pub(super) fn rows(&self) -> Vec<Score<'_>> {
        match self {
            Self::None => Vec::new(),
            Self::All { logits, vocab } => {
                logits.as_slice::<f32>().chunks_exact(*vocab).map(Score::All).collect()
            }
            Self::Top { rows, .. } => rows
                .iter()
                .map(|found| match found {
                    Found::Top(top) => Score::Top(top),
                    Found::All(logits) => Score::All(logits),
                })
                .collect(),
        }
    }

    /// Whether each row is a few numbers.
    pub(super) fn are_few(&self) -> bool {
        match self {
            Self::None => true,
            Self::All { .. } => false,
            Self::Top { rows, .. } => rows.iter().all(|found| matches!(found, Found::Top(_))),
        }
    }
}

/// Whether the tokens that a draw looks at are all among the largest.
fn is_settled_by(top: &Top, s: &Sampling, mask: &Mask) -> bool {
    let wanted = if s.temperature < TEMPERATURE_MIN { 1 } else { s.top_k };
    let found = top.ids.iter().filter(|&&id| mask.allows(id)).count();
    found >= wanted || found == mask.len()
}

impl Score<'_> {
    /// As [`Row::dist`].
    pub(super) fn dist(self, row: &Row, ahead: &[Token]) -> Result<Dist, NotFinite> {
        match self {
            Self::All(logits) => row.dist(logits, ahead),
            Self::Top(top) => of_largest(top, &row.request().sampling, row.mask(ahead)?.as_ref()),
        }
    }

    /// What the model thought of these `tokens`, by one row each, where a row's request asks.
    pub(super) fn logprobs(scores: &[Self], row: &Row, tokens: &[Token]) -> Vec<Logprobs> {
        let each = scores.iter().zip(tokens);
        let told = each.filter_map(|(score, &token)| match score {
            Self::All(logits) => row.logprobs(logits, token),
            // Rows of those who ask are whole.
            Self::Top(_) => None,
        });
        told.collect()
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
    use std::sync::Arc;

    use mtplx_core::RequestId;
    use mtplx_core::batch::{Batch, BatchLimits, Knobs};
    use mtplx_core::engine::EngineInfo;
    use mtplx_core::grammar::{Broken, Constraint, Grammar};
    use mtplx_core::guard::Budget;
    use mtplx_core::request::{Drafts, Limits, Request};

    use super::*;

    /// Logits with ties, and the largest of them.
    fn searched() -> (Vec<f32>, Top) {
        let logits: Vec<f32> =
            (0..500_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as f32 / 20.0).collect();
        let mut ids: Vec<u32> = (0..500).collect();
        ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
        ids.truncate(KEPT);
        ids.sort_unstable();
        let top = Top { logits: ids.iter().map(|&i| logits[i as usize]).collect(), ids };
        (logits, top)
    }

    const DRAWS: [(f32, usize, f32); 4] =
        [(0.0, 0, 1.0), (0.6, 20, 0.95), (0.6, 3, 1.0), (1.0, 64, 1.0)];

    fn assert_same(all: &Dist, few: &Dist) {
        assert_eq!(all.ids(), few.ids());
        for (a, b) in all.probs().iter().zip(few.probs()) {
            assert!((a - b).abs() <= 2.0 * f32::EPSILON * a, "{a} and {b}");
        }
    }

    /// Allows these tokens, always.
    #[derive(Debug)]
    struct Only(Vec<Token>);

    impl Grammar for Only {
        fn allowed(&self, _: &[Token]) -> Result<Mask, Broken> {
            Ok(self.0.iter().copied().collect())
        }
    }

    /// A batch with one row that is sampled so.
    fn seated(sampling: Sampling) -> Batch {
        let info = EngineInfo {
            vocab: 500,
            context_tokens_max: 64,
            slots: 1,
            page_tokens: 16,
            rows_pages_max: 1,
            pages_max: 8,
            page_bytes: 1,
            snapshot_bytes: 1,
            budget: Budget::NONE,
            depth_max: 4,
            marks: false,
            mtp_absent: None,
            device: "none".into(),
            kernels: Vec::new(),
            identity: String::new(),
        };
        let mut batch = Batch::new(info, BatchLimits { snapshots_max: 0, chunk_grain: 8 });
        let request = Request {
            id: RequestId(1),
            prompt: [1, 2].into(),
            sampling,
            limits: Limits { new_tokens_max: 9, stop_tokens: Arc::default() },
            draft_tokens: Drafts::Tuned,
            boundaries: Vec::new(),
            resumed: 0,
            sharing: Default::default(),
            standing: Default::default(),
        };
        batch.admit(request, None);
        batch.plan(Knobs::fixed(0, 1, (64, 64)));
        batch
    }

    #[test]
    fn rows_are_fetched_whole_where_that_is_needed_alone() {
        let (logits, top) = searched();
        let array = Array::from_slice(&[logits.clone(), logits.clone()].concat(), &[2, 500]);
        let small = (0..500).find(|id| !top.ids.contains(id)).unwrap();
        let under = |tokens: &[Token]| {
            let grammar = Some(Constraint::new(Arc::new(Only(tokens.to_vec()))));
            Sampling { grammar, ..Sampling::greedy() }
        };
        let asks = Sampling { logprobs: Some(2), ..Sampling::greedy() };
        let best = Logprobs::of(&logits, top.ids[0], 2).likeliest[0].0;
        for (sampling, whole, next) in [
            (Sampling::greedy(), false, best),
            (under(&[small, top.ids[5]]), false, top.ids[5]),
            (under(&[small, small + 1000]), true, small),
            (asks, true, best),
        ] {
            let batch = seated(sampling);
            let row = batch.rows().values().next().unwrap();
            let rows = vec![Found::Top(top.clone()), Found::Top(top.clone())];
            let mut scores = Scores::Top { logits: array.clone(), rows };
            let told = |row: &Row| row.request().sampling.logprobs.is_some();
            let drafts = [3];
            let drawn = [(row, &drafts[..0]), (row, &drafts[..])];
            scores.settle(drawn.into_iter(), told).unwrap();
            assert_eq!(scores.are_few(), !whole);
            for score in scores.rows() {
                assert_eq!(score.dist(row, &[]).unwrap(), Dist::one_hot(next));
            }
            let logprobs = Score::logprobs(&scores.rows(), row, &[next, next]);
            let most = row.request().sampling.logprobs;
            let want = most.map(|most| vec![Logprobs::of(&logits, next, most); 2]);
            assert_eq!(logprobs, want.unwrap_or_default());
        }
    }

    #[test]
    fn a_row_of_largest_logits_gives_the_same_distribution_as_all_of_them() {
        let (logits, top) = searched();
        for (temperature, top_k, top_p) in DRAWS {
            let s = Sampling { temperature, top_k, top_p, ..Sampling::default() };
            assert!(is_content_with_top(&s));
            let all = Dist::from_logits(&logits, &s, &Seen::default(), &[]).unwrap();
            assert_same(&all, &of_largest(&top, &s, None).unwrap());
        }
        assert!(!is_content_with_top(&Sampling::default()), "all tokens have a chance");
    }

    #[test]
    fn under_a_grammar_too_where_they_settle_the_draw() {
        let (logits, top) = searched();
        let (mut settled, mut open) = (0, 0);
        for i in 0..40_u32 {
            // Some masks hold most tokens, some a few, and some only those that were found.
            let mask: Mask = match i % 4 {
                0 => (0..500).filter(|t| t % (i + 2) != 0).collect(),
                1 => (0..500).filter(|t| t % (i + 2) == 0).collect(),
                2 => top.ids.iter().copied().skip(i as usize).collect(),
                _ => [i, top.ids[0], 499].into_iter().collect(),
            };
            for (temperature, top_k, top_p) in DRAWS {
                let s = Sampling { temperature, top_k, top_p, ..Sampling::default() };
                if is_settled_by(&top, &s, &mask) {
                    let seen = Seen::default();
                    let all = Dist::masked(&logits, &s, (&seen, &[]), Some(&mask)).unwrap();
                    assert_same(&all, &of_largest(&top, &s, Some(&mask)).unwrap());
                    settled += 1;
                } else {
                    open += 1;
                }
            }
        }
        assert!(settled > 40 && open > 40, "{settled} and {open}");
    }
}

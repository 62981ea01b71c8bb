//! What the MTP head proposes for the rows of a cycle.

use mlx_rs::Array;
use mtplx_core::accept::draft;
use mtplx_core::batch::Row;
use mtplx_core::engine::Verify;
use mtplx_core::sample::Dist;
use rayon::prelude::*;

use super::cycle::nothing_fed;
use super::draws::{Draws, Proposal};
use super::feed::{Feed, Range, Word};
use super::scores::{Asked, Score};
use super::{MlxEngine, Result, take_rows};
use crate::draft::DraftIds;
use crate::model::join_rows;

/// Pairs that a row without drafts may leave to the head for later.
const PENDING_MAX: usize = 64;

/// A verify row on its way through a cycle.
pub(super) struct Drafted<'a> {
    pub(super) plan: &'a Verify,
    pub(super) row: &'a Row,
    /// Its drafts as far as the host knows them, and what they were drawn from.
    pub(super) drafts: Vec<u32>,
    pub(super) q: Vec<Dist>,
    /// Places of its drafts among all that are drawn within the graph.
    pub(super) drawn: Vec<usize>,
    /// What these turned out to be.
    pub(super) fed: Vec<u32>,
}

impl<'a> Drafted<'a> {
    /// With its drafts where its grammar leaves no choice about any of them, or where benches make
    /// them up.
    pub(super) fn new(plan: &'a Verify, row: &'a Row, made_up: Option<u32>) -> Self {
        let depth = usize::from(plan.depth);
        let forced = match made_up {
            Some(token) => vec![token; depth],
            None => row.forced(depth),
        };
        let drafts = if forced.len() == depth { forced } else { Vec::new() };
        let q = drafts.iter().map(|&token| Dist::one_hot(token)).collect();
        Self { plan, row, drafts, q, drawn: Vec::new(), fed: Vec::new() }
    }

    /// Whether the head is not asked.
    pub(super) fn has_all(&self) -> bool {
        self.drafts.len() == usize::from(self.plan.depth)
    }

    /// Drafts that the trunk is fed.
    pub(super) fn depth(&self) -> usize {
        self.drafts.len().max(self.drawn.len())
    }

    /// The same, as words of its pass.
    pub(super) fn words(&self) -> impl Iterator<Item = Word> {
        let known = &self.drafts[..if self.drawn.is_empty() { self.drafts.len() } else { 0 }];
        let drawn = self.drawn.iter().copied().map(Word::Drawn);
        known.iter().copied().map(Word::Known).chain(drawn)
    }
}

impl MlxEngine {
    /// Proposes tokens for every row that asks for some, one depth at a time for all rows.
    pub(super) fn draft_all(&mut self, rows: &mut [Drafted<'_>]) -> Result<Draws> {
        let mut draws = Draws::default();
        let Some(mut hidden) = self.first_draft(rows)? else { return Ok(draws) };
        let ids = self.model.draft_ids();
        let in_graph = Draws::serve(self.place, ids, rows);
        let mut active: Vec<usize> = (0..rows.len()).filter(|&i| !rows[i].has_all()).collect();
        for step in 1.. {
            let logits = self.model.draft_logits(&hidden)?;
            if in_graph {
                draws.add(rows, &active, (&logits, ids))?;
            } else {
                let asked = match ids.are_all() {
                    true => Asked::new(logits, active.iter().map(|&i| rows[i].row))?,
                    false => Asked::all(logits)?,
                };
                Self::eval(&mut self.phases, [asked.array(), &hidden])?;
                let mut scores = asked.read()?;
                let drawn = active.iter().map(|&i| (rows[i].row, &*rows[i].drafts));
                scores.settle(drawn, |_| false)?;
                propose(rows, &active, &scores.rows(), ids);
            }
            let mut kept = Vec::new();
            active = (0_i32..)
                .zip(active)
                .filter(|&(_, i)| {
                    // A row whose head gave nonsense stops drafting; the trunk will judge.
                    rows[i].plan.depth > step && rows[i].depth() == usize::from(step)
                })
                .map(|(at, i)| {
                    kept.push(at);
                    i
                })
                .collect();
            if active.is_empty() {
                break;
            }
            let mut feed = Feed::default();
            for &i in &active {
                let plan = rows[i].plan;
                let slot = usize::from(plan.slot.0);
                let position = plan.position + usize::from(step);
                let at = Range { position, keep: 0, commit: true, mark: None };
                feed.push_words(slot, &self.slots[slot], at, rows[i].words().last());
            }
            let (before, tokens) = (take_rows(&hidden, &kept)?, feed.tokens(&draws.tokens())?);
            hidden = self.model.draft(&before, &tokens, &feed.rows, &mut self.pools)?;
        }
        Ok(draws)
    }

    /// Shows the head all that it has not seen, up to each row's pending token; its hidden state
    /// there, one row for every row that drafts.
    fn first_draft(&mut self, rows: &[Drafted<'_>]) -> Result<Option<Array>> {
        let mut feed = Feed::default();
        let (mut tails, mut last) = (Vec::new(), Vec::new());
        for drafted in rows {
            let Drafted { plan, row, .. } = drafted;
            let index = usize::from(plan.slot.0);
            self.cut_tail(index, plan.position)?;
            let state = &mut self.slots[index];
            if drafted.has_all() {
                if plan.position - state.head_next >= PENDING_MAX {
                    self.remember_until(index, plan.position)?;
                }
                continue;
            }
            let tail = state.tail.clone().ok_or_else(|| nothing_fed(plan.slot))?;
            let position = state.head_next;
            let at = Range { position, keep: 0, commit: true, mark: None };
            feed.push(index, state, at, &row.tokens()[position..=plan.position]);
            tails.push(tail);
            last.push(feed.words.len() as i32 - 1);
            state.head_next = plan.position + 1;
            (state.tail, state.fed) = (None, Vec::new());
        }
        if last.is_empty() {
            return Ok(None);
        }
        let before = join_rows(&tails)?;
        let hidden = self.model.draft(&before, &feed.tokens(&[])?, &feed.rows, &mut self.pools)?;
        Ok(Some(take_rows(&hidden, &last)?))
    }

    /// Drops what the last verdict rejected: hidden states stand up to the one before `position`.
    fn cut_tail(&mut self, index: usize, position: usize) -> Result<()> {
        let has_mtp = self.model.has_mtp();
        let state = &mut self.slots[index];
        let Some(tail) = &state.tail else { return Ok(()) };
        let stand = position + 1 - state.head_next;
        if !has_mtp {
            // Only the last one is ever needed again.
            state.tail = Some(take_rows(tail, &[stand as i32 - 1])?);
            state.head_next = position;
            state.fed.clear();
        } else if stand < tail.dim(0) as usize {
            state.tail = Some(take_rows(tail, &(0..stand as i32).collect::<Vec<_>>())?);
            state.fed.truncate(stand - 1);
        }
        Ok(())
    }
}

/// Draws one draft for every active row from the head's scores of `ids`, row after row.
fn propose(rows: &mut [Drafted<'_>], active: &[usize], scores: &[Score<'_>], ids: DraftIds) {
    let propose_one = |(&i, score): (&usize, &Score<'_>)| -> Proposal {
        let Drafted { row, drafts, .. } = &rows[i];
        let s = &row.request().sampling;
        let q = match score {
            Score::All(logits) => ids.dist(logits, row, drafts),
            Score::Top(_) => score.dist(row, drafts),
        }?;
        let position = row.tokens().len() + drafts.len();
        Ok((draft(s.rule, s.seed, position as u64, &q), q))
    };
    let proposals: Vec<_> = if is_little(scores.iter().map(|score| score.len()).sum()) {
        active.iter().zip(scores).map(propose_one).collect()
    } else {
        active.par_iter().zip(scores).map(propose_one).collect()
    };
    for (&i, proposal) in active.iter().zip(proposals) {
        if let Ok((token, q)) = proposal {
            rows[i].drafts.push(token);
            rows[i].q.push(q);
        }
    }
}

/// Whether sampling from so many logits takes less time than waking a thread for it.
pub(super) fn is_little(logits: usize) -> bool {
    logits < 300_000
}

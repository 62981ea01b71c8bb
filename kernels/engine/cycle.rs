//! One cycle: draft, one forward pass over drafts and prompt chunks, accept.

use std::time::Instant;

use mlx_rs::Array;
use mtplx_core::Slot;
use mtplx_core::accept::{draw, verdict};
use mtplx_core::batch::Row;
use mtplx_core::engine::{Emitted, Plan, Prefill, RowOutcome, Rows};
use mtplx_core::random::{Purpose, uniform};
use mtplx_core::sample::{Dist, NotFinite};
use rayon::prelude::*;

use super::drafts::Drafted;
use super::draws::Draws;
use super::feed::{Feed, Range, Word};
use super::scores::{Asked, Score, Scores};
use super::verdicts;
use super::{Aside, Error, FeedRow, MlxEngine, Result, SlotState, micros, take_rows};
use crate::gpu::accept::Verdicts;
use crate::model::join_rows;

impl MlxEngine {
    pub(super) fn cycle(&mut self, plan: &Plan, rows: &Rows) -> Result<Vec<RowOutcome>> {
        let row = |slot: Slot| {
            rows.get(&slot).ok_or_else(|| Error::Plan(format!("there is no row in {slot:?}")))
        };
        let mut verify = Vec::with_capacity(plan.verify.len());
        for plan in &plan.verify {
            verify.push(Drafted::new(plan, row(plan.slot)?, self.made_up));
        }
        let mut prefill = Vec::with_capacity(plan.prefill.len());
        for chunk in &plan.prefill {
            prefill.push((chunk, row(chunk.slot)?));
        }
        let start = Instant::now();
        let draws = self.draft_all(&mut verify)?;
        self.phases.draft_us = micros(start);
        let start = Instant::now();
        let (asked, verdicts) = self.forward(&verify, &prefill, &draws)?;
        self.phases.verify_us = micros(start);
        let start = Instant::now();
        let decided = verdicts.and_then(|verdicts| verdicts.read());
        let is_open = decided.is_none();
        let told = decided.map(|decided| verdicts::outcomes(decided, &mut verify, &prefill));
        if is_open {
            draws.settle(&mut verify);
        }
        for Drafted { plan, fed, .. } in &verify {
            self.slots[usize::from(plan.slot.0)].fed.extend_from_slice(fed);
        }
        let outcomes = match told {
            Some(outcomes) => Ok(outcomes),
            None => self.decide(asked, &verify, &prefill),
        };
        self.phases.accept_us = micros(start);
        outcomes
    }

    /// The host's own verdicts.
    fn decide(
        &self,
        asked: Option<Asked>,
        verify: &[Drafted<'_>],
        prefill: &[(&Prefill, &Row)],
    ) -> Result<Vec<RowOutcome>> {
        let mut scores = asked.map_or(Ok(Scores::None), Asked::read)?;
        let told = |row: &Row| row.request().sampling.logprobs.is_some();
        scores.settle(drawn(verify, prefill), told)?;
        self.accept(&scores, verify, prefill)
    }

    /// The trunk over all rows; their logits: one for each prefill that samples, then
    /// depth + 1 for each verify row; and what the device says of them.
    fn forward(
        &mut self,
        verify: &[Drafted<'_>],
        prefill: &[(&Prefill, &Row)],
        draws: &Draws,
    ) -> Result<(Option<Asked>, Option<Verdicts>)> {
        let mut feed = Feed::default();
        for drafted in verify {
            let Drafted { plan, row, .. } = drafted;
            let slot = usize::from(plan.slot.0);
            let state = &self.slots[slot];
            let (position, keep) = (plan.position, kept(state, plan.slot, plan.position)?);
            let words = [Word::Known(row.tokens()[position])].into_iter().chain(drafted.words());
            feed.push_words(
                slot,
                state,
                Range { position, keep, commit: false, mark: None },
                words,
            );
        }
        for &(chunk, row) in prefill.iter().filter(|(c, _)| c.end > c.start) {
            let slot = usize::from(chunk.slot.0);
            let state = &self.slots[slot];
            let (position, keep) = (chunk.start, kept(state, chunk.slot, chunk.start)?);
            let mark = chunk.mark.map(|at| at - position);
            let at = Range { position, keep, commit: true, mark };
            feed.push(slot, state, at, &row.tokens()[chunk.start..chunk.end]);
        }
        let mut sampled = Vec::new();
        if !feed.rows.is_empty() {
            let tokens = feed.tokens(&draws.tokens())?;
            let hidden = self.model.trunk(&tokens, &feed.rows, &mut self.pools)?;
            let (verified, chunks) = feed.rows.split_at(verify.len());
            self.note_chunks(&hidden, &feed.words, chunks)?;
            sampled = self.note_verified(&hidden, verified, verify)?;
        }
        let mut last = Vec::new();
        for (chunk, _) in prefill.iter().filter(|(c, _)| c.sample) {
            let tail = &self.slots[usize::from(chunk.slot.0)].tail;
            last.push(tail.clone().ok_or_else(|| nothing_fed(chunk.slot))?);
        }
        last.append(&mut sampled);
        let asked = match last.as_slice() {
            [] => None,
            parts => {
                let starting = prefill.iter().filter(|(c, _)| c.sample).map(|(_, row)| *row);
                let drawn = starting.chain(verify.iter().map(|d| d.row));
                Some(Asked::new(self.model.logits(&join_rows(parts)?)?, drawn)?)
            }
        };
        let verdicts = match &asked {
            Some(asked) => verdicts::add(asked, (verify, prefill), draws, &self.forced)?,
            None => None,
        };
        let tails = self.slots.iter().filter_map(|s| s.tail.as_ref());
        let tails = tails.chain(self.aside.iter().map(|aside| &aside.carry));
        // Verdicts are made of the others, which need not be read then.
        let wanted: Vec<&Array> = match &verdicts {
            Some(verdicts) => vec![verdicts.array()],
            None => asked.iter().map(Asked::array).chain(draws.arrays()).collect(),
        };
        Self::eval(&mut self.phases, wanted.into_iter().chain(self.pools.arrays()).chain(tails))?;
        Ok((asked, verdicts))
    }

    /// Books prompt chunks: the head sees them at the cost of keys and values alone.
    fn note_chunks(&mut self, hidden: &Array, words: &[Word], rows: &[FeedRow]) -> Result<()> {
        let mut seen = Feed::default();
        let mut parts = Vec::new();
        for row in rows {
            let state = &mut self.slots[row.slot];
            let end = row.start + row.len;
            // The pair of the chunk's first token needs the hidden state before the chunk.
            let (first, from) = match state.tail.take() {
                Some(tail) => {
                    parts.push(tail);
                    (row.start, row.position)
                }
                None => (row.start + 1, row.position + 1),
            };
            let rest: Vec<i32> = (row.start as i32..end as i32 - 1).collect();
            if !rest.is_empty() {
                parts.push(take_rows(hidden, &rest)?);
            }
            if first < end {
                let at = Range { position: from, keep: 0, commit: true, mark: None };
                seen.push_words(row.slot, state, at, words[first..end].iter().copied());
            }
            if let Some(mark) = row.mark {
                let carry = take_rows(hidden, &[(row.start + mark) as i32 - 1])?;
                self.aside = Some(Aside { slot: row.slot, len: row.position + mark, carry });
            }
            state.committed = row.position + row.len;
            state.head_next = state.committed;
            state.tail = Some(take_rows(hidden, &[end as i32 - 1])?);
            state.fed.clear();
        }
        if seen.rows.is_empty() || !self.model.has_mtp() {
            return Ok(());
        }
        let tokens = seen.tokens(&[])?;
        self.model.remember(&join_rows(&parts)?, &tokens, &seen.rows, &mut self.pools)
    }

    /// Books verify rows; their hidden states, whose logits are wanted, in order.
    fn note_verified(
        &mut self,
        hidden: &Array,
        rows: &[FeedRow],
        verify: &[Drafted<'_>],
    ) -> Result<Vec<Array>> {
        let mut all = Vec::with_capacity(rows.len());
        for (row, Drafted { plan, row: of, drafts, .. }) in rows.iter().zip(verify) {
            let index: Vec<i32> = (row.start as i32..(row.start + row.len) as i32).collect();
            let own = take_rows(hidden, &index)?;
            let state = &mut self.slots[row.slot];
            state.committed = plan.position;
            // Tokens the head has not seen stay in front of the new ones.
            state.tail = Some(match state.tail.take() {
                Some(tail) => join_rows(&[tail, own.clone()])?,
                None => own.clone(),
            });
            // Those drawn within the graph are added once they are known.
            state.fed = [&of.tokens()[state.head_next..=plan.position], drafts].concat();
            all.push(own);
        }
        Ok(all)
    }

    fn accept(
        &self,
        scores: &Scores,
        verify: &[Drafted<'_>],
        prefill: &[(&Prefill, &Row)],
    ) -> Result<Vec<RowOutcome>> {
        let mut rows = scores.rows().into_iter();
        let mut outcomes = Vec::with_capacity(verify.len() + prefill.len());
        for (chunk, row) in prefill.iter().filter(|(c, _)| c.sample) {
            let score = rows.next().ok_or_else(|| nothing_fed(chunk.slot))?;
            outcomes.push(RowOutcome { slot: chunk.slot, result: first_token(score, row) });
        }
        let rest: Vec<Score<'_>> = rows.collect();
        let mut from = 0;
        let jobs: Vec<(&Drafted<'_>, &[Score<'_>])> = verify
            .iter()
            .map(|d| {
                let to = from + d.depth() + 1;
                let part = &rest[from..to];
                from = to;
                (d, part)
            })
            .collect();
        let forced = &self.forced;
        let judge_one = |(d, scores): (&Drafted<'_>, &[Score<'_>])| {
            let result = judge(d, scores, forced);
            RowOutcome { slot: d.plan.slot, result }
        };
        if scores.are_few() {
            outcomes.extend(jobs.into_iter().map(judge_one));
        } else {
            outcomes.par_extend(jobs.into_par_iter().map(judge_one));
        }
        Ok(outcomes)
    }
}

/// The sequence of every row of scores, and the drafts before it.
fn drawn<'a>(
    verify: &'a [Drafted<'a>],
    prefill: &'a [(&Prefill, &'a Row)],
) -> impl Iterator<Item = (&'a Row, &'a [u32])> {
    let starting = prefill.iter().filter(|(c, _)| c.sample).map(|&(_, row)| (row, &[][..]));
    let ahead = |d: &'a Drafted<'a>, n: usize| (d.row, &d.drafts[..n.min(d.drafts.len())]);
    let going = verify.iter().flat_map(move |d| (0..=d.depth()).map(move |n| ahead(d, n)));
    starting.chain(going)
}

fn first_token(score: Score<'_>, row: &Row) -> Result<Emitted, NotFinite> {
    let s = &row.request().sampling;
    let p = score.dist(row, &[])?;
    let token = draw(s.rule, s.seed, row.tokens().len() as u64, &p);
    let logprobs = Score::logprobs(&[score], row, &[token]);
    Ok(Emitted { tokens: vec![token], drafted: 0, logprobs })
}

fn judge(d: &Drafted<'_>, scores: &[Score<'_>], forced: &[f64]) -> Result<Emitted, NotFinite> {
    let s = &d.row.request().sampling;
    let first = d.row.tokens().len() as u64;
    let p = |i: usize| scores[i].dist(d.row, &d.drafts[..i]);
    let (accepted, next) = if forced.is_empty() {
        let verdict = verdict(s.rule, s.seed, first, (&d.drafts, &d.q), p)?;
        (verdict.accepted, verdict.next)
    } else {
        let accepted = forced_length(first ^ s.seed, &forced[..d.drafts.len().min(forced.len())]);
        let dists: Vec<Dist> = (0..=accepted).map(p).collect::<Result<_, _>>()?;
        (accepted, draw(s.rule, s.seed, first + accepted as u64, &dists[accepted]))
    };
    let mut tokens = d.drafts[..accepted].to_vec();
    tokens.push(next);
    let logprobs = Score::logprobs(scores, d.row, &tokens);
    Ok(Emitted { tokens, drafted: d.drafts.len(), logprobs })
}

/// How many drafts a forced row keeps: a function of `seed` alone.
pub(super) fn forced_length(seed: u64, rates: &[f64]) -> usize {
    let stands = |&(place, &rate): &(u64, &f64)| uniform(seed, place, Purpose::Accept) < rate;
    (0..).zip(rates).take_while(stands).count()
}

/// Tape entries accepted since the last pass.
fn kept(state: &SlotState, slot: Slot, position: usize) -> Result<usize> {
    let keep = position.checked_sub(state.committed);
    keep.ok_or_else(|| Error::Plan(format!("{slot:?} is committed past {position}")))
}

pub(super) fn nothing_fed(slot: Slot) -> Error {
    Error::Plan(format!("{slot:?} was fed nothing yet"))
}

//! One cycle: draft, one forward pass over drafts and prompt chunks, accept.

use std::time::Instant;

use mlx_rs::Array;
use mtplx_core::Slot;
use mtplx_core::accept::{draft, draw, verdict};
use mtplx_core::batch::Row;
use mtplx_core::engine::{Emitted, Plan, Prefill, RowOutcome, Rows, Verify};
use mtplx_core::sample::{Dist, NotFinite};
use rayon::prelude::*;

use super::scores::{Asked, Score, Scores};
use super::{Arc, Error, FeedRow, MlxEngine, Result, SlotState, micros, take_rows};
use crate::draft::DraftIds;
use crate::model::join_rows;

/// Pairs that a row without drafts may leave to the head for later.
const PENDING_MAX: usize = 64;

/// A verify row on its way through a cycle.
struct Drafted<'a> {
    plan: &'a Verify,
    row: &'a Row,
    drafts: Vec<u32>,
    q: Vec<Dist>,
}

impl<'a> Drafted<'a> {
    /// With its drafts where its grammar leaves no choice about any of them.
    fn new(plan: &'a Verify, row: &'a Row) -> Self {
        let depth = usize::from(plan.depth);
        let forced = row.forced(depth);
        let drafts = if forced.len() == depth { forced } else { Vec::new() };
        let q = drafts.iter().map(|&token| Dist::one_hot(token)).collect();
        Self { plan, row, drafts, q }
    }

    /// Whether the head is not asked.
    fn has_all(&self) -> bool {
        self.drafts.len() == usize::from(self.plan.depth)
    }
}

/// Rows and tokens of a pass under construction.
#[derive(Default)]
struct Feed {
    tokens: Vec<u32>,
    rows: Vec<FeedRow>,
}

impl Feed {
    fn push(&mut self, slot: usize, state: &SlotState, at: Range, tokens: &[u32]) {
        self.rows.push(FeedRow {
            slot,
            start: self.tokens.len(),
            len: tokens.len(),
            position: at.position,
            keep: at.keep,
            commit: at.commit,
            pages: Arc::clone(&state.pages),
        });
        self.tokens.extend_from_slice(tokens);
    }
}

/// Where a row's tokens go.
struct Range {
    position: usize,
    keep: usize,
    commit: bool,
}

impl MlxEngine {
    pub(super) fn cycle(&mut self, plan: &Plan, rows: &Rows) -> Result<Vec<RowOutcome>> {
        let row = |slot: Slot| {
            rows.get(&slot).ok_or_else(|| Error::Plan(format!("there is no row in {slot:?}")))
        };
        let mut verify = Vec::with_capacity(plan.verify.len());
        for plan in &plan.verify {
            verify.push(Drafted::new(plan, row(plan.slot)?));
        }
        let mut prefill = Vec::with_capacity(plan.prefill.len());
        for chunk in &plan.prefill {
            prefill.push((chunk, row(chunk.slot)?));
        }
        let start = Instant::now();
        self.draft_all(&mut verify)?;
        self.phases.draft_us = micros(start);
        let start = Instant::now();
        let mut scores = self.forward(&verify, &prefill)?;
        self.phases.verify_us = micros(start);
        let start = Instant::now();
        let told = |row: &Row| row.request().sampling.logprobs.is_some();
        scores.settle(drawn(&verify, &prefill), told)?;
        let outcomes = self.accept(&scores, &verify, &prefill);
        self.phases.accept_us = micros(start);
        outcomes
    }

    /// Proposes tokens for every row that asks for some, one depth at a time for all rows.
    fn draft_all(&mut self, rows: &mut [Drafted<'_>]) -> Result<()> {
        let Some(mut hidden) = self.first_draft(rows)? else { return Ok(()) };
        let mut active: Vec<usize> = (0..rows.len()).filter(|&i| !rows[i].has_all()).collect();
        for step in 1.. {
            let (logits, ids) = self.model.draft_logits(&hidden)?;
            let asked = match ids.are_all() {
                true => Asked::new(logits, active.iter().map(|&i| rows[i].row))?,
                false => Asked::all(logits)?,
            };
            Self::eval(&mut self.phases, [asked.array(), &hidden])?;
            let mut scores = asked.read()?;
            let drawn = active.iter().map(|&i| (rows[i].row, &*rows[i].drafts));
            scores.settle(drawn, |_| false)?;
            propose(rows, &active, &scores.rows(), ids);
            let mut kept = Vec::new();
            active = (0_i32..)
                .zip(active)
                .filter(|&(_, i)| {
                    // A row whose head gave nonsense stops drafting; the trunk will judge.
                    rows[i].plan.depth > step && rows[i].drafts.len() == usize::from(step)
                })
                .map(|(at, i)| {
                    kept.push(at);
                    i
                })
                .collect();
            if active.is_empty() {
                return Ok(());
            }
            let mut feed = Feed::default();
            for &i in &active {
                let Drafted { plan, drafts, .. } = &rows[i];
                let slot = usize::from(plan.slot.0);
                let state = &self.slots[slot];
                let position = plan.position + usize::from(step);
                let at = Range { position, keep: 0, commit: true };
                feed.push(slot, state, at, &drafts[drafts.len() - 1..]);
            }
            let before = take_rows(&hidden, &kept)?;
            hidden = self.model.draft(&before, &feed.tokens, &feed.rows, &mut self.pools)?;
        }
        Ok(())
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
            let at = Range { position, keep: 0, commit: true };
            feed.push(index, state, at, &row.tokens()[position..=plan.position]);
            tails.push(tail);
            last.push(feed.tokens.len() as i32 - 1);
            state.head_next = plan.position + 1;
            (state.tail, state.fed) = (None, Vec::new());
        }
        if last.is_empty() {
            return Ok(None);
        }
        let before = join_rows(&tails)?;
        let hidden = self.model.draft(&before, &feed.tokens, &feed.rows, &mut self.pools)?;
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

    /// The trunk over all rows; their scores: one for each prefill that samples, then
    /// depth + 1 for each verify row.
    fn forward(&mut self, verify: &[Drafted<'_>], prefill: &[(&Prefill, &Row)]) -> Result<Scores> {
        let mut feed = Feed::default();
        for Drafted { plan, row, drafts, .. } in verify {
            let slot = usize::from(plan.slot.0);
            let state = &self.slots[slot];
            let (position, keep) = (plan.position, kept(state, plan.slot, plan.position)?);
            let tokens = [&row.tokens()[position..=position], drafts].concat();
            feed.push(slot, state, Range { position, keep, commit: false }, &tokens);
        }
        for &(chunk, row) in prefill.iter().filter(|(c, _)| c.end > c.start) {
            let slot = usize::from(chunk.slot.0);
            let state = &self.slots[slot];
            let (position, keep) = (chunk.start, kept(state, chunk.slot, chunk.start)?);
            let at = Range { position, keep, commit: true };
            feed.push(slot, state, at, &row.tokens()[chunk.start..chunk.end]);
        }
        let mut sampled = Vec::new();
        if !feed.rows.is_empty() {
            let hidden = self.model.trunk(&feed.tokens, &feed.rows, &mut self.pools)?;
            let (verified, chunks) = feed.rows.split_at(verify.len());
            self.note_chunks(&hidden, &feed.tokens, chunks)?;
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
        let tails = self.slots.iter().filter_map(|s| s.tail.as_ref());
        let wanted = asked.iter().map(Asked::array);
        Self::eval(&mut self.phases, wanted.chain(self.pools.arrays()).chain(tails))?;
        asked.map_or(Ok(Scores::None), Asked::read)
    }

    /// Books prompt chunks: the head sees them at the cost of keys and values alone.
    fn note_chunks(&mut self, hidden: &Array, tokens: &[u32], rows: &[FeedRow]) -> Result<()> {
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
                let at = Range { position: from, keep: 0, commit: true };
                seen.push(row.slot, state, at, &tokens[first..end]);
            }
            state.committed = row.position + row.len;
            state.head_next = state.committed;
            state.tail = Some(take_rows(hidden, &[end as i32 - 1])?);
            state.fed.clear();
        }
        if seen.rows.is_empty() || !self.model.has_mtp() {
            return Ok(());
        }
        self.model.remember(&join_rows(&parts)?, &seen.tokens, &seen.rows, &mut self.pools)
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
                let to = from + d.drafts.len() + 1;
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
    let going = verify.iter().flat_map(|d| (0..=d.drafts.len()).map(|n| (d.row, &d.drafts[..n])));
    starting.chain(going)
}

/// Draws one draft for every active row from the head's scores of `ids`, row after row.
fn propose(rows: &mut [Drafted<'_>], active: &[usize], scores: &[Score<'_>], ids: DraftIds) {
    let propose_one = |(&i, score): (&usize, &Score<'_>)| -> Result<(u32, Dist), NotFinite> {
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
fn is_little(logits: usize) -> bool {
    logits < 300_000
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
        (accepted, draw(s.rule, s.seed, first, &dists[accepted]))
    };
    let mut tokens = d.drafts[..accepted].to_vec();
    tokens.push(next);
    let logprobs = Score::logprobs(scores, d.row, &tokens);
    Ok(Emitted { tokens, drafted: d.drafts.len(), logprobs })
}

/// How many drafts a forced row keeps: a function of `seed` alone.
fn forced_length(seed: u64, rates: &[f64]) -> usize {
    let mut state = seed;
    let mut unit = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed >> 11) as f64 / (1_u64 << 53) as f64
    };
    rates.iter().take_while(|&&rate| unit() < rate).count()
}

/// Tape entries accepted since the last pass.
fn kept(state: &SlotState, slot: Slot, position: usize) -> Result<usize> {
    let keep = position.checked_sub(state.committed);
    keep.ok_or_else(|| Error::Plan(format!("{slot:?} is committed past {position}")))
}

fn nothing_fed(slot: Slot) -> Error {
    Error::Plan(format!("{slot:?} was fed nothing yet"))
}

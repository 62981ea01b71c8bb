//! An engine without a model: the next token's distribution is a hash of the prefix. It keeps the
//! state a real one would keep, and faults on any plan that a real one would answer wrongly, which
//! makes it the oracle of every simulation.

use std::collections::BTreeMap;

use crate::accept::{draft, draw, verdict};
use crate::batch::Row;
use crate::engine::{
    Emitted, Engine, EngineInfo, Fault, Move, Outcome, Parcel, Plan, Prefill, RowOutcome, Rows,
    Stretch, Verify,
};
use crate::guard::Budget;
use crate::image::{Image, Part, Unfit};
use crate::logprobs::Logprobs;
use crate::prefix::chain;
use crate::sample::{Dist, NotFinite};
use crate::{Page, RequestId, Slot, SnapshotId, Token};

mod grammar;

pub use self::grammar::ScriptedGrammar;

/// How the script is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Script {
    /// Names one language among many.
    pub seed: u64,
    /// Spread of the logits: larger is more certain.
    pub sharpness: f32,
    /// How far the head's logits are from the trunk's; 0 is a perfect head.
    pub head_noise: f32,
    /// After one in so many texts there is only nonsense: no number is finite. Never if 0.
    pub nan_one_in: u64,
}

impl Default for Script {
    fn default() -> Self {
        Self { seed: 1, sharpness: 5.0, head_noise: 1.0, nan_one_in: 0 }
    }
}

/// The engine. Its tensors are token lists.
#[derive(Debug)]
pub struct Scripted {
    info: EngineInfo,
    script: Script,
    slots: BTreeMap<Slot, Sequence>,
    parked: BTreeMap<SnapshotId, Vec<Token>>,
    /// What the last step set aside on its way, and whose slot it was.
    aside: Option<(Slot, Vec<Token>)>,
    /// What each page holds: the token fed at each of its positions.
    pages: BTreeMap<Page, Vec<Option<Token>>>,
    /// What a step takes, in microseconds; nothing, unless a test says otherwise.
    pub pace: fn(&Plan) -> u64,
    /// Steps after which the device breaks; `None` never.
    pub fault_at_step: Option<u64>,
}

/// What a slot holds.
#[derive(Debug, Default)]
struct Sequence {
    /// Whose it is since it was cleared or restored; nobody's before its first tokens.
    owner: Option<RequestId>,
    /// What was fed, accepted or not yet judged.
    fed: Vec<Token>,
    /// Tokens that cannot be taken back: all before the last cycle.
    committed: usize,
}

impl Scripted {
    /// Opens the script on `info`.
    #[must_use]
    pub fn new(info: EngineInfo, script: Script) -> Self {
        let (slots, parked, pages) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let aside = None;
        Self { info, script, slots, parked, aside, pages, pace: |_| 0, fault_at_step: None }
    }

    /// A small engine for tests.
    #[must_use]
    pub fn small(script: Script) -> Self {
        let info = EngineInfo {
            vocab: 32,
            context_tokens_max: 512,
            slots: 8,
            page_tokens: 16,
            pages_max: 400,
            rows_pages_max: usize::MAX,
            page_bytes: 1024,
            snapshot_bytes: 4096,
            budget: Budget::NONE,
            depth_max: 4,
            marks: true,
            mtp_absent: None,
            device: "scripted".into(),
            kernels: Vec::new(),
            identity: format!("scripted {}", script.seed),
        };
        Self::new(info, script)
    }

    /// The trunk's logits [vocab] after `prefix`.
    #[must_use]
    pub fn logits(&self, prefix: &[Token]) -> Vec<f32> {
        let context = chain(prefix)[prefix.len()];
        if self.script.nan_one_in > 0 && context.is_multiple_of(self.script.nan_one_in) {
            return vec![f32::NAN; self.info.vocab];
        }
        (0..self.info.vocab as u64)
            .map(|v| self.script.sharpness * self.noise(context, v))
            .collect()
    }

    fn head_logits(&self, prefix: &[Token]) -> Vec<f32> {
        let context = chain(prefix)[prefix.len()];
        let mut logits = self.logits(prefix);
        for (v, logit) in (0_u64..).zip(&mut logits) {
            *logit += self.script.head_noise * self.noise(context, v + (1 << 32));
        }
        logits
    }

    /// A number in [-1, 1) that belongs to a context and an index.
    fn noise(&self, context: u64, index: u64) -> f32 {
        use crate::random::{Purpose, uniform};
        2.0 * uniform(self.script.seed ^ context, index, Purpose::Draw) as f32 - 1.0
    }

    fn dist(&self, row: &Row, prefix: &[Token], head: bool) -> Result<Dist, NotFinite> {
        let logits = if head { self.head_logits(prefix) } else { self.logits(prefix) };
        row.dist(&logits, &prefix[row.tokens().len()..])
    }

    fn carry_out(&mut self, step: Move) -> Result<(), Fault> {
        match step {
            Move::Clear { slot } => {
                self.slots.insert(slot, Sequence::default());
            }
            Move::Restore { slot, snapshot } => {
                let state = self.parked.get(&snapshot).cloned();
                let fed = state.ok_or_else(|| Fault(format!("{snapshot:?} is not parked")))?;
                let committed = fed.len();
                self.slots.insert(slot, Sequence { owner: None, fed, committed });
            }
            Move::Save { slot, snapshot, len } => {
                if self
                    .aside
                    .as_ref()
                    .is_some_and(|(from, text)| (*from, text.len()) == (slot, len))
                {
                    self.parked.extend(self.aside.take().map(|(_, text)| (snapshot, text)));
                    return Ok(());
                }
                let holds = |s: &&mut Sequence| (s.committed..=s.fed.len()).contains(&len);
                let sequence = self.slots.get_mut(&slot).filter(holds);
                let sequence =
                    sequence.ok_or_else(|| Fault(format!("{slot:?} cannot be saved at {len}")))?;
                sequence.fed.truncate(len);
                sequence.committed = len;
                self.parked.insert(snapshot, sequence.fed.clone());
            }
            Move::CopyPage { from, to } => {
                let page = self.pages.get(&from).cloned();
                let page = page.ok_or_else(|| Fault(format!("{from:?} was never written")))?;
                self.pages.insert(to, page);
            }
            Move::Forget { snapshot } => {
                let known = self.parked.remove(&snapshot);
                known.ok_or_else(|| Fault(format!("{snapshot:?} forgotten twice")))?;
            }
        }
        Ok(())
    }

    /// Feeds `tokens` from `start` on, cutting away what was rejected, and checks that what the
    /// row's pages hold before them is the row's own text.
    fn feed(&mut self, slot: Slot, row: &Row, start: usize, new: &[Token]) -> Result<(), Fault> {
        let never = || Fault(format!("{slot:?} was never cleared"));
        let sequence = self.slots.get_mut(&slot).ok_or_else(never)?;
        let id = row.request().id;
        let owner = *sequence.owner.get_or_insert(id);
        if owner != id {
            return Err(Fault(format!("{slot:?} was not cleared between {owner:?} and {id:?}")));
        }
        if start < sequence.committed {
            let committed = sequence.committed;
            return Err(Fault(format!("{slot:?} stands at {committed}, not at {start} any more")));
        }
        sequence.committed = start;
        let fed = &mut sequence.fed;
        if fed.len() < start || fed[..start] != row.tokens()[..start] {
            return Err(Fault(format!("{slot:?} does not hold the {start} tokens of its row")));
        }
        fed.truncate(start);
        fed.extend_from_slice(new);
        let size = self.info.page_tokens;
        for (i, &token) in fed.iter().enumerate() {
            let page = row.pages().get(i / size);
            let page = page.ok_or_else(|| Fault(format!("{slot:?} has no page for {i}")))?;
            let cells = self.pages.entry(*page).or_insert_with(|| vec![None; size]);
            if i >= start {
                cells[i % size] = Some(token);
            } else if cells[i % size] != Some(token) {
                return Err(Fault(format!("{page:?} lost position {i} of {slot:?}")));
            }
        }
        Ok(())
    }

    fn prefill(&mut self, chunk: &Prefill, row: &Row) -> Result<Option<RowOutcome>, Fault> {
        let new = &row.tokens()[chunk.start..chunk.end];
        self.feed(chunk.slot, row, chunk.start, new)?;
        if let Some(sequence) = self.slots.get_mut(&chunk.slot) {
            sequence.committed = chunk.end;
            if let Some(mark) = chunk.mark {
                self.aside = Some((chunk.slot, sequence.fed[..mark].to_vec()));
            }
        }
        if !chunk.sample {
            return Ok(None);
        }
        let s = &row.request().sampling;
        let result = self.dist(row, row.tokens(), false).map(|p| {
            let tokens = vec![draw(s.rule, s.seed, chunk.end as u64, &p)];
            Emitted { logprobs: self.logprobs(row, &tokens), tokens, drafted: 0 }
        });
        Ok(Some(RowOutcome { slot: chunk.slot, result }))
    }

    fn verify(&mut self, v: &Verify, row: &Row) -> Result<RowOutcome, Fault> {
        if row.tokens().len() != v.position + 1 {
            return Err(Fault(format!("{:?} has no pending token at {}", v.slot, v.position)));
        }
        let result = self.cycle(v, row);
        let fed = match &result {
            Ok((drafts, _)) => [&row.tokens()[v.position..], drafts].concat(),
            Err(NotFinite) => Vec::new(),
        };
        self.feed(v.slot, row, v.position, &fed)?;
        Ok(RowOutcome { slot: v.slot, result: result.map(|(_, emitted)| emitted) })
    }

    fn cycle(&self, v: &Verify, row: &Row) -> Result<(Vec<Token>, Emitted), NotFinite> {
        let s = &row.request().sampling;
        let mut prefix = row.tokens().to_vec();
        let (mut drafts, mut qs) = (Vec::new(), Vec::new());
        for _ in 0..v.depth {
            // A head that gives nonsense drafts no more; the trunk judges what there is.
            let Ok(q) = self.dist(row, &prefix, true) else { break };
            let d = draft(s.rule, s.seed, prefix.len() as u64, &q);
            drafts.push(d);
            qs.push(q);
            prefix.push(d);
        }
        let first = row.tokens().len();
        let p = |i: usize| self.dist(row, &prefix[..first + i], false);
        let verdict = verdict(s.rule, s.seed, first as u64, (&drafts, &qs), p)?;
        let mut tokens = drafts[..verdict.accepted].to_vec();
        tokens.push(verdict.next);
        let drafted = drafts.len();
        let logprobs = self.logprobs(row, &tokens);
        Ok((drafts, Emitted { tokens, drafted, logprobs }))
    }

    /// Of tokens that are emitted after the text of a row.
    fn logprobs(&self, row: &Row, tokens: &[Token]) -> Vec<Logprobs> {
        let mut text = row.tokens().to_vec();
        let one = |&token: &Token| {
            let told = row.logprobs(&self.logits(&text), token);
            text.push(token);
            told
        };
        if row.request().sampling.logprobs.is_none() {
            return Vec::new();
        }
        tokens.iter().filter_map(one).collect()
    }
}

impl Engine for Scripted {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    /// As much as a real one: its base, all pages up to the highest ever written, all that is
    /// parked.
    fn memory(&self) -> u64 {
        let pages = self.pages.last_key_value().map_or(0, |(page, _)| u64::from(page.0) + 1);
        let parked = self.parked.len() as u64 * self.info.snapshot_bytes;
        self.info.budget.base + pages * self.info.page_bytes + parked
    }

    /// An image is the text itself, token by token.
    fn export(&mut self, at: Parcel<'_>, image: &mut Image, most: usize) -> Result<bool, Unfit> {
        let parked = self.parked.get(&at.snapshot);
        let parked = parked.ok_or_else(|| Unfit(format!("{:?} is not parked", at.snapshot)))?;
        if image.parts.is_empty() {
            let (name, dtype) = ("text".into(), "u32".into());
            image.parts.push(Part { name, dtype, shape: vec![parked.len()], bytes: Vec::new() });
        }
        let bytes = &mut image.parts[0].bytes;
        let more = parked[bytes.len() / 4..].iter().take(most.div_ceil(4).max(1));
        bytes.extend(more.flat_map(|token| token.to_le_bytes()));
        Ok(bytes.len() == 4 * parked.len())
    }

    fn import(&mut self, at: Parcel<'_>, image: &Image, part: Stretch<'_>) -> Result<bool, Unfit> {
        let [text] = image.parts.as_slice() else { return Err(Unfit("one part".into())) };
        let words = text.bytes.chunks_exact(4).map(|w| [w[0], w[1], w[2], w[3]]);
        let text: Vec<Token> = words.map(Token::from_le_bytes).collect();
        if text.len() != at.tokens {
            return Err(Unfit(format!("{} tokens, not {}", text.len(), at.tokens)));
        }
        let size = self.info.page_tokens;
        let first = *part.done as usize / 4 / size;
        let pages = part.most.div_ceil(4 * size).max(1);
        let stretch = at.pages.iter().zip(text.chunks(size)).skip(first).take(pages);
        for (page, tokens) in stretch {
            let mut cells: Vec<Option<Token>> = tokens.iter().copied().map(Some).collect();
            cells.resize(size, None);
            self.pages.insert(*page, cells);
            *part.done += 4 * size as u64;
        }
        let whole = first + pages >= at.pages.len();
        if whole {
            self.parked.insert(at.snapshot, text);
        }
        Ok(whole)
    }

    fn run(&mut self, plan: &Plan, rows: &Rows) -> Result<Outcome, Fault> {
        if self.fault_at_step.is_some_and(|at| plan.step >= at) {
            return Err(Fault(format!("the script breaks at step {}", plan.step)));
        }
        for &step in &plan.moves {
            self.carry_out(step)?;
        }
        self.aside = None;
        let row = |slot: Slot| rows.get(&slot).ok_or_else(|| Fault(format!("no row in {slot:?}")));
        let mut outcome = Outcome::default();
        outcome.phases.verify_us = (self.pace)(plan);
        for chunk in &plan.prefill {
            outcome.rows.extend(self.prefill(chunk, row(chunk.slot)?)?);
        }
        for v in &plan.verify {
            outcome.rows.push(self.verify(v, row(v.slot)?)?);
        }
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests;

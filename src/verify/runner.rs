//! A batch over the engine, without actors: texts of given prompts at a given depth.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Result, bail};
use mtplx_core::batch::{Batch, BatchLimits, Deposit, Knobs, RowEvent, Tried, Warm};
use mtplx_core::engine::Engine;
use mtplx_core::logprobs::Logprobs;
use mtplx_core::request::{Drafts, Limits, Request, Sharing};
use mtplx_core::sample::Sampling;
use mtplx_core::{RequestId, Tenant, Token};
use mtplx_kernels::MlxEngine;

/// One is kept while its continuations are drawn.
const SNAPSHOTS_MAX: usize = 4;
/// Prompt tokens of a step, beside rows that decode and alone.
const PREFILL: (usize, usize) = (64, 512);

/// What was made of one prompt.
#[derive(Clone, Debug, Default)]
pub(super) struct Text {
    pub(super) tokens: Vec<Token>,
    pub(super) logprobs: Vec<Logprobs>,
}

pub(super) struct Runner {
    engine: MlxEngine,
    batch: Batch,
    deposits: Vec<Deposit>,
    texts: BTreeMap<RequestId, Text>,
    /// Of each draft position, since the beginning.
    pub(super) tried: Vec<Tried>,
    next: u64,
}

impl Runner {
    pub(super) fn new(engine: MlxEngine) -> Self {
        let limits = BatchLimits { snapshots_max: SNAPSHOTS_MAX, chunk_grain: 1 };
        let batch = Batch::new(engine.info().clone(), limits);
        let (deposits, texts, tried) = Default::default();
        Self { engine, batch, deposits, texts, tried, next: 0 }
    }

    pub(super) fn depth_max(&self) -> u8 {
        self.engine.info().depth_max
    }

    /// Texts of `prompts`, all at once, none warm.
    pub(super) fn together(
        &mut self,
        prompts: &[Vec<Token>],
        sampling: impl Fn(usize) -> Sampling,
        (tokens, depth): (usize, u8),
    ) -> Result<Vec<Text>> {
        let each = prompts.iter().enumerate();
        let ids: Vec<_> =
            each.map(|(i, prompt)| self.ask(prompt, sampling(i), tokens, false)).collect();
        self.finish(depth)?;
        self.forget();
        Ok(ids.into_iter().map(|id| self.texts.remove(&id).unwrap_or_default()).collect())
    }

    /// `draws` texts of one prompt, of which only decoding is computed each time.
    pub(super) fn draws(
        &mut self,
        prompt: &[Token],
        sampling: impl Fn(u64) -> Sampling,
        (draws, tokens, depth): (u64, usize, u8),
    ) -> Result<Vec<Text>> {
        self.ask(prompt, sampling(0), 1, true);
        self.finish(0)?;
        let ids: Vec<_> = (0..draws).map(|i| self.ask(prompt, sampling(i), tokens, true)).collect();
        self.finish(depth)?;
        self.forget();
        let texts = ids.into_iter().map(|id| self.texts.remove(&id).unwrap_or_default()).collect();
        self.texts.clear();
        Ok(texts)
    }

    fn ask(&mut self, prompt: &[Token], sampling: Sampling, n: usize, warm: bool) -> RequestId {
        self.next += 1;
        let id = RequestId(self.next);
        // Who is to start cold shares with nobody.
        let tenant = if warm { Tenant::default() } else { Tenant((1 << 32) + self.next) };
        let request = Request {
            id,
            prompt: prompt.into(),
            sampling,
            limits: Limits { new_tokens_max: n, stop_tokens: Arc::default() },
            draft_tokens: Drafts::Tuned,
            boundaries: Vec::new(),
            resumed: 0,
            sharing: Sharing { tenant, ..Sharing::default() },
            standing: Default::default(),
        };
        let fits = self.deposits.iter().filter(|d| warm && prompt.starts_with(&d.prefix.tokens));
        let warm = fits
            .max_by_key(|d| d.prefix.tokens.len())
            .map(|d| Warm { snapshot: d.snapshot, len: d.prefix.tokens.len() });
        self.batch.admit(request, warm);
        id
    }

    fn finish(&mut self, depth: u8) -> Result<()> {
        while self.batch.is_busy() {
            let rows = self.engine.info().slots;
            let plan = self.batch.plan(Knobs::fixed(depth, rows, PREFILL));
            if plan.verify.is_empty() && plan.prefill.is_empty() && plan.moves.is_empty() {
                bail!("the texts do not fit into memory: {:?}", self.batch.shortage());
            }
            let outcome = self.engine.run(&plan, self.batch.rows())?;
            let settled = self.batch.settle(&plan, outcome);
            self.deposits.extend(settled.deposits);
            if self.tried.len() < settled.report.positions.len() {
                self.tried.resize(settled.report.positions.len(), Tried::default());
            }
            for (sum, part) in self.tried.iter_mut().zip(&settled.report.positions) {
                sum.tried += part.tried;
                sum.accepted += part.accepted;
            }
            for (id, event) in settled.events {
                let text = self.texts.entry(id).or_default();
                match event {
                    RowEvent::Tokens(tokens, _) => text.tokens.extend(tokens),
                    RowEvent::Logprobs(logprobs) => text.logprobs.extend(logprobs),
                    RowEvent::Refused(shortage) => bail!("a text does not fit: {shortage:?}"),
                    RowEvent::Seated | RowEvent::Finished(..) | RowEvent::Late => {}
                }
            }
        }
        Ok(())
    }

    fn forget(&mut self) {
        for deposit in std::mem::take(&mut self.deposits) {
            self.batch.release(deposit.snapshot);
        }
    }
}

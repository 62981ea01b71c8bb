//! The way in: readiness, the permits that bound the house, the checks that need to know the
//! engine, and the cast to the bank.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use mtplx_core::engine::EngineInfo;
use mtplx_core::guard;
use mtplx_core::random::derive;
use mtplx_core::request::{Drafts, Limits, Refusal, Request, Sharing};
use mtplx_core::sample::Sampling;
use mtplx_core::{RequestId, Token};
use ractor::ActorRef;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::openai::error::RETRY_AFTER_S;
use super::openai::{Drafting, Source, Wanted};
use super::stream::{Choice, Choices, Watch};
use super::text::{Prompt, Text};
use super::{Config, off_thread};
use crate::admission::Admission;
use crate::{bank, metrics};

/// Whether and by whom requests are served.
#[derive(Clone, Debug)]
pub(crate) enum Readiness {
    /// By nobody at the moment, for this reason.
    Between(String),
    /// By this bank's generation.
    Serving(ActorRef<bank::Message>, Arc<EngineInfo>),
}

/// What all connections share.
pub(crate) struct House {
    pub(crate) config: Config,
    pub(crate) text: Arc<Text>,
    readiness: watch::Receiver<Readiness>,
    /// When the door opened, in seconds since 1970.
    pub(crate) started_s: u64,
    permits: Arc<Semaphore>,
    last_id: AtomicU64,
}

/// An admitted request: the choices on their way, and the lengths of its prompts.
pub(crate) struct Admitted {
    pub(crate) choices: Choices,
    pub(crate) prompts: Vec<usize>,
}

impl House {
    pub(crate) fn new(
        config: Config,
        text: Arc<Text>,
        readiness: watch::Receiver<Readiness>,
    ) -> Self {
        let permits = Arc::new(Semaphore::new(config.requests_max.get().into()));
        let started_s = super::unix_s();
        Self { config, text, readiness, started_s, permits, last_id: AtomicU64::new(0) }
    }

    pub(crate) fn readiness(&self) -> Readiness {
        self.readiness.borrow().clone()
    }

    /// Choices in the house.
    pub(crate) fn taken(&self) -> usize {
        usize::from(self.config.requests_max.get()) - self.permits.available_permits()
    }

    /// Takes a request in. What it started is undone by dropping it.
    pub(crate) async fn admit(
        &self,
        mut wanted: Wanted,
        (route, arrived): (&'static str, Instant),
    ) -> Result<Admitted, Refusal> {
        let (bank, info) = match self.readiness() {
            Readiness::Between(reason) => return Err(Refusal::Unavailable { reason }),
            Readiness::Serving(bank, info) => (bank, info),
        };
        check(&wanted, &info)?;
        let sharing = wanted.sharing;
        let mut permits = self.permits(&wanted)?;
        let sources = std::mem::take(&mut wanted.sources);
        let fields: Vec<_> = sources.iter().map(Source::field).collect();
        let prompts = self.prompts(sources).await?;
        let limits = self.limits(&wanted);
        let mut admissions = Vec::new();
        for (prompt, field) in prompts.iter().zip(fields) {
            // A tokenizer may know tokens that the model has no embedding for.
            in_vocabulary(field, &prompt.tokens, &info)?;
            let tokens: Arc<[Token]> = Arc::from(prompt.tokens.as_slice());
            let room = self.room((tokens.len(), field), &wanted, &info)?;
            for index in 0..wanted.choices {
                // Room for every event there can be. The channel takes memory for those that are
                // in it only, in blocks of 32.
                let (events, receiver) = mpsc::channel(room + 2);
                let request = Request {
                    id: RequestId(self.last_id.fetch_add(1, Ordering::Relaxed) + 1),
                    prompt: Arc::clone(&tokens),
                    sampling: seeded(&wanted.sampling, index),
                    limits: Limits { new_tokens_max: room, ..limits.clone() },
                    draft_tokens: wanted.drafting.tokens,
                    boundaries: prompt.boundaries.clone(),
                    sharing: Sharing { root: prompt.root, ..sharing },
                };
                let permit = permits.split(1).ok_or_else(overloaded)?;
                admissions.push((Admission { request, events, permit }, receiver));
            }
        }
        let mut list = Vec::with_capacity(admissions.len());
        for (admission, receiver) in admissions {
            bank.cast(bank::Message::Open(admission))
                .map_err(|_| Refusal::Unavailable { reason: "it is being restarted".into() })?;
            let watch = Watch::new(route, arrived);
            list.push(Choice::new(receiver, self.text.detokenizer(), &wanted.stops, watch));
        }
        let prompts = prompts.iter().map(|p| p.tokens.len()).collect();
        Ok(Admitted { choices: Choices::new(list), prompts })
    }

    /// One for each choice, all or none: a request that got half of them could wait forever.
    fn permits(&self, wanted: &Wanted) -> Result<OwnedSemaphorePermit, Refusal> {
        let rows = wanted.sources.len() * wanted.choices;
        let most = usize::from(self.config.requests_max.get());
        if rows > most {
            let field = if wanted.sources.len() > 1 { "prompt" } else { "n" };
            let reason = format!("asks for {rows} answers at once; this server holds {most}");
            return Err(Refusal::Invalid { field, reason });
        }
        let rows = u32::try_from(rows).map_err(|_| overloaded())?;
        Arc::clone(&self.permits).try_acquire_many_owned(rows).map_err(|_| overloaded())
    }

    /// Renders and tokenizes, off the connection's thread where it may take long.
    async fn prompts(&self, sources: Vec<Source>) -> Result<Vec<Prompt>, Refusal> {
        let text = Arc::clone(&self.text);
        let size = sources.iter().map(Source::size).sum();
        let began = Instant::now();
        let prompts = off_thread(size, move || {
            sources.into_iter().map(|source| prompt_of(&text, source)).collect()
        });
        let prompts = prompts.await;
        metrics::tokenized(began.elapsed());
        prompts
    }

    fn limits(&self, wanted: &Wanted) -> Limits {
        let mut stop_tokens = BTreeSet::new();
        if !wanted.ignore_eos {
            stop_tokens.extend(self.text.stop_tokens().iter());
        }
        stop_tokens.extend(&wanted.stop_tokens);
        stop_tokens.extend(wanted.stops.iter().filter_map(|s| self.text.special(s)));
        Limits { new_tokens_max: 0, stop_tokens: Arc::new(stop_tokens) }
    }

    /// Tokens that may be generated after a prompt.
    fn room(
        &self,
        (prompt, field): (usize, &'static str),
        wanted: &Wanted,
        info: &EngineInfo,
    ) -> Result<usize, Refusal> {
        let context = context(info);
        let left = context.saturating_sub(prompt);
        let asked = wanted.new_tokens_max;
        if left == 0 || asked.is_some_and(|(n, _)| n > left) {
            return Err(Refusal::TooLong { field, prompt, wanted: asked, context });
        }
        let most = self.config.new_tokens_max.map_or(usize::MAX, |n| n.get());
        if let Some((n, field)) = asked.filter(|&(n, _)| n > most) {
            let reason = format!("must be at most {most} on this server, got {n}");
            return Err(Refusal::Invalid { field, reason });
        }
        // Who would not fit even alone need not wait to be told so.
        guard::check_alone(info, prompt + asked.map_or(1, |(n, _)| n))
            .map_err(Refusal::NoMemory)?;
        let left = left.min(guard::tokens_max(info).saturating_sub(prompt));
        let unasked = wanted.new_tokens_default.unwrap_or(usize::MAX);
        // Nobody asked for the default, so it gives way to what there is room for.
        Ok(asked.map_or(left.min(most).min(unasked), |(n, _)| n))
    }
}

/// Tokens of the longest sequence the engine can hold. One that needs more pages than there are
/// would wait for ever.
pub(crate) fn context(info: &EngineInfo) -> usize {
    info.context_tokens_max.min(info.pages_max.saturating_mul(info.page_tokens))
}

fn overloaded() -> Refusal {
    Refusal::Overloaded { retry_after_s: RETRY_AFTER_S }
}

/// The checks that need to know the engine.
fn check(wanted: &Wanted, info: &EngineInfo) -> Result<(), Refusal> {
    wanted.sampling.check(info.vocab)?;
    in_vocabulary("stop_token_ids", &wanted.stop_tokens, info)?;
    let Drafting { tokens, demanded_by } = wanted.drafting;
    let Some(field) = demanded_by else { return Ok(()) };
    if info.depth_max == 0 {
        // Why is for the log: it names the server's files.
        let reason = "this model is served without an MTP head, so nothing can be drafted; leave \
                      it out";
        return Err(Refusal::Invalid { field, reason: reason.into() });
    }
    if matches!(tokens, Drafts::Exactly(n) if n > info.depth_max) {
        let reason =
            format!("must be at most {}, which is what this engine drafts", info.depth_max);
        return Err(Refusal::Invalid { field, reason });
    }
    Ok(())
}

fn in_vocabulary(field: &'static str, tokens: &[Token], info: &EngineInfo) -> Result<(), Refusal> {
    match tokens.iter().find(|&&t| t as usize >= info.vocab) {
        Some(token) => {
            let reason = format!("token {token} is not below the vocabulary size {}", info.vocab);
            Err(Refusal::Invalid { field, reason })
        }
        None => Ok(()),
    }
}

fn prompt_of(text: &Text, source: Source) -> Result<Prompt, Refusal> {
    let field = source.field();
    let prompt = match source {
        Source::Chat(chat) => text.chat(&chat)?,
        Source::Text(raw) => text.raw(&raw)?,
        Source::Tokens(tokens) => Prompt { tokens, boundaries: Vec::new(), root: 0 },
    };
    if prompt.tokens.is_empty() {
        let reason = "must come to at least one token".into();
        return Err(Refusal::Invalid { field, reason });
    }
    Ok(prompt)
}

fn seeded(sampling: &Sampling, choice: usize) -> Sampling {
    Sampling { seed: derive(sampling.seed, choice as u64), ..sampling.clone() }
}

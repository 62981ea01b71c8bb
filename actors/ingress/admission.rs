//! The way in: readiness, the permits that bound the house, the checks that need to know the
//! engine, and the cast to the bank.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mtplx_core::engine::EngineInfo;
use mtplx_core::fairness::Client;
use mtplx_core::guard;
use mtplx_core::random::derive;
use mtplx_core::request::{Drafts, Limits, Refusal, Request, Sharing};
use mtplx_core::sample::Sampling;
use mtplx_core::{RequestId, Tenant, Token};
use tokio::sync::{Semaphore, watch};
use tracing::{Instrument, Span};

use super::Config;
use super::body::Room;
use super::clients::{Bill, Clients};
use super::grammar::Cache;
use super::openai::{ApiError, Drafting, Reading, Source, Wanted};
use super::reload::Reloader;
use super::reply::Manner;
use super::resize::most;
use super::responses::Store;
use super::retry::Attempts;
use super::stream::{Choice, Choices, Course, Making, Thinking, Trial, Watch, Ways, channel};
use super::text::{Prompt, Text};
use super::work::Turns;
use crate::admission::{Admission, Entry, Served};
use crate::metrics;

mod places;
mod structure;

use self::structure::declared;

const GIVEN_UP: &str = "ended one engine after another, each time at the same place; change it, or \
                        report this: it is in the log";

/// Whether and by whom requests are served.
#[derive(Clone, Debug)]
pub(crate) enum Readiness {
    /// By nobody at the moment, for this reason.
    Between(String),
    /// By this generation.
    Serving(Served),
    /// By nobody any more, for this reason.
    Over(String),
}

/// What all connections share. By [`House::anew`] there is another one, which shares all but the
/// settings.
#[derive(Clone)]
pub(crate) struct House {
    pub(crate) config: Config,
    pub(crate) text: Arc<Text>,
    /// What reads the settings anew, if anything does.
    pub(super) reloader: Option<Reloader>,
    /// Settings that wait for the next start.
    pub(super) restart_needed: Arc<[String]>,
    /// Answers that clients may go on from.
    pub(crate) responses: Store,
    readiness: watch::Receiver<Readiness>,
    /// When the door opened, in seconds since 1970.
    pub(crate) started_s: u64,
    pub(super) permits: Arc<Semaphore>,
    /// Turns of those whose engines were lost and who are tried alone.
    pub(super) trial: Arc<Trial>,
    /// Places for tokens.
    pub(super) tokens: Arc<Semaphore>,
    /// Who asks.
    pub(crate) clients: Arc<Clients>,
    /// Requests that may be asked again.
    pub(crate) attempts: Attempts,
    /// For work on texts.
    pub(crate) turns: Turns,
    /// Memory for bodies.
    pub(super) bodies: Room,
    /// Places of those who have texts looked at without asking for an answer.
    pub(super) asking: Arc<Semaphore>,
    compiling: Arc<Semaphore>,
    grammars: Arc<Cache>,
    last_id: Arc<AtomicU64>,
}

/// An admitted request: the choices on their way, and the lengths of its prompts.
pub(crate) struct Admitted {
    pub(crate) choices: Choices,
    pub(crate) prompts: Vec<usize>,
    /// Whether they end within thinking.
    pub(crate) thinking: bool,
    /// What of the request was read more loosely than it was written.
    pub(crate) looser: Vec<String>,
}

impl House {
    pub(crate) fn new(
        config: Config,
        text: Arc<Text>,
        readiness: watch::Receiver<Readiness>,
    ) -> Self {
        let permits = Arc::new(Semaphore::new(config.requests_max.get().into()));
        let started_s = super::unix_s();
        let idle = Duration::from_secs(config.responses_idle_s.into());
        let responses = Store::new(config.responses_bytes_max, idle);
        let compiling = Arc::new(Semaphore::new(structure::COMPILING_MAX));
        let tokens = most(config.tokens_max.map_or(usize::MAX, |n| n.get()));
        let tokens = Arc::new(Semaphore::new(tokens));
        let clients = Arc::new(Clients::new(config.keys.clone()));
        let trial = Trial::new(config.strikes_max);
        let asking = Arc::new(Semaphore::new(config.requests_max.get().into()));
        Self {
            bodies: Room::new(config.body_room(), config.body_bytes_max),
            config,
            reloader: None,
            restart_needed: Arc::default(),
            text,
            responses,
            readiness,
            started_s,
            permits,
            trial: Arc::new(trial),
            tokens,
            clients,
            attempts: Attempts::default(),
            turns: Turns::new(),
            asking,
            compiling,
            grammars: Arc::new(Cache::new()),
            last_id: Arc::default(),
        }
    }

    pub(crate) fn readiness(&self) -> Readiness {
        self.readiness.borrow().clone()
    }

    /// Prompts as a client may have them back.
    pub(crate) fn shown(&self, sources: &[Source]) -> Vec<String> {
        let shown = |source: &Source| match source {
            Source::Text(text) => text.clone(),
            Source::Tokens(tokens) => self.text.decode(tokens),
            Source::Chat(_) => String::new(),
        };
        sources.iter().map(shown).collect()
    }

    /// Choices in the house.
    pub(crate) fn taken(&self) -> usize {
        usize::from(self.config.requests_max.get()).saturating_sub(self.permits.available_permits())
    }

    /// Takes a request in. What it started is undone by dropping it.
    pub(crate) async fn admit(
        &self,
        mut wanted: Wanted,
        (route, arrived, takes_over): (&'static str, Instant, bool),
        bills: Vec<Bill>,
    ) -> Result<Admitted, ApiError> {
        let (served, info) = match self.readiness() {
            Readiness::Serving(served) => (served.clone(), served.info),
            Readiness::Between(reason) | Readiness::Over(reason) => {
                return Err(Refusal::Unavailable { reason }.into());
            }
        };
        check(&wanted, &info)?;
        wanted.think_not_at_all();
        let sharing = wanted.sharing;
        let client = bills.first().map_or_else(Client::default, |bill| bill.standing().client);
        let mut permits = self.permits(&wanted, (client, takes_over)).await?;
        let sources = std::mem::take(&mut wanted.sources);
        let declared = declared(&wanted, &sources);
        let fields: Vec<_> = sources.iter().map(Source::field).collect();
        let prompts = self.prompts(sources, wanted.sharing.tenant).await?;
        let limits = self.limits(&wanted);
        let plan = self.demanded(&mut wanted, &prompts, declared).await?;
        let compiled = self.compiled(plan, info.vocab).await?;
        let (mut admissions, mut bills) = (Vec::new(), bills.into_iter());
        for (prompt, field) in prompts.iter().zip(fields) {
            // A tokenizer may know tokens that the model has no embedding for.
            in_vocabulary(field, &prompt.tokens, &info)?;
            let tokens: Arc<[Token]> = Arc::from(prompt.tokens.as_slice());
            let room = self.room((tokens.len(), field), &wanted, &info)?;
            for index in 0..wanted.choices {
                let mut bill = bills.next().ok_or_else(|| self.overloaded())?;
                bill.tokens = self.tokens(tokens.len(), &wanted)?;
                let kept_to = compiled.as_ref().map(|c| self.constraint(c, prompt, &info));
                let (grammar, bound) = kept_to.unzip();
                let request = Request {
                    id: RequestId(self.last_id.fetch_add(1, Ordering::Relaxed) + 1),
                    prompt: Arc::clone(&tokens),
                    sampling: Sampling { grammar, ..seeded(&wanted.sampling, index) },
                    limits: Limits { new_tokens_max: room, ..limits.clone() },
                    draft_tokens: wanted.drafting.tokens,
                    boundaries: prompt.boundaries.clone(),
                    resumed: 0,
                    sharing: Sharing { root: prompt.root, ..sharing },
                    standing: bill.standing(),
                };
                let entry = entry(&served, &request)?;
                let course =
                    Course::new(request.clone(), arrived.into(), entry.clone(), self.ways());
                if course.is_given_up() {
                    return Err(Refusal::Invalid { field, reason: GIVEN_UP.into() }.into());
                }
                bill.prompt = request.prompt.len();
                let (events, receiver) = channel(&request);
                let permit = permits.split(1).ok_or_else(|| self.overloaded())?;
                let manner = self.manner(&wanted, prompt);
                let (since, work, span) = (arrived.into(), course.work(), Span::current());
                let admission = Admission { request, events, permit, since, work, span };
                admissions.push(((admission, entry, receiver), course, (manner, bound), bill));
            }
        }
        let mut list = Vec::with_capacity(admissions.len());
        for ((admission, entry, receiver), course, (manner, bound), bill) in admissions {
            // One that is gone drops it, and it goes on to the next.
            entry.open(admission);
            let (thinking, watch) = (self.thinking(&wanted), Watch::new(route, arrived).with(bill));
            let (detokenizer, stops) = (self.text.detokenizer(), wanted.stops.as_slice());
            let manner = &manner;
            let making = Making { course, detokenizer, stops, manner, thinking, bound, watch };
            list.push(Choice::new(receiver, making));
        }
        let thinking = prompts.iter().any(|prompt| prompt.thinking);
        let prompts = prompts.iter().map(|p| p.tokens.len()).collect();
        let looser = compiled.map_or_else(Vec::new, |(c, field)| c.looser(field));
        Ok(Admitted { choices: Choices::new(list), prompts, thinking, looser })
    }

    /// How a reply to this prompt is read.
    fn manner(&self, wanted: &Wanted, prompt: &Prompt) -> Manner {
        let Reading { tools, one_call, plain, .. } = wanted.reading.clone();
        Manner {
            begins_thinking: prompt.thinking,
            thought: prompt.thought,
            thinks: !plain && self.text.thinks(),
            tools,
            one_call,
            prefill: prompt.prefill.clone(),
        }
    }

    /// The bound on thinking: the client's, but no more than the house's.
    fn thinking(&self, wanted: &Wanted) -> Option<Thinking> {
        if wanted.reading.plain || !self.text.thinks() {
            return None;
        }
        let house = self.config.thinking_tokens_max.map(|max| max.get());
        let max = wanted.thinking_tokens_max.into_iter().chain(house).min()?;
        Some(Thinking { max, closer: self.text.end_of_thinking() })
    }

    fn ways(&self) -> Ways {
        Ways {
            readiness: self.readiness.clone(),
            permits: Arc::clone(&self.permits),
            trial: Arc::clone(&self.trial),
            last_id: Arc::clone(&self.last_id),
            patience: Duration::from_secs(self.config.resume_s.into()),
        }
    }

    /// Tokens of a request's prompts, which need not be served for it.
    pub(crate) async fn count(&self, wanted: &mut Wanted) -> Result<usize, Refusal> {
        // Who asks would be refused with the very same body otherwise.
        let vocab = match self.readiness() {
            Readiness::Serving(engine) => engine.info.vocab,
            Readiness::Between(_) | Readiness::Over(_) => usize::MAX,
        };
        wanted.sampling.check(vocab)?;
        let _place = self.place()?;
        let sources = std::mem::take(&mut wanted.sources);
        let prompts = self.prompts(sources, wanted.sharing.tenant).await?;
        Ok(prompts.iter().map(|prompt| prompt.tokens.len()).sum())
    }

    /// Renders and tokenizes, off the connection's thread where it may take long.
    async fn prompts(
        &self,
        mut sources: Vec<Source>,
        tenant: Tenant,
    ) -> Result<Vec<Prompt>, Refusal> {
        for source in &mut sources {
            if let Source::Chat(chat) = source {
                chat.tenant = tenant;
            }
        }
        let text = Arc::clone(&self.text);
        let size = sources.iter().map(Source::size).sum();
        let began = Instant::now();
        let prompts = self.turns.run(size, move || {
            sources.into_iter().map(|source| prompt_of(&text, source, true)).collect()
        });
        let span = tracing::info_span!("tokenise", characters = size);
        let prompts = prompts.instrument(span).await;
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
        // Where not even one token has room, a shorter prompt would not help.
        guard::check_alone(info, 1).map_err(Refusal::NoMemory)?;
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
        let unasked = wanted.new_tokens_default.unwrap_or(usize::MAX);
        // Nobody asked for the default, so it gives way to what there is room for.
        Ok(asked.map_or(left.min(most).min(unasked), |(n, _)| n))
    }
}

/// Tokens of the longest sequence the engine can hold. One that needs more pages or more memory
/// than there is would wait for ever.
pub(crate) fn context(info: &EngineInfo) -> usize {
    let pages = info.pages_max.min(info.rows_pages_max).saturating_mul(info.page_tokens);
    info.context_tokens_max.min(pages).min(guard::tokens_max(info))
}

/// Where it goes in.
fn entry(served: &Served, request: &Request) -> Result<Entry, Refusal> {
    let nobody = || Refusal::Unavailable { reason: "no node can take it".into() };
    served.entry(request, None).ok_or_else(nobody)
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

/// The tokens of a source; `special` says whether a text is put between special tokens, where the
/// tokenizer has such.
pub(crate) fn prompt_of(text: &Text, source: Source, special: bool) -> Result<Prompt, Refusal> {
    let field = source.field();
    let prompt = match source {
        Source::Chat(chat) => text.chat(&chat)?,
        Source::Text(raw) => text.cut(&raw, special)?,
        Source::Tokens(tokens) => Prompt::plain(tokens),
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

//! The way in: readiness, the permits that bound the house, the checks that need to know the
//! engine, and the cast to the bank.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mtplx_core::engine::EngineInfo;
use mtplx_core::grammar::{Constraint, Mask};
use mtplx_core::guard;
use mtplx_core::random::derive;
use mtplx_core::request::{Drafts, Limits, Refusal, Request, Sharing};
use mtplx_core::sample::Sampling;
use mtplx_core::{RequestId, Token};
use ractor::ActorRef;
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc, watch};

use super::Config;
use super::clients::{Bill, Clients};
use super::grammar::{Bound, Cache, Compiled, Structure};
use super::openai::{Drafting, Reading, Source, Wanted};
use super::reply::Manner;
use super::responses::Store;
use super::stream::{Choice, Choices, Making, Thinking, Watch};
use super::text::{Prompt, Text};
use super::work::{Turns, off_thread};
use crate::admission::Admission;
use crate::{bank, metrics};

mod places;

/// Grammars compiled at once; compiling one takes a processor.
const COMPILING_MAX: usize = 2;
/// Longest time that a grammar may take to be compiled, with the waiting for its turn.
const COMPILE_TIME_MAX: Duration = Duration::from_secs(20);

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
    /// Answers that clients may go on from.
    pub(crate) responses: Arc<Store>,
    readiness: watch::Receiver<Readiness>,
    /// When the door opened, in seconds since 1970.
    pub(crate) started_s: u64,
    permits: Arc<Semaphore>,
    /// Places for tokens, if these are bounded.
    tokens: Option<Arc<Semaphore>>,
    /// Places for bodies, in KiB.
    kib: Arc<Semaphore>,
    /// Who asks.
    pub(crate) clients: Arc<Clients>,
    /// For work on texts.
    pub(crate) turns: Turns,
    /// Places of those who have texts looked at without asking for an answer.
    asking: Arc<Semaphore>,
    compiling: Arc<Semaphore>,
    grammars: Arc<Cache>,
    last_id: Arc<AtomicU64>,
}

/// A grammar, and the parameter that asked for it.
type Asked = (Arc<Compiled>, &'static str);

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
        let responses = Arc::new(Store::new(config.responses_bytes_max, idle));
        let compiling = Arc::new(Semaphore::new(COMPILING_MAX));
        let most = |n: usize| n.min(Semaphore::MAX_PERMITS);
        let tokens = config.tokens_max.map(|n| Arc::new(Semaphore::new(most(n.get()))));
        let kib = Arc::new(Semaphore::new(most(config.bytes_max.div_ceil(1024))));
        let clients = Arc::new(Clients::new(config.keys.clone()));
        let asking = Arc::new(Semaphore::new(config.requests_max.get().into()));
        Self {
            config,
            text,
            responses,
            readiness,
            started_s,
            permits,
            tokens,
            kib,
            clients,
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
        usize::from(self.config.requests_max.get()) - self.permits.available_permits()
    }

    /// Takes a request in. What it started is undone by dropping it.
    pub(crate) async fn admit(
        &self,
        mut wanted: Wanted,
        (route, arrived): (&'static str, Instant),
        bills: Vec<Bill>,
    ) -> Result<Admitted, Refusal> {
        let (bank, info) = match self.readiness() {
            Readiness::Between(reason) => return Err(Refusal::Unavailable { reason }),
            Readiness::Serving(bank, info) => (bank, info),
        };
        check(&wanted, &info)?;
        wanted.think_not_at_all();
        let sharing = wanted.sharing;
        let mut permits = self.permits(&wanted)?;
        let sources = std::mem::take(&mut wanted.sources);
        let declared = declared(&wanted, &sources);
        let fields: Vec<_> = sources.iter().map(Source::field).collect();
        let prompts = self.prompts(sources).await?;
        let limits = self.limits(&wanted);
        let structure = self.demanded(&mut wanted, &prompts, &declared)?;
        let compiled = self.compiled(structure, info.vocab).await?;
        let (mut admissions, mut bills) = (Vec::new(), bills.into_iter());
        for (prompt, field) in prompts.iter().zip(fields) {
            // A tokenizer may know tokens that the model has no embedding for.
            in_vocabulary(field, &prompt.tokens, &info)?;
            let tokens: Arc<[Token]> = Arc::from(prompt.tokens.as_slice());
            let room = self.room((tokens.len(), field), &wanted, &info)?;
            for index in 0..wanted.choices {
                let mut bill = bills.next().ok_or_else(|| self.overloaded())?;
                bill.tokens = self.tokens(tokens.len(), &wanted)?;
                // Room for every event there can be. The channel takes memory for those that are
                // in it only, in blocks of 32.
                let each = 1 + usize::from(wanted.sampling.logprobs.is_some());
                let (events, receiver) = mpsc::channel(each * room + 2);
                let kept_to = compiled.as_ref().map(|c| self.constraint(c, prompt, &info));
                let (grammar, bound) = kept_to.unzip();
                let request = Request {
                    id: RequestId(self.last_id.fetch_add(1, Ordering::Relaxed) + 1),
                    prompt: Arc::clone(&tokens),
                    sampling: Sampling { grammar, ..seeded(&wanted.sampling, index) },
                    limits: Limits { new_tokens_max: room, ..limits.clone() },
                    draft_tokens: wanted.drafting.tokens,
                    boundaries: prompt.boundaries.clone(),
                    sharing: Sharing { root: prompt.root, ..sharing },
                    standing: bill.standing(),
                };
                let permit = permits.split(1).ok_or_else(|| self.overloaded())?;
                let thinking = self.thinking(&wanted, &request, &bank);
                let manner = self.manner(&wanted, prompt);
                let admission = Admission { request, events, permit };
                admissions.push((admission, receiver, (manner, thinking, bound), bill));
            }
        }
        let mut list = Vec::with_capacity(admissions.len());
        for (admission, receiver, (manner, thinking, bound), bill) in admissions {
            bank.cast(bank::Message::Open(admission))
                .map_err(|_| Refusal::Unavailable { reason: "it is being restarted".into() })?;
            let watch = Watch::new(route, arrived).with(bill);
            let (detokenizer, stops) = (self.text.detokenizer(), wanted.stops.as_slice());
            let making = Making { detokenizer, stops, manner: &manner, thinking, bound, watch };
            list.push(Choice::new(receiver, making));
        }
        let thinking = prompts.iter().any(|prompt| prompt.thinking);
        let prompts = prompts.iter().map(|p| p.tokens.len()).collect();
        let looser = compiled.and_then(|(compiled, field)| Some((field, compiled.looser?)));
        let looser = looser.map(|(field, what)| format!("{field} {what}"));
        let (choices, looser) = (Choices::new(list), looser.into_iter().collect());
        Ok(Admitted { choices, prompts, thinking, looser })
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
    fn thinking(
        &self,
        wanted: &Wanted,
        request: &Request,
        bank: &ActorRef<bank::Message>,
    ) -> Option<Thinking> {
        if wanted.reading.plain || !self.text.thinks() {
            return None;
        }
        let house = self.config.thinking_tokens_max.map(|max| max.get());
        let max = wanted.thinking_tokens_max.into_iter().chain(house).min()?;
        Some(Thinking {
            max,
            closer: self.text.end_of_thinking(),
            request: request.clone(),
            bank: bank.clone(),
            permits: Arc::clone(&self.permits),
            last_id: Arc::clone(&self.last_id),
            tokens: Vec::new(),
        })
    }

    /// Tokens of a request's prompts, which need not be served for it.
    pub(crate) async fn count(&self, wanted: &mut Wanted) -> Result<usize, Refusal> {
        // Who asks would be refused with the very same body otherwise.
        let vocab = match self.readiness() {
            Readiness::Serving(_, info) => info.vocab,
            Readiness::Between(_) => usize::MAX,
        };
        wanted.sampling.check(vocab)?;
        let _place = self.place()?;
        let sources = std::mem::take(&mut wanted.sources);
        let prompts = self.prompts(sources).await?;
        Ok(prompts.iter().map(|prompt| prompt.tokens.len()).sum())
    }

    /// Renders and tokenizes, off the connection's thread where it may take long.
    async fn prompts(&self, sources: Vec<Source>) -> Result<Vec<Prompt>, Refusal> {
        let text = Arc::clone(&self.text);
        let size = sources.iter().map(Source::size).sum();
        let began = Instant::now();
        let prompts = self.turns.run(size, move || {
            sources.into_iter().map(|source| prompt_of(&text, source, true)).collect()
        });
        let prompts = prompts.await;
        metrics::tokenized(began.elapsed());
        prompts
    }

    /// What the answer is to be: as the client says, or a call that it demands.
    fn demanded(
        &self,
        wanted: &mut Wanted,
        prompts: &[Prompt],
        declared: &[Value],
    ) -> Result<Option<Structure>, Refusal> {
        let structure = wanted.structure.take();
        let tools = std::mem::take(&mut wanted.reading.demanded);
        if tools.is_empty() {
            return match structure {
                // Either the answer or calls.
                Some(Structure { field, language, written }) if !declared.is_empty() => {
                    let calls = self.text.calls(declared, wanted.reading.one_call);
                    let language = calls.or(&language).ok_or_else(|| {
                        let reason = "leaves no room for calls of the tools; set tool_choice to \
                                      \"none\", or leave this or the tools out";
                        Refusal::Invalid { field, reason: reason.into() }
                    })?;
                    Ok(Some(Structure { field, language, written }))
                }
                structure => Ok(structure),
            };
        }
        let field = "tool_choice";
        if let Some(Structure { field: other, .. }) = structure {
            let reason = format!("demands a call, and {other} another answer; send one of them");
            return Err(Refusal::Invalid { field, reason });
        }
        let calls = self.text.calls(&tools, wanted.reading.one_call);
        // All prompts of a conversation begin it alike.
        let written = prompts.first().map(|prompt| prompt.prefill.clone()).unwrap_or_default();
        Ok(Some(Structure { language: calls.language(), field, written }))
    }

    /// Compiles what the answer is to be, off all threads that others wait for.
    async fn compiled(
        &self,
        structure: Option<Structure>,
        vocab: usize,
    ) -> Result<Option<Asked>, Refusal> {
        let Some(structure) = structure else { return Ok(None) };
        let field = structure.field;
        let key = Cache::key(&structure, vocab);
        if let Some(compiled) = self.grammars.get(&key) {
            return Ok(Some((compiled, field)));
        }
        let cache = Arc::clone(&self.grammars);
        let text = Arc::clone(&self.text);
        let deadline = tokio::time::Instant::now() + COMPILE_TIME_MAX;
        let turn = Arc::clone(&self.compiling).acquire_owned();
        let turn = tokio::time::timeout_at(deadline, turn).await.map_err(|_| self.overloaded())?;
        let work = off_thread(turn.ok(), move || {
            let grammars = text.grammars(vocab).map_err(|unusable| {
                let reason = format!("this model's tokens cannot be constrained: {}", unusable.0);
                Refusal::Invalid { field, reason }
            })?;
            let compiled = Arc::new(grammars.compile(&structure)?);
            cache.keep(key, &compiled);
            Ok(compiled)
        });
        let compiled = tokio::time::timeout_at(deadline, work).await;
        compiled
            .unwrap_or_else(|_| {
                let reason = "takes too long to compile; make it simpler".into();
                Err(Refusal::Invalid { field, reason })
            })
            .map(|compiled| Some((compiled, field)))
    }

    /// The grammar of one answer to this prompt. Where that leaves the model thinking, it holds
    /// from the end of the thoughts on, and the text cannot end before.
    fn constraint(
        &self,
        (compiled, field): &Asked,
        prompt: &Prompt,
        info: &EngineInfo,
    ) -> (Constraint, Bound) {
        let (grammar, bound) = compiled.bind(field);
        let constraint = Constraint::new(Arc::new(grammar));
        let constraint = match self.text.thinking_ends() {
            Some(end) if prompt.thinking => {
                let stops = self.text.stop_tokens().iter().copied();
                constraint.after([end].into(), Mask::all_but(info.vocab, stops))
            }
            Some(_) | None => constraint,
        };
        (constraint, bound)
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

/// The tools that may be called beside an answer whose structure is asked for; they are rendered
/// with their conversation, so they are copied only where they are needed once more.
fn declared(wanted: &Wanted, sources: &[Source]) -> Vec<Value> {
    let both = wanted.structure.is_some() && wanted.reading.tools.is_some();
    match sources {
        [Source::Chat(chat), ..] if both => chat.tools.clone(),
        _ => Vec::new(),
    }
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

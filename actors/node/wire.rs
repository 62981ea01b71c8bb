//! What travels between two machines, as bytes: numbers and tokens, no text but that of grammars.
//! Other versions write it otherwise, and are refused when they join, so nothing here is kept
//! readable for them. The first message alone, [`Hello`], begins with the version in every one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mtplx_core::accept::Rule;
use mtplx_core::batch::RowEvent;
use mtplx_core::engine::EngineInfo;
use mtplx_core::fairness::{Class, Client, Standing};
use mtplx_core::grammar::Constraint;
use mtplx_core::guard::{Budget, Shortage};
use mtplx_core::logprobs::Logprobs;
use mtplx_core::request::{Drafts, Finish, Limits, Request, Sharing, Usage};
use mtplx_core::sample::Sampling;
use mtplx_core::{RequestId, Tenant, Token};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest message. A prompt of a million tokens has five million bytes.
pub(super) const FRAME_BYTES_MAX: u64 = 64 << 20;

/// Bytes of a message.
pub(super) fn bytes<T: Serialize>(message: &T) -> Vec<u8> {
    // Into memory, of values that have a length: nothing can fail.
    postcard::to_stdvec(message).unwrap_or_default()
}

/// The message, if these are its bytes.
pub(super) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (message, rest) = postcard::take_from_bytes(bytes).ok()?;
    rest.is_empty().then_some(message)
}

/// Who comes, and what it is.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Hello {
    /// Of the program.
    pub(super) version: String,
    /// The group that the node's actor is in.
    pub(super) group: String,
    /// What people call it.
    pub(super) name: String,
    /// Digest of the model's files.
    pub(super) model: String,
    /// Digest of what turns messages into tokens.
    pub(super) template: String,
    /// Its engine.
    pub(super) info: Info,
}

/// The answer.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) enum Answer {
    /// It belongs to us from now on.
    Welcome {
        /// The name of this membership in every message.
        epoch: u64,
        /// Milliseconds between two signs of life.
        beat_ms: u64,
        /// Milliseconds without any after which the other is gone.
        silence_ms: u64,
    },
    /// It does not.
    Refused {
        /// Why.
        reason: String,
        /// Whether it may be otherwise soon.
        again: bool,
    },
}

/// From the gateway to a node.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) enum Order {
    /// A row is to run.
    Open {
        /// Its name. An answer that goes on elsewhere has another one there.
        row: u64,
        /// What it is.
        asked: Box<Asked>,
    },
    /// Nobody waits for these any more.
    Cancel(Vec<u64>),
    /// A sign of life, with the gateway's clock.
    Beat(u64),
    /// Nothing more will come; what runs may finish.
    Drain,
    /// More will come.
    Resume,
    /// The membership is over.
    Part,
}

/// From a node to the gateway.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) enum Word {
    /// What became of rows, in order.
    News(Vec<(u64, News)>),
    /// A sign of life, with the clock of the one that it answers.
    Beat(u64),
    /// It wants to end: it is to get nothing more.
    Leaving,
    /// Its engine is gone, and all rows with it.
    Lost(String),
}

/// A message with the membership that it belongs to.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Letter<T> {
    pub(super) epoch: u64,
    pub(super) what: T,
}

/// What becomes of a row.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) enum News {
    Seated,
    Logprobs(Vec<(f32, Vec<(Token, f32)>)>),
    Tokens(Vec<Token>, Spent),
    Finished(Ended, Spent),
    Refused([u64; 3]),
    Late,
    /// Its grammar gave up; the end follows.
    GaveUp(String),
    /// It is not there any more. Without an end before, it was lost; `true` if its engine was at
    /// work on it when that ended.
    Left(bool),
}

/// As [`Usage`].
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct Spent([usize; 5]);

/// As [`Finish`].
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(super) enum Ended {
    Stop,
    Length,
    Cancelled,
    Fault,
}

/// As [`Request`], without its name.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Asked {
    pub(super) prompt: Vec<Token>,
    resumed: usize,
    numbers: [f32; 6],
    top_k: usize,
    bias: BTreeMap<Token, f32>,
    seed: u64,
    coupled: bool,
    logprobs: Option<u8>,
    /// The grammar's source, and whether it holds from the end of the thoughts on.
    pub(super) grammar: Option<(String, bool)>,
    new_tokens_max: usize,
    stop_tokens: BTreeSet<Token>,
    drafts: (u8, u8),
    boundaries: Vec<usize>,
    tenant: u64,
    root: usize,
    background: bool,
    client: u64,
    group: u64,
    weight: std::num::NonZeroU32,
    has_time: bool,
}

impl Asked {
    /// `None` if its grammar cannot travel.
    pub(super) fn new(request: &Request) -> Option<Self> {
        let Request { prompt, sampling: s, limits, sharing, standing, .. } = request;
        let grammar = match &s.grammar {
            Some(grammar) => {
                let (source, late) = grammar.source()?;
                Some((source.to_owned(), late))
            }
            None => None,
        };
        Some(Self {
            prompt: prompt.to_vec(),
            resumed: request.resumed,
            numbers: [
                s.temperature,
                s.top_p,
                s.min_p,
                s.repetition_penalty,
                s.presence_penalty,
                s.frequency_penalty,
            ],
            top_k: s.top_k,
            bias: s.logit_bias.as_ref().clone(),
            seed: s.seed,
            coupled: s.rule == Rule::Coupled,
            logprobs: s.logprobs,
            grammar,
            new_tokens_max: limits.new_tokens_max,
            stop_tokens: limits.stop_tokens.as_ref().clone(),
            drafts: match request.draft_tokens {
                Drafts::Tuned => (0, 0),
                Drafts::AtLeast(n) => (1, n),
                Drafts::Exactly(n) => (2, n),
            },
            boundaries: request.boundaries.clone(),
            tenant: sharing.tenant.0,
            root: sharing.root,
            background: sharing.background,
            client: standing.client.0,
            group: standing.group.0,
            weight: standing.weight,
            has_time: standing.class == Class::Background,
        })
    }

    /// The request by that name here.
    pub(super) fn request(self, id: RequestId, grammar: Option<Constraint>) -> Request {
        let [temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty] =
            self.numbers;
        let class = if self.has_time { Class::Background } else { Class::Interactive };
        Request {
            id,
            prompt: self.prompt.into(),
            resumed: self.resumed,
            sampling: Sampling {
                temperature,
                top_p,
                top_k: self.top_k,
                min_p,
                repetition_penalty,
                presence_penalty,
                frequency_penalty,
                logit_bias: Arc::new(self.bias),
                seed: self.seed,
                rule: if self.coupled { Rule::Coupled } else { Rule::Ratio },
                grammar,
                logprobs: self.logprobs,
            },
            limits: Limits {
                new_tokens_max: self.new_tokens_max,
                stop_tokens: Arc::new(self.stop_tokens),
            },
            draft_tokens: match self.drafts {
                (0, _) => Drafts::Tuned,
                (1, n) => Drafts::AtLeast(n),
                (_, n) => Drafts::Exactly(n),
            },
            boundaries: self.boundaries,
            sharing: Sharing {
                tenant: Tenant(self.tenant),
                root: self.root,
                background: self.background,
            },
            standing: Standing {
                client: Client(self.client),
                group: Client(self.group),
                weight: self.weight,
                class,
            },
        }
    }

    /// Whether an engine of this vocabulary can be asked for it: what comes over a network is
    /// looked at, whoever sent it.
    pub(super) fn is_sound(&self, vocab: usize, context: usize) -> bool {
        let known = |&token: &Token| (token as usize) < vocab;
        let ascending = self.boundaries.windows(2).all(|pair| pair[0] < pair[1]);
        let within = |&at: &usize| (1..self.prompt.len()).contains(&at);
        !self.prompt.is_empty()
            && self.prompt.iter().all(known)
            && self.bias.keys().all(known)
            && self.resumed <= self.prompt.len()
            && self.root <= self.prompt.len()
            && ascending
            && self.boundaries.iter().all(within)
            && self.new_tokens_max > 0
            && self.prompt.len().saturating_add(self.new_tokens_max) <= context
    }
}

impl From<RowEvent> for News {
    fn from(event: RowEvent) -> Self {
        match event {
            RowEvent::Seated => Self::Seated,
            RowEvent::Logprobs(told) => {
                Self::Logprobs(told.into_iter().map(|l| (l.chosen, l.likeliest)).collect())
            }
            RowEvent::Tokens(tokens, usage) => Self::Tokens(tokens, usage.into()),
            RowEvent::Finished(finish, usage) => Self::Finished(finish.into(), usage.into()),
            RowEvent::Refused(Shortage { needed, left, budget }) => {
                Self::Refused([needed, left, budget])
            }
            RowEvent::Late => Self::Late,
        }
    }
}

impl News {
    /// The event, if it is one of the row's own.
    pub(super) fn event(self) -> Option<RowEvent> {
        Some(match self {
            Self::Seated => RowEvent::Seated,
            Self::Logprobs(told) => {
                let whole = |(chosen, likeliest)| Logprobs { chosen, likeliest };
                RowEvent::Logprobs(told.into_iter().map(whole).collect())
            }
            Self::Tokens(tokens, spent) => RowEvent::Tokens(tokens, spent.into()),
            Self::Finished(ended, spent) => RowEvent::Finished(ended.into(), spent.into()),
            Self::Refused([needed, left, budget]) => {
                RowEvent::Refused(Shortage { needed, left, budget })
            }
            Self::Late => RowEvent::Late,
            Self::GaveUp(_) | Self::Left(_) => return None,
        })
    }
}

impl From<Usage> for Spent {
    fn from(u: Usage) -> Self {
        Self([u.prompt, u.cached, u.generated, u.drafted, u.accepted])
    }
}

impl From<Spent> for Usage {
    fn from(Spent([prompt, cached, generated, drafted, accepted]): Spent) -> Self {
        Self { prompt, cached, generated, drafted, accepted }
    }
}

impl From<Finish> for Ended {
    fn from(finish: Finish) -> Self {
        match finish {
            Finish::Stop => Self::Stop,
            Finish::Length => Self::Length,
            Finish::Cancelled => Self::Cancelled,
            Finish::Fault => Self::Fault,
        }
    }
}

impl From<Ended> for Finish {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Stop => Self::Stop,
            Ended::Length => Self::Length,
            Ended::Cancelled => Self::Cancelled,
            Ended::Fault => Self::Fault,
        }
    }
}

/// As [`EngineInfo`], without what is for the node's own log.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Info {
    sizes: [usize; 6],
    bytes: [u64; 5],
    depth_max: u8,
    marks: bool,
    device: String,
    pub(super) identity: String,
}

impl From<&EngineInfo> for Info {
    fn from(i: &EngineInfo) -> Self {
        Self {
            sizes: [
                i.vocab,
                i.context_tokens_max,
                i.slots,
                i.page_tokens,
                i.pages_max,
                i.rows_pages_max,
            ],
            bytes: [i.page_bytes, i.snapshot_bytes, i.budget.bytes, i.budget.base, i.budget.step],
            depth_max: i.depth_max,
            marks: i.marks,
            device: i.device.clone(),
            identity: i.identity.clone(),
        }
    }
}

impl From<Info> for EngineInfo {
    fn from(info: Info) -> Self {
        let [vocab, context_tokens_max, slots, page_tokens, pages_max, rows_pages_max] = info.sizes;
        let [page_bytes, snapshot_bytes, bytes, base, step] = info.bytes;
        Self {
            vocab,
            context_tokens_max,
            slots,
            page_tokens,
            pages_max,
            rows_pages_max,
            page_bytes,
            snapshot_bytes,
            budget: Budget { bytes, base, step },
            depth_max: info.depth_max,
            marks: info.marks,
            mtp_absent: None,
            device: info.device,
            kernels: Vec::new(),
            identity: info.identity,
        }
    }
}

#[cfg(test)]
mod tests {
    use mtplx_core::engine::Engine;
    use mtplx_core::scripted::Scripted;

    use super::*;
    use crate::oracle::{script, varied};

    #[test]
    fn what_is_asked_comes_to_the_other_side_as_it_was() {
        for id in 0..200 {
            let mut request = varied(id);
            request.sampling.logit_bias = Arc::new(BTreeMap::from([(3, 1.5)]));
            request.sharing = Sharing { tenant: Tenant(id), root: 16, background: id % 3 == 0 };
            request.resumed = id as usize % 16;
            let sent = bytes(&Asked::new(&request).unwrap());
            let came: Asked = read(&sent).unwrap();
            assert!(came.is_sound(100_000, 10_000), "{came:?}");
            assert_eq!(came.request(RequestId(id), None), request);
        }
    }

    #[test]
    fn events_come_to_the_other_side_as_they_were() {
        let usage = Usage { prompt: 1, cached: 2, generated: 3, drafted: 4, accepted: 5 };
        let logprobs = Logprobs { chosen: -0.5, likeliest: vec![(7, -0.25)] };
        let shortage = Shortage { needed: 1, left: 2, budget: 3 };
        let mut events = vec![
            RowEvent::Seated,
            RowEvent::Logprobs(vec![logprobs]),
            RowEvent::Tokens(vec![1, 2], usage),
            RowEvent::Refused(shortage),
            RowEvent::Late,
        ];
        let ends = [Finish::Stop, Finish::Length, Finish::Cancelled, Finish::Fault];
        events.extend(ends.map(|finish| RowEvent::Finished(finish, usage)));
        for event in events {
            let sent = bytes(&Word::News(vec![(9, event.clone().into())]));
            let Some(Word::News(news)) = read(&sent) else { panic!("{event:?}") };
            assert_eq!(news[0].1.clone().event(), Some(event));
        }
    }

    #[test]
    fn an_engine_is_known_on_the_other_side_by_its_bounds() {
        let info = Scripted::small(script()).info().clone();
        let came: Info = read(&bytes(&Info::from(&info))).unwrap();
        assert_eq!(EngineInfo { mtp_absent: info.mtp_absent.clone(), ..came.into() }, info);
    }

    proptest::proptest! {
        #[test]
        fn other_bytes_are_nothing_and_break_nothing(
            noise in proptest::collection::vec(0_u8..=255, 0..200),
        ) {
            let _ = read::<Letter<Order>>(&noise);
            let _ = read::<Letter<Word>>(&noise);
            let _ = read::<Hello>(&noise);
            if let Some(asked) = read::<Asked>(&noise) {
                let _ = asked.is_sound(100, 100);
            }
        }
    }
}

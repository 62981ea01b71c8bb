//! What the tests ask and what they must hear: a request's text served alone, cold and undrafted.

use std::collections::BTreeSet;
use std::sync::Arc;

use mtplx_core::accept::{Rule, draw};
use mtplx_core::batch::RowEvent;
use mtplx_core::request::{Drafts, Finish, Limits, Request, Usage};
use mtplx_core::sample::{Dist, Sampling, Seen};
use mtplx_core::scripted::{Script, Scripted};
use mtplx_core::{RequestId, Token};
use tokio::sync::{Semaphore, mpsc};

use crate::admission::{Admission, AtWork};

/// The script all tests play.
pub(crate) fn script() -> Script {
    Script::default()
}

/// The text of `request`, whoever else is served.
pub(crate) fn alone(request: &Request) -> Vec<Token> {
    let engine = Scripted::small(script());
    let mut tokens = request.prompt.to_vec();
    let mut text = Vec::new();
    while text.len() < request.limits.new_tokens_max {
        let logits = engine.logits(&tokens);
        let p = Dist::from_logits(&logits, &request.sampling, &Seen::default(), &[]).unwrap();
        let next = draw(request.sampling.rule, request.sampling.seed, tokens.len() as u64, &p);
        tokens.push(next);
        text.push(next);
        if request.limits.stop_tokens.contains(&next) {
            break;
        }
    }
    text
}

/// A greedy request for `new_tokens_max` tokens, which only token 99 could stop.
pub(crate) fn request(id: u64, prompt: &[Token], new_tokens_max: usize) -> Request {
    Request {
        id: RequestId(id),
        prompt: prompt.into(),
        sampling: Sampling::greedy(),
        limits: Limits { new_tokens_max, stop_tokens: Arc::new(BTreeSet::from([99])) },
        draft_tokens: Drafts::Tuned,
        boundaries: Vec::new(),
        resumed: 0,
        sharing: mtplx_core::request::Sharing::default(),
        standing: mtplx_core::fairness::Standing::default(),
    }
}

/// One of many kinds of request: lengths, boundaries, sampling and drafts follow from its number.
pub(crate) fn varied(id: u64) -> Request {
    let stem = (0..16).map(|i| (i * 7 + id as u32 % 3) % 32);
    let rest = (0..id % 40).map(|i| ((i * id) % 32) as Token);
    let prompt: Vec<Token> = stem.chain(rest).collect();
    let coupled =
        Sampling { temperature: 0.8, seed: id, rule: Rule::Coupled, ..Sampling::default() };
    Request {
        sampling: if id.is_multiple_of(2) { Sampling::greedy() } else { coupled },
        limits: Limits {
            new_tokens_max: 1 + (id as usize * 11) % 70,
            stop_tokens: Arc::new(BTreeSet::from([7])),
        },
        draft_tokens: [Drafts::Tuned, Drafts::Exactly(0), Drafts::Exactly(3)][id as usize % 3],
        boundaries: if prompt.len() > 16 { vec![16] } else { Vec::new() },
        ..request(id, &prompt, 1)
    }
}

/// The client's side of an admission.
pub(crate) struct Guest {
    pub(crate) request: Request,
    pub(crate) events: mpsc::Receiver<RowEvent>,
}

/// How a stream went.
#[derive(Debug, PartialEq)]
pub(crate) struct Heard {
    pub(crate) text: Vec<Token>,
    /// `None` if the sender vanished without a word.
    pub(crate) end: Option<(Finish, Usage)>,
}

/// A request with a permit and all the room it may need, and who waits for it.
pub(crate) async fn admit(house: &Arc<Semaphore>, request: Request) -> (Admission, Guest) {
    let permit = Arc::clone(house).acquire_owned().await.unwrap();
    let (sender, events) = mpsc::channel(request.limits.new_tokens_max + 2);
    let guest = Guest { request: request.clone(), events };
    let (since, work) = (tokio::time::Instant::now(), AtWork::default());
    let span = tracing::Span::none();
    (Admission { request, events: sender, permit, since, work, span }, guest)
}

impl Guest {
    /// Listens to the end.
    pub(crate) async fn hear(mut self) -> Heard {
        let mut text = Vec::new();
        while let Some(event) = self.events.recv().await {
            match event {
                RowEvent::Tokens(tokens, _) => text.extend(tokens),
                RowEvent::Logprobs(_) | RowEvent::Seated => {}
                RowEvent::Refused(_) | RowEvent::Late => panic!("refused: {event:?}"),
                RowEvent::Finished(finish, usage) => {
                    return Heard { text, end: Some((finish, usage)) };
                }
            }
        }
        Heard { text, end: None }
    }

    /// Listens to the end, which must be the oracle's.
    pub(crate) async fn hear_truth(self) -> Usage {
        let request = self.request.clone();
        let heard = self.hear().await;
        assert_eq!(heard.text, alone(&request), "{request:?}");
        let (finish, usage) = heard.end.expect("an end");
        let stopped = heard.text.last().is_some_and(|t| request.limits.stop_tokens.contains(t));
        assert_eq!(finish, if stopped { Finish::Stop } else { Finish::Length });
        assert_eq!((usage.prompt, usage.generated), (request.prompt.len(), heard.text.len()));
        usage
    }
}

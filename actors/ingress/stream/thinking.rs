//! A bound on thinking. Where it is reached, what was thought so far and the end of thinking become
//! the prompt of a second row, which goes on from there: its text follows the distribution that the
//! model has after exactly these tokens. What the first row made beyond the bound is not used.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mtplx_core::batch::RowEvent;
use mtplx_core::grammar::Constraint;
use mtplx_core::request::{Limits, Request};
use mtplx_core::sample::Sampling;
use mtplx_core::{RequestId, Token};
use ractor::ActorRef;
use tokio::sync::{Semaphore, mpsc};

use crate::admission::Admission;
use crate::bank;

/// What is needed to go on elsewhere.
pub(crate) struct Thinking {
    /// Most tokens of thought.
    pub(crate) max: usize,
    /// What ends it, as text and as tokens.
    pub(crate) closer: (String, Arc<[Token]>),
    /// The first row.
    pub(crate) request: Request,
    /// Who takes the second.
    pub(crate) bank: ActorRef<bank::Message>,
    /// The house's permits. The first row's comes back when it has left.
    pub(crate) permits: Arc<Semaphore>,
    /// Where names of rows come from.
    pub(crate) last_id: Arc<AtomicU64>,
    /// What was generated so far.
    pub(crate) tokens: Vec<Token>,
}

impl Thinking {
    /// The second row's events; `None` if there is no room for an answer.
    pub(crate) fn close(self) -> Option<mpsc::Receiver<RowEvent>> {
        let Self { closer: (_, closer), request, bank, permits, last_id, tokens, .. } = self;
        let used = tokens.len() + closer.len();
        let room = request.limits.new_tokens_max.checked_sub(used).filter(|&room| room > 0)?;
        let prompt: Arc<[Token]> =
            request.prompt.iter().chain(&tokens).chain(closer.iter()).copied().collect();
        let sampling = request.sampling.clone();
        let each = 1 + usize::from(sampling.logprobs.is_some());
        let (events, receiver) = mpsc::channel(each * room + 2);
        // What the answer is to be holds from its first token on.
        let sampling = Sampling { grammar: sampling.grammar.map(Constraint::begun), ..sampling };
        let request = Request {
            id: RequestId(last_id.fetch_add(1, Ordering::Relaxed) + 1),
            prompt,
            sampling,
            limits: Limits { new_tokens_max: room, ..request.limits.clone() },
            ..request
        };
        tokio::spawn(async move {
            // Who waits is served before whoever comes after, and the first row is leaving.
            let Ok(permit) = permits.acquire_owned().await else { return };
            if !events.is_closed() {
                // A bank that is gone drops it, and the client hears that its answer broke off.
                let _ = bank.cast(bank::Message::Open(Admission { request, events, permit }));
            }
        });
        Some(receiver)
    }
}

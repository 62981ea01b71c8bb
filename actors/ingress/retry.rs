//! Requests that are asked again: what says so, and how the earlier attempt hears that its place is
//! taken. Which attempt that is, [`mtplx_core::retries`] decides.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::HeaderMap;
use mtplx_core::fairness::Client;
use mtplx_core::retries::{Attempt, Mark, Retries};
use tokio::sync::oneshot;

use crate::metrics;

/// How many attempts went before, as the official clients of OpenAI and Anthropic say it.
const COUNT: &str = "x-stainless-retry-count";
/// By what a client knows its request again.
const KEY: &str = "idempotency-key";

/// Longest wait for each thing that an earlier attempt has to let go of.
pub(super) const HANDOVER: Duration = Duration::from_secs(5);

/// Attempts that are being answered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attempts(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    retries: Retries,
    tell: BTreeMap<Attempt, oneshot::Sender<Gone>>,
}

/// Kept by whoever is let go; the later attempt hears when it is dropped.
type Gone = oneshot::Sender<()>;

/// One of them, until it ends.
#[derive(Debug)]
pub(crate) struct Ticket {
    attempts: Attempts,
    attempt: Attempt,
    superseded: oneshot::Receiver<Gone>,
    gone: Option<Gone>,
    /// Where it takes the place of another: whether that has gone.
    earlier: Option<oneshot::Receiver<()>>,
}

/// Whether a request may be one that was sent before.
pub(crate) fn says_so(headers: &HeaderMap) -> bool {
    let mark = mark("", headers, &Bytes::new());
    mark.attempt > 0 || mark.key.is_some()
}

/// What a request says of itself.
pub(crate) fn mark(path: &str, headers: &HeaderMap, body: &Bytes) -> Mark {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let key = text(KEY).map(|key| hash(&key));
    let attempt = text(COUNT).and_then(|count| count.parse().ok()).unwrap_or(0);
    Mark { body: hash(&(path, body)), key, attempt }
}

fn hash(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

impl Attempts {
    /// An attempt begins; one whose place it takes is told.
    pub(crate) fn begin(&self, client: Client, mark: Mark) -> Ticket {
        let (tell, superseded) = oneshot::channel();
        let (mut state, mut earlier_left) = (self.state(), None);
        let (attempt, earlier) = state.retries.begin(client, mark);
        state.tell.insert(attempt, tell);
        if let Some(tell) = earlier.and_then(|earlier| state.tell.remove(&earlier)) {
            tracing::info!(attempt = mark.attempt, "asked again: the earlier attempt is let go");
            metrics::superseded();
            // One that is ending by itself drops it.
            let (gone, left) = oneshot::channel();
            let _ = tell.send(gone);
            earlier_left = Some(left);
        }
        drop(state);
        let (gone, earlier) = (None, earlier_left);
        Ticket { attempts: self.clone(), attempt, superseded, gone, earlier }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing can go wrong while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// Ends when another attempt takes the place of this one; never, if none does.
    pub(crate) fn poll_superseded(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.gone.is_some() {
            return Poll::Ready(());
        }
        // Its sender is kept until it is used or this is dropped.
        let gone = std::task::ready!(std::pin::Pin::new(&mut self.superseded).poll(cx));
        self.gone = gone.ok();
        Poll::Ready(())
    }

    /// Whether it takes the place of an earlier one.
    pub(crate) fn takes_over(&self) -> bool {
        self.earlier.is_some()
    }

    /// Waits until that has let go of all it had but its row, which follows with the next cycle.
    pub(crate) async fn earlier_gone(&mut self) {
        if let Some(earlier) = &mut self.earlier {
            // It is told by being dropped. Whoever has stopped reading is not let go at once.
            let _ = tokio::time::timeout(HANDOVER, earlier).await;
        }
    }

    /// The same, to be waited for.
    pub(crate) async fn superseded(&mut self) {
        std::future::poll_fn(|cx| self.poll_superseded(cx)).await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.attempts.state();
        state.retries.end(self.attempt);
        state.tell.remove(&self.attempt);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_bodies_of_one_route_are_one_request_and_headers_say_which_attempt_it_is() {
        let body = Bytes::from_static(b"{}");
        let mut headers = HeaderMap::new();
        let plain = mark("/a", &headers, &body);
        assert_eq!((plain.key, plain.attempt), (None, 0));
        headers.insert(COUNT, "2".parse().unwrap());
        headers.insert(KEY, "k".parse().unwrap());
        let again = mark("/a", &headers, &body);
        assert_eq!((again.body, again.attempt), (plain.body, 2));
        assert!(again.key.is_some());
        assert_ne!(mark("/b", &headers, &body).body, plain.body);
        headers.insert(COUNT, "many".parse().unwrap());
        assert_eq!(mark("/a", &headers, &body).attempt, 0);
    }

    #[tokio::test]
    async fn only_the_earlier_attempt_hears_that_its_place_is_taken_and_nothing_is_left() {
        let attempts = Attempts::default();
        let mark = |attempt| Mark { body: 1, key: None, attempt };
        let mut first = attempts.begin(Client(1), mark(0));
        let mut other = attempts.begin(Client(1), mark(0));
        let second = attempts.begin(Client(1), mark(1));
        first.superseded().await;
        let waits = std::future::poll_fn(|cx| Poll::Ready(other.poll_superseded(cx))).await;
        assert!(waits.is_pending());
        drop((first, other, second));
        let state = attempts.state();
        assert_eq!((state.retries.running(), state.tell.len()), (0, 0));
    }
}

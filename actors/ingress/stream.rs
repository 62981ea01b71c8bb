//! From token events to text, and to the client. A whole answer and a stream are made of the same
//! pieces, so that both hold the same text.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::response::sse::Event;
use mtplx_core::batch::RowEvent;
use mtplx_core::guard::Shortage;
use mtplx_core::logprobs::Logprobs;
use mtplx_core::request::{Finish, Usage};
use mtplx_core::stop::StopScan;
use tokio::sync::mpsc;
use tokio_stream::Stream;

use super::openai::ApiError;
use super::openai::answer::{Answer, FinishReason};
use super::openai::logprobs::Told;
use super::text::Detokenizer;
use crate::metrics;

/// A choice in the making.
pub(crate) struct Choice {
    /// Gone once the choice has ended. That the receiver is dropped is what cancels the row.
    events: Option<mpsc::Receiver<RowEvent>>,
    detokenizer: Detokenizer,
    scan: StopScan,
    generated: usize,
    /// What the model thought of the tokens to come, where somebody wants to know.
    thoughts: Vec<Logprobs>,
    /// Characters that were made.
    chars: usize,
    /// As of the last event.
    cost: Cost,
    watch: Watch,
}

/// What one event came to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Piece {
    /// Text to show.
    pub(crate) text: String,
    /// What the model thought of the tokens that came, also of those whose text is held back.
    pub(crate) told: Vec<Told>,
    /// Whether and how the choice ended with it.
    pub(crate) end: Option<Result<End, Interrupted>>,
}

impl Piece {
    fn last(end: Result<End, Interrupted>) -> Self {
        Self { text: String::new(), told: Vec::new(), end: Some(end) }
    }
}

/// How a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// Why.
    pub(crate) reason: FinishReason,
    /// Tokens up to and including the one that ended it.
    pub(crate) generated: usize,
    /// Where a stop string ended the text, all of its last cycle.
    pub(crate) cost: Cost,
}

/// What only the engine knows of a choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Prompt tokens that were warm.
    pub(crate) cached: usize,
    /// Tokens drafted.
    pub(crate) drafted: usize,
    /// Of these, accepted.
    pub(crate) accepted: usize,
}

impl From<Usage> for Cost {
    fn from(Usage { cached, drafted, accepted, .. }: Usage) -> Self {
        Self { cached, drafted, accepted }
    }
}

/// Why an answer did not come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interrupted {
    /// The engine stopped in the middle of it.
    Engine,
    /// It was never begun, because there is no memory for it.
    Memory(Shortage),
}

impl Choice {
    pub(crate) fn new(
        events: mpsc::Receiver<RowEvent>,
        detokenizer: Detokenizer,
        stops: &[String],
        watch: Watch,
    ) -> Self {
        let scan = StopScan::new(stops);
        let cost = Cost::default();
        let (events, thoughts) = (Some(events), Vec::new());
        Self { events, detokenizer, scan, generated: 0, thoughts, chars: 0, cost, watch }
    }

    /// The next piece; `None` after the end.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Piece>> {
        let Some(events) = &mut self.events else { return Poll::Ready(None) };
        let mut event = ready!(events.poll_recv(cx));
        if let Some(RowEvent::Logprobs(thoughts)) = event {
            self.thoughts = thoughts;
            // Its tokens were sent right behind it.
            event = ready!(events.poll_recv(cx));
        }
        let piece = match event {
            Some(RowEvent::Tokens(tokens, usage)) => {
                self.cost = usage.into();
                self.take(&tokens)
            }
            Some(RowEvent::Finished(finish, usage)) => {
                self.cost = usage.into();
                self.finish(finish)
            }
            Some(RowEvent::Refused(shortage)) => Piece::last(Err(Interrupted::Memory(shortage))),
            Some(RowEvent::Logprobs(_)) | None => Piece::last(Err(Interrupted::Engine)),
        };
        if let Some(end) = piece.end {
            self.events = None;
            self.watch.ended(end);
        }
        Poll::Ready(Some(piece))
    }

    /// Token by token, so that what is counted does not depend on how many came together.
    fn take(&mut self, tokens: &[u32]) -> Piece {
        self.watch.tokens(tokens.len());
        let (mut text, mut new) = (String::new(), String::new());
        let mut told = Vec::new();
        let mut thoughts = std::mem::take(&mut self.thoughts).into_iter();
        for &token in tokens {
            self.generated += 1;
            let thought = thoughts.next();
            let seen = thought.and_then(|t| Told::new(token, &t, &self.detokenizer, self.chars));
            told.extend(seen);
            new.clear();
            self.detokenizer.push(token, &mut new);
            self.chars += new.chars().count();
            let scanned = self.scan.push(&new);
            text.push_str(&scanned.text);
            if scanned.stopped_by.is_some() {
                let reason = FinishReason::Stop;
                let end = End { reason, generated: self.generated, cost: self.cost };
                return Piece { text, told, end: Some(Ok(end)) };
            }
        }
        Piece { text, told, end: None }
    }

    fn finish(&mut self, finish: Finish) -> Piece {
        let reason = match finish {
            Finish::Stop => FinishReason::Stop,
            Finish::Length => FinishReason::Length,
            // We are still here, so it was not our client who cancelled.
            Finish::Cancelled | Finish::Fault => {
                let end = Err(Interrupted::Engine);
                return Piece { text: self.scan.finish(), ..Piece::last(end) };
            }
        };
        let end = End { reason, generated: self.generated, cost: self.cost };
        Piece { text: self.scan.finish(), ..Piece::last(Ok(end)) }
    }
}

/// Texts, what the model thought, and ends of all choices.
pub(crate) type Whole = (Vec<String>, Vec<Vec<Told>>, Vec<End>);

/// All choices of one request.
pub(crate) struct Choices {
    list: Vec<Choice>,
    /// Where the next search for news begins, so that no choice starves the others.
    turn: usize,
}

impl Choices {
    pub(crate) fn new(list: Vec<Choice>) -> Self {
        Self { list, turn: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// The next piece of any choice with its index; `None` when all have ended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<(usize, Piece)>> {
        let n = self.list.len();
        let mut all_ended = true;
        for index in (0..n).map(|i| (self.turn + i) % n) {
            match self.list[index].poll(cx) {
                Poll::Ready(Some(piece)) => {
                    self.turn = index + 1;
                    return Poll::Ready(Some((index, piece)));
                }
                Poll::Ready(None) => {}
                Poll::Pending => all_ended = false,
            }
        }
        if all_ended { Poll::Ready(None) } else { Poll::Pending }
    }

    /// Waits for all: texts, what the model thought of them, and ends, in the order of choices.
    pub(crate) async fn whole(mut self) -> Result<Whole, Interrupted> {
        let mut texts = vec![String::new(); self.len()];
        let mut told = vec![Vec::new(); self.len()];
        let mut ends = vec![None; self.len()];
        while let Some((index, piece)) = poll_fn(|cx| self.poll(cx)).await {
            texts[index].push_str(&piece.text);
            told[index].extend(piece.told);
            ends[index] = piece.end.transpose()?;
        }
        let ends: Option<Vec<End>> = ends.into_iter().collect();
        Ok((texts, told, ends.ok_or(Interrupted::Engine)?))
    }
}

/// The events of a streamed answer. It is the response's body: when the client goes, it is dropped
/// with all receivers in it.
pub(crate) struct Events {
    answer: Answer,
    choices: Choices,
    ends: Vec<Option<End>>,
    include_usage: bool,
    ready: VecDeque<String>,
    over: bool,
}

impl Events {
    pub(crate) fn new(answer: Answer, choices: Choices, include_usage: bool) -> Self {
        let ready = (0..choices.len()).filter_map(|i| answer.opening(i, include_usage)).collect();
        let ends = vec![None; choices.len()];
        Self { answer, choices, ends, include_usage, ready, over: false }
    }

    fn take(&mut self, index: usize, piece: &Piece) {
        if !(piece.text.is_empty() && piece.told.is_empty()) {
            let shown = (piece.text.as_str(), piece.told.as_slice());
            self.ready.push_back(self.answer.text(index, shown, self.include_usage));
        }
        match piece.end {
            Some(Ok(end)) => {
                let last = self.answer.finish(index, end.reason, self.include_usage);
                self.ready.push_back(last);
                self.ends[index] = Some(end);
            }
            // An answer that breaks off must not look like one that ended.
            Some(Err(why)) => self.break_off(why),
            None => {}
        }
    }

    fn break_off(&mut self, why: Interrupted) {
        let body = ApiError::from(why);
        // The answer's status is gone out already.
        body.count();
        let error = serde_json::to_string(&body.body());
        self.ready.extend(error.ok());
        self.over = true;
        self.choices = Choices::new(Vec::new());
    }

    fn close(&mut self) {
        let ends: Option<Vec<End>> = self.ends.iter().copied().collect();
        if let Some(ends) = ends.filter(|_| self.include_usage) {
            self.ready.push_back(self.answer.closing(&ends));
        }
        self.ready.push_back("[DONE]".into());
        self.over = true;
    }
}

impl Stream for Events {
    type Item = Result<Event, Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(data) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(Event::default().data(data))));
            }
            if this.over {
                return Poll::Ready(None);
            }
            match ready!(this.choices.poll(cx)) {
                Some((index, piece)) => this.take(index, &piece),
                None => this.close(),
            }
        }
    }
}

/// Measures one choice.
pub(crate) struct Watch {
    route: &'static str,
    arrived: Instant,
    last: Option<Instant>,
    over: bool,
}

impl Watch {
    /// A choice of a request that arrived at `arrived`.
    pub(crate) fn new(route: &'static str, arrived: Instant) -> Self {
        Self { route, arrived, last: None, over: false }
    }

    fn tokens(&mut self, count: usize) {
        let now = Instant::now();
        match self.last {
            None => metrics::first_token(self.route, now - self.arrived),
            Some(last) => metrics::more_tokens(self.route, now - last, count),
        }
        self.last = Some(now);
    }

    fn ended(&mut self, end: Result<End, Interrupted>) {
        self.over = true;
        let finish = match end {
            Ok(End { reason: FinishReason::Stop, .. }) => Finish::Stop,
            Ok(End { reason: FinishReason::Length, .. }) => Finish::Length,
            Err(Interrupted::Engine) => Finish::Fault,
            // Counted among refusals.
            Err(Interrupted::Memory(_)) => return,
        };
        metrics::request_finished(self.route, finish);
        metrics::request_duration(self.route, self.arrived.elapsed());
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.over {
            metrics::request_finished(self.route, Finish::Cancelled);
        }
    }
}

#[cfg(test)]
mod tests;

//! From token events to deltas of a reply, and to the client. A whole answer and a stream are made
//! of the same pieces, so that both hold the same text.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use mtplx_core::Token;
use mtplx_core::batch::RowEvent;
use mtplx_core::guard::Shortage;
use mtplx_core::logprobs::Logprobs;
use mtplx_core::request::{Finish, Usage};
use mtplx_core::stop::StopScan;
use serde::Serialize;
use tokio::sync::mpsc;

use super::clients::Bill;
use super::grammar::Bound;
use super::openai::logprobs::Told;
use super::reply::{Delta, Manner, Parser, Reply, add};
use super::retry::Ticket;
use super::text::Detokenizer;

mod course;
mod events;
mod watch;

pub(crate) use self::course::{Course, Trial, Ways, channel};
pub(crate) use self::events::Events;
pub(crate) use self::watch::Watch;

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FinishReason {
    /// By a stop token or a stop string.
    Stop,
    /// By the most tokens that were wanted or that the context holds.
    Length,
    /// By the model, which waits for what the tools that it called say.
    ToolCalls,
}

/// A bound on thinking. Where it is reached, what ends it is put behind what was thought so far,
/// and the answer goes on in another row: its text follows the distribution that the model has
/// after exactly these tokens. What the first row made beyond the bound is not used.
pub(crate) struct Thinking {
    /// Most tokens of thought.
    pub(crate) max: usize,
    /// What ends it, as text and as tokens.
    pub(crate) closer: (String, Arc<[Token]>),
}

/// A choice in the making.
pub(crate) struct Choice {
    /// Gone once the choice has ended. That the receiver is dropped is what cancels the row.
    events: Option<mpsc::Receiver<RowEvent>>,
    course: Course,
    detokenizer: Detokenizer,
    scan: StopScan,
    parser: Parser,
    /// What the parser made of the prefill, until it has been shown.
    first: Vec<Delta>,
    thinking: Option<Thinking>,
    bound: Option<Bound>,
    generated: usize,
    reasoning: usize,
    /// What the model thought of the tokens to come, where somebody wants to know.
    thoughts: Vec<Logprobs>,
    /// Characters that were made.
    chars: usize,
    /// Of the row that came before, if there was one.
    earlier: Option<Cost>,
    /// As of the last event.
    cost: Cost,
    watch: Watch,
}

/// How a choice is made.
pub(crate) struct Making<'a> {
    pub(crate) course: Course,
    pub(crate) detokenizer: Detokenizer,
    pub(crate) stops: &'a [String],
    pub(crate) manner: &'a Manner,
    /// Where thinking is bounded.
    pub(crate) thinking: Option<Thinking>,
    /// The grammar that it is kept to, if there is one.
    pub(crate) bound: Option<Bound>,
    pub(crate) watch: Watch,
}

/// What one event came to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Piece {
    /// What there is to show.
    pub(crate) deltas: Vec<Delta>,
    /// What the model thought of the tokens that came, also of those whose text is held back.
    pub(crate) told: Vec<Told>,
    /// What the choice cost so far.
    pub(crate) cost: Cost,
    /// Tokens so far.
    pub(crate) generated: usize,
    /// Whether and how the choice ended with it.
    pub(crate) end: Option<Result<End, Interrupted>>,
}

/// How a choice ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct End {
    /// Why.
    pub(crate) reason: FinishReason,
    /// The stop string that ended it, if one did.
    pub(crate) stopped_by: Option<String>,
    /// Tokens up to and including the one that ended it.
    pub(crate) generated: usize,
    /// Of these, thought.
    pub(crate) reasoning: usize,
    /// Where a stop string ended the text, all of its last cycle.
    pub(crate) cost: Cost,
    /// How long it took.
    pub(crate) pace: Pace,
}

/// How long an answer took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pace {
    /// From the request's arrival to its first tokens.
    pub(crate) prompt: Duration,
    /// From there to the last.
    pub(crate) predicted: Duration,
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

impl Cost {
    /// With what a second row cost, all of whose prompt was there before.
    fn and(self, usage: Usage) -> Self {
        let Usage { drafted, accepted, .. } = usage;
        Self {
            cached: self.cached,
            drafted: self.drafted + drafted,
            accepted: self.accepted + accepted,
        }
    }
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
    /// It found no place for too long.
    Late { retry_after_s: u32 },
    /// The grammar of this parameter gave up in the middle of it.
    Grammar(&'static str),
    /// Its client asked again, and is answered there.
    Superseded,
}

impl Choice {
    pub(crate) fn new(events: mpsc::Receiver<RowEvent>, making: Making<'_>) -> Self {
        let Making { course, detokenizer, stops, manner, thinking, bound, watch } = making;
        let (parser, first) = Parser::new(manner);
        Self {
            events: Some(events),
            course,
            detokenizer,
            scan: StopScan::new(stops),
            parser,
            first,
            thinking,
            bound,
            generated: 0,
            reasoning: 0,
            thoughts: Vec::new(),
            chars: 0,
            earlier: None,
            cost: Cost::default(),
            watch,
        }
    }

    /// The next piece; `None` after the end.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Piece>> {
        if self.events.is_none() {
            return Poll::Ready(None);
        }
        let event = ready!(self.news(cx));
        let (mut deltas, mut told) = (std::mem::take(&mut self.first), Vec::new());
        let end = match event {
            Some(RowEvent::Tokens(tokens, usage)) => {
                self.heard(usage);
                self.take(&tokens, (&mut deltas, &mut told))
            }
            Some(RowEvent::Finished(finish, usage)) => {
                self.heard(usage);
                Some(self.finish(finish, &mut deltas))
            }
            Some(RowEvent::Refused(shortage)) => Some(Err(Interrupted::Memory(shortage))),
            // Told with their tokens, or to nobody.
            Some(RowEvent::Logprobs(_) | RowEvent::Seated) => None,
            Some(RowEvent::Late) => Some(Err(self.watch.late())),
            None => Some(Err(Interrupted::Engine)),
        };
        if let Some(end) = &end {
            self.events = None;
            self.watch.ended(end);
        }
        let Self { cost, generated, .. } = *self;
        Poll::Ready(Some(Piece { deltas, told, cost, generated, end }))
    }

    /// What its row says next, or the one that goes on where that was lost.
    fn news(&mut self, cx: &mut Context<'_>) -> Poll<Option<RowEvent>> {
        while let Some(events) = &mut self.events {
            match ready!(events.poll_recv(cx)) {
                // Their tokens were sent right behind them.
                Some(RowEvent::Logprobs(thoughts)) => self.thoughts = thoughts,
                Some(RowEvent::Seated) => {
                    self.course.seated();
                    self.watch.bill.iter_mut().for_each(Bill::seated);
                }
                Some(event) => {
                    self.course.acquit();
                    return Poll::Ready(Some(event));
                }
                None => {
                    self.events = self.course.resume();
                    self.thoughts.clear();
                    self.follows();
                }
            }
        }
        Poll::Ready(None)
    }

    /// Another row goes on.
    fn follows(&mut self) {
        // One that made nothing is as though it had not been.
        self.earlier = (self.generated > 0).then_some(self.cost);
        self.watch.bill.iter_mut().for_each(Bill::follows);
    }

    fn heard(&mut self, usage: Usage) {
        self.watch.bill.iter_mut().for_each(|bill| bill.charge(usage));
        self.cost = self.earlier.map_or_else(|| usage.into(), |earlier| earlier.and(usage));
    }

    /// Token by token, so that what is counted does not depend on how many came together.
    fn take(
        &mut self,
        tokens: &[u32],
        (deltas, told): (&mut Vec<Delta>, &mut Vec<Told>),
    ) -> Option<Result<End, Interrupted>> {
        self.watch.tokens(tokens.len());
        let mut new = String::new();
        let mut thoughts = std::mem::take(&mut self.thoughts).into_iter();
        for &token in tokens {
            self.generated += 1;
            self.course.take(token);
            let thought = thoughts.next();
            let seen = thought.and_then(|t| Told::new(token, &t, &self.detokenizer, self.chars));
            told.extend(seen);
            self.reasoning += usize::from(self.parser.is_thinking());
            new.clear();
            self.detokenizer.push(token, &mut new);
            self.chars += new.chars().count();
            let stopped_by = self.read(&new, deltas);
            if stopped_by.is_some() {
                return Some(Ok(self.stopped(stopped_by)));
            }
            if self.parser.is_over() {
                return Some(Ok(self.end(FinishReason::ToolCalls, None)));
            }
            let Some(thinking) = &self.thinking else { continue };
            if self.parser.is_thinking() && self.reasoning >= thinking.max {
                // The rest of these tokens goes with the row.
                return self.close_thinking(deltas);
            }
        }
        None
    }

    /// Reads text; the stop string in its answer, if there is one.
    fn read(&mut self, text: &str, deltas: &mut Vec<Delta>) -> Option<String> {
        let new = self.parser.push(text);
        self.search(new, deltas)
    }

    /// Passes on what comes before a stop string. That is looked for in the answer's text: thoughts
    /// and arguments hold what the client does not show, or did not expect to be text.
    fn search(&mut self, new: Vec<Delta>, deltas: &mut Vec<Delta>) -> Option<String> {
        for delta in new {
            let Delta::Text(text) = delta else {
                self.show_held(deltas);
                add(deltas, vec![delta]);
                continue;
            };
            let scanned = self.scan.push(&text);
            show(scanned.text, deltas);
            if scanned.stopped_by.is_some() {
                return scanned.stopped_by;
            }
        }
        None
    }

    /// What might have begun a stop string did not.
    fn show_held(&mut self, deltas: &mut Vec<Delta>) {
        show(self.scan.finish(), deltas);
    }

    /// By a stop string. Where tools were called before it, they are what the client has to see to.
    fn stopped(&self, by: Option<String>) -> End {
        if self.parser.has_called() {
            self.end(FinishReason::ToolCalls, None)
        } else {
            self.end(FinishReason::Stop, by)
        }
    }

    fn close_thinking(&mut self, deltas: &mut Vec<Delta>) -> Option<Result<End, Interrupted>> {
        let Thinking { closer: (text, tokens), .. } = self.thinking.take()?;
        let Some(events) = self.course.go_on(&tokens) else {
            add(deltas, self.parser.finish(false));
            return Some(Ok(self.end(FinishReason::Length, None)));
        };
        self.events = Some(events);
        self.follows();
        self.detokenizer.forget();
        self.generated += tokens.len();
        self.reasoning += tokens.len();
        // It ends in thoughts, where no stop string is looked for.
        self.read(&text, deltas);
        None
    }

    fn finish(&mut self, finish: Finish, deltas: &mut Vec<Delta>) -> Result<End, Interrupted> {
        let last = self.parser.finish(finish == Finish::Stop);
        let stopped_by = self.search(last, deltas);
        if stopped_by.is_none() {
            self.show_held(deltas);
        }
        match finish {
            Finish::Stop => Ok(self.stopped(stopped_by)),
            Finish::Length if stopped_by.is_some() => Ok(self.stopped(stopped_by)),
            Finish::Length => Ok(self.end(FinishReason::Length, None)),
            // We are still here, so it was not our client who cancelled.
            Finish::Cancelled | Finish::Fault => Err(match &self.bound {
                Some(bound) if bound.gave_up() => Interrupted::Grammar(bound.field),
                Some(_) | None => Interrupted::Engine,
            }),
        }
    }

    fn end(&self, reason: FinishReason, stopped_by: Option<String>) -> End {
        let Self { generated, reasoning, cost, .. } = *self;
        End { reason, stopped_by, generated, reasoning, cost, pace: self.watch.pace() }
    }
}

impl Drop for Choice {
    /// Who leaves pays for what was made and not looked at, too.
    fn drop(&mut self) {
        let (Some(events), Some(bill)) = (&mut self.events, &mut self.watch.bill) else { return };
        while let Ok(event) = events.try_recv() {
            match event {
                RowEvent::Seated => bill.seated(),
                RowEvent::Tokens(_, usage) | RowEvent::Finished(_, usage) => bill.charge(usage),
                RowEvent::Logprobs(_) | RowEvent::Refused(_) | RowEvent::Late => {}
            }
        }
    }
}

fn show(text: String, deltas: &mut Vec<Delta>) {
    if !text.is_empty() {
        add(deltas, vec![Delta::Text(text)]);
    }
}

/// Replies, what the model thought of their tokens, and ends of all choices.
pub(crate) type Whole = (Vec<Reply>, Vec<Vec<Told>>, Vec<End>);

/// All choices of one request.
pub(crate) struct Choices {
    list: Vec<Choice>,
    /// Its place among those that may be asked again.
    attempt: Option<Ticket>,
    /// Where the next search for news begins, so that no choice starves the others.
    turn: usize,
}

impl Choices {
    pub(crate) fn new(list: Vec<Choice>) -> Self {
        Self { list, attempt: None, turn: 0 }
    }

    /// The same for an attempt that another may take the place of.
    pub(crate) fn of(mut self, attempt: Ticket) -> Self {
        self.attempt = Some(attempt);
        self
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// The next piece of any choice with its index; `None` when all have ended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<(usize, Piece)>> {
        let n = self.list.len();
        if n > 0
            && let Some(attempt) = &mut self.attempt
            && attempt.poll_superseded(cx).is_ready()
        {
            // Their rows go with them.
            self.list.clear();
            let end = Some(Err(Interrupted::Superseded));
            let (deltas, told, cost) = (Vec::new(), Vec::new(), Cost::default());
            return Poll::Ready(Some((0, Piece { deltas, told, cost, generated: 0, end })));
        }
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

    /// Waits for all: replies, what the model thought of them, and ends, in the order of choices.
    pub(crate) async fn whole(mut self) -> Result<Whole, Interrupted> {
        let mut replies = vec![Reply::default(); self.len()];
        let mut told = vec![Vec::new(); self.len()];
        let mut ends = vec![None; self.len()];
        while let Some((index, piece)) = poll_fn(|cx| self.poll(cx)).await {
            for delta in &piece.deltas {
                replies[index].take(delta);
            }
            told[index].extend(piece.told);
            ends[index] = piece.end.transpose()?;
        }
        let ends: Option<Vec<End>> = ends.into_iter().collect();
        Ok((replies, told, ends.ok_or(Interrupted::Engine)?))
    }
}

#[cfg(test)]
mod tests;

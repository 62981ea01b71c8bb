//! What a client hears, in the words of its API. One answer is made of deltas; each API renders
//! them in its own form, whole or as a stream of events.

use std::collections::VecDeque;

use axum::response::sse::Event;
use serde::Serialize;

use super::openai::ApiError;
use super::openai::logprobs::Told;
use super::reply::Reply;
use super::stream::{End, Piece};

/// Events on their way to a client.
pub(crate) type Frames = VecDeque<Event>;

/// Renders one answer.
pub(crate) trait Wire: Send {
    /// What can be said before anything is generated.
    fn begin(&mut self, out: &mut Frames);

    /// What a piece of this choice says, but for its end.
    fn piece(&mut self, index: usize, piece: &Piece, out: &mut Frames);

    /// The end of a choice.
    fn end(&mut self, index: usize, end: &End, out: &mut Frames);

    /// The end of the stream, by the ends of all choices.
    fn close(&mut self, ends: &[End], out: &mut Frames);

    /// The end of a stream that broke off. The error was counted.
    fn fail(&mut self, error: &ApiError, out: &mut Frames);

    /// A sign of life while nothing can be said: clients that wait for events must see one, so a
    /// comment serves only until the first.
    fn alive(&mut self, out: &mut Frames);

    /// The whole answer as a body: replies of all choices, what the model thought of their tokens,
    /// and their ends, in order.
    fn whole(&mut self, replies: &[Reply], told: &[Vec<Told>], ends: &[End]) -> String;
}

/// An event without a name.
pub(crate) fn data(value: &impl Serialize) -> Event {
    Event::default().data(json(value))
}

/// An event with a name.
pub(crate) fn named(name: &str, value: &impl Serialize) -> Event {
    Event::default().event(name).data(json(value))
}

/// A line that clients read and forget.
pub(crate) fn comment() -> Event {
    Event::default().comment("keep-alive")
}

/// JSON of what is ours.
pub(crate) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("answers have string keys and finite numbers only")
}

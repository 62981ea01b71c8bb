//! A streamed answer: pieces in, events out, and signs of life in between.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::response::sse::Event;
use tokio::time::{Instant, Sleep, sleep};
use tokio_stream::Stream;

use super::{Choices, End, Interrupted, Piece};
use crate::ingress::openai::ApiError;
use crate::ingress::wire::{Frames, Wire};

/// The events of a streamed answer. It is the response's body: when the client goes, it is dropped
/// with all receivers in it.
pub(crate) struct Events {
    wire: Box<dyn Wire>,
    choices: Choices,
    ends: Vec<Option<End>>,
    ready: Frames,
    over: bool,
    /// Ends when the client has heard nothing for too long.
    silence: Pin<Box<Sleep>>,
    silence_max: Duration,
}

impl Events {
    pub(crate) fn new(mut wire: Box<dyn Wire>, choices: Choices, silence_max: Duration) -> Self {
        let (mut ready, ends) = (Frames::new(), vec![None; choices.len()]);
        wire.begin(&mut ready);
        let silence = Box::pin(sleep(silence_max));
        Self { wire, choices, ends, ready, over: false, silence, silence_max }
    }

    fn take(&mut self, index: usize, piece: Piece) {
        self.wire.piece(index, &piece, &mut self.ready);
        match piece.end {
            Some(Ok(end)) => {
                self.wire.end(index, &end, &mut self.ready);
                self.ends[index] = Some(end);
            }
            // An answer that breaks off must not look like one that ended.
            Some(Err(why)) => self.break_off(why),
            None => {}
        }
    }

    fn break_off(&mut self, why: Interrupted) {
        let error = ApiError::from(why);
        // The answer's status is gone out already.
        error.count();
        self.wire.fail(&error, &mut self.ready);
        self.over = true;
        self.choices = Choices::new(Vec::new());
    }

    fn close(&mut self) {
        let ends: Vec<End> = self.ends.iter().flatten().cloned().collect();
        self.wire.close(&ends, &mut self.ready);
        self.over = true;
    }

    fn heard(&mut self) {
        let next = Instant::now() + self.silence_max;
        self.silence.as_mut().reset(next);
    }
}

impl Stream for Events {
    type Item = Result<Event, Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(event) = this.ready.pop_front() {
                this.heard();
                return Poll::Ready(Some(Ok(event)));
            }
            if this.over {
                return Poll::Ready(None);
            }
            match this.choices.poll(cx) {
                Poll::Ready(Some((index, piece))) => this.take(index, piece),
                Poll::Ready(None) => this.close(),
                Poll::Pending => {
                    std::task::ready!(this.silence.as_mut().poll(cx));
                    this.wire.alive(&mut this.ready);
                    this.heard();
                }
            }
        }
    }
}

//! What is measured of one choice, and to whom it is charged.

use std::time::Instant;

use mtplx_core::fairness::Class;
use mtplx_core::request::Finish;

use tracing::field::Empty;
use tracing::{Span, info_span};

use super::{End, FinishReason, Interrupted, Pace};
use crate::ingress::clients::Bill;
use crate::metrics;

/// Measures one choice.
pub(crate) struct Watch {
    route: &'static str,
    arrived: Instant,
    first: Option<Instant>,
    last: Option<Instant>,
    over: bool,
    class: Class,
    /// Of the HTTP request, and from its first tokens on of the answer within it.
    span: Span,
    stream: Span,
    /// What it costs whoever asked.
    pub(super) bill: Option<Bill>,
}

impl Watch {
    /// A choice of a request that arrived at `arrived`.
    pub(crate) fn new(route: &'static str, arrived: Instant) -> Self {
        Self {
            route,
            arrived,
            first: None,
            last: None,
            over: false,
            class: Class::default(),
            span: Span::current(),
            stream: Span::none(),
            bill: None,
        }
    }

    /// With whom it is charged to.
    pub(crate) fn with(mut self, mut bill: Bill) -> Self {
        bill.admitted();
        self.class = bill.standing().class;
        self.bill = Some(bill);
        self
    }

    pub(super) fn late(&self) -> Interrupted {
        let retry_after_s = self.bill.as_ref().map_or(1, Bill::retry_after_s);
        Interrupted::Late { retry_after_s }
    }

    pub(super) fn tokens(&mut self, count: usize) {
        let now = Instant::now();
        match self.last {
            None => {
                metrics::first_token(self.route, now - self.arrived);
                self.stream = info_span!(parent: &self.span, "stream", tokens = Empty);
            }
            Some(last) => metrics::more_tokens(self.route, now - last, count),
        }
        self.first.get_or_insert(now);
        self.last = Some(now);
    }

    pub(super) fn pace(&self) -> Pace {
        let (Some(first), Some(last)) = (self.first, self.last) else { return Pace::default() };
        Pace { prompt: first - self.arrived, predicted: last - first }
    }

    pub(super) fn ended(&mut self, end: &Result<End, Interrupted>) {
        self.over = true;
        if let Ok(end) = end {
            self.stream.record("tokens", end.generated);
        }
        self.stream = Span::none();
        self.bill.iter_mut().for_each(|bill| bill.ended(end.is_ok()));
        // Its places are free from now on, whoever reads the last words when.
        self.bill = None;
        let finish = match end {
            Ok(End { reason: FinishReason::Stop | FinishReason::ToolCalls, .. }) => Finish::Stop,
            Ok(End { reason: FinishReason::Length, .. }) => Finish::Length,
            Err(Interrupted::Engine) => Finish::Fault,
            // Counted among refusals.
            Err(
                Interrupted::Memory(_)
                | Interrupted::Grammar(_)
                | Interrupted::Late { .. }
                | Interrupted::Superseded,
            ) => return,
        };
        metrics::request_finished(self.route, self.class, finish);
        metrics::request_duration(self.route, self.arrived.elapsed());
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.over {
            metrics::request_finished(self.route, self.class, Finish::Cancelled);
        }
    }
}

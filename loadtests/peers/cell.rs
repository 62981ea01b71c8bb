//! What was measured of one server at one width, or with one long prompt.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::peer::Form;
use crate::client::Seen;
use crate::statistics::{Spread, median, ms};

/// All that was measured so far.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Cells(pub(super) Vec<Cell>);

/// One figure's worth of work, and under which conditions.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Cell {
    pub(super) form: Form,
    pub(super) made: String,
    pub(super) work: Work,
}

/// What was done. Times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Work {
    /// So many clients ask at once.
    Width {
        clients: usize,
        tokens: usize,
        rounds: usize,
        /// Of all clients, the median over rounds.
        tokens_per_s: f64,
        ttft_p50: f64,
        ttft_p95: f64,
        gap_p50: f64,
        gap_max: f64,
        /// Answers of another length than was asked for.
        odd: usize,
    },
    /// A long prompt arrives while others read.
    Prefill {
        readers: usize,
        prompt: usize,
        /// Until its first text.
        ttft: f64,
        gap_p50: f64,
        /// Longest gap of a reader from when it arrived to when it was answered.
        gap_max: f64,
        /// Longest wait of a reader for its own first text.
        wait_max: f64,
    },
}

impl Work {
    pub(super) fn width(clients: usize, tokens: usize, rounds: &[(Duration, Vec<Seen>)]) -> Self {
        let seen = || rounds.iter().flat_map(|(_, seen)| seen);
        let rate = |(took, seen): &(Duration, Vec<Seen>)| {
            seen.iter().map(|s| s.tokens).sum::<usize>() as f64 / took.as_secs_f64()
        };
        let first: Spread = seen().filter_map(Seen::first).collect();
        let gaps: Spread = seen().flat_map(Seen::gaps).collect();
        Self::Width {
            clients,
            tokens,
            rounds: rounds.len(),
            tokens_per_s: median(rounds.iter().map(rate)),
            ttft_p50: ms(first.median()),
            ttft_p95: ms(first.percentile(95)),
            gap_p50: ms(gaps.median()),
            gap_max: ms(gaps.max()),
            odd: seen().filter(|s| s.tokens != tokens).count(),
        }
    }

    /// Whether both are the same work, so that the later takes the other's place.
    fn replaces(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Width { clients: a, .. }, Self::Width { clients: b, .. }) => a == b,
            (Self::Prefill { .. }, Self::Prefill { .. }) => true,
            (Self::Width { .. }, Self::Prefill { .. })
            | (Self::Prefill { .. }, Self::Width { .. }) => false,
        }
    }
}

impl Cells {
    /// In place of the same work's of the same server.
    pub(super) fn put(&mut self, cell: Cell) {
        self.0.retain(|old| old.form != cell.form || !cell.work.replaces(&old.work));
        self.0.push(cell);
    }

    pub(super) fn of(&self, form: Form) -> impl Iterator<Item = &Work> {
        self.0.iter().filter(move |cell| cell.form == form).map(|cell| &cell.work)
    }

    /// Tokens a second of this server at this width.
    pub(super) fn rate(&self, form: Form, clients: usize) -> Option<f64> {
        self.of(form).find_map(|work| match work {
            Work::Width { clients: at, tokens_per_s, .. } if *at == clients => Some(*tokens_per_s),
            Work::Width { .. } | Work::Prefill { .. } => None,
        })
    }

    /// Longest gap of its readers while the long prompt was fed.
    pub(super) fn gap(&self, form: Form) -> Option<f64> {
        self.of(form).find_map(|work| match work {
            Work::Prefill { gap_max, .. } => Some(*gap_max),
            Work::Width { .. } => None,
        })
    }

    /// Servers, in the order of the table.
    pub(super) fn forms(&self) -> Vec<Form> {
        let mut forms: Vec<Form> = self.0.iter().map(|cell| cell.form).collect();
        forms.sort_unstable();
        forms.dedup();
        forms
    }
}

//! Figures of a run, from the records of its requests.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::drive::{Outcome, Record};
use super::scenario::{Scenario, Slo};
use super::times::Times;

/// Failures that are told in full.
const TOLD: usize = 20;
/// Most slices of the timeline.
const SLICES: f64 = 120.0;

/// Figures of some requests: of a load, or of all. What was due in the warm-up is not in them.
#[derive(Clone, Debug)]
pub(super) struct Figures {
    /// Until the first text, from when the request was due.
    pub(super) ttft: Times,
    /// Between texts of one stream.
    pub(super) itl: Times,
    /// Until the end, from when it was due.
    pub(super) e2e: Times,
    /// Of one token after the first text.
    per_token: Times,
    /// Until somebody was sent away.
    pub(super) refusal: Times,
    served: usize,
    left: usize,
    declined: usize,
    failed: usize,
    refused: BTreeMap<String, usize>,
    /// Served within the objectives, and their tokens.
    good: (usize, usize),
    /// Tokens that came in the time that counts.
    tokens: f64,
    prompt: usize,
    cached: usize,
}

/// A stretch of the run.
#[derive(Clone, Debug, Default)]
pub(super) struct Slice {
    pub(super) tokens: f64,
    pub(super) served: usize,
    pub(super) refused: usize,
    /// Times to first text of requests due in it, in milliseconds.
    ttft: Vec<f64>,
}

/// All of a run.
pub(super) struct Tally {
    slo: Slo,
    warm: Duration,
    until: Duration,
    pub(super) all: Figures,
    pub(super) loads: Vec<(String, Figures)>,
    pub(super) slices: Vec<Slice>,
    /// Seconds of a slice.
    pub(super) width: f64,
    /// Of the whole run, the warm-up too: nothing may fail there either.
    pub(super) failures: Vec<String>,
    pub(super) failed: usize,
    /// How late the latest request was sent, which is no fault of the server's.
    pub(super) late: Duration,
    /// Requests of the whole run by what the server's books must say of them.
    pub(super) stayed: usize,
    pub(super) left: usize,
}

impl Tally {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let slices = scenario.seconds.clamp(1.0, SLICES).floor();
        let names = scenario.loads.iter().map(|load| load.name.clone());
        Self {
            slo: scenario.slo.clone(),
            warm: Duration::from_secs_f64(scenario.warm_s),
            until: Duration::from_secs_f64(scenario.seconds),
            all: Figures::new(),
            loads: names.map(|name| (name, Figures::new())).collect(),
            slices: vec![Slice::default(); slices as usize],
            width: scenario.seconds / slices,
            failures: Vec::new(),
            failed: 0,
            late: Duration::ZERO,
            stayed: 0,
            left: 0,
        }
    }

    pub(super) fn take(&mut self, record: &Record) {
        self.late = self.late.max(record.sent.saturating_sub(record.due));
        let name = self.loads[record.load].0.clone();
        match &record.outcome {
            Outcome::Served => self.stayed += 1,
            Outcome::Left => self.left += 1,
            Outcome::Refused(..) | Outcome::Declined => {}
            Outcome::Failed(why) => {
                self.failed += 1;
                if self.failures.len() < TOLD {
                    let at = record.due.as_secs_f64();
                    self.failures.push(format!("{name}, due at {at:.1} s: {why}"));
                }
            }
        }
        self.slice(record);
        let window = (self.warm, self.until);
        for figures in [&mut self.all, &mut self.loads[record.load].1] {
            figures.take(record, &self.slo, window);
        }
    }

    fn slice(&mut self, record: &Record) {
        let width = self.width;
        let last = self.slices.len() - 1;
        // What comes after the time for arrivals belongs to no slice.
        let at =
            |time: Duration| Some((time.as_secs_f64() / width) as usize).filter(|&i| i <= last);
        for (time, tokens) in record.arrived() {
            if let Some(i) = at(time) {
                self.slices[i].tokens += tokens;
            }
        }
        if let Some(i) = at(record.end) {
            self.slices[i].served += usize::from(record.outcome == Outcome::Served);
            let refused = matches!(record.outcome, Outcome::Refused(..));
            self.slices[i].refused += usize::from(refused);
        }
        if let (Some(i), Some(first)) = (at(record.due), record.first()) {
            self.slices[i].ttft.push(first.as_secs_f64() * 1e3);
        }
    }

    /// Seconds that count.
    pub(super) fn counted(&self) -> f64 {
        (self.until - self.warm).as_secs_f64()
    }

    pub(super) fn timeline(&self) -> Vec<Value> {
        let slices = self.slices.iter().enumerate();
        let one = |(i, slice): (usize, &Slice)| {
            json!({"at_s": (i as f64 + 0.5) * self.width, "tokens_per_s": slice.tokens / self.width,
                "served": slice.served, "refused": slice.refused,
                "ttft_p50_ms": slice.ttft(0.5), "ttft_max_ms": slice.ttft(1.0)})
        };
        slices.map(one).collect()
    }
}

impl Slice {
    /// Nearest rank; none if nobody came.
    pub(super) fn ttft(&self, quantile: f64) -> Option<f64> {
        let mut sorted = self.ttft.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() as f64 * quantile).ceil() as usize;
        sorted.get(rank.max(1) - 1).copied()
    }
}

impl Record {
    /// Until the first text, from when the request was due.
    pub(super) fn first(&self) -> Option<Duration> {
        self.texts.first().map(|&at| at.saturating_sub(self.due))
    }

    /// Its tokens and when they came: evenly over its texts, or at its end if it came as a whole.
    fn arrived(&self) -> Vec<(Duration, f64)> {
        if !self.streamed {
            return vec![(self.end, self.tokens as f64)];
        }
        let each = self.tokens as f64 / self.texts.len().max(1) as f64;
        self.texts.iter().map(|&at| (at, each)).collect()
    }
}

impl Figures {
    fn new() -> Self {
        let [ttft, itl, e2e, per_token, refusal] = [(); 5].map(|()| Times::new());
        let refused = BTreeMap::new();
        Self {
            ttft,
            itl,
            e2e,
            per_token,
            refusal,
            refused,
            served: 0,
            left: 0,
            declined: 0,
            failed: 0,
            good: (0, 0),
            tokens: 0.0,
            prompt: 0,
            cached: 0,
        }
    }

    fn take(&mut self, record: &Record, slo: &Slo, (warm, until): (Duration, Duration)) {
        let counted = |&(at, _): &(Duration, f64)| (warm..until).contains(&at);
        let tokens = record.arrived().into_iter().filter(counted).map(|(_, tokens)| tokens);
        self.tokens += tokens.sum::<f64>();
        if record.due < warm {
            return;
        }
        let took = record.end.saturating_sub(record.due);
        match &record.outcome {
            Outcome::Left => self.left += 1,
            Outcome::Declined => self.declined += 1,
            Outcome::Failed(_) => self.failed += 1,
            Outcome::Refused(reason, _) => {
                *self.refused.entry(reason.clone()).or_default() += 1;
                self.refusal.record(took);
            }
            Outcome::Served => {
                self.served += 1;
                self.e2e.record(took);
                self.prompt += record.prompt;
                self.cached += record.cached;
                if record.keeps(slo) {
                    self.good = (self.good.0 + 1, self.good.1 + record.tokens);
                }
            }
        }
        if let Some(first) = record.first() {
            self.ttft.record(first);
        }
        record.texts.windows(2).for_each(|pair| self.itl.record(pair[1] - pair[0]));
        if let (Outcome::Served, [first, .., last]) = (&record.outcome, &record.texts[..]) {
            let after = u32::try_from(record.tokens.saturating_sub(1)).unwrap_or(u32::MAX);
            self.per_token.record((*last - *first) / after.max(1));
        }
    }

    /// Served requests a second and their tokens, as far as they kept the objectives, and which
    /// part of all that wanted to be served and stayed they were.
    pub(super) fn goodput(&self, seconds: f64) -> (f64, f64, f64) {
        let wanted = self.served + self.failed + self.refused.values().sum::<usize>();
        let (requests, tokens) = self.good;
        let share = requests as f64 / wanted.max(1) as f64;
        (requests as f64 / seconds, tokens as f64 / seconds, share)
    }

    pub(super) fn tokens_per_s(&self, seconds: f64) -> f64 {
        self.tokens / seconds
    }

    /// Tokens a second of a stream: of the median one, and of one in twenty that is slow.
    pub(super) fn per_stream(&self) -> [f64; 2] {
        [0.5, 0.95].map(|quantile| match self.per_token.quantile(quantile) {
            0.0 => 0.0,
            ms => 1e3 / ms,
        })
    }

    pub(super) fn cached_share(&self) -> f64 {
        self.cached as f64 / self.prompt.max(1) as f64
    }

    /// For programs.
    pub(super) fn json(&self, seconds: f64) -> Value {
        let (good, tokens, share) = self.goodput(seconds);
        let [median, slow] = self.per_stream();
        json!({
            "requests": {"served": self.served, "left": self.left, "declined": self.declined,
                "failed": self.failed, "refused": self.refused},
            "ttft": self.ttft.json(), "itl": self.itl.json(), "e2e": self.e2e.json(),
            "refusal": self.refusal.json(),
            "goodput": {"requests_per_s": good, "tokens_per_s": tokens, "share": share},
            "tokens_per_s": self.tokens_per_s(seconds),
            "tokens_per_s_of_a_stream": {"p50": median, "p5": slow},
            "prompt_tokens": self.prompt, "cached_share": self.cached_share(),
        })
    }

    /// For people, as a row of a table.
    pub(super) fn row(&self, seconds: f64) -> Vec<String> {
        let of = |times: &Times| {
            let figures = [0.5, 0.95, 0.99, 1.0].map(|q| format!("{:.0}", times.quantile(q)));
            figures.join(" / ")
        };
        let (_, _, share) = self.goodput(seconds);
        let refused: usize = self.refused.values().sum();
        vec![
            format!("{} + {} + {refused}", self.served, self.left),
            of(&self.ttft),
            of(&self.itl),
            of(&self.e2e),
            format!("{:.0} %", share * 100.0),
            format!("{:.1}", self.tokens_per_s(seconds)),
            format!("{:.1}", self.per_stream()[0]),
            format!("{:.0} %", self.cached_share() * 100.0),
        ]
    }
}

impl Record {
    fn keeps(&self, slo: &Slo) -> bool {
        let mut gaps: Vec<Duration> = self.texts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        gaps.sort_unstable();
        let rank = (gaps.len() * 95).div_ceil(100).max(1);
        let slow = gaps.get(rank - 1).copied().unwrap_or_default();
        // Of an answer that comes as a whole the first text comes with all others.
        let first = self.first().unwrap_or(self.end.saturating_sub(self.due));
        let within = |time: Duration, ms: f64| time.as_secs_f64() * 1e3 <= ms;
        within(first, slo.ttft_ms) && within(slow, slo.itl_ms)
    }
}

/// Names of what [`Figures::row`] holds.
pub(super) const COLUMNS: [&str; 8] = [
    "served + left + refused",
    "TTFT p50 / 95 / 99 / max ms",
    "ITL p50 / 95 / 99 / max ms",
    "E2E p50 / 95 / 99 / max ms",
    "goodput",
    "tokens/s",
    "of a stream",
    "cached",
];

#[cfg(test)]
mod tests {
    use super::super::scenario::tests::{SMALL, parse};
    use super::*;

    fn record(due_ms: u64, texts_ms: &[u64], outcome: Outcome) -> Record {
        let ms = Duration::from_millis;
        let texts: Vec<Duration> = texts_ms.iter().copied().map(ms).collect();
        let end = texts.last().copied().unwrap_or(ms(due_ms + 1));
        let (tokens, due) = (2 * texts.len(), ms(due_ms));
        Record {
            load: 0,
            outcome,
            streamed: true,
            due,
            sent: ms(due_ms + 3),
            end,
            texts,
            tokens,
            prompt: 10,
            cached: 5,
        }
    }

    fn tally(records: &[Record]) -> Tally {
        let mut tally =
            Tally::new(&parse(&SMALL.replace("seconds = 10", "seconds = 10\nwarm_s = 2")).unwrap());
        records.iter().for_each(|record| tally.take(record));
        tally
    }

    #[test]
    fn a_wait_counts_from_when_the_request_was_due() {
        let found = tally(&[record(3000, &[3500, 3510, 3530], Outcome::Served)]).all;
        assert!((found.ttft.quantile(1.0) - 500.0).abs() < 1.0);
        assert!((found.itl.quantile(1.0) - 20.0).abs() < 0.1);
        assert!((found.per_stream()[0] - 5.0 / 0.03).abs() < 1.0);
        assert!((found.cached_share() - 0.5).abs() < 1e-9);
    }

    #[test]
    fn goodput_is_what_kept_both_objectives_of_all_that_stayed() {
        let refused = Outcome::Refused("503 overloaded".into(), 1);
        let found = tally(&[
            record(3000, &[3500, 3590], Outcome::Served),
            record(3000, &[4500, 4510], Outcome::Served),
            record(3000, &[3500, 3690], Outcome::Served),
            record(3000, &[], refused),
            record(3000, &[3100], Outcome::Left),
        ])
        .all;
        assert!((found.goodput(1.0).2 - 0.25).abs() < 1e-9);
        assert_eq!(found.json(1.0)["requests"]["refused"]["503 overloaded"], 1);
    }

    #[test]
    fn the_warm_up_is_in_the_timeline_and_its_failures_count_but_its_figures_do_not() {
        let broken = Outcome::Failed("reset".into());
        let found = tally(&[record(500, &[600, 2600], Outcome::Served), record(900, &[], broken)]);
        assert_eq!((found.all.ttft.len(), found.failed, found.stayed), (0, 1, 1));
        assert!((found.all.tokens_per_s(1.0) - 2.0).abs() < 1e-9, "only the text after it");
        assert!((found.slices[0].tokens - 2.0).abs() < 1e-9);
        assert_eq!(found.slices[0].ttft(1.0), Some(100.0));
        assert_eq!(found.late, Duration::from_millis(3));
    }
}

//! Figures of an overload, and the report on them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::answer::{Answer, Outcome};
use crate::report::Report;
use crate::statistics::{Spread, ms};

/// Goodput under overload, as a part of what a closed loop gets.
const GOODPUT_MIN: f64 = 0.9;
/// What went wrong that is told in full.
const TOLD: usize = 10;
/// Looks at memory that are printed.
const LOOKS: usize = 12;

/// Memory of the server's process over time.
pub(super) struct Memory {
    at_rest: Option<u64>,
    growth: u64,
    looks: Vec<(f64, u64)>,
}

impl Memory {
    pub(super) fn new(at_rest: Option<u64>, growth_mib: u64) -> Self {
        Self { at_rest, growth: growth_mib << 20, looks: Vec::new() }
    }

    pub(super) fn look(&mut self, seconds: f64, bytes: Option<u64>) {
        self.looks.extend(bytes.map(|bytes| (seconds, bytes)));
    }

    fn peak(&self) -> Option<u64> {
        self.looks.iter().map(|&(_, bytes)| bytes).max()
    }

    /// Whether it grew beyond the bound.
    fn is_beyond(&self) -> bool {
        let bound = self.at_rest.map(|at_rest| at_rest + self.growth);
        matches!((self.peak(), bound), (Some(peak), Some(bound)) if peak > bound)
    }

    fn text(&self) -> String {
        let (Some(at_rest), Some(peak)) = (self.at_rest, self.peak()) else {
            return "memory: not told by a server that runs already\n".into();
        };
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let mut text = format!(
            "memory: {:.1} MiB before, {:.1} at most, bound {:.1}; over time",
            mib(at_rest),
            mib(peak),
            mib(at_rest + self.growth),
        );
        for (seconds, bytes) in self.looks.iter().step_by(self.looks.len().div_ceil(LOOKS).max(1)) {
            // Writing to a string cannot fail.
            let _ = write!(text, " {seconds:.0} s {:.1},", mib(*bytes));
        }
        text.trim_end_matches(',').to_owned() + "\n"
    }
}

/// What became of all arrivals.
pub(super) struct Open {
    served: Spread,
    refused: Spread,
    statuses: BTreeMap<u16, usize>,
    retry: (u32, u32),
    wrong: Vec<String>,
    /// How late the latest was sent, which is no fault of the server's.
    lag: Duration,
    /// Tokens a second of answers that ended in the window.
    goodput: f64,
}

impl Open {
    pub(super) fn new(answers: &[Answer], (from, until): (Instant, Instant)) -> Self {
        let of = |kind: fn(&Outcome) -> bool| {
            answers.iter().filter(move |a| kind(&a.outcome)).map(Answer::took).collect()
        };
        let (mut statuses, mut wrong, mut tokens) = (BTreeMap::new(), Vec::new(), 0);
        let mut retry = (u32::MAX, 0);
        for answer in answers {
            match &answer.outcome {
                Outcome::Served(n) => {
                    *statuses.entry(200).or_insert(0) += 1;
                    tokens += if (from..until).contains(&answer.ended) { *n } else { 0 };
                }
                Outcome::Refused(status, seconds) => {
                    *statuses.entry(*status).or_insert(0) += 1;
                    retry = (retry.0.min(*seconds), retry.1.max(*seconds));
                }
                Outcome::Wrong(why) => wrong.push(why.clone()),
            }
        }
        Self {
            served: of(|outcome| matches!(outcome, Outcome::Served(_))),
            refused: of(|outcome| matches!(outcome, Outcome::Refused(..))),
            statuses,
            retry,
            wrong,
            lag: answers.iter().map(|a| a.sent - a.due).max().unwrap_or_default(),
            goodput: tokens as f64 / (until - from).as_secs_f64(),
        }
    }
}

/// All that was found.
pub(super) struct Findings {
    /// Tokens a second of the closed loops, before and after.
    pub(super) closed: [f64; 2],
    /// Arrivals a second.
    pub(super) rate: f64,
    pub(super) open: Open,
    pub(super) memory: Memory,
    pub(super) complaints: BTreeMap<String, usize>,
}

impl Findings {
    pub(super) fn report(&self, factor: f64) -> Report {
        let most = self.closed[0].max(self.closed[1]);
        let share = self.open.goodput / most;
        let mut broken = Vec::new();
        if !self.open.wrong.is_empty() {
            broken.push(format!("{} requests were not answered as due", self.open.wrong.len()));
        }
        if share < GOODPUT_MIN {
            broken.push(format!("goodput is {:.1} % of the most", share * 100.0));
        }
        if self.memory.is_beyond() {
            broken.push("memory grew beyond its bound".into());
        }
        let held = broken.is_empty();
        Report {
            text: self.text(factor, share, &broken),
            json: self.json(factor, share, &broken),
            held,
        }
    }

    fn text(&self, factor: f64, share: f64, broken: &[String]) -> String {
        let Self { closed: [before, after], rate, open, .. } = self;
        let mut text = format!(
            "closed loop: {before:.0} tokens/s before, {after:.0} after\n\
             open loop: {rate:.1} arrivals/s, {factor} x what can be served; sent {:.0} ms late \
             at most\n",
            ms(open.lag),
        );
        for (status, count) in &open.statuses {
            let _ = writeln!(text, "  {status}: {count}");
        }
        for (name, spread) in [("served", &open.served), ("refused", &open.refused)] {
            let [p50, p95, max] = [50, 95, 100].map(|p| ms(spread.percentile(p)));
            let _ = writeln!(text, "  {name} after p50 {p50:.1}, p95 {p95:.1}, max {max:.1} ms");
        }
        if open.retry.1 > 0 {
            let _ = writeln!(text, "  Retry-After: {} to {} s", open.retry.0, open.retry.1);
        }
        for wrong in open.wrong.iter().take(TOLD) {
            let _ = writeln!(text, "  wrong: {wrong}");
        }
        let goodput = open.goodput;
        let _ =
            writeln!(text, "goodput: {goodput:.0} tokens/s, {:.1} % of the most", share * 100.0);
        text += &self.memory.text();
        for (line, count) in &self.complaints {
            let _ = writeln!(text, "the log says {count} times: {line}");
        }
        for broken in broken {
            let _ = writeln!(text, "NOT MET: {broken}");
        }
        if broken.is_empty() {
            text += "met: all were answered or told when to come again, and goodput stayed\n";
        }
        text
    }

    fn json(&self, factor: f64, share: f64, broken: &[String]) -> Value {
        let Self { closed, rate, open, memory, complaints } = self;
        let statuses: BTreeMap<_, _> =
            open.statuses.iter().map(|(status, count)| (status.to_string(), count)).collect();
        json!({
            "scenario": "overload", "factor": factor, "closed_tokens_per_s": closed,
            "arrivals_per_s": rate, "statuses": statuses, "served": open.served.json(),
            "refused": open.refused.json(), "lag_ms": ms(open.lag), "wrong": open.wrong,
            "goodput_tokens_per_s": open.goodput, "goodput_share": share,
            "memory": {
                "before": memory.at_rest, "growth_max": memory.growth, "looks": memory.looks,
            },
            "complaints": complaints, "broken": broken,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(outcomes: &[(Outcome, u64)]) -> (Vec<Answer>, Instant) {
        let start = Instant::now();
        let of = |(outcome, s): &(Outcome, u64)| {
            let ended = start + Duration::from_secs(*s);
            Answer { outcome: outcome.clone(), due: start, sent: start, ended }
        };
        (outcomes.iter().map(of).collect(), start)
    }

    fn findings(goodput: u64, wrong: bool, peak: u64) -> Findings {
        let mut outcomes = vec![(Outcome::Served(goodput as usize * 8), 5)];
        outcomes.push((Outcome::Refused(503, 4), 1));
        if wrong {
            outcomes.push((Outcome::Wrong("reset".into()), 2));
        }
        let (answers, start) = answers(&outcomes);
        let at = |s| start + Duration::from_secs(s);
        let mut memory = Memory::new(Some(100 << 20), 64);
        memory.look(1.0, Some(peak << 20));
        let (open, complaints) = (Open::new(&answers, (at(2), at(10))), BTreeMap::new());
        Findings { closed: [90.0, 100.0], rate: 5.0, open, memory, complaints }
    }

    #[test]
    fn an_overload_is_borne_where_goodput_memory_and_every_answer_are_right() {
        assert!(findings(90, false, 164).report(5.0).held);
        assert!(!findings(89, false, 164).report(5.0).held, "goodput");
        assert!(!findings(90, true, 164).report(5.0).held, "an answer");
        assert!(!findings(90, false, 165).report(5.0).held, "memory");
    }

    #[test]
    fn only_what_ends_in_the_window_is_goodput() {
        let (answers, start) = answers(&[
            (Outcome::Served(10), 1),
            (Outcome::Served(20), 4),
            (Outcome::Served(40), 9),
        ]);
        let at = |s| start + Duration::from_secs(s);
        let open = Open::new(&answers, (at(2), at(7)));
        assert!((open.goodput - 4.0).abs() < 1e-9);
        assert_eq!(open.statuses[&200], 3);
    }
}

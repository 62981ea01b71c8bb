//! Counts of what became of the requests, and the report on all of it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::books::{Books, Rest, growth};
use super::job::Manner;
use crate::report::Report;

/// Failures that are told in full.
const TOLD: usize = 20;

/// What became of the requests.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    ended: BTreeMap<&'static str, usize>,
    stayed: usize,
    left: usize,
    failures: Vec<String>,
}

impl Tally {
    pub(super) fn count(&mut self, number: usize, manner: Manner, end: Result<()>) {
        *self.ended.entry(manner.name()).or_default() += 1;
        match manner {
            Manner::Streamed | Manner::Whole => self.stayed += usize::from(end.is_ok()),
            Manner::LeavesEarly(_) | Manner::LeavesMidway(_) => self.left += 1,
            Manner::Wrong => {}
        }
        if let Err(error) = end {
            self.failures.push(format!("request {number} ({manner:?}): {error:#}"));
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        for (name, count) in other.ended {
            *self.ended.entry(name).or_default() += count;
        }
        self.stayed += other.stayed;
        self.left += other.left;
        self.failures.extend(other.failures);
    }

    /// Requests whose client stayed to a proper end.
    pub(super) fn stayed(&self) -> usize {
        self.stayed
    }

    /// Requests whose client hung up.
    pub(super) fn left(&self) -> usize {
        self.left
    }

    pub(super) fn failures(&self) -> usize {
        self.failures.len()
    }
}

/// All that a soak found.
pub(super) struct Findings {
    pub(super) took: Duration,
    pub(super) tally: Tally,
    pub(super) looks: Vec<Books>,
    pub(super) early: Rest,
    pub(super) late: Rest,
    pub(super) wrong: Vec<String>,
    pub(super) complaints: BTreeMap<String, usize>,
}

impl Findings {
    pub(super) fn report(&self) -> Report {
        let held = self.wrong.is_empty();
        Report { text: self.text(), json: self.json(), held }
    }

    fn text(&self) -> String {
        let Self { tally, early, late, .. } = self;
        let total: usize = tally.ended.values().sum();
        let mut out = format!("{total} requests in {:.0} s:", self.took.as_secs_f64());
        // Writing to a string cannot fail.
        for (name, count) in &tally.ended {
            let _ = write!(out, " {name} {count},");
        }
        let _ = writeln!(out, " not as they should {}", tally.failures());
        for failure in tally.failures.iter().take(TOLD) {
            let _ = writeln!(out, "  {failure}");
        }
        let start = self.looks.first().map(|books| ("at the start", books));
        let rests = [("after the first", early), ("after the last", late)];
        let resting = rests.iter().map(|(name, rest)| (*name, &rest.full));
        let emptied =
            rests.iter().filter_map(|(_, rest)| Some(("  bank empty", rest.empty.as_ref()?)));
        let mut moments: Vec<_> = start.into_iter().chain(resting).chain(emptied).collect();
        moments.sort_by(|a, b| a.1.at_s.total_cmp(&b.1.at_s));
        for (name, books) in moments {
            let _ = writeln!(out, "{name:>16}: {}", books.line());
        }
        let _ = writeln!(
            out,
            "active memory after the first requests and at the end: {:+.2} % at rest, {} with an \
             empty bank",
            growth(&early.full, &late.full) * 100.0,
            self.growth().map_or("unknown".into(), |g| format!("{:+.2} %", g * 100.0)),
        );
        for (line, count) in &self.complaints {
            let _ = writeln!(out, "the log says {count} times: {line}");
        }
        for wrong in &self.wrong {
            let _ = writeln!(out, "NOT MET: {wrong}");
        }
        if self.wrong.is_empty() {
            out += "met: nothing was lost and nothing stayed\n";
        }
        out
    }

    fn growth(&self) -> Option<f64> {
        Some(growth(self.early.empty.as_ref()?, self.late.empty.as_ref()?))
    }

    fn json(&self) -> Value {
        let looks: Vec<Value> = self.looks.iter().map(Books::json).collect();
        let rest = |rest: &Rest| {
            let empty = rest.empty.as_ref().map(Books::json);
            json!({"full": rest.full.json(), "empty": empty})
        };
        json!({
            "scenario": "soak", "took_s": self.took.as_secs_f64(), "requests": self.tally.ended,
            "failures": self.tally.failures, "early": rest(&self.early), "late": rest(&self.late),
            "growth_empty": self.growth(), "looks": looks, "wrong": self.wrong,
            "complaints": self.complaints,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tallies_add_up_and_a_failure_is_no_stay() {
        let mut one = Tally::default();
        one.count(1, Manner::Whole, Ok(()));
        one.count(2, Manner::Streamed, Err(anyhow::anyhow!("no end")));
        let mut all = Tally::default();
        all.count(3, Manner::LeavesMidway(2), Ok(()));
        all.count(4, Manner::Wrong, Ok(()));
        all.add(one);
        assert_eq!((all.stayed(), all.left(), all.failures()), (1, 1, 1));
        assert_eq!(all.ended.values().sum::<usize>(), 4);
        assert_eq!(all.failures[0], "request 2 (Streamed): no end");
    }
}

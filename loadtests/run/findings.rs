//! What a run found, for people and for programs. README.md beside the scenarios names the fields.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

use super::memory::Memory;
use super::scenario::Scenario;
use super::tally::{COLUMNS, Tally};
use crate::conditions;
use crate::report::Report;
use crate::statistics::ms;

/// All of it.
pub(super) struct Findings {
    pub(super) scenario: Scenario,
    pub(super) size: f64,
    pub(super) machine: Value,
    pub(super) server: Value,
    pub(super) tally: Tally,
    pub(super) memory: Memory,
    /// Of judged drafts, those that stood.
    pub(super) acceptance: Option<f64>,
    /// What is not right in the server's books.
    pub(super) wrong: Vec<String>,
    /// Lines of its log that speak of trouble.
    pub(super) complaints: BTreeMap<String, usize>,
}

impl Findings {
    pub(super) fn report(&self) -> Report {
        let broken = self.broken();
        Report { text: self.text(&broken), json: self.json(&broken), held: broken.is_empty() }
    }

    fn drift(&self) -> Option<f64> {
        self.memory.drift(self.scenario.warm_s, self.scenario.seconds)
    }

    /// What was to hold and did not.
    fn broken(&self) -> Vec<String> {
        let (mut broken, bars) = (self.wrong.clone(), &self.scenario.bars);
        if self.tally.failed > 0 {
            broken.push(format!("{} requests did not end as they should", self.tally.failed));
        }
        if let Some(most) = bars.drift_max {
            match self.drift() {
                None => broken.push("nobody told the server's memory".into()),
                Some(drift) if drift >= most => {
                    let (drift, most) = (drift * 100.0, most * 100.0);
                    broken.push(format!("memory drifted by {drift:+.2} %, the bar is {most} %"));
                }
                Some(_) => {}
            }
        }
        let slowest = self.tally.all.refusal.quantile(0.95);
        if let Some(most) = bars.refused_ms.filter(|&most| slowest > most) {
            broken.push(format!("refusals took {slowest:.0} ms at p95, the bar is {most} ms"));
        }
        let lines = self.complaints.iter();
        broken.extend(lines.map(|(line, count)| format!("the log says {count} times: {line}")));
        broken
    }

    /// Rows of the table: all loads, and each where there are several.
    pub(super) fn rows(&self) -> Vec<(String, Vec<String>)> {
        let (tally, seconds) = (&self.tally, self.tally.counted());
        let mut rows = vec![("all".to_owned(), tally.all.row(seconds))];
        if tally.loads.len() > 1 {
            let each = tally.loads.iter().map(|(name, f)| (name.clone(), f.row(seconds)));
            rows.extend(each);
        }
        rows
    }

    /// Lines on conditions and on what stands in no table.
    pub(super) fn remarks(&self) -> Vec<String> {
        let (scenario, tally) = (&self.scenario, &self.tally);
        let mut lines = vec![
            format!(
                "seed {}, size {}, {} s, of which {} s of warm-up do not count; objectives: first \
                 text within {} ms, gaps within {} ms at p95",
                scenario.seed,
                self.size,
                scenario.seconds,
                scenario.warm_s,
                scenario.slo.ttft_ms,
                scenario.slo.itl_ms,
            ),
            conditions::line(&self.machine),
            format!("server: {}", self.server),
        ];
        let (good, tokens, _) = tally.all.goodput(tally.counted());
        lines.push(format!("goodput: {good:.2} requests/s, {tokens:.1} tokens/s"));
        let percent = |share: f64| format!("{:.1} %", share * 100.0);
        let acceptance = self.acceptance.map_or("not told".into(), percent);
        lines.push(format!("acceptance: {acceptance}; sent {:.0} ms late at most", ms(tally.late)));
        if let (Some(drift), Some((_, last))) = (self.drift(), self.memory.mib().last()) {
            let drift = drift * 100.0;
            lines
                .push(format!("memory: {last:.1} MiB at the end, {drift:+.2} % since the warm-up"));
        }
        lines.extend(self.refusals());
        lines.extend(tally.failures.iter().map(|failure| format!("failed: {failure}")));
        lines
    }

    fn refusals(&self) -> Vec<String> {
        let json = self.tally.all.json(1.0);
        let reasons = json["requests"]["refused"].as_object().cloned().unwrap_or_default();
        let slow = self.tally.all.refusal.quantile(0.95);
        let line = |(reason, count): (String, Value)| {
            format!("refused: {count} as {reason}, all refusals within {slow:.1} ms at p95")
        };
        reasons.into_iter().map(line).collect()
    }

    fn text(&self, broken: &[String]) -> String {
        let mut out = format!("{}: {}\n\n", self.scenario.name, self.scenario.about);
        let width = |i: usize| COLUMNS[i].len().max(6);
        // Writing to a string cannot fail.
        let _ = write!(out, "{:>12}", "");
        COLUMNS.iter().enumerate().for_each(|(i, name)| {
            let _ = write!(out, "  {name:>0$}", width(i));
        });
        for (name, row) in self.rows() {
            let _ = write!(out, "\n{name:>12}");
            row.iter().enumerate().for_each(|(i, cell)| {
                let _ = write!(out, "  {cell:>0$}", width(i));
            });
        }
        out += "\n\n";
        self.remarks().iter().for_each(|line| out.push_str(&format!("{line}\n")));
        broken.iter().for_each(|line| out.push_str(&format!("NOT MET: {line}\n")));
        if broken.is_empty() {
            out += "met: all ended as they should\n";
        }
        out
    }

    fn json(&self, broken: &[String]) -> Value {
        let Self { scenario, tally, .. } = self;
        let seconds = tally.counted();
        let loads: BTreeMap<_, _> = tally
            .loads
            .iter()
            .map(|(name, figures)| (name.clone(), figures.json(seconds)))
            .collect();
        json!({
            "scenario": scenario.name,
            "conditions": {
                "machine": self.machine, "server": self.server, "seed": scenario.seed,
                "size": self.size, "seconds": scenario.seconds, "warm_s": scenario.warm_s,
                "slo": {"ttft_ms": scenario.slo.ttft_ms, "itl_ms": scenario.slo.itl_ms},
            },
            "all": tally.all.json(seconds),
            "loads": loads,
            "acceptance": self.acceptance,
            "late_ms": ms(tally.late),
            "timeline": tally.timeline(),
            "memory": {"drift": self.drift(), "looks_mib": self.memory.mib()},
            "failures": tally.failures,
            "not_met": broken,
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::super::drive::{Outcome, Record};
    use super::super::scenario::tests::{SMALL, parse};
    use super::*;

    pub(in crate::run) fn findings() -> Findings {
        let scenario = parse(SMALL).unwrap();
        let mut tally = Tally::new(&scenario);
        let ms = Duration::from_millis;
        for due in 0..40 {
            let due = 200 * due;
            let texts: Vec<Duration> = (1..9).map(|i| ms(due + 20 * i)).collect();
            tally.take(&Record {
                load: 0,
                outcome: Outcome::Served,
                streamed: true,
                due: ms(due),
                sent: ms(due),
                end: texts[7],
                texts,
                tokens: 12,
                prompt: 50,
                cached: 10,
            });
        }
        let refused = Outcome::Refused("503 overloaded".into(), 1);
        let (sent, end, texts) = (ms(5), ms(9), Vec::new());
        tally.take(&Record {
            load: 0,
            outcome: refused,
            streamed: true,
            due: ms(5),
            sent,
            end,
            texts,
            tokens: 0,
            prompt: 0,
            cached: 0,
        });
        let mut memory = Memory::default();
        (0..10).for_each(|second| memory.look(f64::from(second), Some(100 << 20)));
        Findings {
            scenario,
            size: 1.0,
            machine: conditions::of_this_machine(),
            server: json!({}),
            tally,
            memory,
            acceptance: Some(0.5),
            wrong: Vec::new(),
            complaints: BTreeMap::new(),
        }
    }

    /// Fields of objects and of those within them, by names with dots; what is counted by name of
    /// a reason or of a load is one field.
    fn fields(value: &Value, path: &str, all: &mut Vec<String>) {
        let list = value.as_array().and_then(|list| list.first());
        let inner = list.filter(|first| first.is_object()).unwrap_or(value);
        match inner.as_object() {
            Some(object)
                if !["all.requests.refused", "conditions.server", "loads"].contains(&path) =>
            {
                for (name, value) in object {
                    let path =
                        if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    fields(value, &path, all);
                }
            }
            _ => all.push(path.to_owned()),
        }
    }

    #[test]
    fn every_field_of_the_json_stands_in_the_readme() {
        let readme = include_str!("../README.md");
        let mut all = Vec::new();
        fields(&findings().report().json, "", &mut all);
        let missing: Vec<_> = all.iter().filter(|f| !readme.contains(&format!("`{f}`"))).collect();
        let all_times = ["ttft", "itl", "e2e", "refusal"].map(|name| format!("all.{name}."));
        let named: Vec<_> = missing
            .iter()
            .filter(|f| !all_times.iter().any(|t| f.starts_with(t.as_str())))
            .collect();
        assert!(named.is_empty(), "{named:#?}");
        for field in ["count", "p50_ms", "p95_ms", "p99_ms", "max_ms"] {
            assert!(readme.contains(&format!("`{field}`")), "{field}");
        }
    }

    #[test]
    fn a_table_tells_all_that_was_asked_for() {
        let found = findings();
        let report = found.report();
        assert!(report.held, "{}", report.text);
        for word in [
            "TTFT",
            "ITL",
            "E2E",
            "goodput",
            "acceptance: 50.0 %",
            "1 as 503 overloaded",
            "20 %",
            "cores",
            "commit",
        ] {
            assert!(report.text.contains(word), "{word} is not in {}", report.text);
        }
    }

    #[test]
    fn a_failure_a_drift_and_a_wrong_book_are_each_enough() {
        let broken = |change: &dyn Fn(&mut Findings)| {
            let mut found = findings();
            change(&mut found);
            found.broken().len()
        };
        assert_eq!(broken(&|_| ()), 0);
        assert_eq!(broken(&|found| found.tally.failed = 1), 1);
        assert_eq!(broken(&|found| found.wrong = vec!["x".into()]), 1);
        assert_eq!(broken(&|found| found.scenario.bars.refused_ms = Some(1.0)), 1);
        assert_eq!(broken(&|found| found.scenario.bars.drift_max = Some(0.02)), 0);
        assert_eq!(
            broken(&|found| {
                found.scenario.bars.drift_max = Some(0.02);
                found.memory.look(9.5, Some(103 << 20));
                found.memory.look(9.6, Some(103 << 20));
            }),
            1
        );
    }
}

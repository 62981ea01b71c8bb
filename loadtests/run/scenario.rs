//! A scenario: who comes when, asks what, and behaves how, as a TOML file says it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// A file of `loadtests/scenarios/`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Scenario {
    pub(super) name: String,
    /// What it stands for, in a sentence.
    pub(super) about: String,
    /// Requests and arrivals follow from it.
    #[serde(default = "one")]
    pub(super) seed: u64,
    /// Somebody new may come for so long.
    pub(super) seconds: f64,
    /// What was due in the first of these does not count in the figures.
    #[serde(default)]
    pub(super) warm_s: f64,
    /// No answer takes longer, or it has failed.
    #[serde(default = "patience")]
    pub(super) patience_s: f64,
    pub(super) slo: Slo,
    /// Settings of a server that the run starts, laid over its defaults.
    #[serde(default)]
    pub(super) server: toml::Table,
    #[serde(default)]
    pub(super) bars: Bars,
    #[serde(rename = "load")]
    pub(super) loads: Vec<Load>,
}

/// What an answer must keep to count as goodput.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Slo {
    /// Until the first text, from when the request was due.
    pub(super) ttft_ms: f64,
    /// Its own gaps between texts, at p95.
    pub(super) itl_ms: f64,
}

/// What must hold beside that nothing fails.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bars {
    /// Most growth of the server's memory after the warm-up, as a share.
    pub(super) drift_max: Option<f64>,
    /// The server's books are right at the end: nothing lost, nothing kept.
    #[serde(default)]
    pub(super) ledger: bool,
    /// Longest time to refuse somebody, at p95.
    pub(super) refused_ms: Option<f64>,
}

/// Clients of one kind.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Load {
    pub(super) name: String,
    pub(super) arrivals: Arrivals,
    /// Questions of a session, from and to.
    #[serde(default = "single")]
    pub(super) turns: (usize, usize),
    /// Seconds before each next question, from and to.
    #[serde(default)]
    pub(super) think_s: (f64, f64),
    /// A system prompt of so many words that all sessions share.
    #[serde(default)]
    pub(super) system_words: usize,
    /// Whether tools are offered, so that some turns may be their results.
    #[serde(default)]
    pub(super) tools: bool,
    /// Of later turns, those that are a tool's result.
    #[serde(default)]
    pub(super) tool_percent: usize,
    /// Words of the first question, from and to.
    pub(super) words: (usize, usize),
    /// Words of what comes later; as the first without it.
    pub(super) more_words: Option<(usize, usize)>,
    /// Of sessions, those that begin with one of a few dozen known texts.
    #[serde(default)]
    pub(super) familiar_percent: usize,
    /// Tokens of an answer, from and to.
    pub(super) tokens: (usize, usize),
    /// Whether answers are exactly that long, whatever the model would end with.
    #[serde(default = "yes")]
    pub(super) ignore_eos: bool,
    /// One of these.
    #[serde(default = "temperatures")]
    pub(super) temperatures: Vec<f64>,
    /// Clients that want the whole answer at once.
    #[serde(default)]
    pub(super) whole_percent: usize,
    /// Clients that hang up soon after they asked.
    #[serde(default)]
    pub(super) leave_early_percent: usize,
    /// Clients that hang up while they read.
    #[serde(default)]
    pub(super) leave_midway_percent: usize,
    /// Clients that send what cannot be served.
    #[serde(default)]
    pub(super) wrong_percent: usize,
    #[serde(default)]
    pub(super) headers: BTreeMap<String, String>,
}

/// When sessions begin.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Arrivals {
    /// So many clients, each of whom waits for its answer before it asks again.
    Closed(usize),
    /// So many a second, at random times, whatever becomes of those before.
    Poisson(f64),
    /// So many at once, again and again.
    Burst { sessions: usize, every_s: f64 },
}

fn one() -> u64 {
    1
}

fn yes() -> bool {
    true
}

fn single() -> (usize, usize) {
    (1, 1)
}

fn patience() -> f64 {
    120.0
}

fn temperatures() -> Vec<f64> {
    vec![0.6]
}

impl Scenario {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("no scenario {}", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    fn parse(text: &str) -> Result<Self> {
        let scenario: Self = toml::from_str(text)?;
        scenario.check()?;
        Ok(scenario)
    }

    /// All texts this many times as long.
    pub(super) fn scale(&mut self, size: f64) -> Result<()> {
        ensure!(size > 0.0 && size <= 100.0, "a size is above 0 and at most 100");
        let scaled = |words: usize| ((words as f64 * size) as usize).max(usize::from(words > 0));
        for load in &mut self.loads {
            load.system_words = scaled(load.system_words);
            load.words = (scaled(load.words.0), scaled(load.words.1));
            load.more_words = load.more_words.map(|(from, to)| (scaled(from), scaled(to)));
        }
        Ok(())
    }

    /// The same for another time; of the warm-up the same share.
    pub(super) fn stretch(&mut self, seconds: f64) {
        self.warm_s *= seconds / self.seconds;
        self.seconds = seconds;
    }

    pub(super) fn check(&self) -> Result<()> {
        let sane = |s: f64| s.is_finite() && s > 0.0;
        ensure!(sane(self.seconds) && self.seconds <= 86_400.0, "seconds: above 0, to a day");
        ensure!((0.0..self.seconds).contains(&self.warm_s), "warm_s: less than seconds");
        ensure!(sane(self.patience_s) && self.patience_s <= 3600.0, "patience_s: up to an hour");
        ensure!(sane(self.slo.ttft_ms) && sane(self.slo.itl_ms), "slo: above 0");
        ensure!(!self.loads.is_empty(), "nobody comes: [[load]] is missing");
        for load in &self.loads {
            load.check().with_context(|| format!("load {:?}", load.name))?;
        }
        Ok(())
    }
}

impl Load {
    pub(super) fn more_words(&self) -> (usize, usize) {
        self.more_words.unwrap_or(self.words)
    }

    fn check(&self) -> Result<()> {
        let ranges = [self.turns, self.words, self.more_words(), self.tokens];
        ensure!(
            ranges.iter().all(|(from, to)| 1 <= *from && from <= to),
            "ranges: from 1, upwards"
        );
        let think = self.think_s;
        ensure!(0.0 <= think.0 && think.0 <= think.1 && think.1 < 3600.0, "think_s: upwards");
        let odd = self.leave_early_percent + self.leave_midway_percent + self.wrong_percent;
        let all = [odd + self.whole_percent, self.tool_percent, self.familiar_percent];
        ensure!(all.iter().all(|&percent| percent <= 100), "percent: 100 at most, in all");
        ensure!(self.tools || self.tool_percent == 0, "tool_percent: only with tools");
        ensure!(!self.temperatures.is_empty(), "temperatures: one at least");
        let possible = match self.arrivals {
            Arrivals::Closed(clients) => (1..=10_000).contains(&clients),
            Arrivals::Poisson(rate) => rate > 0.0 && rate <= 10_000.0,
            Arrivals::Burst { sessions, every_s } => {
                (1..=10_000).contains(&sessions) && every_s >= 0.1
            }
        };
        ensure!(possible, "arrivals: 1 to 10 000 clients, a rate above 0, bursts 0.1 s apart");
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::run) const SMALL: &str = r#"
        name = "small"
        about = "A test."
        seconds = 10
        slo = { ttft_ms = 1000, itl_ms = 100 }
        [[load]]
        name = "readers"
        arrivals = { closed = 2 }
        turns = [2, 4]
        words = [5, 9]
        tokens = [4, 8]
    "#;

    pub(in crate::run) fn parse(text: &str) -> Result<Scenario> {
        Scenario::parse(text)
    }

    #[test]
    fn every_scenario_of_the_folder_is_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let mut names: Vec<String> = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let scenario = Scenario::read(&path).unwrap();
            assert_eq!(Some(scenario.name.as_str()), path.file_stem().and_then(|s| s.to_str()));
            names.push(scenario.name);
        }
        names.sort();
        let due = ["agents", "burst", "chat", "openwebui", "overload", "soak", "storm"];
        assert_eq!(names, due);
    }

    #[test]
    fn what_cannot_be_run_is_refused() {
        assert!(parse(SMALL).is_ok());
        let bad = [
            ("seconds = 10", "seconds = 0"),
            ("closed = 2", "closed = 0"),
            ("closed = 2", "poisson = -1.0"),
            ("turns = [2, 4]", "turns = [4, 2]"),
            ("turns = [2, 4]", "no_such_key = 1"),
            ("turns = [2, 4]", "tool_percent = 5"),
            ("turns = [2, 4]", "wrong_percent = 60\nwhole_percent = 60"),
        ];
        for (from, to) in bad {
            assert!(parse(&SMALL.replace(from, to)).is_err(), "{to}");
        }
    }

    #[test]
    fn a_size_makes_texts_longer_and_leaves_none_empty() {
        let mut scenario = parse(SMALL).unwrap();
        scenario.scale(0.1).unwrap();
        assert_eq!((scenario.loads[0].words, scenario.loads[0].system_words), ((1, 1), 0));
        scenario.scale(50.0).unwrap();
        assert_eq!(scenario.loads[0].words, (50, 50));
    }
}

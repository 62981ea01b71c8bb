//! From what the clients of each server saw to ratios.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::Seen;
use crate::report::Report;
use crate::statistics::{Spread, median, ms};

/// What is compared at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Setting {
    pub(super) temperature: f64,
    pub(super) clients: usize,
}

/// One round of one server.
#[derive(Clone, Debug)]
pub(super) struct Round {
    tokens: usize,
    wall: Duration,
    first: Vec<Duration>,
    gaps: Vec<Duration>,
    per_token: Vec<Duration>,
    answers: Vec<usize>,
}

impl Round {
    pub(super) fn new(wall: Duration, seen: &[Seen]) -> Self {
        Self {
            tokens: seen.iter().map(|s| s.tokens).sum(),
            wall,
            first: seen.iter().filter_map(Seen::first).collect(),
            gaps: seen.iter().flat_map(Seen::gaps).collect(),
            per_token: seen.iter().filter_map(Seen::per_token).collect(),
            answers: seen.iter().map(|s| s.tokens).collect(),
        }
    }

    fn rate(&self) -> f64 {
        self.tokens as f64 / self.wall.as_secs_f64()
    }
}

/// One server and all its rounds.
#[derive(Clone, Debug)]
pub(super) struct Column {
    pub(super) name: &'static str,
    /// How many times its tokens per second ours are to be.
    bar: Option<f64>,
    pub(super) rounds: Vec<(Setting, Round)>,
}

/// The rounds of a server in one setting.
struct Sum {
    rate: f64,
    first: Spread,
    gaps: Spread,
    per_token: Spread,
    odd: usize,
}

impl Column {
    pub(super) fn new(name: &'static str, bar: Option<f64>) -> Self {
        Self { name, bar, rounds: Vec::new() }
    }

    fn of(&self, setting: Setting) -> impl Iterator<Item = &Round> {
        self.rounds.iter().filter(move |(s, _)| *s == setting).map(|(_, round)| round)
    }

    /// `tokens` are due in every answer.
    fn sum(&self, setting: Setting, tokens: usize) -> Sum {
        let all = |part: fn(&Round) -> &Vec<Duration>| {
            self.of(setting).flat_map(|round| part(round).iter().copied()).collect()
        };
        let odd = self.of(setting).flat_map(|r| &r.answers).filter(|&&n| n != tokens).count();
        Sum {
            rate: median(self.of(setting).map(Round::rate)),
            first: all(|round| &round.first),
            gaps: all(|round| &round.gaps),
            per_token: all(|round| &round.per_token),
            odd,
        }
    }
}

/// Ours against one peer in one setting.
struct Ratio {
    /// Our tokens per second in the peer's, the median over rounds.
    rate: f64,
    /// Our TTFT p95 in the peer's.
    first: f64,
}

impl Ratio {
    fn new(ours: &Column, peer: &Column, setting: Setting) -> Self {
        let rounds = ours.of(setting).zip(peer.of(setting));
        let rate = median(rounds.map(|(ours, peer)| ours.rate() / peer.rate()));
        let first = |column: &Column| column.sum(setting, 0).first.percentile(95).as_secs_f64();
        Self { rate, first: first(ours) / first(peer) }
    }

    /// Bars are for eight clients and more; fewer are only told.
    fn verdict(&self, peer: &Column, setting: Setting) -> Option<bool> {
        let bar = peer.bar.filter(|_| setting.clients >= 8)?;
        Some(self.rate >= bar && self.first <= 1.0)
    }
}

/// What there is to say beside the figures.
pub(super) struct Remarks {
    pub(super) lines: Vec<String>,
    /// Whether a column that was asked for could not be had: its bar is not met then.
    pub(super) left_out: bool,
}

/// The first column is ours.
pub(super) fn report(columns: &[Column], tokens: usize, remarks: &Remarks) -> Report {
    let mut settings: Vec<Setting> = Vec::new();
    for (setting, _) in columns.iter().flat_map(|column| &column.rounds) {
        if !settings.contains(setting) {
            settings.push(*setting);
        }
    }
    let (mut text, mut held, mut list) = (String::new(), !remarks.left_out, Vec::new());
    for &setting in &settings {
        let Setting { temperature, clients } = setting;
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "T={temperature}, {clients} clients, {tokens} tokens each (ms)\n{:>22} tokens/s  TTFT \
             p50      p95  gap p50      p95  a token  mtplx is x times  TTFT p95",
            "server"
        );
        for column in columns {
            let sum = column.sum(setting, tokens);
            let _ = write!(text, "{:>22} {}", column.name, row(&sum));
            let mut entry = sum.json(column.name);
            if let Some(ours) = columns.first().filter(|ours| ours.name != column.name) {
                let ratio = Ratio::new(ours, column, setting);
                let verdict = ratio.verdict(column, setting);
                held &= verdict != Some(false);
                let word = match (column.bar, verdict) {
                    (Some(bar), Some(true)) => format!("bar {bar}: met"),
                    (Some(bar), Some(false)) => format!("bar {bar}: NOT MET"),
                    _ => String::new(),
                };
                let _ = write!(text, " {:>16.2}x {:>8.2}x  {word}", ratio.rate, ratio.first);
                entry["mtplx_times"] = ratio.rate.into();
                entry["mtplx_ttft_p95_times"] = ratio.first.into();
                entry["met"] = verdict.into();
            }
            entry["setting"] = json!({"temperature": temperature, "clients": clients});
            list.push(entry);
            text.push('\n');
            if sum.odd > 0 {
                let _ = writeln!(text, "  {} of its answers had other lengths", sum.odd);
            }
        }
    }
    text += "A gap is the time between events that carry text; ours may carry several tokens. \
             Rates are medians over rounds, ratios medians of each round's ratio.\n";
    remarks.lines.iter().for_each(|note| text.push_str(&format!("{note}\n")));
    let json = json!({"scenario": "versus", "tokens": tokens, "columns": list,
        "notes": remarks.lines,
        "met": held});
    Report { text, json, held }
}

fn row(sum: &Sum) -> String {
    format!(
        "{:>8.1} {:>9.1} {:>8.1} {:>8.1} {:>8.1} {:>8.1}",
        sum.rate,
        ms(sum.first.median()),
        ms(sum.first.percentile(95)),
        ms(sum.gaps.median()),
        ms(sum.gaps.percentile(95)),
        ms(sum.per_token.median()),
    )
}

impl Sum {
    fn json(&self, name: &str) -> Value {
        json!({"server": name, "tokens_per_s": self.rate, "ttft": self.first.json(),
            "gap": self.gaps.json(), "per_token": self.per_token.json(), "odd_answers": self.odd})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EIGHT: Setting = Setting { temperature: 0.0, clients: 8 };

    fn round(tokens: usize, first_ms: u64) -> Round {
        let first = vec![Duration::from_millis(first_ms)];
        let (gaps, per_token) = (Vec::new(), Vec::new());
        Round {
            tokens,
            wall: Duration::from_secs(1),
            first,
            gaps,
            per_token,
            answers: vec![tokens],
        }
    }

    fn complete() -> Remarks {
        Remarks { lines: Vec::new(), left_out: false }
    }

    fn column(name: &'static str, rates: [usize; 3], first_ms: u64) -> Column {
        let mut column = Column::new(name, Some(3.0));
        column.rounds = rates.map(|rate| (EIGHT, round(rate, first_ms))).into();
        column
    }

    #[test]
    fn a_ratio_is_the_median_of_the_rounds_own_ratios() {
        // The machine slows down in the second round, for both.
        let ours = column("ours", [100, 50, 90], 5);
        let peer = column("peer", [20, 10, 45], 10);
        let ratio = Ratio::new(&ours, &peer, EIGHT);
        assert!((ratio.rate - 5.0).abs() < 1e-9 && (ratio.first - 0.5).abs() < 1e-9);
        assert_eq!(ratio.verdict(&peer, EIGHT), Some(true));
        assert_eq!(ratio.verdict(&peer, Setting { clients: 1, ..EIGHT }), None);
    }

    #[test]
    fn a_slow_start_misses_the_bar_whatever_the_rate() {
        let (ours, peer) = (column("ours", [100; 3], 20), column("peer", [10; 3], 10));
        let found = report(&[ours, peer], 10, &complete());
        assert!(!found.held && found.text.contains("NOT MET"), "{}", found.text);
        // Ours gave ten times as many tokens as were due, and that is said.
        assert!(found.text.contains("3 of its answers had other lengths"), "{}", found.text);
    }

    #[test]
    fn a_peer_without_a_bar_is_only_told() {
        let (ours, mut peer) = (column("ours", [10; 3], 20), column("peer", [10; 3], 10));
        peer.bar = None;
        assert!(report(&[ours.clone(), peer.clone()], 10, &complete()).held);
        let remarks = Remarks { left_out: true, ..complete() };
        assert!(!report(&[ours, peer], 10, &remarks).held, "a peer that is missing is not beaten");
    }
}

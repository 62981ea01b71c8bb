//! `tuner`: the server's own choice of depth beside every fixed one, for prose and code, by 1, 2,
//! 4, 8 clients. All take turns within a round and their order turns from round to round, so that a
//! machine whose speed drifts slows them alike; ratios are those of one round.

use std::fmt::Write;
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use crate::client::Client;
use crate::report::Report;
use crate::server::{Server, Target};
use crate::statistics::{median, median_interval};
use crate::{progress, prompts};

/// What the server's choice must reach of the best fixed depth.
const RATIO_MIN: f64 = 0.97;

/// The server's own choice of depth beside every fixed one.
#[derive(Args)]
pub(crate) struct Tuner {
    #[command(flatten)]
    target: Target,
    /// Clients at once; some of them alone make a shorter run.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8")]
    clients: Vec<usize>,
    /// Kinds of text: prose, code.
    #[arg(long, value_delimiter = ',', default_value = "prose,code")]
    kinds: Vec<String>,
    /// Deepest fixed depth.
    #[arg(long, default_value_t = 4)]
    depth_max: u8,
    /// Tokens of a reply.
    #[arg(long, default_value_t = 192)]
    max_tokens: usize,
    /// Replies of each client in a turn, one after the other.
    #[arg(long, default_value_t = 6)]
    requests: usize,
    /// Rounds that count.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Turns of the server's own choice before any round of a kind and width: the tuner learns.
    #[arg(long, default_value_t = 4)]
    warm: usize,
    /// Temperature of all requests.
    #[arg(long, default_value_t = 0.6)]
    temperature: f64,
}

/// What one candidate did in one turn.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Turn {
    tokens_per_s: f64,
    /// Milliseconds of a cycle and rows in it, on average; not a number where the server does not
    /// tell.
    cycle_ms: f64,
    rows: f64,
}

/// Turns by candidate and round: first the server's own choice, then depth by depth.
struct Case {
    kind: String,
    clients: usize,
    turns: Vec<Vec<Turn>>,
}

impl Case {
    fn rate(&self, candidate: usize) -> f64 {
        median(self.turns[candidate].iter().map(|turn| turn.tokens_per_s))
    }

    /// The fixed depth that gave most, by the median of its rounds.
    fn best(&self) -> usize {
        let all = 0..self.turns.len() - 1;
        all.max_by(|&a, &b| self.rate(a + 1).total_cmp(&self.rate(b + 1))).unwrap_or(0)
    }

    /// The server's choice beside it, round by round.
    fn ratios(&self) -> Vec<f64> {
        let best = &self.turns[self.best() + 1];
        let pairs = self.turns[0].iter().zip(best);
        pairs.map(|(own, best)| own.tokens_per_s / best.tokens_per_s).collect()
    }

    fn held(&self) -> bool {
        median(self.ratios()) >= RATIO_MIN
    }
}

/// A kind of text, and clients that ask for it.
struct Run<'a> {
    args: &'a Tuner,
    server: &'a Server,
    client: Client,
    kind: &'a str,
    clients: usize,
}

/// Runs it.
pub(crate) async fn run(args: &Tuner) -> Result<Report> {
    let slots = args.clients.iter().max().copied().unwrap_or(1);
    let settings = format!("[engine]\nslots = {slots}\n[tuner]\nrows_max = {slots}\n");
    let server = Server::open(&args.target, &settings).await?;
    let (mut cases, mut number) = (Vec::new(), 0);
    for kind in &args.kinds {
        for &clients in &args.clients {
            let client = Client::new(&server.url)?;
            let run = Run { args, server: &server, client, kind, clients };
            cases.push(run.case(&mut number).await?);
        }
    }
    let held = cases.iter().all(Case::held);
    let believed = server.show("/admin/tuner").await;
    Ok(Report { text: table(&cases), json: json(&cases, believed), held })
}

impl Run<'_> {
    async fn case(&self, number: &mut usize) -> Result<Case> {
        let Self { args, kind, clients, .. } = *self;
        for _ in 0..args.warm {
            *number += 1;
            self.turn(None, *number).await?;
        }
        let candidates: Vec<Option<u8>> =
            std::iter::once(None).chain((0..=args.depth_max).map(Some)).collect();
        let mut turns = vec![Vec::new(); candidates.len()];
        for round in 0..args.rounds {
            *number += 1;
            progress::say(&format!("{kind}, {clients} clients, round {}", round + 1));
            self.read_prompts(*number).await?;
            for i in 0..candidates.len() {
                let i = (i + round) % candidates.len();
                // All candidates of a round answer the same prompts.
                turns[i].push(self.turn(candidates[i], *number).await?);
            }
        }
        Ok(Case { kind: kind.to_owned(), clients, turns })
    }

    /// Every client sends its requests; what came of it.
    async fn turn(&self, depth: Option<u8>, number: usize) -> Result<Turn> {
        let before = self.server.gauges().await?;
        let start = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for i in 0..self.clients {
            let client = self.client.clone();
            let bodies: Vec<Value> =
                self.numbers(number, i).map(|number| self.body(depth, number)).collect();
            tasks.spawn(async move {
                let mut tokens = 0;
                for body in bodies {
                    tokens += client.read(&body).await?.tokens;
                }
                anyhow::Ok(tokens)
            });
        }
        let mut tokens = 0;
        while let Some(seen) = tasks.join_next().await {
            tokens += seen??;
        }
        let tokens_per_s = tokens as f64 / start.elapsed().as_secs_f64();
        let after = self.server.gauges().await?;
        let mean = |name: &str, scale: f64| {
            let change = |suffix: &str| {
                let series = format!("{name}_{suffix}");
                after.get(&series).zip(before.get(&series)).map_or(f64::NAN, |(a, b)| a - b)
            };
            scale * change("sum") / change("count")
        };
        let (cycle_ms, rows) = (mean("mtplx_cycle_seconds", 1e3), mean("mtplx_cycle_rows", 1.0));
        Ok(Turn { tokens_per_s, cycle_ms, rows })
    }

    /// Nobody is to find prompts cold: each is read once before its round.
    async fn read_prompts(&self, number: usize) -> Result<()> {
        for i in 0..self.clients {
            for number in self.numbers(number, i) {
                let mut body = self.body(Some(0), number);
                body["max_tokens"] = 1.into();
                self.client.read(&body).await?;
            }
        }
        Ok(())
    }

    fn numbers(&self, number: usize, client: usize) -> impl Iterator<Item = usize> + use<> {
        let requests = self.args.requests;
        (0..requests).map(move |j| (number * 100 + client) * 100 + j)
    }

    fn body(&self, depth: Option<u8>, number: usize) -> Value {
        let Self { args, kind, .. } = *self;
        let question = match kind {
            "code" => format!("Write a Python function that returns the number {number} squared."),
            _ => prompts::question(number),
        };
        let mut body = prompts::chat(&question, args.max_tokens, args.temperature);
        body["ignore_eos"] = true.into();
        if let Some(depth) = depth {
            body["draft_tokens"] = depth.into();
        }
        body
    }
}

fn table(cases: &[Case]) -> String {
    let mut out = String::from(
        "kind    clients  best  own/best  95 % interval   tokens/s: own, then by depth; \
         ms a cycle\n",
    );
    for case in cases {
        let all = 0..case.turns.len();
        let rates: Vec<String> = all.clone().map(|i| format!("{:.0}", case.rate(i))).collect();
        let cycle = |i: usize| median(case.turns[i].iter().map(|turn| turn.cycle_ms));
        let cycles: Vec<String> = all.map(|i| format!("{:.2}", cycle(i))).collect();
        let (best, ratios) = (case.best(), case.ratios());
        let (low, high) = median_interval(&ratios);
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{:<7} {:>7}  {best:>4}  {:>8.3}  {low:.3} to {high:.3}  {}; {}",
            case.kind,
            case.clients,
            median(ratios),
            rates.join(" "),
            cycles.join(" "),
        );
    }
    let _ = writeln!(out, "wanted: at least {RATIO_MIN} of the best fixed depth, everywhere");
    out
}

fn json(cases: &[Case], believed: Option<Value>) -> Value {
    let one = |case: &Case| {
        let of = |of: fn(&Turn) -> f64| -> Vec<Vec<f64>> {
            case.turns.iter().map(|turns| turns.iter().map(of).collect()).collect()
        };
        json!({"kind": case.kind, "clients": case.clients, "best": case.best(),
            "ratio": median(case.ratios()), "interval": median_interval(&case.ratios()),
            "ratios": case.ratios(), "tokens_per_s": of(|turn| turn.tokens_per_s),
            "cycle_ms": of(|turn| turn.cycle_ms), "rows": of(|turn| turn.rows)})
    };
    let cases: Vec<Value> = cases.iter().map(one).collect();
    json!({"scenario": "tuner", "cases": cases, "believed": believed})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_choice_is_compared_round_by_round_with_the_best_depth_of_all() {
        let turn = |tokens_per_s| Turn { tokens_per_s, ..Turn::default() };
        let turns = [[90.0, 45.0, 100.0], [60.0; 3], [100.0, 50.0, 100.0], [40.0, 90.0, 50.0]];
        let turns = turns.map(|rounds| rounds.map(turn).to_vec()).to_vec();
        let case = Case { kind: "prose".into(), clients: 1, turns };
        assert_eq!(case.best(), 1);
        assert!((median(case.ratios()) - 0.9).abs() < 1e-9 && !case.held());
    }
}

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
use crate::statistics::median;
use crate::{progress, prompts};

/// What the server's choice must reach of the best fixed depth.
const RATIO_MIN: f64 = 0.97;

/// The server's own choice of depth beside every fixed one.
#[derive(Args)]
pub(crate) struct Tuner {
    #[command(flatten)]
    target: Target,
    /// Clients at once.
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
    /// Rounds that count, after one of the server's own choice alone.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Replies of each client before any round of a kind and width: the tuner learns.
    #[arg(long, default_value_t = 4)]
    warm: usize,
    /// Temperature of all requests.
    #[arg(long, default_value_t = 0.6)]
    temperature: f64,
}

/// Tokens a second by candidate and round: first the server's own choice, then depth by depth.
struct Case {
    kind: String,
    clients: usize,
    rates: Vec<Vec<f64>>,
}

impl Case {
    /// The fixed depth that gave most, by the median of its rounds.
    fn best(&self) -> usize {
        let rate = |depth: &usize| median(self.rates[depth + 1].iter().copied());
        let all = 0..self.rates.len() - 1;
        all.max_by(|a, b| rate(a).total_cmp(&rate(b))).unwrap_or(0)
    }

    /// The server's choice beside it, round by round; the median.
    fn ratio(&self) -> f64 {
        let best = &self.rates[self.best() + 1];
        median(self.rates[0].iter().zip(best).map(|(own, best)| own / best))
    }
}

/// Runs it.
pub(crate) async fn run(args: &Tuner) -> Result<Report> {
    let slots = args.clients.iter().max().copied().unwrap_or(1);
    let settings = format!("[engine]\nslots = {slots}\n[tuner]\nrows_max = {slots}\n");
    let server = Server::open(&args.target, &settings).await?;
    let client = Client::new(&server.url)?;
    let (mut cases, mut number) = (Vec::new(), 0);
    for kind in &args.kinds {
        for &clients in &args.clients {
            for _ in 0..args.warm {
                number += 1;
                turn(&client, args, (kind, clients), (None, number)).await?;
            }
            let candidates: Vec<Option<u8>> =
                std::iter::once(None).chain((0..=args.depth_max).map(Some)).collect();
            let mut rates = vec![Vec::new(); candidates.len()];
            for round in 0..args.rounds {
                number += 1;
                progress::say(&format!("{kind}, {clients} clients, round {}", round + 1));
                for i in 0..candidates.len() {
                    let i = (i + round) % candidates.len();
                    // All candidates of a round answer the same prompts.
                    let rate = turn(&client, args, (kind, clients), (candidates[i], number));
                    rates[i].push(rate.await?);
                }
            }
            cases.push(Case { kind: kind.clone(), clients, rates });
        }
    }
    let held = cases.iter().all(|case| case.ratio() >= RATIO_MIN);
    Ok(Report { text: table(&cases), json: json(&cases), held })
}

/// Every client sends one request; tokens a second of all.
async fn turn(
    client: &Client,
    args: &Tuner,
    (kind, clients): (&str, usize),
    (depth, number): (Option<u8>, usize),
) -> Result<f64> {
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..clients {
        let (client, body) = (client.clone(), body(args, kind, (depth, number * 100 + i)));
        tasks.spawn(async move { client.read(&body).await });
    }
    let mut tokens = 0;
    while let Some(seen) = tasks.join_next().await {
        tokens += seen??.tokens;
    }
    Ok(tokens as f64 / start.elapsed().as_secs_f64())
}

fn body(args: &Tuner, kind: &str, (depth, number): (Option<u8>, usize)) -> Value {
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

fn table(cases: &[Case]) -> String {
    let mut out = String::from("kind    clients  best  own/best  tokens/s: own, then by depth\n");
    for case in cases {
        let rates: Vec<String> = case
            .rates
            .iter()
            .map(|rounds| format!("{:.0}", median(rounds.iter().copied())))
            .collect();
        let (best, ratio) = (case.best(), case.ratio());
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{:<7} {:>7}  {best:>4}  {ratio:>8.3}  {}",
            case.kind,
            case.clients,
            rates.join(" ")
        );
    }
    let _ = writeln!(out, "wanted: at least {RATIO_MIN} of the best fixed depth, everywhere");
    out
}

fn json(cases: &[Case]) -> Value {
    let one = |case: &Case| {
        json!({"kind": case.kind, "clients": case.clients, "best": case.best(),
            "ratio": case.ratio(), "tokens_per_s": case.rates})
    };
    json!({"scenario": "tuner", "cases": cases.iter().map(one).collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_choice_is_compared_round_by_round_with_the_best_depth_of_all() {
        let own = vec![90.0, 45.0, 100.0];
        let rates = vec![own, vec![60.0; 3], vec![100.0, 50.0, 100.0], vec![40.0, 90.0, 50.0]];
        let case = Case { kind: "prose".into(), clients: 1, rates };
        assert_eq!(case.best(), 1);
        assert!((case.ratio() - 0.9).abs() < 1e-9);
    }
}

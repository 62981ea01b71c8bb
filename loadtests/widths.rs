//! `widths`: the same work by 1, 2, 4, 8 … clients in turn, as ratios within one run: the machine's
//! own speed cancels out.

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use crate::client::{Client, Seen};
use crate::report::Report;
use crate::server::{Server, Target};
use crate::statistics::{Spread, ms};
use crate::{progress, prompts};

/// The same work by more and more clients at once.
#[derive(Args)]
pub(crate) struct Widths {
    #[command(flatten)]
    target: Target,
    /// Clients at once, one round each.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8")]
    clients: Vec<usize>,
    /// Requests of every client in a round.
    #[arg(long, default_value_t = 4)]
    requests: usize,
    /// Most tokens of a reply.
    #[arg(long, default_value_t = 128)]
    max_tokens: usize,
    /// Drafts a cycle; the server's own choice if absent.
    #[arg(long)]
    draft_tokens: Option<u8>,
    /// Temperature of all requests.
    #[arg(long, default_value_t = 0.6)]
    temperature: f64,
    /// How often the whole series is run; the median round counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// One round at one width.
struct Width {
    clients: usize,
    tokens_per_s: f64,
    first: Spread,
    gaps: Spread,
}

/// Runs it.
pub(crate) async fn run(args: &Widths) -> Result<Report> {
    let server = Server::open(&args.target, "").await?;
    let client = Client::new(&server.url)?;
    // Everything is loaded and warm before anything counts.
    round(&client, args, (2, 1), 0).await?;
    let mut rounds: Vec<Vec<Width>> = args.clients.iter().map(|_| Vec::new()).collect();
    for turn in 1..=args.rounds {
        for (rounds, &clients) in rounds.iter_mut().zip(&args.clients) {
            progress::say(&format!("round {turn} of {}: {clients} clients", args.rounds));
            rounds.push(round(&client, args, (clients, args.requests), turn).await?);
        }
    }
    let widths: Vec<Width> = rounds.into_iter().filter_map(median).collect();
    Ok(Report { text: table(&widths), json: json(&widths), held: true })
}

/// One round: every client sends its requests one after the other.
async fn round(
    client: &Client,
    args: &Widths,
    (clients, requests): (usize, usize),
    turn: usize,
) -> Result<Width> {
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..clients {
        let client = client.clone();
        // No prompt comes twice: every request starts cold but for the template.
        let number = |j| ((turn * 100 + clients) * 100 + i) * 100 + j;
        let bodies: Vec<Value> = (0..requests).map(|j| body(args, number(j))).collect();
        tasks.spawn(async move {
            let mut seen = Vec::new();
            for body in bodies {
                seen.push(client.read(&body).await?);
            }
            anyhow::Ok(seen)
        });
    }
    let mut seen: Vec<Seen> = Vec::new();
    while let Some(done) = tasks.join_next().await {
        seen.extend(done??);
    }
    Ok(Width::new(clients, start.elapsed(), &seen))
}

fn body(args: &Widths, number: usize) -> Value {
    let mut body = prompts::chat(&prompts::question(number), args.max_tokens, args.temperature);
    body["seed"] = number.into();
    body["ignore_eos"] = true.into();
    if let Some(drafts) = args.draft_tokens {
        body["draft_tokens"] = drafts.into();
    }
    body
}

impl Width {
    fn new(clients: usize, wall: Duration, seen: &[Seen]) -> Self {
        let tokens: usize = seen.iter().map(|s| s.tokens).sum();
        Self {
            clients,
            tokens_per_s: tokens as f64 / wall.as_secs_f64(),
            first: seen.iter().filter_map(Seen::first).collect(),
            gaps: seen.iter().flat_map(Seen::gaps).collect(),
        }
    }
}

/// The round with the median throughput.
fn median(mut rounds: Vec<Width>) -> Option<Width> {
    rounds.sort_by(|a, b| a.tokens_per_s.total_cmp(&b.tokens_per_s));
    let middle = rounds.len() / 2;
    (middle < rounds.len()).then(|| rounds.swap_remove(middle))
}

/// Rows of figures; the first width is what the others are compared with.
fn table(widths: &[Width]) -> String {
    let base = widths.first().map_or(1.0, |w| w.tokens_per_s);
    let mut out = String::from(
        "clients  tokens/s  ratio  TTFT p50  TTFT p95  gap p50  gap p99  gap max   (ms)\n",
    );
    for w in widths {
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{:>7} {:>9.1} {:>5.2}x {:>9.1} {:>9.1} {:>8.1} {:>8.1} {:>8.1}",
            w.clients,
            w.tokens_per_s,
            w.tokens_per_s / base,
            ms(w.first.median()),
            ms(w.first.percentile(95)),
            ms(w.gaps.median()),
            ms(w.gaps.percentile(99)),
            ms(w.gaps.max()),
        );
    }
    out
}

fn json(widths: &[Width]) -> Value {
    let one = |w: &Width| {
        json!({"clients": w.clients, "tokens_per_s": w.tokens_per_s, "ttft": w.first.json(),
            "gap": w.gaps.json()})
    };
    json!({"scenario": "widths", "widths": widths.iter().map(one).collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn width(tokens_per_s: f64) -> Width {
        Width { clients: 1, tokens_per_s, first: Spread::default(), gaps: Spread::default() }
    }

    #[test]
    fn the_median_round_counts() {
        let rounds = [3.0, 1.0, 2.0].map(width).into();
        assert!(median(rounds).is_some_and(|w| (w.tokens_per_s - 2.0).abs() < f64::EPSILON));
        assert!(median(Vec::new()).is_none());
    }
}

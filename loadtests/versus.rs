//! `versus`: the same work for us and for `mlx_lm.server`, on the same checkpoint, turn by turn.
//!
//! All servers run from the start and are warm; who is not at work is idle. Each answer has exactly
//! the same number of tokens: ours by `ignore_eos`, the peer's by a copy of the checkpoint that
//! names no stop token, and what came is counted.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::client::{Client, Seen};
use crate::progress;
use crate::prompts::{Random, chat, passage, question};
use crate::report::Report;
use crate::server::{Server, Target};

mod figures;
mod peer;

use figures::{Column, Round, Setting};
use peer::Peers;

/// Longest time of one round of one server.
const PATIENCE: Duration = Duration::from_secs(600);

/// Tokens of an answer whose time does not count.
const WARM_TOKENS: usize = 6;

/// The same work for us and for mlx_lm.server, turn by turn.
#[derive(Args)]
pub(crate) struct Versus {
    #[command(flatten)]
    target: Target,
    /// The checkpoint as a folder, for the peer; the one inside our binary is the default.
    #[arg(long, default_value = "config/models/tiny-q8")]
    checkpoint: PathBuf,
    /// Clients at once, one series each.
    #[arg(long, value_delimiter = ',', default_value = "1,8")]
    clients: Vec<usize>,
    /// Requests of every client in a round.
    #[arg(long, default_value_t = 1)]
    requests: usize,
    /// Tokens of every answer.
    #[arg(long, default_value_t = 32)]
    tokens: usize,
    /// Words of real text before the question, in turn. The peer feeds a prompt to a quantised
    /// model on a CPU at a few tokens a second: long ones take minutes.
    #[arg(long, value_delimiter = ',', default_value = "0")]
    words: Vec<usize>,
    /// Temperatures, one series each.
    #[arg(long, value_delimiter = ',', default_value = "0.6,0")]
    temperatures: Vec<f64>,
    /// Rounds of every series; the servers take turns in each.
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// A fast BLAS to preload for the peer, in place of Debian's libopenblas0-pthread.
    #[arg(long)]
    blas: Option<PathBuf>,
    /// The peer's columns: as installed, with the BLAS, with the BLAS on the checkpoint unpacked
    /// to fp32, which is what a BLAS is good for; and, on request, the original MTPLX.
    #[arg(long, value_delimiter = ',', default_value = "installed,blas,fp32")]
    peers: Vec<peer::Form>,
    /// Prompts follow from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// A server with a place in the table.
struct Runner {
    column: Column,
    client: Client,
    server: Server,
    /// Whether it is ours, which can be told to go on past the model's own end.
    ours: bool,
}

/// Runs it.
pub(crate) async fn run(args: &Versus) -> Result<Report> {
    let slots = args.clients.iter().max().copied().unwrap_or(1).max(8);
    let settings = format!("[engine]\nslots = {slots}\n[tuner]\nrows_max = {slots}\n");
    let ours = Server::open(&args.target, &settings).await?;
    let mut runners = vec![Runner {
        column: Column::new("mtplx", None),
        client: Client::new(&ours.url)?,
        server: ours,
        ours: true,
    }];
    let peers = Peers::prepare(&args.checkpoint, args.blas.as_deref(), &args.peers)?;
    for form in peers.forms() {
        progress::say(&format!("starting mlx_lm.server, {}", form.name()));
        let server = peers.start(form).await?;
        let client = Client::new(&server.url)?;
        let column = Column::new(form.name(), form.bar());
        runners.push(Runner { column, client, server, ours: false });
    }
    warm_up(args, &runners).await?;
    for &temperature in &args.temperatures {
        for &clients in &args.clients {
            let setting = Setting { temperature, clients };
            for round in 1..=args.rounds {
                series(args, &mut runners, setting, round).await?;
            }
        }
    }
    let mut columns = Vec::new();
    for runner in runners {
        columns.push(runner.column);
        runner.server.end().await?;
    }
    Ok(figures::report(&columns, args.tokens, &peers.remarks))
}

/// Every server has compiled what it compiles, at every width, before anything counts.
async fn warm_up(args: &Versus, runners: &[Runner]) -> Result<()> {
    for runner in runners {
        for &clients in &args.clients {
            let setting = Setting { temperature: 0.6, clients };
            progress::say(&format!("warming up {} for {clients}", runner.column.name));
            round(args, runner, setting, (0, WARM_TOKENS)).await?;
        }
    }
    Ok(())
}

/// One round of all servers; who begins changes from round to round.
async fn series(
    args: &Versus,
    runners: &mut [Runner],
    setting: Setting,
    number: usize,
) -> Result<()> {
    let count = runners.len();
    for turn in 0..count {
        let runner = &mut runners[(turn + number) % count];
        let Setting { temperature, clients } = setting;
        let name = runner.column.name;
        progress::say(&format!("T={temperature}, {clients} clients, round {number}: {name}"));
        let seen = round(args, runner, setting, (number, args.tokens)).await?;
        runner.server.alive()?;
        runner.column.rounds.push((setting, seen));
    }
    Ok(())
}

async fn round(
    args: &Versus,
    runner: &Runner,
    setting: Setting,
    (number, tokens): (usize, usize),
) -> Result<Round> {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for i in 0..setting.clients {
        let client = runner.client.clone();
        let bodies: Vec<Value> = (0..args.requests)
            .map(|j| {
                let mut body = body(args, setting, (number, i * args.requests + j));
                body["max_tokens"] = tokens.into();
                if runner.ours {
                    body["ignore_eos"] = true.into();
                }
                body
            })
            .collect();
        tasks.spawn(async move {
            let mut seen = Vec::new();
            for body in bodies {
                seen.push(client.read(&body).await?);
            }
            anyhow::Ok(seen)
        });
    }
    let work = async {
        let mut seen: Vec<Seen> = Vec::new();
        while let Some(done) = tasks.join_next().await {
            seen.extend(done??);
        }
        anyhow::Ok(seen)
    };
    let name = runner.column.name;
    let seen = timeout(PATIENCE, work).await.with_context(|| format!("{name} took too long"))??;
    Ok(Round::new(start.elapsed(), &seen))
}

/// The request of this number: the same for all servers, another in every round.
fn body(args: &Versus, setting: Setting, (round, number): (usize, usize)) -> Value {
    let Setting { temperature, clients } = setting;
    let hot = u64::from(temperature > 0.0);
    let series = (round as u64) << 32 | (clients as u64) << 16 | hot << 15;
    let mut random = Random::new(args.seed, series | number as u64);
    let words = args.words.get(number % args.words.len().max(1)).copied().unwrap_or(0);
    let text = passage(&mut random, words).join(" ");
    let content = format!("{text}\n{}", question(random.below(1_000_000_000)));
    let mut body = chat(content.trim(), args.tokens, temperature);
    // A seed would keep the peer from batching; each server draws as it likes.
    body["top_p"] = 0.95.into();
    body["top_k"] = 20.into();
    body
}

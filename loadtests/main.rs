//! Load tests over HTTP. `widths` serves the same prompts to 1, 2, 4, 8 … clients in turn and
//! prints what they saw, as ratios within one run: the machine's own speed cancels out.

#![allow(clippy::print_stdout, reason = "a command-line program reports on stdout")]

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};

mod client;
mod report;

use crate::client::{Client, Seen};
use crate::report::Width;

#[derive(Parser)]
#[command(about = "Load tests for an OpenAI-compatible server")]
struct Cli {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Subcommand)]
enum Scenario {
    /// The same work by more and more clients at once.
    Widths(Widths),
}

#[derive(Args)]
struct Widths {
    /// A running server. Without it, one is started from --binary on a free port.
    #[arg(long)]
    url: Option<String>,
    /// The server's binary.
    #[arg(long, default_value = "target/release/mtplx")]
    binary: String,
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

#[tokio::main]
async fn main() -> Result<()> {
    match Cli::parse().scenario {
        Scenario::Widths(args) => widths(&args).await,
    }
}

async fn widths(args: &Widths) -> Result<()> {
    let server = match &args.url {
        Some(url) => Server { url: url.clone(), child: None },
        None => Server::start(&args.binary).await?,
    };
    let client = Client::new(&server.url, args.max_tokens, args.draft_tokens, args.temperature);
    // Everything is loaded and warm before anything counts.
    round(&client, 2, 1, 0).await?;
    let mut rounds: Vec<Vec<Width>> = args.clients.iter().map(|_| Vec::new()).collect();
    for turn in 1..=args.rounds {
        for (rounds, &clients) in rounds.iter_mut().zip(&args.clients) {
            rounds.push(round(&client, clients, args.requests, turn).await?);
        }
    }
    println!("{}", report::table(rounds.into_iter().map(report::median).collect()));
    Ok(())
}

/// One round: every client sends its requests one after the other.
async fn round(client: &Client, clients: usize, requests: usize, turn: usize) -> Result<Width> {
    let start = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|i| {
            let client = client.clone();
            tokio::spawn(async move {
                let mut seen = Vec::new();
                for j in 0..requests {
                    // No prompt comes twice: every request starts cold but for the template.
                    let number = ((turn * 100 + clients) * 100 + i) * 100 + j;
                    seen.push(client.chat(number).await?);
                }
                anyhow::Ok(seen)
            })
        })
        .collect();
    let mut seen: Vec<Seen> = Vec::new();
    for task in tasks {
        seen.extend(task.await??);
    }
    Ok(Width::new(clients, start.elapsed(), &seen))
}

/// A server of our own, ended with us.
struct Server {
    url: String,
    child: Option<tokio::process::Child>,
}

impl Server {
    async fn start(binary: &str) -> Result<Self> {
        // The kernel names a free port; the server takes it a moment later.
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let child = tokio::process::Command::new(binary)
            .args(["serve", "--port", &port.to_string()])
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {binary}; `make build` makes it"))?;
        let url = format!("http://127.0.0.1:{port}");
        let mut server = Self { url, child: Some(child) };
        server.ready().await?;
        Ok(server)
    }

    async fn ready(&mut self) -> Result<()> {
        let health = format!("{}/health", self.url);
        for _ in 0..600 {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                bail!("the server ended at once: {status}");
            }
            let answer = reqwest::get(&health).await;
            if answer.is_ok_and(|r| r.status().is_success()) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bail!("the server was not ready within a minute")
    }
}

//! `equality`: the text of a request is a function of the request alone. Every prompt is first
//! answered alone and without drafts; then all of them again in company, with random arrivals and
//! random drafts. At temperature 0, and at any temperature with a seed, the texts must be the same.
//!
//! Tokens are not on the wire, so what is compared is the text to the byte, the number of tokens
//! and the reason of the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::client::Client;
use crate::progress;
use crate::prompts::Random;
use crate::report::Report;
use crate::server::{Server, Target};

mod case;
mod compare;

use case::Case;
use compare::{Answer, Company};

/// Longest time of one request.
const PATIENCE: Duration = Duration::from_secs(300);

/// The same prompts alone and in company: the texts must be the same.
#[derive(Args)]
pub(crate) struct Equality {
    #[command(flatten)]
    target: Target,
    /// Prompts.
    #[arg(long, default_value_t = 200)]
    prompts: usize,
    /// How many are served at once, one round each.
    #[arg(long, value_delimiter = ',', default_value = "1,3,8,16")]
    company: Vec<usize>,
    /// Most tokens of an answer.
    #[arg(long, default_value_t = 48)]
    max_tokens: usize,
    /// Longest random pause of a client before a request, in milliseconds.
    #[arg(long, default_value_t = 30)]
    pause_ms: usize,
    /// Temperatures; above 0 every request has a seed of its own.
    #[arg(long, value_delimiter = ',', default_value = "0,0.8")]
    temperatures: Vec<f64>,
    /// Prompts, arrivals and drafts follow from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs it.
pub(crate) async fn run(args: &Equality) -> Result<Report> {
    // Slots for the widest company, so that it is served at once and not one after the other.
    let slots = args.company.iter().max().copied().unwrap_or(1);
    let settings = format!("[engine]\nslots = {slots}\n[tuner]\nrows_max = {slots}\n");
    let mut server = Server::open(&args.target, &settings).await?;
    let client = Client::new(&server.url)?;
    let cases: Vec<Case> =
        (0..args.prompts).map(|n| Case::new(args.seed, n, args.max_tokens)).collect();
    let cases = Arc::new(cases);
    let mut found = Vec::new();
    for &temperature in &args.temperatures {
        let alone = Round { temperature, company: 1, drafted: false, number: 0 };
        let expected = round(&client, args, &cases, alone).await?;
        for (number, &company) in (1..).zip(&args.company) {
            let together = Round { temperature, company, drafted: true, number };
            let answers = round(&client, args, &cases, together).await?;
            server.alive()?;
            found.push(Company::new(temperature, company, &expected, &answers));
        }
    }
    Ok(compare::report(&found, &cases))
}

/// All prompts once.
#[derive(Clone, Copy)]
struct Round {
    temperature: f64,
    /// Requests at once.
    company: usize,
    /// Whether each request asks for drafts of a random depth, or for none at all.
    drafted: bool,
    number: u64,
}

/// Answers in the order of the cases.
async fn round(
    client: &Client,
    args: &Equality,
    cases: &Arc<Vec<Case>>,
    round: Round,
) -> Result<Vec<Answer>> {
    let mut order: Vec<usize> = (0..cases.len()).collect();
    let mut random = Random::new(args.seed, 1 << 40 | round.number);
    // Neighbours change from round to round; whoever is alone has none.
    (1..order.len()).rev().for_each(|i| order.swap(i, random.below(i + 1)));
    let (order, next) = (Arc::new(order), Arc::new(AtomicUsize::new(0)));
    let mut clients = JoinSet::new();
    for _ in 0..round.company {
        let (client, cases) = (client.clone(), Arc::clone(cases));
        let (order, next) = (Arc::clone(&order), Arc::clone(&next));
        let (seed, pause_ms) = (args.seed, args.pause_ms);
        clients.spawn(async move {
            let mut answers = Vec::new();
            while let Some(&index) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                let mut random = Random::new(seed ^ round.number, 1 << 41 | index as u64);
                if round.company > 1 {
                    sleep(Duration::from_millis(random.below(pause_ms + 1) as u64)).await;
                }
                let drafts = round.drafted.then(|| random.below(4));
                let body = cases[index].body(round.temperature, drafts);
                let seen = timeout(PATIENCE, client.read(&body)).await;
                let seen = seen.with_context(|| format!("prompt {index} never ended"))?;
                let seen = seen.with_context(|| format!("prompt {index}"))?;
                answers.push((index, Answer::new(seen, drafts)));
            }
            anyhow::Ok(answers)
        });
    }
    let mut answers: Vec<(usize, Answer)> = Vec::new();
    while let Some(done) = clients.join_next().await {
        answers.extend(done??);
        progress::say(&format!("T={}, {} at once", round.temperature, round.company));
    }
    answers.sort_by_key(|(index, _)| *index);
    Ok(answers.into_iter().map(|(_, answer)| answer).collect())
}

//! `team`: light clients beside one who sends many times as much. How long do they wait for their
//! first token, with it and without it?
//!
//! Every client has a key of its own. Each light one sends at a steady pace, the heavy one so many
//! times as often, longer answers, and whether or not its former ones have ended. Windows with and
//! without it alternate, so that both see the same machine.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::client::Client;
use crate::progress;
use crate::prompts::{Random, chat, passage, question};
use crate::report::Report;
use crate::server::{Server, Target};
use crate::statistics::{Spread, ms};

/// Longest wait for a first token at the 95th percentile, in those without the heavy client.
const RATIO_MAX: f64 = 2.0;
/// Longest time of one answer.
const PATIENCE: Duration = Duration::from_secs(120);
/// Time from the heavy client's beginning until its requests fill the house.
const RISE: Duration = Duration::from_secs(2);

/// Light clients beside a heavy one: they wait hardly longer than without it.
#[derive(Args)]
pub(crate) struct Team {
    #[command(flatten)]
    target: Target,
    /// Light clients.
    #[arg(long, default_value_t = 15)]
    light: usize,
    /// Seconds between two requests of a light client.
    #[arg(long, default_value_t = 2.0)]
    period: f64,
    /// How often the heavy client sends for each request of a light one.
    #[arg(long, default_value_t = 50)]
    share: usize,
    /// Pairs of windows, without the heavy client and with it.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of a window.
    #[arg(long, default_value_t = 8.0)]
    seconds: f64,
    /// Words of a light client's prompt.
    #[arg(long, default_value_t = 60)]
    words: usize,
    /// Tokens of a light client's answer; the heavy one's are four times as long.
    #[arg(long, default_value_t = 32)]
    max_tokens: usize,
    /// Prompts follow from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs it.
pub(crate) async fn run(args: &Team) -> Result<Report> {
    ensure!(args.period > 0.0 && args.seconds > 0.0, "periods and windows last some time");
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("keys.toml");
    let heavy = key(&args.target.binary, &file, "heavy")?;
    let names = (0..args.light).map(|i| format!("light-{i}"));
    let keys = names.map(|name| key(&args.target.binary, &file, &name));
    let keys = keys.collect::<Result<Vec<_>>>()?;
    let mut server = Server::open(&args.target, &format!("[keys]\nfile = {file:?}\n")).await?;
    let mut found = Found::default();
    for round in 0..args.rounds {
        for busy in [false, true] {
            progress::say(&format!("round {} of {}, heavy: {busy}", round + 1, args.rounds));
            let stage = round * 2 + usize::from(busy);
            window(&server.url, args, (&keys, &heavy), (stage, busy), &mut found).await?;
            server.alive()?;
        }
    }
    Ok(found.report(args))
}

/// A new key by this name.
fn key(binary: &Path, file: &Path, name: &str) -> Result<String> {
    let mut command = std::process::Command::new(binary);
    let told = command.arg("keys").arg("--file").arg(file).args(["add", name]).output();
    let told = told.with_context(|| format!("{}; `make build` makes it", binary.display()))?;
    ensure!(told.status.success(), "no key: {}", String::from_utf8_lossy(&told.stderr));
    Ok(String::from_utf8(told.stdout)?.trim().to_owned())
}

/// What was found.
#[derive(Default)]
struct Found {
    /// Times until the first token, without the heavy client and with it.
    first: [Vec<Duration>; 2],
    failures: Vec<String>,
    /// What the heavy client was answered.
    heavy: BTreeMap<u16, usize>,
}

/// One window: light clients at their pace, and the heavy one if it is there.
async fn window(
    url: &str,
    args: &Team,
    (keys, heavy): (&[String], &str),
    (stage, busy): (usize, bool),
    found: &mut Found,
) -> Result<()> {
    let (over, ends) = watch::channel(false);
    let crowd = busy.then(|| tokio::spawn(crowd(url.to_owned(), args.into(), heavy.into(), ends)));
    sleep(RISE).await;
    let start = Instant::now();
    let mut clients = JoinSet::new();
    for (index, key) in keys.iter().enumerate() {
        let client = Client::new(url)?.with_key(key);
        let (words, tokens, seed) = (args.words, args.max_tokens, args.seed);
        // Not all at once.
        let offset = args.period * index as f64 / keys.len() as f64;
        let count = ((args.seconds - offset) / args.period).ceil().max(0.0) as usize;
        let period = args.period;
        clients.spawn(async move {
            let mut firsts = Vec::new();
            for turn in 0..count {
                let number = (stage * 1000 + index) * 1000 + turn;
                let mut random = Random::new(seed, number as u64);
                let text = passage(&mut random, words).join(" ");
                let body = chat(&format!("{} {text}", question(number)), tokens, 0.6);
                let due = start + Duration::from_secs_f64(offset + turn as f64 * period);
                sleep_until(due).await;
                let seen = timeout(PATIENCE, client.read(&body)).await;
                let first = match seen {
                    Ok(Ok(seen)) => seen.first().context("an answer without text"),
                    Ok(Err(error)) => Err(error),
                    Err(_) => Err(anyhow::anyhow!("no end in time")),
                };
                firsts.push(first);
            }
            firsts
        });
    }
    for first in clients.join_all().await.into_iter().flatten() {
        match first {
            Ok(first) => found.first[usize::from(busy)].push(first),
            Err(error) => found.failures.push(format!("{error:#}")),
        }
    }
    over.send_replace(true);
    if let Some(crowd) = crowd {
        for (status, count) in crowd.await?? {
            *found.heavy.entry(status).or_default() += count;
        }
    }
    Ok(())
}

/// How the heavy client sends.
struct Crowd {
    every: Duration,
    tokens: usize,
    words: usize,
    seed: u64,
}

impl From<&Team> for Crowd {
    fn from(args: &Team) -> Self {
        let every = Duration::from_secs_f64(args.period / args.share.max(1) as f64);
        Self { every, tokens: args.max_tokens * 4, words: args.words, seed: args.seed ^ 99 }
    }
}

/// The heavy client, until it is over; what it was answered, by status.
async fn crowd(
    url: String,
    crowd: Crowd,
    key: String,
    mut over: watch::Receiver<bool>,
) -> Result<BTreeMap<u16, usize>> {
    let client = Arc::new(Client::new(&url)?.with_key(&key));
    let (mut asked, mut statuses) = (JoinSet::new(), BTreeMap::new());
    let mut number = 0;
    let start = Instant::now();
    while !*over.borrow_and_update() {
        number += 1;
        let text = passage(&mut Random::new(crowd.seed, number), crowd.words).join(" ");
        let mut body = chat(&format!("{number} {text}"), crowd.tokens, 0.6);
        body["ignore_eos"] = true.into();
        let (client, body) = (Arc::clone(&client), body.to_string());
        asked.spawn(async move {
            let answer = client.post(body).await?;
            let status = answer.status().as_u16();
            answer.bytes().await?;
            anyhow::Ok(status)
        });
        sleep_until(start + crowd.every * u32::try_from(number).unwrap_or(u32::MAX)).await;
        while let Some(status) = asked.try_join_next() {
            *statuses.entry(status??).or_default() += 1;
        }
    }
    // It hangs up; the next window begins with an empty house.
    asked.shutdown().await;
    sleep(RISE / 2).await;
    Ok(statuses)
}

impl Found {
    fn report(&self, args: &Team) -> Report {
        let [quiet, busy] = [0, 1].map(|i| self.first[i].iter().copied().collect::<Spread>());
        let of = |spread: &Spread| ms(spread.percentile(95));
        let ratio = of(&busy) / of(&quiet);
        let held = ratio <= RATIO_MAX && self.failures.is_empty();
        let line = |name: &str, spread: &Spread| {
            let [p50, p95, max] = [50, 95, 100].map(|p| ms(spread.percentile(p)));
            let count = spread.len();
            format!(
                "{name}: first token after p50 {p50:.1}, p95 {p95:.1}, max {max:.1} ms ({count})\n"
            )
        };
        let mut text = format!(
            "{} light clients, one request each {} s; the heavy one sends {} x as many\n",
            args.light, args.period, args.share
        );
        text += &line("without it", &quiet);
        text += &line("   with it", &busy);
        text += &format!("the heavy client was answered {:?}\n", self.heavy);
        for failure in self.failures.iter().take(10) {
            text += &format!("a light client failed: {failure}\n");
        }
        let word = if held { "met" } else { "NOT MET" };
        text += &format!("{word}: p95 is {ratio:.2} x as long, at most {RATIO_MAX} is allowed\n");
        Report { text, json: self.json(&quiet, &busy, ratio), held }
    }

    fn json(&self, quiet: &Spread, busy: &Spread, ratio: f64) -> Value {
        let heavy: BTreeMap<_, _> =
            self.heavy.iter().map(|(status, count)| (status.to_string(), count)).collect();
        json!({
            "scenario": "team", "without": quiet.json(), "with": busy.json(), "ratio_p95": ratio,
            "failures": self.failures, "heavy": heavy,
        })
    }
}

//! `overload`: far more arrives than can be served. What can be served still is, whoever is refused
//! hears so at once and when to come again, and memory stays where it was.
//!
//! Arrivals are an open loop: their times are drawn beforehand and nobody waits for an answer
//! before the next is sent, so a server that stalls is asked all the same, and what its clients
//! wait counts from the time at which they were due. The most that can be served is measured in the
//! same run before and after, by a closed loop of as many clients as keep all slots busy.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::client::Client;
use crate::progress;
use crate::prompts::{Random, chat, question};
use crate::report::Report;
use crate::server::{Server, Target};

mod answer;
mod tally;

use answer::{Answer, Outcome};
use tally::{Findings, Memory, Open};

/// Warm prefixes that the server keeps: they are as many as that before the overload begins, so
/// that what grows after is something else.
const ENTRIES: usize = 64;
/// Longest time of one answer, from when it was due.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at the server's memory.
const LOOK: Duration = Duration::from_secs(1);
/// Answers of a closed loop before it counts.
const WARM: usize = 96;

/// Arrivals far beyond what can be served: refusals are cheap, and goodput stays.
#[derive(Args)]
pub(crate) struct Overload {
    #[command(flatten)]
    target: Target,
    /// Seconds of overload.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// Arrivals, in multiples of what can be served.
    #[arg(long, default_value_t = 5.0)]
    factor: f64,
    /// Clients of the closed loops.
    #[arg(long, default_value_t = 24)]
    clients: usize,
    /// Tokens of an answer.
    #[arg(long, default_value_t = 128)]
    max_tokens: usize,
    /// Most MiB by which the server's memory may grow.
    #[arg(long, default_value_t = 64)]
    growth_mib: u64,
    /// Prompts and times of arrival follow from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs it.
pub(crate) async fn run(args: &Overload) -> Result<Report> {
    ensure!(args.seconds >= 1.0 && args.factor > 0.0, "seconds and factor must be above that");
    let settings = format!("[bank]\nentries_max = {ENTRIES}\n");
    let mut server = Server::open(&args.target, &settings).await?;
    let client = Client::new(&server.url)?;
    progress::say("what can be served");
    let before = closed(&client, args, 0).await?;
    let mut memory = Memory::new(server.resident_bytes(), args.growth_mib);
    let rate = args.factor * before / args.max_tokens as f64;
    let open = open(&client, args, (rate, &mut server), &mut memory).await?;
    progress::say("what can be served, again");
    let after = closed(&client, args, 1).await?;
    server.alive()?;
    let complaints = server.complaints();
    let findings = Findings { closed: [before, after], rate, open, memory, complaints };
    Ok(findings.report(args.factor))
}

fn body(args: &Overload, number: usize) -> String {
    let mut body = chat(&question(number), args.max_tokens, 0.6);
    // All answers are as long, so that tokens and answers are the same measure.
    body["ignore_eos"] = true.into();
    if !number.is_multiple_of(4) {
        body["stream"] = false.into();
        body.as_object_mut().map(|body| body.remove("stream_options"));
    }
    body.to_string()
}

/// Tokens a second of clients who each wait for their answer before they ask again.
async fn closed(client: &Client, args: &Overload, stage: usize) -> Result<f64> {
    let (told, mut heard) = mpsc::unbounded_channel();
    let mut clients = JoinSet::new();
    for index in 0..args.clients {
        let (client, told) = (client.clone(), told.clone());
        let bodies = (0..).map(|i| body(args, (stage + 1) * 1_000_000 + i * 1000 + index));
        let bodies: Vec<_> = bodies.take(64).collect();
        clients.spawn(async move {
            for body in bodies.iter().cycle() {
                if told.send(Answer::to(&client, body.clone(), Instant::now()).await).is_err() {
                    return;
                }
            }
        });
    }
    drop(told);
    let mut next = async || {
        let answer = timeout(PATIENCE, heard.recv()).await;
        let answer = answer.context("the closed loop came to a halt")?.context("nobody asks")?;
        match answer.outcome {
            Outcome::Served(tokens) => anyhow::Ok((answer.ended, tokens)),
            other @ (Outcome::Refused(..) | Outcome::Wrong(_)) => {
                anyhow::bail!("a closed loop was answered with {other:?}")
            }
        }
    };
    let mut from = Instant::now();
    for _ in 0..if stage == 0 { WARM } else { args.clients } {
        from = next().await?.0;
    }
    let (mut tokens, until) = (0, from + Duration::from_secs_f64((args.seconds / 4.0).max(2.0)));
    loop {
        let (at, more) = next().await?;
        tokens += more;
        if at >= until {
            clients.abort_all();
            return Ok(tokens as f64 / (at - from).as_secs_f64());
        }
    }
}

/// Times of arrival from the start on, in seconds: a Poisson process.
fn arrivals(seed: u64, rate: f64, seconds: f64) -> Vec<f64> {
    let (mut random, mut at, mut all) = (Random::new(seed, 7), 0.0, Vec::new());
    loop {
        // Of (0, 1], so that its logarithm is a number.
        let drawn = ((random.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64;
        at -= drawn.ln() / rate;
        if at >= seconds {
            return all;
        }
        all.push(at);
    }
}

/// The overload, and what became of every arrival.
async fn open(
    client: &Client,
    args: &Overload,
    (rate, server): (f64, &mut Server),
    memory: &mut Memory,
) -> Result<Open> {
    let times = arrivals(args.seed, rate, args.seconds);
    let bodies: Vec<String> = (0..times.len()).map(|number| body(args, number)).collect();
    let client = Arc::new(client.clone());
    // What was sent in the closed loop has left by then.
    sleep(LOOK).await;
    let start = Instant::now();
    let mut asked = JoinSet::new();
    let sender = tokio::spawn({
        async move {
            for (at, body) in times.into_iter().zip(bodies) {
                let due = start + Duration::from_secs_f64(at);
                sleep_until(due).await;
                let client = Arc::clone(&client);
                asked.spawn(async move {
                    let answer = timeout(PATIENCE, Answer::to(&client, body, due)).await;
                    answer.unwrap_or_else(|_| Answer::none(due))
                });
            }
            asked.join_all().await
        }
    });
    let mut look = tokio::time::interval(LOOK);
    let mut sender = std::pin::pin!(sender);
    let answers = loop {
        tokio::select! {
            answers = &mut sender => break answers?,
            _ = look.tick() => {
                server.alive()?;
                let seconds = start.elapsed().as_secs_f64();
                memory.look(seconds, server.resident_bytes());
                progress::say(&format!("{seconds:.0} of {} s of overload", args.seconds));
            }
        }
    };
    // Until all places are taken more is answered than can be for long.
    let warm = Duration::from_secs_f64((args.seconds / 6.0).min(5.0));
    let until = start + Duration::from_secs_f64(args.seconds);
    Ok(Open::new(&answers, (start + warm, until)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_follow_from_the_seed_and_come_at_the_rate() {
        let of = |seed| arrivals(seed, 50.0, 100.0);
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        let all = of(3);
        assert!((4700..5300).contains(&all.len()), "{}", all.len());
        assert!(all.is_sorted() && all.last().is_some_and(|&last| last < 100.0));
        // A Poisson process bunches: a share of 1 - 1/e of its gaps is below the mean.
        let gaps = all.windows(2).filter(|pair| pair[1] - pair[0] < 0.02).count();
        assert!((2900..3400).contains(&gaps), "{gaps}");
    }
}

//! `soak`: thousands of requests of all lengths and manners, many of them abandoned, some of them
//! wrong. Afterwards the server is to be as it was after the first few hundred.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::client::Client;
use crate::progress;
use crate::report::Report;
use crate::server::{Server, Target};

mod books;
mod job;
mod tally;

use books::{Books, Rest};
use job::Job;
use tally::Tally;

/// Between two looks at the server's books while it works.
const LOOK: Duration = Duration::from_secs(5);
/// Longest wait until nobody is in the house any more.
const CLEAR: Duration = Duration::from_secs(60);
/// An unused prefix of the bank leaves after this many seconds, so that a test can see it empty.
const IDLE_S: u64 = 20;
/// Longest wait for that.
const EMPTY: Duration = Duration::from_secs(IDLE_S + 30);

/// Thousands of requests, many abandoned, some wrong: nothing may be lost, nothing may stay.
#[derive(Args)]
pub(crate) struct Soak {
    #[command(flatten)]
    target: Target,
    /// Requests in all.
    #[arg(long, default_value_t = 10_000)]
    requests: usize,
    /// Of these, the first ones, after which memory is to grow no more.
    #[arg(long, default_value_t = 500)]
    first: usize,
    /// Clients at once.
    #[arg(long, default_value_t = 12)]
    clients: usize,
    /// Longest time for all, in seconds.
    #[arg(long, default_value_t = 3600)]
    limit_s: u64,
    /// All requests follow from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs it.
pub(crate) async fn run(args: &Soak) -> Result<Report> {
    let settings = format!("[bank]\nidle_s = {IDLE_S}\n");
    let mut server = Server::open(&args.target, &settings).await?;
    let began = Instant::now();
    let work = async {
        let mut tally = Tally::default();
        let mut looks = vec![Books::read(&server, began).await?];
        let first = args.first.min(args.requests);
        requests(&mut server, args, 0..first, (&mut tally, &mut looks), began).await?;
        let early = rest(&server, began).await?;
        requests(&mut server, args, first..args.requests, (&mut tally, &mut looks), began).await?;
        let late = rest(&server, began).await?;
        anyhow::Ok((tally, looks, early, late))
    };
    let limit = Duration::from_secs(args.limit_s);
    let (tally, looks, early, late) = timeout(limit, work).await.context("it took too long")??;
    let findings = tally::Findings {
        took: began.elapsed(),
        wrong: books::judge(&early, &late, &tally),
        complaints: server.complaints(),
        tally,
        looks,
        early,
        late,
    };
    Ok(findings.report())
}

/// Runs the requests with these numbers and waits for all of them, with looks in between.
async fn requests(
    server: &mut Server,
    args: &Soak,
    numbers: std::ops::Range<usize>,
    (tally, looks): (&mut Tally, &mut Vec<Books>),
    began: Instant,
) -> Result<()> {
    let next = Arc::new(AtomicUsize::new(numbers.start));
    let mut clients = JoinSet::new();
    for _ in 0..args.clients {
        let (client, next) = (Client::new(&server.url)?, Arc::clone(&next));
        let (seed, end) = (args.seed, numbers.end);
        clients.spawn(async move {
            let mut tally = Tally::default();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= end {
                    return tally;
                }
                let job = Job::new(seed, number);
                tally.count(number, job.manner, job.run(&client).await);
            }
        });
    }
    while !clients.is_empty() {
        tokio::select! {
            done = clients.join_next() => tally.add(done.context("a client is left")??),
            () = sleep(LOOK) => {
                server.alive()?;
                looks.push(Books::read(server, began).await?);
                let at = next.load(Ordering::Relaxed).min(numbers.end);
                progress::say(&format!("{at} of {} requests", args.requests));
            }
        }
    }
    Ok(())
}

/// Waits until nobody is in the house, then until the bank has let everything go.
async fn rest(server: &Server, began: Instant) -> Result<Rest> {
    progress::say("waiting for rest");
    let full = until(server, began, CLEAR, Books::clear).await?;
    let Some(full) = full else {
        bail!("rows or permits were still taken {CLEAR:?} after the last request had ended");
    };
    progress::say("waiting for the bank to empty itself");
    let empty = until(server, began, EMPTY, |b| b.clear() && b.entries == 0.0).await?;
    Ok(Rest { full, empty })
}

async fn until(
    server: &Server,
    began: Instant,
    patience: Duration,
    fact: impl Fn(&Books) -> bool,
) -> Result<Option<Books>> {
    let start = Instant::now();
    loop {
        let books = Books::read(server, began).await?;
        if fact(&books) {
            return Ok(Some(books));
        }
        if start.elapsed() > patience {
            return Ok(None);
        }
        sleep(Duration::from_millis(250)).await;
    }
}

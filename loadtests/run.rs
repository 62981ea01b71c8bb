//! `run`: a scenario from a file, against any server with OpenAI's chat route.
//!
//! Who comes in an open loop comes at a time drawn beforehand, whatever became of those before, and
//! waits from that time on: a server that stalls is asked all the same, and its stall is seen.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, timeout};

use crate::client::Client;
use crate::conditions;
use crate::progress;
use crate::report::Report;
use crate::server::{Server, Target};

mod books;
mod drive;
mod findings;
mod memory;
mod page;
mod scenario;
mod session;
mod tally;
mod times;

use books::Books;
use drive::Stage;
use findings::Findings;
use memory::Memory;
use scenario::Scenario;
use tally::Tally;

/// Beyond the last arrival and the longest answer, until a run is given up.
const GRACE: Duration = Duration::from_secs(60);
/// Most looks at the server while it works.
const LOOKS: f64 = 720.0;

/// A scenario from a file: chat, agents, bursts, overload, a soak, or your own.
#[derive(Args)]
pub(crate) struct Run {
    /// The scenario, as those in loadtests/scenarios.
    scenario: PathBuf,
    #[command(flatten)]
    target: Target,
    /// Requests and arrivals follow from it; the file's own without it.
    #[arg(long)]
    seed: Option<u64>,
    /// All texts this many times as long: 0.05 brings 25 000 tokens into a context of 4096.
    #[arg(long, default_value_t = 1.0)]
    size: f64,
    /// In place of the file's seconds; the warm-up keeps its share of them.
    #[arg(long)]
    seconds: Option<f64>,
    /// Where a page with plots goes; it needs nothing beside itself.
    #[arg(long)]
    html: Option<PathBuf>,
}

/// Runs it.
pub(crate) async fn run(args: &Run) -> Result<Report> {
    let mut scenario = Scenario::read(&args.scenario)?;
    scenario.seed = args.seed.unwrap_or(scenario.seed);
    scenario.scale(args.size)?;
    if let Some(seconds) = args.seconds {
        scenario.stretch(seconds);
    }
    scenario.check()?;
    let settings = toml::to_string(&scenario.server)?;
    let mut server = Server::open(&args.target, &settings).await?;
    let before = server.gauges().await.ok();
    let early = match scenario.bars.ledger {
        true => Some(Books::read(&server).await?),
        false => None,
    };
    let (tally, memory) = drive(&mut server, &scenario).await?;
    let after = server.gauges().await.ok();
    let wrong = match &early {
        Some(early) => {
            progress::say("waiting for rest");
            books::judge(early, &books::rest(&server).await?, &tally)
        }
        None => Vec::new(),
    };
    let drafts = [before, after].map(|gauges| gauges.as_ref().and_then(conditions::drafts));
    let findings = Findings {
        acceptance: acceptance(drafts),
        machine: conditions::of_this_machine(),
        server: conditions::of(&server, &scenario.server).await,
        complaints: server.complaints(),
        size: args.size,
        tally,
        memory,
        scenario,
        wrong,
    };
    let report = findings.report();
    if let Some(path) = &args.html {
        std::fs::write(path, page::page(&findings, &report)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    server.end().await?;
    Ok(report)
}

/// Of the drafts that were judged between two moments, those that stood.
fn acceptance(drafts: [Option<(f64, f64)>; 2]) -> Option<f64> {
    let [Some(before), Some(after)] = drafts else { return None };
    let judged = after.1 - before.1;
    (judged > 0.0).then(|| (after.0 - before.0) / judged)
}

/// Everybody comes and goes; what they saw, and the server's memory meanwhile.
async fn drive(server: &mut Server, scenario: &Scenario) -> Result<(Tally, Memory)> {
    let (told, mut heard) = mpsc::unbounded_channel();
    let clients =
        scenario.loads.iter().map(|load| Client::new(&server.url)?.with_headers(&load.headers));
    let clients = clients.collect::<Result<Vec<_>>>()?;
    ensure!(!clients.is_empty(), "nobody comes");
    let start = Instant::now();
    let stage = Arc::new(Stage { scenario: scenario.clone(), clients, start, told });
    let crowd = tokio::spawn(drive::all(stage));
    let (mut tally, mut memory) = (Tally::new(scenario), Memory::default());
    let mut look = interval(Duration::from_secs_f64((scenario.seconds / LOOKS).clamp(1.0, 10.0)));
    let work = async {
        loop {
            tokio::select! {
                record = heard.recv() => match record {
                    Some(record) => tally.take(&record),
                    None => return anyhow::Ok(()),
                },
                _ = look.tick() => {
                    server.alive()?;
                    let at = start.elapsed().as_secs_f64();
                    memory.look(at, server.resident_bytes());
                    let name = &scenario.name;
                    progress::say(&format!("{name}: {at:.0} of {} s", scenario.seconds));
                }
            }
        }
    };
    let most = Duration::from_secs_f64(scenario.seconds + scenario.patience_s) + GRACE;
    timeout(most, work).await.context("the scenario did not come to an end")??;
    crowd.await?;
    Ok((tally, memory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acceptance_is_of_what_was_judged_meanwhile() {
        let found = acceptance([Some((10.0, 100.0)), Some((40.0, 150.0))]);
        assert!(found.is_some_and(|share| (share - 0.6).abs() < 1e-9));
        assert_eq!(acceptance([Some((1.0, 1.0)), Some((1.0, 1.0))]), None);
        assert_eq!(acceptance([None, Some((1.0, 1.0))]), None);
    }
}

//! Load tests over HTTP: what clients of a server see, and whether what was promised to them
//! holds. Every scenario has its bounds in count and time, and goes to this machine only. The exit
//! code is 1 where a promise was broken, and 2 where the test itself could not be run.

#![allow(clippy::print_stdout, reason = "a command-line program reports on stdout")]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod client;
mod conditions;
mod equality;
mod gauges;
mod overload;
mod peers;
mod progress;
mod prompts;
mod report;
mod run;
mod server;
mod stall;
mod statistics;
mod team;
mod tuner;
mod warm;

use crate::report::Report;

#[derive(Parser)]
#[command(about = "Load tests for an OpenAI-compatible server")]
struct Cli {
    #[command(subcommand)]
    scenario: Scenario,
    /// JSON instead of tables, or beside them into this file.
    #[arg(long, global = true, value_name = "FILE", num_args = 0..=1)]
    json: Option<Option<PathBuf>>,
}

#[derive(Subcommand)]
enum Scenario {
    Stall(stall::Stall),
    Peers(peers::Peers),
    Run(run::Run),
    Equality(equality::Equality),
    Warm(warm::Warm),
    Tuner(tuner::Tuner),
    Overload(overload::Overload),
    Team(team::Team),
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = tokio::select! {
        done = of(&cli.scenario) => done,
        // Returning drops the servers of the run, and with them their processes.
        signal = stopped() => Err(signal),
    };
    progress::say("");
    match done {
        Ok(report) => {
            if let Err(error) = report.tell(cli.json.as_ref()) {
                return failed(&error);
            }
            if report.held { ExitCode::SUCCESS } else { ExitCode::from(1) }
        }
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("mtplx-loadtests: {error:#}");
    ExitCode::from(2)
}

/// Ends when somebody wants the run to end, or cannot be heard.
async fn stopped() -> anyhow::Error {
    use tokio::signal::unix::{SignalKind, signal};
    let heard = async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::io::Result::Ok(())
    };
    heard.await.err().map_or_else(|| anyhow::anyhow!("interrupted"), Into::into)
}

async fn of(scenario: &Scenario) -> Result<Report> {
    match scenario {
        Scenario::Stall(args) => stall::run(args).await,
        Scenario::Peers(args) => peers::run(args).await,
        Scenario::Run(args) => run::run(args).await,
        Scenario::Equality(args) => equality::run(args).await,
        Scenario::Warm(args) => warm::run(args).await,
        Scenario::Tuner(args) => tuner::run(args).await,
        Scenario::Overload(args) => overload::run(args).await,
        Scenario::Team(args) => team::run(args).await,
    }
}

//! Load tests over HTTP: what clients of a server see, and whether what was promised to them
//! holds. Every scenario has its bounds in count and time, and goes to this machine only. The exit
//! code is 1 where a promise was broken, and 2 where the test itself could not be run.

#![allow(clippy::print_stdout, reason = "a command-line program reports on stdout")]

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod client;
mod equality;
mod gauges;
mod overload;
mod progress;
mod prompts;
mod report;
mod server;
mod soak;
mod stall;
mod statistics;
mod team;
mod tuner;
mod versus;
mod warm;
mod widths;

use crate::report::Report;

#[derive(Parser)]
#[command(about = "Load tests for an OpenAI-compatible server")]
struct Cli {
    #[command(subcommand)]
    scenario: Scenario,
    /// Print JSON instead of tables.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Scenario {
    Widths(widths::Widths),
    Stall(stall::Stall),
    Versus(versus::Versus),
    Soak(soak::Soak),
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
        done = run(&cli.scenario) => done,
        // Returning drops the servers of the run, and with them their processes.
        signal = stopped() => Err(signal),
    };
    progress::say("");
    match done {
        Ok(report) => {
            report.print(cli.json);
            if report.held { ExitCode::SUCCESS } else { ExitCode::from(1) }
        }
        Err(error) => {
            eprintln!("mtplx-loadtests: {error:#}");
            ExitCode::from(2)
        }
    }
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

async fn run(scenario: &Scenario) -> Result<Report> {
    match scenario {
        Scenario::Widths(args) => widths::run(args).await,
        Scenario::Stall(args) => stall::run(args).await,
        Scenario::Versus(args) => versus::run(args).await,
        Scenario::Soak(args) => soak::run(args).await,
        Scenario::Equality(args) => equality::run(args).await,
        Scenario::Warm(args) => warm::run(args).await,
        Scenario::Tuner(args) => tuner::run(args).await,
        Scenario::Overload(args) => overload::run(args).await,
        Scenario::Team(args) => team::run(args).await,
    }
}

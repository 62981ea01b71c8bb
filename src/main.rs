//! The command line: arguments, settings, logs, then one of the commands. No logic.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use mtplx::bench::{self, BenchArgs};
use mtplx::config::Config;
use mtplx::model::Model;
use mtplx::{App, telemetry};
use toml::Value;

/// Native MTP speculative decoding for a whole team on one machine.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a model over HTTP.
    Serve(Serve),
    /// Measure what speculation brings on this machine.
    Bench(Bench),
}

#[derive(Args)]
struct Serve {
    /// Address to listen on.
    #[arg(long)]
    host: Option<String>,
    /// Port to listen on; 0 takes a free one.
    #[arg(long)]
    port: Option<u16>,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Bench {
    #[command(flatten)]
    bench: BenchArgs,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Common {
    /// Folder of a checkpoint in MLX layout; the small model inside the binary without it.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Settings laid over the defaults.
    #[arg(long)]
    config: Option<PathBuf>,
}

impl Common {
    fn load(&self, mut overrides: Vec<(&str, &str, Value)>) -> Result<Config> {
        if let Some(path) = &self.model {
            overrides.push(("model", "path", Value::String(path.display().to_string())));
        }
        Ok(Config::load(self.config.as_deref(), &overrides)?)
    }
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve(args) => serve(&args),
        Command::Bench(args) => measure(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mtplx: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: &Serve) -> Result<()> {
    let mut overrides = Vec::new();
    overrides.extend(args.host.clone().map(|host| ("server", "host", Value::String(host))));
    overrides.extend(args.port.map(|port| ("server", "port", Value::Integer(port.into()))));
    let config = args.common.load(overrides)?;
    telemetry::logs(&config.log)?;
    let metrics = telemetry::metrics()?;
    let model = Model::open(&config.model)?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        tokio::spawn(telemetry::upkeep(metrics.clone()));
        let render = Arc::new(move || metrics.render());
        let app = App::start(&config, &model, render).await?;
        announce(&model.name, &app);
        app.run(asked_to_stop()).await
    })
}

/// The one line on stdout, for people and for whoever started us on port 0.
#[expect(clippy::print_stdout, reason = "the address is what the command returns")]
fn announce(name: &str, app: &App) {
    println!("serving {name} on http://{}", app.address());
}

fn measure(args: &Bench) -> Result<()> {
    let config = args.common.load(Vec::new())?;
    telemetry::logs(&config.log)?;
    let model = Model::open(&config.model)?;
    let slots = config.engine.slots.max(args.bench.clients);
    let options = mtplx_kernels::EngineOptions { slots, ..config.engine };
    let engine = mtplx_kernels::open(&model.checkpoint, &options)?;
    bench::run(&model, engine, &args.bench)
}

/// SIGINT or SIGTERM.
async fn asked_to_stop() {
    let mut term = match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(term) => term,
        Err(error) => {
            tracing::error!(%error, "cannot listen for SIGTERM");
            return std::future::pending().await;
        }
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

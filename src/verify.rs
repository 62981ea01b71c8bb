//! `mtplx verify`: the gates that a model passes once, before it is served: that drafts change
//! nothing of its texts, nor of their distribution, and that they are accepted. What came of them
//! goes into `mtplx_runtime.json` beside the weights.

#![allow(clippy::print_stdout, reason = "a command reports on stdout")]

mod gates;
mod homogeneity;
mod runner;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use mtplx_actors::ingress::date;
use mtplx_core::engine::Engine;
use mtplx_kernels::checkpoint::Family;
use mtplx_kernels::{MlxEngine, place_of};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};

use self::gates::Trial;
use self::runner::Runner;
use crate::bench;
use crate::config::Config;
use crate::model::Model;
use crate::tiers::contract::{self, Gate, Verification};

/// What is verified, and how hard.
#[derive(Args, Debug, Clone)]
#[command(
    after_help = "Gates: greedy and seeded texts are the same with drafts as without; sampled \
    tokens follow the same distribution; enough first drafts are accepted. They run on the device \
    that would serve. The contract goes into mtplx_runtime.json beside the weights and holds until \
    the model changes.\n\n\
    Examples:\n  mtplx verify ~/models/qwen\n  mtplx verify ~/models/qwen --json --dry-run"
)]
pub struct VerifyArgs {
    /// Folder of a model.
    pub path: PathBuf,
    /// Settings laid over the defaults.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// One object of JSON; `mtplx schema verify` describes it.
    #[arg(long)]
    pub json: bool,
    /// Write no contract.
    #[arg(long)]
    pub dry_run: bool,
    /// Tokens of each text.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub tokens: u16,
    /// How often each distribution is drawn from.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(100..100_001))]
    pub draws: u32,
}

/// What `mtplx verify --json` prints.
#[derive(Clone, Debug, JsonSchema, PartialEq, Serialize)]
pub struct Report {
    /// The folder, as it was named.
    pub path: PathBuf,
    /// Whether all gates were passed.
    pub passed: bool,
    /// The device that they ran on.
    pub device: String,
    /// The contract's file; null where none was written.
    pub contract: Option<PathBuf>,
    /// What stands in it.
    pub verification: Verification,
}

/// Runs the gates, prints what came of them and writes the contract.
///
/// # Errors
/// The model cannot be run, has no head that drafts, or a gate was not passed.
pub fn run(args: &VerifyArgs) -> Result<()> {
    let overrides = [
        ("model", "path", toml::Value::String(args.path.display().to_string())),
        ("model", "generation", toml::Value::String("mtp".into())),
    ];
    let config = Config::load(args.config.as_deref(), &overrides)?;
    let model = Model::open(&config.model)?;
    if let Err(reason) = &model.checkpoint.mtp {
        bail!(
            "{} has no MTP head, so that there is nothing to verify: {reason}",
            args.path.display()
        );
    }
    let fingerprint = model.judged.fingerprint.clone().context("the model is being changed")?;
    let exact = place_of(&model.checkpoint, &config.engine)?.is_exact();
    let engine = mtplx_kernels::open(&model.checkpoint, &config.engine)?;
    let device = engine.info().device.clone();
    let say = |text: &str| match args.json {
        true => eprintln!("{text}"),
        false => println!("{text}"),
    };
    say(&format!("{}, {device}", model.name));
    let gates = pass_gates(&model, engine, (args, exact), &say)?;
    let passed = gates.iter().all(|gate| gate.passed);
    let verification = Verification {
        format: contract::FORMAT,
        program: format!("mtplx {}", env!("CARGO_PKG_VERSION")),
        at: date(now_s()),
        fingerprint,
        passed,
        gates,
    };
    let told = told(&model, &device, &verification)?;
    if !args.dry_run {
        contract::write(&args.path, &told).context(
            "the gates ran, but their contract cannot be kept: make the folder writable, or serve \
             with --unsafe-force-unverified",
        )?;
    }
    let contract = (!args.dry_run).then(|| args.path.join(contract::FILE));
    if args.json {
        let path = args.path.clone();
        println!("{}", json!(Report { path, passed, device, contract, verification }));
    } else if let Some(file) = contract {
        println!("written to {}", file.display());
    }
    match passed {
        true => Ok(()),
        false => bail!("the model did not pass: do not serve it with drafts"),
    }
}

fn pass_gates(
    model: &Model,
    engine: MlxEngine,
    (args, exact): (&VerifyArgs, bool),
    say: &dyn Fn(&str),
) -> Result<Vec<Gate>> {
    let prompts = bench::prompts(model)?;
    let mut trial = Trial {
        runner: Runner::new(engine),
        prompts,
        tokens: args.tokens.into(),
        draws: args.draws.into(),
        exact,
    };
    let mut gates = Vec::new();
    let mut done = |gate: Gate| {
        let word = if gate.passed { "passed" } else { "FAILED" };
        say(&format!("  {word}  {:<16} {}", gate.name, gate.told));
        gates.push(gate);
    };
    done(trial.greedy()?);
    if exact {
        done(trial.seeded()?);
    }
    done(trial.distribution()?);
    done(trial.acceptance());
    Ok(gates)
}

/// The contract: what stood there, and what is known now. The original asks for all of the first
/// six.
fn told(model: &Model, device: &str, verification: &Verification) -> Result<Map<String, Value>> {
    let mut told = contract::read(&model.path)?;
    let mut or = |key: &str, value: Value| {
        told.entry(key).or_insert(value);
    };
    or("mtplx_version", json!(env!("CARGO_PKG_VERSION")));
    // The original has one name for the whole family.
    or(
        "arch_id",
        match model.checkpoint.config.family {
            Family::Qwen35Dense | Family::Qwen35Moe | Family::Qwen3Next => json!("qwen3-next-mtp"),
        },
    );
    or("mtp_depth_max", json!(3));
    or("recommended_profile", json!("sustained"));
    or(
        "mtp_contract",
        json!({
            "base_hidden_variant": "post_norm",
            "hidden_variant": "post_norm",
            "concat_order": "embedding_hidden",
            "mtp_position_mode": "cache",
        }),
    );
    let status = if verification.passed { "passed" } else { "failed" };
    told.insert("exactness_baseline".into(), json!({"status": status}));
    let hardware = format!("{}, {}", std::env::consts::ARCH, device);
    let on = json!({
        "timestamp": verification.at,
        "hardware": hardware,
        "system": std::env::consts::OS,
    });
    told.insert("verified_on".into(), on);
    told.insert(contract::SECTION.into(), serde_json::to_value(verification)?);
    Ok(told)
}

fn now_s() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |time| time.as_secs())
}

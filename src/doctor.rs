//! `mtplx doctor`: whether this machine can serve, and what to do where it cannot. Its exit code is
//! its judgement.

#![allow(clippy::print_stdout, reason = "a command prints what it found")]

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::Args;
use console::style;
use serde::Serialize;
use serde_json::{Value, json};

use crate::server::URL;

mod bundle;
mod checks;
mod deep;

/// How much to look at.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  mtplx doctor\n  mtplx doctor --deep\n  \
    mtplx doctor --json --config my.toml\n  mtplx doctor --bundle report.tar.gz\n\nIt ends with 1 \
    if something fails; warnings are no failures.")]
pub struct DoctorArgs {
    /// Only what is not well, and the judgement.
    #[arg(long)]
    summary: bool,
    /// Also read all of the model, and serve the small one for a moment to compare its texts with
    /// and without drafts.
    #[arg(long)]
    deep: bool,
    /// Settings to check.
    #[arg(long)]
    config: Option<PathBuf>,
    /// The server to look for.
    #[arg(long, env = "MTPLX_URL", default_value = URL)]
    url: String,
    /// Write what was found to a new .tar.gz that may be shown: without keys, texts or home paths.
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
    /// As JSON; `mtplx schema doctor` describes it.
    #[arg(long)]
    json: bool,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Pass,
    Warn,
    Fail,
}

/// Something that was looked at.
#[derive(Clone, Debug, Serialize)]
struct Check {
    id: &'static str,
    status: Status,
    /// What is there.
    found: String,
    /// What to do, where it is not well.
    fix: Option<String>,
}

impl Check {
    fn pass(id: &'static str, found: impl Into<String>) -> Self {
        Self { id, status: Status::Pass, found: found.into(), fix: None }
    }

    fn warn(id: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { id, status: Status::Warn, found: found.into(), fix: Some(fix.into()) }
    }

    fn fail(id: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { id, status: Status::Fail, found: found.into(), fix: Some(fix.into()) }
    }
}

/// Looks, and says what it found.
///
/// # Errors
/// When something fails, or the bundle cannot be written.
pub fn run(args: &DoctorArgs) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let mut checks = checks::machine();
    checks.extend(checks::settings(args.config.as_deref()));
    checks.extend(checks::disk());
    checks.push(runtime.block_on(checks::server(&args.url)));
    if args.deep {
        checks.extend(checks::files_of_the_model(args.config.as_deref()));
        checks.push(runtime.block_on(deep::texts()));
    }
    let overall = checks.iter().map(|check| check.status).max().unwrap_or(Status::Pass);
    let report = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "overall": overall,
        "checks": checks,
    });
    if let Some(file) = &args.bundle {
        bundle::write(file, &report, args.config.as_deref())?;
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&checks, args.summary);
    }
    if let Some(file) = &args.bundle {
        eprintln!("written: {}; look into it before you show it", file.display());
    }
    match overall {
        Status::Pass | Status::Warn => Ok(()),
        Status::Fail => Err(failed(&report)),
    }
}

fn failed(report: &Value) -> anyhow::Error {
    let checks = report["checks"].as_array().into_iter().flatten();
    let failed = checks.filter(|check| check["status"] == "fail");
    let ids: Vec<&str> = failed.filter_map(|check| check["id"].as_str()).collect();
    anyhow!("not well: {}", ids.join(", "))
}

fn print(checks: &[Check], summary: bool) {
    for Check { id, status, found, fix } in checks {
        if summary && *status == Status::Pass {
            continue;
        }
        let mark = match status {
            Status::Pass => style("ok  ").green(),
            Status::Warn => style("warn").yellow(),
            Status::Fail => style("FAIL").red(),
        };
        println!("{mark}  {id:<18} {found}");
        if let Some(fix) = fix {
            println!("      {:<18} {fix}", "");
        }
    }
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    let (warned, failed) = (count(Status::Warn), count(Status::Fail));
    println!("{} looked at, {warned} to be known of, {failed} not well", checks.len());
}

//! `mtplx inspect`: what a folder is as a model, by its configuration and headers alone.

#![allow(clippy::print_stdout, reason = "a command reports on stdout")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;

use crate::picker::bytes;
use crate::tiers::{self, Judged, Tier};

/// What is looked at.
#[derive(Args, Debug, Clone)]
#[command(
    after_help = "Ends with 0 for a verified model, 2 for one without an MTP head, 3 for one \
    that was not verified, 4 for an architecture that is not run here, 5 for a damaged one.\n\n\
    Examples:\n  mtplx inspect ~/models/qwen\n  mtplx inspect ~/models/qwen --json | jq .tier"
)]
pub struct InspectArgs {
    /// Folder of a model.
    pub path: PathBuf,
    /// One object of JSON; `mtplx schema inspect` describes it.
    #[arg(long)]
    pub json: bool,
    /// End with 0 whatever the model is.
    #[arg(long)]
    pub no_strict_exit_code: bool,
}

/// What `mtplx inspect --json` prints.
#[derive(Clone, Debug, JsonSchema, PartialEq, Serialize)]
pub struct Report {
    /// The folder, as it was named.
    pub path: PathBuf,
    /// What the command ends with.
    pub exit_code: u8,
    /// Whether a server starts on it without further words.
    pub served: bool,
    /// What was found.
    #[serde(flatten)]
    pub judged: Judged,
}

impl Report {
    /// Of the folder `path`.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        let judged = tiers::judge(path);
        Self {
            path: path.to_owned(),
            exit_code: judged.tier.exit_code(),
            served: judged.tier == Tier::Verified,
            judged,
        }
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let Judged { tier, reasons, mend, architecture, weights, verification, .. } = &self.judged;
        let mut text = format!("{}: {tier}\n", self.path.display());
        let mut line = |name: &str, told: &dyn std::fmt::Display| {
            // Nothing fails that writes to a text.
            let _ = writeln!(text, "  {name:<13} {told}");
        };
        for reason in reasons {
            line("because", reason);
        }
        if let Some(mend) = mend {
            line("to do", mend);
        }
        if let Some(kind) = architecture {
            line("architecture", &format!("{} ({})", kind.name, kind.model_type));
            if let Some(context) = kind.context {
                line("context", &format!("{context} tokens"));
            }
        }
        if let Some(found) = weights {
            let layers = format!(
                "{} of gated DeltaNet, {} of attention",
                found.gdn_layers, found.attention_layers
            );
            line("layers", &layers);
            if found.experts > 0 {
                line("experts", &found.experts);
            }
            let (size, files) = (bytes(found.bytes as u64), found.files.len());
            let plural = if files == 1 { "" } else { "s" };
            line("weights", &format!("{size} in {files} file{plural}"));
            line("quantisation", &found.quantization);
            if let Some(source) = &found.mtp_source {
                let plural = if found.mtp_layers == 1 { "" } else { "s" };
                line("MTP head", &format!("{} layer{plural}, in {source}", found.mtp_layers));
            }
            if found.unused_tensors > 0 {
                line("unused", &format!("{} tensors that nobody reads", found.unused_tensors));
            }
        }
        for gate in verification.iter().flat_map(|found| &found.gates) {
            let passed = if gate.passed { "passed" } else { "FAILED" };
            line("gate", &format!("{passed} {}: {}", gate.name, gate.told));
        }
        text
    }
}

/// Looks and prints.
#[must_use]
pub fn run(args: &InspectArgs) -> ExitCode {
    let report = Report::of(&args.path);
    match args.json {
        true => println!("{}", serde_json::json!(report)),
        false => print!("{}", report.text()),
    }
    match args.no_strict_exit_code {
        true => ExitCode::SUCCESS,
        false => report.exit_code.into(),
    }
}

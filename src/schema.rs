//! `mtplx schema`: what commands print with `--json`, as JSON Schema. Fields may be added to it;
//! none goes or changes its meaning.

#![allow(clippy::print_stdout, reason = "a command reports on stdout")]

use anyhow::Result;
use clap::{Args, ValueEnum};
use schemars::{Schema, schema_for};

use crate::{inspect, models, verify};

/// Whose schema.
#[derive(Args, Debug, Clone)]
#[command(after_help = "Example:\n  mtplx schema inspect > inspect.schema.json")]
pub struct SchemaArgs {
    /// The command.
    pub of: Of,
}

/// A command with a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Of {
    Inspect,
    Models,
    Verify,
}

/// Its schema.
#[must_use]
pub fn of(command: Of) -> Schema {
    match command {
        Of::Inspect => schema_for!(inspect::Report),
        Of::Models => schema_for!(models::Listing),
        Of::Verify => schema_for!(verify::Report),
    }
}

/// Prints it.
///
/// # Errors
/// None that is known.
pub fn run(args: &SchemaArgs) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(&of(args.of))?);
    Ok(())
}

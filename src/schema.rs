//! `mtplx schema`: what commands print with `--json`, as JSON Schema. Fields may be added to it;
//! none goes or changes its meaning.

#![allow(clippy::print_stdout, reason = "a command reports on stdout")]

use anyhow::Result;
use clap::{Args, ValueEnum};
use schemars::{Schema, schema_for};

use crate::bench::{self, products, shape};
use crate::{convert, inspect, models, tune, verify};

/// Whose schema.
#[derive(Args, Debug, Clone)]
#[command(after_help = "Example:\n  mtplx schema inspect > inspect.schema.json\n\nOf a command \
    with sub-commands, $defs has the schema of each: mtplx schema keys | jq '.\"$defs\".list'")]
pub struct SchemaArgs {
    /// The command.
    pub of: Of,
}

/// A command with a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Of {
    Bank,
    Bench,
    BenchProducts,
    BenchShape,
    Connect,
    Convert,
    Doctor,
    Init,
    Inspect,
    Keys,
    Max,
    Models,
    Node,
    Openwebui,
    Plan,
    Pull,
    Run,
    Service,
    Start,
    Tune,
    Verify,
}

/// A schema that was written by hand.
macro_rules! written {
    ($name:literal) => {
        serde_json::from_str(include_str!(concat!("schemas/", $name, ".json"))).unwrap_or_default()
    };
}

/// Its schema.
#[must_use]
pub fn of(command: Of) -> Schema {
    match command {
        Of::Bank => written!("bank"),
        Of::Connect => written!("connect"),
        Of::Doctor => written!("doctor"),
        Of::Init => written!("init"),
        Of::Keys => written!("keys"),
        Of::Max => written!("max"),
        Of::Node => written!("node"),
        Of::Openwebui => written!("openwebui"),
        Of::Plan => written!("plan"),
        Of::Pull => written!("pull"),
        Of::Run => written!("run"),
        Of::Service => written!("service"),
        Of::Start => written!("start"),
        Of::Convert => schema_for!(convert::Report),
        Of::Bench => schema_for!(bench::Report),
        Of::BenchProducts => schema_for!(products::Report),
        Of::BenchShape => schema_for!(shape::Report),
        Of::Inspect => schema_for!(inspect::Report),
        Of::Models => schema_for!(models::Listing),
        Of::Tune => schema_for!(tune::Report),
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

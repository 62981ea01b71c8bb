//! `mtplx models`: what models are on this machine, and how one goes.

#![allow(clippy::print_stdout, reason = "a command reports on stdout")]

pub mod delete;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;

use crate::consent;
use crate::exit::Stop;
use crate::picker::{self, Found, roots};

/// What is listed or deleted.
#[derive(Args, Debug, Clone)]
#[command(
    after_help = "Models are looked for in ~/.mtplx/models (or MTPLX_MODEL_DIR), in the cache \
    of Hugging Face (HF_HUB_CACHE, HF_HOME) and in those of LM Studio.\n\n\
    Examples:\n  mtplx models\n  mtplx models /Volumes/models --json\n  \
    mtplx models --delete org/name"
)]
pub struct ModelsArgs {
    /// Folders to look into rather than those of this machine.
    pub folders: Vec<PathBuf>,
    /// One object of JSON; `mtplx schema models` describes it.
    #[arg(long)]
    pub json: bool,
    /// Delete the model of this name or number.
    #[arg(long, value_name = "NAME")]
    pub delete: Option<String>,
    /// Do not ask before deleting.
    #[arg(long, requires = "delete")]
    pub yes: bool,
}

/// What `mtplx models --json` prints.
#[derive(Clone, Debug, JsonSchema, PartialEq, Eq, Serialize)]
pub struct Listing {
    /// The folders that were looked into, there or not.
    pub roots: Vec<PathBuf>,
    /// The models, numbered from 1 on in this order.
    pub models: Vec<Found>,
    /// What was deleted, if that was asked for.
    pub deleted: Option<delete::Deleted>,
}

/// Lists, or deletes.
///
/// # Errors
/// There is no such model, or it may not be deleted.
pub fn run(args: &ModelsArgs) -> Result<()> {
    let roots = match args.folders.is_empty() {
        true => roots::of_this_machine(),
        false => args.folders.clone(),
    };
    let models = picker::found(&roots);
    let mut listing = Listing { roots, models, deleted: None };
    if let Some(name) = &args.delete {
        let model = picker::choose(&listing.models, name)?;
        let plan = delete::plan(&model.path, &listing.roots)?;
        if !args.yes && !agreed(&model.name, &plan)? {
            return Err(Stop::Refused("nothing was deleted".into()).into());
        }
        let deleted = plan.carry_out()?;
        if !args.json {
            println!("deleted {}: {} freed", model.name, picker::bytes(deleted.bytes));
            return Ok(());
        }
        let gone = model.path.clone();
        listing.models.retain(|model| model.path != gone);
        listing.deleted = Some(deleted);
    }
    match args.json {
        true => println!("{}", serde_json::json!(listing)),
        false => print!("{}", table(&listing)),
    }
    Ok(())
}

fn table(listing: &Listing) -> String {
    if listing.models.is_empty() {
        let roots = listing.roots.iter().map(|root| format!("  {}\n", root.display()));
        return format!("no models below\n{}", roots.collect::<String>());
    }
    picker::numbered(&listing.models)
}

/// Asks whoever sits there.
fn agreed(name: &str, plan: &delete::Plan) -> Result<bool> {
    for path in plan.paths() {
        eprintln!("  {}", path.display());
    }
    let nobody = format!("say --yes to delete {name}: there is nobody to be asked");
    consent::given(&format!("Delete {name}, {}?", picker::bytes(plan.bytes())), &nobody)
}

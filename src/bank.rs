//! `mtplx bank`: what a running server keeps warm, and what is to become of it.

#![expect(clippy::print_stdout, reason = "a command prints what it found")]

use std::io;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use ureq::http::Method;

use crate::admin::Admin;
use crate::files;

/// What to ask which server.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  mtplx bank\n  mtplx bank --json | jq '.states[].id'\n  \
    mtplx bank --url http://10.0.0.2:8000 pin 6f3c\n\n\
    The server's admin token is taken from MTPLX_ADMIN_TOKEN.")]
pub struct BankArgs {
    #[command(flatten)]
    server: Admin,
    /// What was found or done as JSON; `mtplx schema bank` describes it.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what is warm, in memory and on disk; so does no command.
    #[command(after_help = "Example:\n  mtplx bank list --json")]
    List,
    /// Keep a state from going by itself.
    #[command(after_help = "Example:\n  mtplx bank pin 6f3c")]
    Pin {
        /// Its name in the listing.
        id: String,
    },
    /// Let a pinned state go by itself again.
    #[command(after_help = "Example:\n  mtplx bank unpin 6f3c")]
    Unpin {
        /// Its name in the listing.
        id: String,
    },
    /// Let a state go, from memory and disk.
    #[command(after_help = "Example:\n  mtplx bank drop 6f3c")]
    Drop {
        /// Its name in the listing.
        id: String,
    },
    /// Write a state to a file.
    #[command(after_help = "Example:\n  mtplx bank export 6f3c prefix.bin")]
    Export {
        /// Its name in the listing.
        id: String,
        /// The file; it must not exist.
        file: PathBuf,
    },
    /// Give a server a state from a file.
    #[command(after_help = "Example:\n  mtplx bank import prefix.bin")]
    Import {
        /// The file.
        file: PathBuf,
    },
}

/// Asks the server and prints the answer.
///
/// # Errors
/// When there is no token, no server, or it refuses.
pub fn run(args: &BankArgs) -> Result<()> {
    let path = |rest: &str| format!("/admin/bank{rest}");
    let ask = |method, rest: &str| args.server.ask(method, &path(rest), Vec::new());
    let done = match args.command.as_ref().unwrap_or(&Command::List) {
        Command::List => {
            let listing = args.server.json(Method::GET, &path(""))?;
            if args.json {
                println!("{}", serde_json::to_string_pretty(&listing)?);
            } else {
                print(&listing);
            }
            return Ok(());
        }
        Command::Pin { id } => {
            ask(Method::PUT, &format!("/{id}/pin"))?;
            json!({"id": id, "pinned": true})
        }
        Command::Unpin { id } => {
            ask(Method::DELETE, &format!("/{id}/pin"))?;
            json!({"id": id, "pinned": false})
        }
        Command::Drop { id } => {
            ask(Method::DELETE, &format!("/{id}"))?;
            json!({"id": id, "dropped": true})
        }
        Command::Export { id, file } => {
            let mut new = files::unfinished(file)?;
            let mut answer = ask(Method::GET, &format!("/{id}"))?;
            let copied = io::copy(&mut answer.body_mut().as_reader(), &mut new);
            let bytes = copied.with_context(|| format!("cannot write {}", file.display()))?;
            files::finish(new, file)?;
            json!({"id": id, "file": file, "bytes": bytes})
        }
        Command::Import { file } => {
            let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
            let mut answer = args.server.ask(Method::POST, &path(""), bytes)?;
            let told: Value = answer.body_mut().read_json()?;
            if !args.json {
                println!("{}", told["id"].as_str().unwrap_or_default());
            }
            json!({"id": told["id"], "file": file})
        }
    };
    if args.json {
        println!("{done:#}");
    }
    Ok(())
}

fn print(listing: &Value) {
    let bank = &listing["bank"];
    let mib = |bytes: &Value| bytes.as_f64().unwrap_or(0.0) / (1 << 20) as f64;
    println!(
        "{} warm prefixes, {:.1} of {:.0} MiB; on disk {:.1} of {:.0} MiB; {} hits, {} misses\n",
        bank["entries"],
        mib(&bank["bytes"]),
        mib(&listing["bytes_max"]),
        mib(&listing["disk_bytes"]),
        mib(&listing["disk_bytes_max"]),
        bank["hits"],
        bank["misses"],
    );
    println!(
        "{:<32} {:<8} {:>8} {:>9} {:>9} {:>6} {:>8} {:>8}",
        "state", "kind", "tokens", "memory", "disk", "hits", "age s", "idle s"
    );
    for state in listing["states"].as_array().into_iter().flatten() {
        let text = |key: &str| state[key].as_str().unwrap_or_default().to_owned();
        println!(
            "{:<32} {:<8} {:>8} {:>9.2} {:>9.2} {:>6} {:>8} {:>8}{}",
            text("id"),
            text("kind"),
            state["tokens"],
            mib(&state["bytes"]),
            mib(&state["disk_bytes"]),
            state["hits"],
            state["age_s"],
            state["idle_s"],
            if state["pinned"] == true { "  pinned" } else { "" },
        );
    }
}

//! `mtplx bank`: what a running server keeps warm, and what is to become of it.

#![expect(clippy::print_stdout, reason = "a command prints what it found")]

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use reqwest::{Method, Response, StatusCode};
use serde_json::Value;

use crate::config::ADMIN_TOKEN;

/// What to ask which server.
#[derive(Args, Debug)]
pub struct BankArgs {
    /// The server.
    #[arg(long, default_value = "http://127.0.0.1:8000", global = true)]
    url: String,
    /// The listing as JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what is warm, in memory and on disk; so does no command.
    List,
    /// Keep a state from going by itself.
    Pin {
        /// Its name in the listing.
        id: String,
    },
    /// Let a pinned state go by itself again.
    Unpin {
        /// Its name in the listing.
        id: String,
    },
    /// Let a state go, from memory and disk.
    Drop {
        /// Its name in the listing.
        id: String,
    },
    /// Write a state to a file.
    Export {
        /// Its name in the listing.
        id: String,
        /// The file; it must not exist.
        file: PathBuf,
    },
    /// Give a server a state from a file.
    Import {
        /// The file.
        file: PathBuf,
    },
}

/// Asks the server and prints the answer.
///
/// # Errors
/// When there is no token, no server, or it refuses.
pub async fn run(args: &BankArgs) -> Result<()> {
    let token = std::env::var(ADMIN_TOKEN)
        .with_context(|| format!("set {ADMIN_TOKEN} to the server's admin token"))?;
    let server = Server { url: format!("{}/admin/bank", args.url.trim_end_matches('/')), token };
    match args.command.as_ref().unwrap_or(&Command::List) {
        Command::List => {
            let listing: Value = server.ask(Method::GET, "", None).await?.json().await?;
            if args.json {
                println!("{}", serde_json::to_string_pretty(&listing)?);
            } else {
                print(&listing);
            }
        }
        Command::Pin { id } => drop(server.ask(Method::PUT, &format!("/{id}/pin"), None).await?),
        Command::Unpin { id } => {
            drop(server.ask(Method::DELETE, &format!("/{id}/pin"), None).await?);
        }
        Command::Drop { id } => drop(server.ask(Method::DELETE, &format!("/{id}"), None).await?),
        Command::Export { id, file } => {
            let bytes = server.ask(Method::GET, &format!("/{id}"), None).await?.bytes().await?;
            let mut options = std::fs::OpenOptions::new();
            options.write(true).create_new(true);
            // It holds what somebody wrote.
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            let mut to =
                options.open(file).with_context(|| format!("cannot make {}", file.display()))?;
            std::io::Write::write_all(&mut to, &bytes)?;
        }
        Command::Import { file } => {
            let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
            let told: Value = server.ask(Method::POST, "", Some(bytes)).await?.json().await?;
            println!("{}", told["id"].as_str().unwrap_or_default());
        }
    }
    Ok(())
}

struct Server {
    url: String,
    token: String,
}

impl Server {
    async fn ask(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> Result<Response> {
        let request = reqwest::Client::builder().no_proxy().build()?;
        let request = request.request(method, format!("{}{path}", self.url));
        let request = request.bearer_auth(&self.token).body(body.unwrap_or_default());
        let answer = request.send().await.with_context(|| format!("no server at {}", self.url))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let body: Value = answer.json().await.unwrap_or_default();
        match (status, body["error"]["message"].as_str()) {
            (StatusCode::NOT_FOUND, Some(message)) if message.contains("/admin") => {
                bail!("the server has no admin routes: it was started without admin.token")
            }
            (_, Some(message)) => bail!("{message}"),
            (_, None) => bail!("the server answered {status}"),
        }
    }
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

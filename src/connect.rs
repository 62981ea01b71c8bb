//! `mtplx connect`: the settings by which clients find this server. Printed, or written with
//! consent and a backup, beside what stands in a client's file and never over it.

#![allow(clippy::print_stdout, reason = "a command prints what it found")]

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::json;

use crate::consent;
use crate::exit::Stop;
use crate::server::{self, KEY, Served, Server, URL};

pub mod clients;
mod merge;

use self::clients::{Client, Form, Settings, Target};

/// Whom to connect.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  mtplx connect claude-code\n  mtplx connect opencode --write\n  \
    mtplx connect codex --write --yes --json\n\nA key for the server is taken from MTPLX_API_KEY."
)]
pub struct ConnectArgs {
    /// The client.
    client: Client,
    /// The server.
    #[arg(long, env = "MTPLX_URL", default_value = URL)]
    url: String,
    /// The model's name; the server is asked without it.
    #[arg(long)]
    model: Option<String>,
    /// Write the settings into the client's file, after showing them.
    #[arg(long)]
    write: bool,
    /// Without asking first.
    #[arg(long, requires = "write")]
    yes: bool,
    /// The client's file, rather than where it usually is.
    #[arg(long)]
    file: Option<PathBuf>,
    /// As JSON; `mtplx schema connect` describes it.
    #[arg(long)]
    json: bool,
}

/// Of Open WebUI.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  mtplx openwebui docker-command")]
pub struct OpenWebuiArgs {
    #[command(subcommand)]
    command: OpenWebui,
}

#[derive(Debug, Subcommand)]
enum OpenWebui {
    /// Print the command that runs Open WebUI beside this server.
    #[command(after_help = "Examples:\n  mtplx openwebui docker-command\n  \
        sh -c \"$(mtplx openwebui docker-command --port 3001)\"")]
    DockerCommand {
        /// The server.
        #[arg(long, env = "MTPLX_URL", default_value = URL)]
        url: String,
        /// Where Open WebUI will be.
        #[arg(long, default_value_t = 3000)]
        port: u16,
        /// As JSON; `mtplx schema openwebui` describes it.
        #[arg(long)]
        json: bool,
    },
}

/// Whom a client is to find.
#[derive(Clone, Debug)]
pub struct Whom {
    /// The server, without a path.
    pub url: String,
    /// The model, as the server calls it.
    pub model: String,
    /// Tokens of a sequence.
    pub context: u64,
    /// What opens the server.
    pub key: Option<String>,
}

/// Tokens of a sequence where the server was not asked.
const CONTEXT: u64 = 32_768;

/// Prints the settings, or writes them.
///
/// # Errors
/// When the server does not answer, the client's file cannot be added to, or nobody agrees.
pub fn run(args: &ConnectArgs) -> Result<()> {
    let url = server::address(&args.url)?;
    let (model, context) = match &args.model {
        Some(model) => (model.clone(), CONTEXT),
        None => {
            let served = ask(&url).context("its model is not known; --model names it")?;
            (served.model, served.context.unwrap_or(CONTEXT))
        }
    };
    let key = std::env::var(KEY).ok().filter(|key| !key.is_empty());
    let whom = Whom { url, model, context, key };
    let mut settings = clients::settings(args.client, &whom)?;
    if let (Some(file), Some(target)) = (&args.file, &mut settings.target) {
        target.path.clone_from(file);
    }
    let written = if args.write { Some(write(args, &settings)?) } else { None };
    let target = settings.target.as_ref();
    if args.json {
        let report = json!({
            "client": settings.client,
            "url": whom.url,
            "model": whom.model,
            "env": settings.env,
            "file": target.map(|target| &target.path),
            "settings": target.map(|target| target.form.text()),
            "notes": settings.notes,
            "written": written.is_some(),
            "backup": written.flatten(),
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    match written {
        Some(backup) => {
            let path = target.map(|target| target.path.display().to_string()).unwrap_or_default();
            println!("written: {path}");
            if let Some(backup) = backup {
                println!("before it: {}", backup.display());
            }
        }
        None => print(&settings),
    }
    settings.notes.iter().for_each(|note| eprintln!("{note}"));
    Ok(())
}

fn print(settings: &Settings) {
    for (name, value) in &settings.env {
        println!("export {name}={}", clients::quoted(value));
    }
    if let Some(Target { path, form }) = &settings.target {
        eprintln!("# in {} (--write puts it there)", path.display());
        print!("{}", form.text());
    }
}

/// Shows what is to be written, asks, keeps what was there, and writes; the backup.
fn write(args: &ConnectArgs, settings: &Settings) -> Result<Option<PathBuf>> {
    let Some(Target { path, form }) = &settings.target else {
        bail!("{} keeps its settings where no file is: they are only shown", settings.client);
    };
    let old = match std::fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
    };
    let merged = merge::merged(old.as_deref(), form);
    let new = merged.with_context(|| format!("{} is left as it is", path.display()))?;
    if old.as_ref() == Some(&new) {
        return Ok(None);
    }
    if !args.yes {
        agreed(path, form)?;
    }
    let folder = path.parent().context("a file stands in a folder")?;
    std::fs::create_dir_all(folder)?;
    let backup = old.map(|_| keep(path)).transpose()?;
    crate::files::replace(path, &new)?;
    Ok(backup)
}

fn agreed(path: &Path, form: &Form) -> Result<()> {
    eprintln!(
        "{}\nis to stand in {}, beside what is there",
        form.text().trim_end(),
        path.display()
    );
    let nobody = "nobody is here to agree: say --yes to write without asking";
    match consent::given("Write it?", nobody)? {
        true => Ok(()),
        false => Err(Stop::Refused("nothing was written".into()).into()),
    }
}

/// A copy beside it that stands in nobody's way.
fn keep(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().context("it has a name")?.to_string_lossy();
    for n in 1..1000 {
        let copy = path.with_file_name(format!("{name}.before-mtplx-{n}"));
        if !copy.exists() {
            std::fs::copy(path, &copy)
                .with_context(|| format!("cannot make {}", copy.display()))?;
            return Ok(copy);
        }
    }
    bail!("a thousand backups of {} are enough: remove some", path.display())
}

fn ask(url: &str) -> Result<Served> {
    tokio::runtime::Runtime::new()?.block_on(Server::at(url)?.served())
}

/// Prints the command.
///
/// # Errors
/// When the address makes no sense.
pub fn open_webui(args: &OpenWebuiArgs) -> Result<()> {
    let OpenWebui::DockerCommand { url, port, json } = &args.command;
    let url = server::address(url)?;
    let key = std::env::var(KEY).ok().filter(|key| !key.is_empty());
    let words = clients::docker(&url, *port, key.as_deref())?;
    let command: Vec<String> = words.iter().map(|word| clients::quoted(word)).collect();
    let command = command.join(" ");
    if *json {
        let report =
            json!({"argv": words, "command": command, "url": format!("http://127.0.0.1:{port}")});
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{command}");
        eprintln!(
            "then open http://127.0.0.1:{port}; a container reaches only a server that listens \
                   beyond this machine where Docker does not run in this one's network"
        );
    }
    Ok(())
}

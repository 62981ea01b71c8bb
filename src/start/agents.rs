//! Agents, run on a server with settings of their own for this session: what stands in the user's
//! own files of theirs is neither read for it nor changed.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use super::Surface;
use crate::connect::Whom;
use crate::connect::clients::{claude_env, opencode, pi, swival_args};
use crate::exit::Stop;
use crate::server::{KEY, Served, Server};
use crate::state;

/// The program, and how to get it.
fn program(surface: Surface) -> (&'static str, &'static str) {
    match surface {
        Surface::Claude => ("claude", "npm install -g @anthropic-ai/claude-code"),
        Surface::Opencode => ("opencode", "npm install -g opencode-ai"),
        Surface::Pi => ("pi", "npm install -g @mariozechner/pi-coding-agent"),
        Surface::Swival => ("swival", "uv tool install swival"),
        Surface::Cli | Surface::Web => ("", ""),
    }
}

/// Whether the agent is installed: before a model is loaded for it.
pub(super) fn check(surface: Surface) -> Result<()> {
    let (name, install) = program(surface);
    let path = std::env::var_os("PATH").unwrap_or_default();
    match std::env::split_paths(&path).any(|folder| folder.join(name).is_file()) {
        true => Ok(()),
        false => Err(Stop::Refused(format!("{name} is not installed: {install}")).into()),
    }
}

/// Runs it to its end; its exit code.
pub(super) fn run(
    surface: Surface,
    server: &Server,
    served: &Served,
    rest: &[OsString],
) -> Result<i32> {
    let key = std::env::var(KEY).ok().filter(|key| !key.is_empty());
    let context = served.context.unwrap_or(32_768);
    let whom = Whom { url: server.url.clone(), model: served.model.clone(), context, key };
    let mut command = Command::new(program(surface).0);
    match surface {
        Surface::Claude => {
            let key = whom.key.as_deref().unwrap_or("none");
            command.envs(claude_env(&whom.url, key));
        }
        Surface::Opencode => {
            let file = folder("opencode")?.join("opencode.json");
            crate::files::replace(&file, &opencode(&whom).text())?;
            command.env("OPENCODE_CONFIG", file);
        }
        Surface::Pi => {
            let folder = folder("pi")?;
            crate::files::replace(&folder.join("models.json"), &pi(&whom).text())?;
            command.env("PI_CODING_AGENT_DIR", folder);
            command.args(["--provider", "mtplx", "--model", &whom.model]);
        }
        Surface::Swival => {
            command.args(swival_args(&whom));
            command.env("OPENAI_API_KEY", whom.key.as_deref().unwrap_or("none"));
        }
        Surface::Cli | Surface::Web => {}
    }
    // Ctrl-C is for the agent, which shares our terminal: a handler that does nothing keeps us, and
    // is not inherited.
    let runtime = tokio::runtime::Runtime::new()?;
    let _here = runtime.enter();
    let _handler = signal(SignalKind::interrupt())?;
    let status = command.args(rest).status();
    let status = status.with_context(|| format!("cannot start {}", program(surface).0))?;
    Ok(status.code().unwrap_or(1))
}

fn folder(name: &str) -> Result<PathBuf> {
    let folder = state::folder()?.join(name);
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

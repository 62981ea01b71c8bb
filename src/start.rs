//! `mtplx start`: from nothing to a conversation in three questions, none of which is asked twice.

#![allow(clippy::print_stdout, reason = "a wizard shows what it is about to do")]

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use console::style;
use serde::{Deserialize, Serialize};
use toml::Value;

use crate::config::Config;
use crate::exit::Stop;
use crate::model::Model;
use crate::plan::{self, Verdict};
use crate::server::{Server, URL};
use crate::{chat, state};

mod agents;
mod ask;

/// Clients and context that are planned for, where nobody says; most chats are shorter.
const CONTEXT: usize = 32_768;

/// What to start.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  mtplx start\n  mtplx start claude\n  \
    mtplx start cli --model owner/name --mode stable\n  mtplx start web --fresh\n\nWhat was \
    chosen is kept for the next time. Without a terminal nothing is asked: say --yes, or \
    name all three.")]
pub struct StartArgs {
    /// Where to talk.
    surface: Option<Surface>,
    /// Folder or owner/name of the model; "small" for the one inside.
    #[arg(long)]
    model: Option<String>,
    /// sustained, sustained-max, burst, stable or safe.
    #[arg(long)]
    mode: Option<String>,
    /// Tokens of a conversation that the machine must have room for.
    #[arg(long)]
    context: Option<usize>,
    /// Conversations at once that it must have room for.
    #[arg(long, default_value_t = 1)]
    clients: usize,
    /// Settings laid over the defaults.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Forget what was chosen before.
    #[arg(long)]
    fresh: bool,
    /// Ask nothing: what was chosen before, or the small model in a chat.
    #[arg(long, short)]
    yes: bool,
    /// Go on although the machine has too little memory.
    #[arg(long)]
    force_memory: bool,
    /// Go on with a model that `mtplx verify` has not passed.
    #[arg(long)]
    unsafe_force_unverified: bool,
    /// Only say as JSON what would be started; `mtplx schema start` describes it.
    #[arg(long)]
    json: bool,
    /// What else the agent is told.
    #[arg(last = true)]
    rest: Vec<OsString>,
}

/// Serves without a question.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  mtplx quickstart\n  mtplx quickstart --model owner/name")]
pub struct QuickstartArgs {
    /// Folder or owner/name of the model; that of the last start without it, or the small one.
    #[arg(long)]
    model: Option<String>,
    /// Only say as JSON what would be started; `mtplx schema start` describes it.
    #[arg(long)]
    json: bool,
}

/// Where to talk.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Surface {
    /// In this terminal.
    Cli,
    /// A server for browsers and whoever else.
    Web,
    /// Claude Code.
    Claude,
    /// opencode.
    Opencode,
    /// Pi.
    Pi,
    /// Swival.
    Swival,
}

/// What was chosen.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
struct Choice {
    /// "small", a folder, or a name.
    model: String,
    mode: String,
    surface: Surface,
}

/// The name of the model inside.
const SMALL: &str = "small";

/// Asks what is not known, looks whether it fits, and starts it.
///
/// # Errors
/// When something is missing, does not fit, or does not start.
pub fn run(args: &StartArgs) -> Result<()> {
    let known = if args.fresh { None } else { remembered() };
    let choice = choose(args, known)?;
    let mut overrides = overrides(&choice);
    if args.unsafe_force_unverified {
        overrides.push(("model", "unverified", Value::String("accept".into())));
    }
    let config = Config::load(args.config.as_deref(), &overrides)?;
    let model = Model::open(&config.model)?;
    model.admit(&config.model)?;
    let longest = config.engine.context_tokens_max.unwrap_or(usize::MAX);
    let longest = longest.min(model.checkpoint.config.positions_max);
    let context = args.context.unwrap_or(CONTEXT.min(longest));
    let verdict = plan::preflight(&model, &config, (context, args.clients.max(1)))?;
    if args.json {
        let said = match &verdict {
            Verdict::Fits => None,
            Verdict::Tight(said) | Verdict::TooLarge(said) => Some(said),
        };
        let report = serde_json::json!({
            "model": choice.model, "mode": choice.mode, "surface": choice.surface,
            "fits": !matches!(verdict, Verdict::TooLarge(_)), "warning": said,
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    match verdict {
        Verdict::Fits => {}
        Verdict::Tight(said) => eprintln!("{}", style(said).yellow()),
        Verdict::TooLarge(said) if args.force_memory => eprintln!("{}", style(said).red()),
        Verdict::TooLarge(said) => {
            let said = format!("{said}; --force-memory starts it all the same");
            return Err(Stop::Refused(said).into());
        }
    }
    remember(&choice)?;
    let name = model.name.clone();
    drop(model);
    go(&choice, &name, args)
}

/// The same without a question, as a server.
///
/// # Errors
/// As [`run`].
pub fn quickstart(args: &QuickstartArgs) -> Result<()> {
    run(&StartArgs {
        surface: Some(Surface::Web),
        model: args.model.clone(),
        mode: None,
        context: None,
        clients: 1,
        config: None,
        fresh: false,
        yes: true,
        force_memory: false,
        unsafe_force_unverified: false,
        json: args.json,
        rest: Vec::new(),
    })
}

fn overrides(choice: &Choice) -> Vec<(&'static str, &'static str, Value)> {
    let mut overrides = vec![("", "mode", Value::String(choice.mode.clone()))];
    if let Some(path) = folder(&choice.model) {
        overrides.push(("model", "path", Value::String(path.display().to_string())));
    }
    overrides
}

/// The folder of a model, unless it is the one inside.
fn folder(model: &str) -> Option<PathBuf> {
    let path = Path::new(model);
    (model != SMALL).then(|| crate::pull::cache::fetched(path).unwrap_or_else(|| path.to_owned()))
}

fn choose(args: &StartArgs, known: Option<Choice>) -> Result<Choice> {
    let asks = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    let nothing_said = args.model.is_none() && args.mode.is_none() && args.surface.is_none();
    let ask = asks && !args.yes && !args.json;
    if ask
        && nothing_said
        && let Some(known) = &known
    {
        let Choice { model, mode, .. } = known;
        let last = format!("Same as last time? ({model}, {mode}, {})", ask::name(known.surface));
        if ask::yes(&last)? {
            return Ok(known.clone());
        }
    } else if !ask && !args.yes && known.is_none() {
        let missing = [
            ("--model", args.model.is_none()),
            ("--mode", args.mode.is_none()),
            ("a surface (cli, web, claude, opencode, pi, swival)", args.surface.is_none()),
        ];
        let missing: Vec<&str> =
            missing.iter().filter(|(_, is)| *is).map(|(name, _)| *name).collect();
        if !missing.is_empty() {
            let said = format!("nobody is here to be asked: say {}, or --yes", missing.join(", "));
            return Err(Stop::Refused(said).into());
        }
    }
    // Asked and declined, the last choice is no answer to anything; else it fills the gaps.
    let known = known.filter(|_| !ask || !nothing_said);
    let model = match (&args.model, &known) {
        (Some(model), _) => model.clone(),
        (None, Some(known)) => known.model.clone(),
        (None, None) if ask => ask::model()?,
        (None, None) => SMALL.into(),
    };
    let mode = match (&args.mode, &known) {
        (Some(mode), _) => mode.clone(),
        (None, Some(known)) => known.mode.clone(),
        (None, None) if ask => ask::mode()?,
        (None, None) => "sustained".into(),
    };
    let surface = match (args.surface, &known) {
        (Some(surface), _) => surface,
        (None, Some(known)) => known.surface,
        (None, None) if ask => ask::surface()?,
        (None, None) => Surface::Cli,
    };
    Ok(Choice { model, mode, surface })
}

/// What was chosen last; a file that cannot be read is none.
fn remembered() -> Option<Choice> {
    let text = std::fs::read_to_string(state::folder().ok()?.join("start.json")).ok()?;
    serde_json::from_str(&text).ok()
}

fn remember(choice: &Choice) -> Result<()> {
    let folder = state::folder()?;
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    crate::files::replace(&folder.join("start.json"), &serde_json::to_string_pretty(choice)?)
}

fn go(choice: &Choice, model: &str, args: &StartArgs) -> Result<()> {
    let mut serve: Vec<OsString> = vec!["--mode".into(), choice.mode.clone().into()];
    if let Some(path) = folder(&choice.model) {
        serve.extend(["--model".into(), path.into_os_string()]);
    }
    if args.unsafe_force_unverified {
        serve.push("--unsafe-force-unverified".into());
    }
    if let Some(config) = &args.config {
        serve.extend(["--config".into(), config.clone().into_os_string()]);
    }
    if choice.surface == Surface::Web {
        let program = std::env::current_exe().context("cannot find this program")?;
        // From here on this process is the server: signals and exit code are its own.
        let failed = std::os::unix::process::CommandExt::exec(
            Command::new(program).arg("serve").args(serve),
        );
        return Err(failed).context("cannot start the server");
    }
    if choice.surface != Surface::Cli {
        agents::check(choice.surface)?;
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let usual = Server::at(URL)?;
    let there = runtime.block_on(usual.served()).is_ok_and(|served| served.model == model);
    let server = if there {
        eprintln!("{}", style(format!("{model} is served at {URL} already")).dim());
        usual
    } else {
        eprintln!("{}", style(format!("starting {model}; it ends with this session")).dim());
        serve.extend(["--port".into(), "0".into()]);
        Server::start(&serve)?
    };
    if choice.surface == Surface::Cli {
        return chat::with(&server.url);
    }
    let served = runtime.block_on(server.served())?;
    let code = agents::run(choice.surface, &server, &served, &args.rest)?;
    drop(server);
    match code {
        0 => Ok(()),
        code => bail!("{} ended with {code}", ask::name(choice.surface)),
    }
}

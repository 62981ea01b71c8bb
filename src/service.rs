//! `mtplx service`: the server as a service of launchd or systemd, with no more rights than it
//! needs. Nothing is written or started without `--yes`.

#![expect(clippy::print_stdout, reason = "a command prints what it does")]

use std::path::{Path, PathBuf, absolute};
use std::process::Command as Process;

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use crate::config::Config;
use crate::exit::Stop;

mod launchd;
mod systemd;

/// Seconds beyond those in which requests and warm prefixes may finish.
const LEAVE_S: u32 = 15;

/// What is to become of the service.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  mtplx service --config my.toml install --dry-run\n  \
    sudo mtplx service --system --config /etc/mtplx.toml install --yes\n  \
    mtplx service status --json")]
pub struct ServiceArgs {
    /// Settings of the server; those inside it without them.
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    /// Folder of a checkpoint, as for `mtplx serve`.
    #[arg(long, global = true)]
    model: Option<PathBuf>,
    /// Who keeps services here; launchd on macOS, systemd elsewhere.
    #[arg(long, value_enum, global = true)]
    manager: Option<Manager>,
    /// For the machine, from its start on; without it for you, from your login on.
    #[arg(long, global = true)]
    system: bool,
    /// Whose process it is, where it is the machine's.
    #[arg(long, default_value = "mtplx", global = true)]
    user: String,
    /// Its name among others.
    #[arg(long, default_value = "mtplx", global = true)]
    name: String,
    /// A file with `MTPLX_ADMIN_TOKEN=…` for systemd; the token never stands in the unit.
    #[arg(long, global = true)]
    environment: Option<PathBuf>,
    /// Whether it works on a GPU, which wants rights of its own; looked for without it.
    #[arg(long, global = true)]
    gpu: Option<bool>,
    /// What was found or done as JSON; `mtplx schema service` describes it.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Manager {
    Launchd,
    Systemd,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Command {
    /// Write the service's file to stdout.
    #[command(after_help = "Example:\n  mtplx service --config my.toml print")]
    Print,
    /// Write it to its place, and start it now and from now on.
    #[command(after_help = "Example:\n  mtplx service --config my.toml install --dry-run")]
    Install(Consent),
    /// Stop it and take it away.
    #[command(after_help = "Example:\n  mtplx service uninstall --yes")]
    Uninstall(Consent),
    /// Say how it is.
    #[command(after_help = "Example:\n  mtplx service status --json")]
    Status,
}

#[derive(Args, Clone, Copy, Debug)]
struct Consent {
    /// Do it.
    #[arg(long)]
    yes: bool,
    /// Only say what would be done.
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
}

/// What a service is made from.
#[derive(Debug)]
struct Plan {
    manager: Manager,
    system: bool,
    name: String,
    user: Option<String>,
    command: Vec<String>,
    environment: Option<String>,
    /// The folders that it writes.
    writes: Vec<String>,
    /// What relative paths of its settings mean: where it was installed from.
    folder: String,
    log: String,
    stop_s: u32,
    gpu: bool,
}

impl Plan {
    fn new(args: &ServiceArgs) -> Result<Self> {
        let name = &args.name;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        for (what, word) in [("name", name), ("user", &args.user)] {
            let fine = !word.is_empty() && word.len() <= 64 && word.chars().all(plain);
            ensure!(fine, "--{what} {word:?}: only letters, digits, - and _");
        }
        let config = Config::load(args.config.as_deref(), &[])?;
        let manager = args.manager.unwrap_or(match cfg!(target_os = "macos") {
            true => Manager::Launchd,
            false => Manager::Systemd,
        });
        let program = std::env::current_exe().context("where is this program?")?;
        let mut command = vec![written(&program)?, "serve".to_owned()];
        for (flag, path) in [("--config", &args.config), ("--model", &args.model)] {
            if let Some(path) = path {
                command.extend([flag.to_owned(), written(path)?]);
            }
        }
        let writes = [&config.disk.path, &config.flight.path].into_iter();
        let writes = writes.filter(|path| !path.as_os_str().is_empty());
        // What the bank has to write is given as long as requests.
        let drain_s = config.actors.root.drain_s.ceil().clamp(0.0, 1e6);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
        let stop_s = 2 * drain_s as u32 + LEAVE_S;
        let logs = match args.system {
            true => PathBuf::from("/Library/Logs"),
            false => home()?.join("Library/Logs"),
        };
        Ok(Self {
            manager,
            system: args.system,
            name: name.clone(),
            user: Some(args.user.clone()),
            command,
            environment: args.environment.as_deref().map(written).transpose()?,
            writes: writes.map(|path| written(path)).collect::<Result<_>>()?,
            folder: written(Path::new("."))?,
            log: written(&logs.join(format!("{name}.log")))?,
            stop_s,
            gpu: args.gpu.unwrap_or_else(|| Path::new("/dev/nvidiactl").exists()),
        })
    }

    /// What launchd calls it.
    fn label(&self) -> String {
        format!("dev.mtplx.{}", self.name)
    }

    fn text(&self) -> String {
        match self.manager {
            Manager::Launchd => launchd::list(self),
            Manager::Systemd => systemd::unit(self),
        }
    }

    /// Where its file belongs.
    fn file(&self) -> Result<PathBuf> {
        let unit = format!("{}.service", self.name);
        let list = format!("{}.plist", self.label());
        Ok(match (self.manager, self.system) {
            (Manager::Launchd, true) => Path::new("/Library/LaunchDaemons").join(list),
            (Manager::Launchd, false) => home()?.join("Library/LaunchAgents").join(list),
            (Manager::Systemd, true) => Path::new("/etc/systemd/system").join(unit),
            (Manager::Systemd, false) => {
                let own = std::env::var_os("XDG_CONFIG_HOME").filter(|path| !path.is_empty());
                let own = match own {
                    Some(own) => PathBuf::from(own),
                    None => home()?.join(".config"),
                };
                own.join("systemd/user").join(unit)
            }
        })
    }

    /// What makes the folders that it writes and that are not there yet, for its user alone.
    fn folders(&self) -> Vec<Vec<String>> {
        let missing = self.writes.iter().filter(|path| !Path::new(path).exists());
        let user = self.user.as_deref().filter(|_| self.system);
        let owner: &[&str] = match &user {
            Some(user) => &["-o", user],
            None => &[],
        };
        let make = |path| own([&["install", "-d", "-m", "0700"], owner, &[path]].concat());
        missing.map(|path| make(path.as_str())).collect()
    }

    /// What is said to the manager once the file is there, or before it goes.
    fn commands(&self, file: &Path, to: Step) -> Result<Vec<Vec<String>>> {
        let all = match self.manager {
            Manager::Systemd => {
                let unit = format!("{}.service", self.name);
                let words: &[&[&str]] = match to {
                    Step::Start => &[&["daemon-reload"], &["enable", "--now", &unit]],
                    Step::Stop => &[&["disable", "--now", &unit]],
                    Step::Forget => &[&["daemon-reload"]],
                    Step::Look => &[&["--no-pager", "--lines=0", "status", &unit]],
                };
                let whose: &[&str] = if self.system { &[] } else { &["--user"] };
                let line = |words: &&[&str]| own([&["systemctl"], whose, *words].concat());
                words.iter().map(line).collect()
            }
            Manager::Launchd => {
                let domain = match self.system {
                    true => "system".to_owned(),
                    false => format!("gui/{}", user_id()?),
                };
                let (service, file) = (format!("{domain}/{}", self.label()), written(file)?);
                let words = match to {
                    Step::Start => vec!["bootstrap", &domain, &file],
                    Step::Stop => vec!["bootout", &service],
                    Step::Look => vec!["print", &service],
                    Step::Forget => return Ok(Vec::new()),
                };
                vec![own([&["launchctl"][..], &words].concat())]
            }
        };
        Ok(all)
    }
}

#[derive(Clone, Copy)]
enum Step {
    Start,
    Stop,
    Forget,
    Look,
}

fn own(words: Vec<&str>) -> Vec<String> {
    words.into_iter().map(str::to_owned).collect()
}

/// A path as it can stand in a file of a service.
fn written(path: &Path) -> Result<String> {
    let path = absolute(path).with_context(|| path.display().to_string())?;
    let text = path.to_str().with_context(|| format!("{} is no text", path.display()))?;
    ensure!(!text.chars().any(char::is_control), "{text:?} holds what no service's file can");
    Ok(text.to_owned())
}

fn home() -> Result<PathBuf> {
    std::env::home_dir().filter(|home| !home.as_os_str().is_empty()).context("HOME is not set")
}

fn user_id() -> Result<u32> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata(home()?).context("whose home is it?")?.uid())
}

/// Does what is asked.
///
/// # Errors
/// When settings are wrong, or a step fails.
pub fn run(args: &ServiceArgs) -> Result<()> {
    let plan = Plan::new(args)?;
    let file = plan.file()?;
    match args.command {
        Command::Print if args.json => {
            println!("{}", json!({"file": file, "contents": plan.text()}));
        }
        Command::Print => print!("{}", plan.text()),
        Command::Install(consent) => {
            let (folders, start) = (plan.folders(), plan.commands(&file, Step::Start)?);
            let steps = [folders.as_slice(), &start].concat();
            if agreed(consent, args.json, ("write", &file), &steps)? {
                let folder = file.parent().context("it has a folder")?;
                std::fs::create_dir_all(folder)
                    .and_then(|()| std::fs::write(&file, plan.text()))
                    .with_context(|| format!("cannot write {}", file.display()))?;
                steps.iter().try_for_each(|step| say(step))?;
            }
        }
        Command::Uninstall(consent) => {
            let stop = plan.commands(&file, Step::Stop)?;
            let forget = plan.commands(&file, Step::Forget)?;
            let steps = [stop.as_slice(), &forget].concat();
            if agreed(consent, args.json, ("remove", &file), &steps)? {
                // One that was stopped by hand is to go all the same.
                for step in &stop {
                    if let Err(error) = say(step) {
                        eprintln!("mtplx: {error:#}");
                    }
                }
                std::fs::remove_file(&file)
                    .with_context(|| format!("cannot remove {}", file.display()))?;
                forget.iter().try_for_each(|step| say(step))?;
            }
        }
        Command::Status => status(&plan, &file, args.json)?,
    }
    Ok(())
}

fn status(plan: &Plan, file: &Path, as_json: bool) -> Result<()> {
    let (mut told, mut running) = (String::new(), false);
    for step in plan.commands(file, Step::Look)? {
        let out =
            Process::new(&step[0]).args(&step[1..]).output().with_context(|| step.join(" "))?;
        running = out.status.success();
        told.push_str(&String::from_utf8_lossy(&out.stdout));
    }
    let installed = file.exists();
    if as_json {
        let told = json!({"file": file, "installed": installed, "running": running, "told": told});
        println!("{told}");
    } else {
        let is = |fact: bool, yes, no| if fact { yes } else { no };
        println!("{}: {}", file.display(), is(installed, "installed", "not installed"));
        print!("{told}");
        println!("{}", is(running, "it runs", "it does not run"));
    }
    Ok(())
}

/// Says what is about to be done; whether it may be.
fn agreed(
    consent: Consent,
    as_json: bool,
    (verb, file): (&str, &Path),
    steps: &[Vec<String>],
) -> Result<bool> {
    if as_json {
        println!("{}", json!({"do": verb, "file": file, "run": steps, "done": consent.yes}));
    } else {
        println!("{verb} {}", file.display());
        steps.iter().for_each(|step| println!("run {}", step.join(" ")));
    }
    if !consent.yes && !consent.dry_run {
        let said = "nothing was done: say --yes to do it, or --dry-run to only hear of it";
        return Err(Stop::Refused(said.into()).into());
    }
    Ok(consent.yes)
}

fn say(step: &[String]) -> Result<()> {
    let line = step.join(" ");
    let status = Process::new(&step[0]).args(&step[1..]).status();
    let status = status.with_context(|| format!("cannot run {line}"))?;
    ensure!(status.success(), "{line}: {status}");
    Ok(())
}

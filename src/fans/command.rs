//! `mtplx max`: the right to turn the fans, how they stand, and off with them.

#![expect(clippy::print_stdout, reason = "a command says what it did")]

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::{ArgGroup, Args};
use serde_json::json;

use super::pin::Restored;
use super::program::have_risen;
use super::watchdog::Watchdog;
use super::{Config, is_root, sudoers};
use crate::exit::Stop;

/// One of these is wanted.
const WHAT: [&str; 4] = ["install", "uninstall", "status", "off"];

/// What `--help` ends with.
pub const EXAMPLES: &str = "Examples:\n  mtplx max --status\n  mtplx max --install\n  \
                            mtplx max --off\n\nThen: mtplx serve --max";

/// What to do with the fans.
#[derive(Args, Debug)]
#[command(group(ArgGroup::new("what").required(true).args(WHAT)))]
pub struct MaxArgs {
    /// Let mtplx turn the fans: write a rule for sudo, after asking, and see that they rise.
    #[arg(long)]
    install: bool,
    /// Take that rule away.
    #[arg(long)]
    uninstall: bool,
    /// Say how the fans stand and who holds them.
    #[arg(long)]
    status: bool,
    /// Give the fans back to the machine now; servers that hold them let go.
    #[arg(long)]
    off: bool,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// What was found or done as JSON; `mtplx schema max` describes it.
    #[arg(long)]
    json: bool,
    /// For whom the rule is; without it for you.
    #[arg(long, hide = true)]
    user: Option<String>,
    /// Where sudo reads rules.
    #[arg(long, hide = true, default_value = sudoers::FOLDER)]
    sudoers: PathBuf,
}

/// Does it.
///
/// # Errors
/// What went wrong, in words for people.
pub fn run(config: &Config, args: &MaxArgs) -> Result<()> {
    if args.install {
        install(config, args)
    } else if args.uninstall {
        uninstall(args)
    } else if args.off {
        off(config, args.json)
    } else {
        status(config, args)
    }
}

fn install(config: &Config, args: &MaxArgs) -> Result<()> {
    let program = sudoers::prove_program(&config.program().path)
        .context("ThermalForge is needed, from github.com/ProducerGuy/ThermalForge")?;
    let user = match &args.user {
        Some(user) => user.clone(),
        None => own_name()?,
    };
    let text = sudoers::rule(&user, &program)?;
    let file = args.sudoers.join("mtplx");
    // What is asked and what is heard belongs to people; the report is all that a script gets.
    let say = |text: &str| match args.json {
        true => eprintln!("{text}"),
        false => println!("{text}"),
    };
    say(&format!("{} would say:\n\n{text}", file.display()));
    if !args.yes && !consent()? {
        return Err(Stop::Refused("nothing was changed".into()).into());
    }
    if is_root() {
        let new = sudoers::install(&args.sudoers, &text)?;
        say(if new { "the rule is in place" } else { "the rule was there already" });
    } else {
        // The same again as root, which asks for the password; only the rest is ours.
        let own = std::env::current_exe().context("cannot find this program")?;
        let mut sudo = Command::new("sudo");
        sudo.arg("--").arg(own).args(["max", "--install", "--yes", "--user", &user]);
        sudo.arg("--sudoers").arg(&args.sudoers).arg("--program").arg(&program);
        if args.json {
            // What it says is not for our reader.
            sudo.stdout(std::io::stderr());
        }
        let done = sudo.status().context("cannot run sudo")?;
        ensure!(done.success(), "as root it failed");
        sudoers::verify(&program)?;
    }
    // Whom the rule is not for need not try it.
    if args.user.is_none() || !config.sudo {
        ramp(config)?;
        say("the fans rise when they are told, and are given back: serve with --max");
    }
    if args.json {
        println!("{:#}", json!({"file": file, "rule": text}));
    }
    Ok(())
}

/// The user's own name, also of whoever became root by sudo.
fn own_name() -> Result<String> {
    if let Ok(user) = std::env::var("SUDO_USER") {
        return Ok(user);
    }
    let out = Command::new("id").arg("-un").output().context("cannot ask who you are")?;
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

fn consent() -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        let said = "nobody is here to consent: say --yes if you do";
        return Err(Stop::Refused(said.into()).into());
    }
    eprint!("Type yes to write it: ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(answer.trim() == "yes")
}

/// Pins, listens, gives back: not before the fans are heard is it said that they can be turned.
fn ramp(config: &Config) -> Result<()> {
    let (place, program) = (config.place(), config.program());
    let before = program.fans()?;
    ensure!(!before.is_empty(), "this machine has no fans");
    let watchdog = Watchdog::start(&place, &program)?;
    let hold = place.hold()?;
    let told = program.max(&hold);
    let began = Instant::now();
    let mut heard = false;
    while told.is_ok() && !heard && began.elapsed() < config.ramp() {
        std::thread::sleep(std::time::Duration::from_millis(250));
        heard = program.fans().is_ok_and(|now| have_risen(&before, &now));
    }
    drop(hold);
    let restored = place.restore(&program);
    watchdog.dismiss();
    told?;
    restored?;
    ensure!(heard, "the fans did not rise within {} s: given back", config.ramp_s);
    Ok(())
}

fn uninstall(args: &MaxArgs) -> Result<()> {
    let path = args.sudoers.join("mtplx");
    let said = if is_root() {
        match sudoers::remove(&args.sudoers)? {
            true => "the rule is gone",
            false => "there was no rule",
        }
    } else {
        let status = Command::new("sudo").args(["rm", "-f"]).arg(&path).status();
        ensure!(status.context("cannot run sudo")?.success(), "as root it failed");
        "there is no rule any more"
    };
    match args.json {
        true => println!("{:#}", json!({"file": path, "rule": null})),
        false => println!("{said}"),
    }
    Ok(())
}

fn off(config: &Config, as_json: bool) -> Result<()> {
    let (place, program) = (config.place(), config.program());
    let (was, said) = match place.restore(&program)? {
        Restored::Given => ("left pinned", "the fans are given back"),
        Restored::NotPinned => {
            // By us they were not; perhaps by somebody else.
            program.auto()?;
            ("not pinned", "nothing held the fans; they are told to do what the machine wants")
        }
        Restored::Held => {
            // Servers see that the mark is gone, and let go.
            place.unmark()?;
            program.auto()?;
            ("held", "the fans are given back; who served with them goes on without")
        }
    };
    match as_json {
        true => println!("{:#}", json!({"was": was, "given_back": true})),
        false => println!("{said}"),
    }
    Ok(())
}

fn status(config: &Config, args: &MaxArgs) -> Result<()> {
    let (place, program) = (config.place(), config.program());
    let fans = program.fans();
    let (marked, held) = (place.is_marked(), place.is_held()?);
    let pinned = match (marked, held) {
        (true, true) => "held by a server",
        (true, false) => "left pinned: the next start or `mtplx max --off` gives them back",
        (false, _) => "not pinned",
    };
    let rule = sudoers::is_installed(&args.sudoers);
    let path: &Path = &program.path;
    if args.json {
        let error = fans.as_ref().err().map(|error| format!("{error:#}"));
        let said = json!({
            "program": path, "rule": rule, "pinned": marked, "held": held,
            "note": place.note(), "fans": fans.as_ref().ok(), "error": error,
        });
        println!("{said:#}");
        return Ok(());
    }
    println!("program  {}", path.display());
    println!("rule     {}", if rule { "in place" } else { "none" });
    println!("pin      {pinned}");
    match fans {
        Ok(fans) => {
            for (i, fan) in fans.iter().enumerate() {
                println!("fan {i}    {} of {} rpm  {}", fan.actual_rpm, fan.max_rpm, fan.mode);
            }
            Ok(())
        }
        Err(error) => bail!("the fans cannot be asked: {error:#}"),
    }
}

//! The watchdog of the fans: the same program in a process and a session of its own. It holds the
//! reading end of a pipe that only the server can write to, and nobody ever does: when the server
//! ends, by a signal, a panic or a closed terminal, the system closes it, and the read returns.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::pin::{Place, Restored};
use super::program::{ORDER_TIME, Program};

/// The hidden command.
pub const COMMAND: &str = "fan-watchdog";
/// What it says once it watches.
const READY: &[u8] = b"watching\n";
/// A dying server's lock may outlive its pipe by a moment, or by an order that it gave and that is
/// still being carried out; another server's is that server's affair.
const HELD_TIME: Duration = Duration::from_secs(ORDER_TIME.as_secs() + 5);
const LOOK_TIME: Duration = Duration::from_millis(50);
/// Attempts to give the fans back, and the pause between them.
const ATTEMPTS: u32 = 100;
const ATTEMPT_PAUSE: Duration = Duration::from_secs(3);

/// What it is told.
#[derive(Args, Debug)]
pub struct WatchdogArgs {
    #[arg(long)]
    folder: PathBuf,
    #[arg(long)]
    program: PathBuf,
    #[arg(long)]
    sudo: bool,
}

/// Waits for the end of the server, then gives the fans back.
#[must_use]
pub fn run(args: &WatchdogArgs) -> ExitCode {
    // Out of the terminal's reach: who closes it or presses Ctrl-C ends the server alone. It fails
    // only where it is so already.
    let _ = rustix::process::setsid();
    let mut out = std::io::stdout();
    if out.write_all(READY).and_then(|()| out.flush()).is_err() {
        return ExitCode::FAILURE;
    }
    let mut nothing = [0];
    while std::io::stdin().read(&mut nothing).is_ok_and(|bytes| bytes > 0) {}
    let program = Program { path: args.program.clone(), sudo: args.sudo };
    let place = Place::new(args.folder.clone());
    for _ in 0..ATTEMPTS {
        match give_back(&place, &program) {
            Ok(_) => return ExitCode::SUCCESS,
            Err(error) => {
                // There is nobody to tell any more; the next start reads the mark.
                let _ = std::fs::write(args.folder.join("fans.error"), format!("{error:#}\n"));
                std::thread::sleep(ATTEMPT_PAUSE);
            }
        }
    }
    ExitCode::FAILURE
}

fn give_back(place: &Place, program: &Program) -> Result<Restored> {
    let began = Instant::now();
    loop {
        let restored = place.restore(program)?;
        if restored != Restored::Held || began.elapsed() > HELD_TIME {
            return Ok(restored);
        }
        std::thread::sleep(LOOK_TIME);
    }
}

/// A watchdog as its server knows it.
#[derive(Debug)]
pub(super) struct Watchdog {
    child: Child,
    /// Held, never written to.
    _pipe: ChildStdin,
}

impl Watchdog {
    /// Starts one, and waits until it watches.
    pub(super) fn start(place: &Place, program: &Program) -> Result<Self> {
        let own = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(own);
        command.arg(COMMAND).arg("--folder").arg(&place.folder);
        command.arg("--program").arg(&program.path);
        if program.sudo {
            command.arg("--sudo");
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().context("cannot start the watchdog of the fans")?;
        let pipe = child.stdin.take().context("the watchdog has no pipe")?;
        let mut out = child.stdout.take().context("the watchdog cannot speak")?;
        let mut said = [0; READY.len()];
        if out.read_exact(&mut said).is_err() || said != READY {
            // It ends without its pipe.
            drop(pipe);
            let _ = child.wait();
            bail!("the watchdog of the fans ended at once");
        }
        mtplx_actors::metrics::watchdog_started();
        tracing::debug!(process = child.id(), "a watchdog watches over the fans");
        Ok(Self { child, _pipe: pipe })
    }

    /// Whether it still watches.
    pub(super) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// It is not needed any more: it finds nothing pinned, or pinned by others, and ends.
    pub(super) fn dismiss(self) {
        let Self { mut child, _pipe } = self;
        drop(_pipe);
        // Nobody waits for it longer than it takes; it ends by itself in any case.
        std::thread::spawn(move || drop(child.wait()));
    }
}

//! The machine's fans, held at their most while somebody is served, by ThermalForge.
//!
//! The one law: fans never stay pinned. Whoever pins them holds a lock that dies with the process
//! and leaves a mark that does not; nothing is pinned without a watchdog, a process of its own that
//! notices the server's end, however it came about, and gives the fans back; what both left behind
//! is undone at the next start. Two servers hold the lock together, and the last one gives back.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mtplx_actors::thermal;
use serde::Deserialize;

pub mod command;
mod keeper;
mod pin;
mod program;
mod sudoers;
pub mod watchdog;

pub use keeper::{Keeper, keep};
use pin::{Place, Restored};
use program::Program;

/// What the fans do.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// What the machine wants.
    Auto,
    /// All they can, while somebody is served.
    Max,
}

/// Who turns the fans, and when.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What the fans do.
    pub mode: Mode,
    /// ThermalForge's program; empty for where its installers put it.
    pub program: PathBuf,
    /// Whether it is run by `sudo -n`, unless we are root.
    pub sudo: bool,
    /// Seconds without a request after which fans are given back.
    pub idle_s: f64,
    /// Seconds within which they have to be heard.
    pub ramp_s: f64,
    /// Folder of the lock and the mark; empty for ~/.mtplx.
    pub folder: PathBuf,
}

/// Where ThermalForge's installers put it; the first two only root may write to.
const USUAL: [&str; 3] = [
    "/usr/local/bin/thermalforge",
    "/opt/thermalforge/thermalforge",
    "/opt/homebrew/bin/thermalforge",
];

impl Config {
    /// Proves that the numbers make sense.
    ///
    /// # Errors
    /// Which does not.
    pub fn check(&self) -> Result<(), String> {
        for (name, seconds) in [("fans.idle_s", self.idle_s), ("fans.ramp_s", self.ramp_s)] {
            if !(0.0..=31_536_000.0).contains(&seconds) {
                return Err(format!("{name} must be a number of seconds, got {seconds}"));
            }
        }
        Ok(())
    }

    fn program(&self) -> Program {
        let path = match self.program.as_os_str().is_empty() {
            false => self.program.clone(),
            true => {
                let found = USUAL.iter().map(Path::new).find(|path| path.exists());
                found.unwrap_or(Path::new(USUAL[0])).to_owned()
            }
        };
        Program { path, sudo: self.sudo && !is_root() }
    }

    fn place(&self) -> Place {
        if !self.folder.as_os_str().is_empty() {
            return Place::new(self.folder.clone());
        }
        let home = std::env::var_os("HOME").map_or_else(std::env::temp_dir, PathBuf::from);
        Place::new(home.join(".mtplx"))
    }

    fn idle(&self) -> Duration {
        Duration::from_secs_f64(self.idle_s)
    }

    fn ramp(&self) -> Duration {
        Duration::from_secs_f64(self.ramp_s)
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Undoes what a server and its watchdog left behind, if both were killed.
pub fn undo_stale(config: &Config) {
    match config.place().restore(&config.program()) {
        Ok(Restored::Given) => tracing::warn!("the fans had been left pinned: given back"),
        Ok(Restored::Held | Restored::NotPinned) => {}
        Err(error) => {
            thermal::show_fans("failed");
            tracing::error!(error = %format!("{error:#}"), "the fans stay pinned");
        }
    }
}

//! Who holds the fans: a lock that dies with its process, a mark that does not.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::program::Program;

/// Whoever gives back is done by then.
const LOCK_TIME: Duration = Duration::from_secs(60);
const LOOK_TIME: Duration = Duration::from_millis(50);

/// The folder of both.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) folder: PathBuf,
}

/// A server's part of the pin. The system takes it back when the process ends, by whatever means.
#[derive(Debug)]
pub(super) struct Hold {
    /// Locked, shared.
    lock: File,
}

impl Hold {
    /// The same lock for a child: it is held until both have let go of it.
    pub(super) fn share(&self) -> Result<Stdio> {
        Ok(self.lock.try_clone().context("cannot share the lock")?.into())
    }
}

/// What became of the pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Restored {
    /// Fans are the machine's own again.
    Given,
    /// Another server holds them.
    Held,
    /// They were not pinned.
    NotPinned,
}

impl Place {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn mark_path(&self) -> PathBuf {
        self.folder.join("fans.pinned")
    }

    fn open(&self) -> Result<File> {
        let path = self.folder.join("fans.lock");
        let opened = std::fs::create_dir_all(&self.folder)
            .and_then(|()| OpenOptions::new().create(true).append(true).open(&path));
        opened.with_context(|| format!("cannot open {}", path.display()))
    }

    /// Takes part in the pin, and marks it.
    pub(super) fn hold(&self) -> Result<Hold> {
        let lock = self.open()?;
        let began = Instant::now();
        while let Err(refused) = lock.try_lock_shared() {
            match refused {
                TryLockError::Error(error) => return Err(error).context("cannot lock"),
                TryLockError::WouldBlock if began.elapsed() > LOCK_TIME => {
                    bail!("another process keeps giving the fans back")
                }
                TryLockError::WouldBlock => std::thread::sleep(LOOK_TIME),
            }
        }
        let note = format!("pinned by process {}\n", std::process::id());
        std::fs::write(self.mark_path(), note).context("cannot mark the pin")?;
        Ok(Hold { lock })
    }

    /// Whether fans are, or were left, pinned.
    pub(super) fn is_marked(&self) -> bool {
        self.mark_path().exists()
    }

    /// What the mark says.
    pub(super) fn note(&self) -> Option<String> {
        Some(std::fs::read_to_string(self.mark_path()).ok()?.trim_end().to_owned())
    }

    /// Whether any server holds them.
    pub(super) fn is_held(&self) -> Result<bool> {
        match self.open()?.try_lock() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error).context("cannot lock"),
        }
    }

    /// Gives the fans back, unless another server holds them or nobody pinned them. Meanwhile
    /// nobody pins them anew.
    pub(super) fn restore(&self, program: &Program) -> Result<Restored> {
        if !self.is_marked() {
            return Ok(Restored::NotPinned);
        }
        let lock = self.open()?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(Restored::Held),
            Err(TryLockError::Error(error)) => return Err(error).context("cannot lock"),
        }
        // Somebody may have done it between the look and the lock.
        if !self.is_marked() {
            return Ok(Restored::NotPinned);
        }
        program.auto()?;
        self.unmark()?;
        Ok(Restored::Given)
    }

    /// Takes the mark away, which tells servers that hold the pin to let go of it.
    pub(super) fn unmark(&self) -> Result<()> {
        std::fs::remove_file(self.mark_path()).context("cannot take the mark of the pin away")
    }
}

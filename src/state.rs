//! What commands remember between runs, in the folder that a system has for that.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// The folder; it need not be there yet.
///
/// # Errors
/// Where no home is known.
pub fn folder() -> Result<PathBuf> {
    let named = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(folder) = named("XDG_STATE_HOME") {
        return Ok(folder.join("mtplx"));
    }
    let home = named("HOME").context("no home folder: set HOME, or XDG_STATE_HOME")?;
    let below = match cfg!(target_os = "macos") {
        true => "Library/Application Support/mtplx",
        false => ".local/state/mtplx",
    };
    Ok(home.join(below))
}

//! What a scenario found: for people, for programs, and whether its bars held.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

/// The end of a scenario.
pub(crate) struct Report {
    /// A table and what it means.
    pub(crate) text: String,
    /// The same in full.
    pub(crate) json: Value,
    /// Whether all that was to hold did.
    pub(crate) held: bool,
}

impl Report {
    /// For people, or for programs: to them, or into a file beside what people read.
    pub(crate) fn tell(&self, json: Option<&Option<PathBuf>>) -> Result<()> {
        if let Some(None) = json {
            println!("{:#}", self.json);
            return Ok(());
        }
        println!("{}", self.text.trim_end());
        if let Some(Some(path)) = json {
            std::fs::write(path, format!("{:#}\n", self.json))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

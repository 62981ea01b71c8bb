//! `mtplx_runtime.json`: what a model was found to be when it was verified, and of what that holds.
//!
//! The file is the original's; what it holds is kept. `mtplx verify` writes `mtplx_version`,
//! `arch_id`, `mtp_depth_max`, `recommended_profile`, `exactness_baseline`, `verified_on` and
//! `mtp_contract` in its form, and beside them `mtplx_verification`, a [`Verification`]: a model is
//! verified while that has passed and names its fingerprint. It is a note, and no seal: whoever can
//! write the folder can write it.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use mtplx_kernels::checkpoint::{Error, Files};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::files;

/// The file.
pub const FILE: &str = "mtplx_runtime.json";
/// Its part that is ours.
pub const SECTION: &str = "mtplx_verification";
/// Of what is written there; another one says nothing here.
pub const FORMAT: u32 = 1;

/// What came of the gates.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Verification {
    /// Of these fields; this program writes and reads 1.
    pub format: u32,
    /// The program and its version.
    pub program: String,
    /// When, in UTC.
    pub at: String,
    /// The digest of what was verified: configuration, headers of all weights and their sizes.
    pub fingerprint: String,
    /// Whether all gates were passed.
    pub passed: bool,
    /// Each of them.
    pub gates: Vec<Gate>,
}

/// One gate.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Gate {
    /// Its name.
    pub name: String,
    /// Whether it was passed.
    pub passed: bool,
    /// What was found, in words and figures.
    pub told: String,
    /// The figure that decides.
    pub measured: f64,
    /// What it is held against.
    pub bound: f64,
}

/// How a contract stands to the model beside it.
#[derive(Clone, Debug, PartialEq)]
pub enum Standing {
    /// There is none.
    Missing,
    /// It says nothing of our gates, or nothing that can be read.
    Silent,
    /// Gates were not passed.
    Failed(Verification),
    /// The model is another one by now.
    Changed(Verification),
    /// It holds.
    Holds(Verification),
}

impl Standing {
    /// What it says, if anything.
    #[must_use]
    pub fn verification(self) -> Option<Verification> {
        match self {
            Self::Missing | Self::Silent => None,
            Self::Failed(found) | Self::Changed(found) | Self::Holds(found) => Some(found),
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => write!(f, "it was never verified: there is no {FILE}"),
            Self::Silent => write!(f, "it was never verified here: {FILE} has no {SECTION}"),
            Self::Failed(found) => {
                let failed = found.gates.iter().filter(|gate| !gate.passed);
                let names = failed.map(|gate| gate.name.as_str()).collect::<Vec<_>>().join(", ");
                write!(f, "it did not pass when it was verified on {}: {names}", found.at)
            }
            Self::Changed(found) => {
                write!(f, "it has changed since it was verified on {}", found.at)
            }
            Self::Holds(found) => {
                write!(f, "it passed {} gates on {}", found.gates.len(), found.at)
            }
        }
    }
}

/// How the contract among `files` stands to a model of this fingerprint.
#[must_use]
pub fn standing(files: &Files, fingerprint: &str) -> Standing {
    let Ok(Some(text)) = files.text(FILE) else { return Standing::Missing };
    let section = |text: &str| -> Option<Verification> {
        let mut contract: Map<String, Value> = serde_json::from_str(text).ok()?;
        let found: Verification = serde_json::from_value(contract.remove(SECTION)?).ok()?;
        (found.format == FORMAT).then_some(found)
    };
    match section(&text) {
        None => Standing::Silent,
        Some(found) if found.fingerprint != fingerprint => Standing::Changed(found),
        Some(found) if !found.passed || found.gates.is_empty() => Standing::Failed(found),
        Some(found) => Standing::Holds(found),
    }
}

/// The digest of config.json and, of each of `weights`, name, size and header.
///
/// # Errors
/// A file cannot be read any more.
pub fn fingerprint(files: &Files, weights: &[String]) -> Result<String, Error> {
    let mut hasher = blake3::Hasher::new();
    let mut add = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
    };
    add(b"mtplx model 1");
    add(files.open("config.json")?.as_deref().unwrap_or_default());
    for name in weights {
        add(name.as_bytes());
        let Some(bytes) = files.open(name)? else { continue };
        add(&(bytes.len() as u64).to_le_bytes());
        add(bytes.header());
    }
    Ok(hasher.finalize().to_hex()[..32].to_owned())
}

/// The contract in `folder` as it stands; empty where there is none.
///
/// # Errors
/// It is no JSON object.
pub fn read(folder: &Path) -> Result<Map<String, Value>> {
    let path = folder.join(FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// Writes the contract into `folder`, all or nothing.
///
/// # Errors
/// The folder cannot be written to.
pub fn write(folder: &Path, contract: &Map<String, Value>) -> Result<()> {
    let mut text = serde_json::to_string_pretty(contract)?;
    text.push('\n');
    files::replace_shared(&folder.join(FILE), &text)
}

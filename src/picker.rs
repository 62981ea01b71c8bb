//! The models on this machine: found in folders and caches, judged, numbered, chosen from.

pub mod roots;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use schemars::JsonSchema;
use serde::Serialize;

use crate::tiers::{self, Tier};

/// Deeper folders are not looked into: LM Studio's models are two below its root, those of a hub's
/// cache three.
const DEPTH_MAX: usize = 6;
/// No more folders are looked into, in all.
const FOLDERS_MAX: usize = 20_000;
/// No more entries of one folder are looked at.
const ENTRIES_MAX: usize = 4096;
/// No more models are judged.
const MODELS_MAX: usize = 1000;
/// What a cache of Hugging Face's hub calls the repositories of models.
const HUB: &str = "models--";

/// A model that was found.
#[derive(Clone, Debug, JsonSchema, PartialEq, Eq, Serialize)]
pub struct Found {
    /// What to call it: the repository's name, or the path below the folder it was found in.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
    /// Bytes of its files.
    pub size: u64,
    /// How much is known of it.
    pub tier: Tier,
    /// Why.
    pub reasons: Vec<String>,
}

/// The models below `roots`, by name. Folders that are not there hold none; one that is reached on
/// several ways is found once.
#[must_use]
pub fn found(roots: &[PathBuf]) -> Vec<Found> {
    let mut walk = Walk::default();
    for root in roots {
        walk.root(root);
    }
    let judge = |(name, path, size): (String, PathBuf, u64)| {
        let judged = tiers::judge(&path);
        Found { name, path, size, tier: judged.tier, reasons: judged.reasons }
    };
    let mut found: Vec<Found> = walk.models.into_iter().map(judge).collect();
    found.sort_by(|a, b| (&a.name, &a.path).cmp(&(&b.name, &b.path)));
    found
}

/// The one that `answer` means: its number in the list, from 1 on, or its name, or the end of its
/// name where that fits one only.
///
/// # Errors
/// It means none, or several.
pub fn choose<'a>(list: &'a [Found], answer: &str) -> Result<&'a Found> {
    let answer = answer.trim();
    if let Some(model) = answer.parse::<usize>().ok().and_then(|n| list.get(n.checked_sub(1)?)) {
        return Ok(model);
    }
    let same: Vec<&Found> = list.iter().filter(|model| model.name == answer).collect();
    let tail =
        |model: &&Found| model.name.strip_suffix(answer).is_some_and(|rest| rest.ends_with('/'));
    let fits = match same.is_empty() {
        true => list.iter().filter(tail).collect(),
        false => same,
    };
    match fits[..] {
        [one] => Ok(one),
        [] => match list.len() {
            0 => bail!("there are no models to choose from: `mtplx pull owner/name` fetches one"),
            n => bail!("{answer:?} is none of the models: say a number from 1 to {n}, or a name"),
        },
        [..] => bail!("{answer:?} is the name of {} models: say a number", fits.len()),
    }
}

/// The numbered list, a line for each.
#[must_use]
pub fn numbered(list: &[Found]) -> String {
    let width = list.iter().map(|model| model.name.chars().count()).max().unwrap_or(0);
    let digits = list.len().to_string().len();
    let mut text = String::new();
    for (i, model) in list.iter().enumerate() {
        let (number, size) = (i + 1, bytes(model.size));
        let Found { name, tier, .. } = model;
        // Nothing fails that writes to a text.
        let _ = writeln!(text, "{number:>digits$}  {name:<width$}  {size:>9}  {tier}");
    }
    text
}

/// A number of bytes for people.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    let mib = bytes as f64 / (1 << 20) as f64;
    match mib {
        ..0.1 => format!("{bytes} B"),
        ..1000.0 => format!("{mib:.1} MiB"),
        _ => format!("{:.1} GiB", mib / 1024.0),
    }
}

/// What a folder holds, of its own.
#[derive(Default)]
struct Listing {
    folders: Vec<(String, PathBuf)>,
    size: u64,
    is_model: bool,
}

impl Listing {
    fn of(folder: &Path) -> Self {
        let mut listing = Self::default();
        let entries = std::fs::read_dir(folder).into_iter().flatten().take(ENTRIES_MAX).flatten();
        for entry in entries {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = entry.path();
            // A link that leads nowhere is a file that is not there.
            let found = std::fs::metadata(&path).ok();
            if found.as_ref().is_some_and(std::fs::Metadata::is_dir) {
                listing.folders.push((name, path));
                continue;
            }
            listing.size += found.map_or(0, |found| found.len());
            listing.is_model |= name == "config.json"
                || name.ends_with(".safetensors")
                || name.ends_with(".safetensors.index.json")
                || name.ends_with(".gguf");
        }
        // The last is looked into first: what is there itself goes before links to it.
        listing.folders.sort_by_cached_key(|(name, path)| (!path.is_symlink(), name.clone()));
        listing
    }
}

#[derive(Default)]
struct Walk {
    models: Vec<(String, PathBuf, u64)>,
    /// Folders that were looked into, however they were reached.
    seen: BTreeSet<(u64, u64)>,
}

impl Walk {
    fn root(&mut self, root: &Path) {
        let full = root.canonicalize().unwrap_or_else(|_| root.to_owned());
        let name = full.file_name().map_or("model".into(), |name| name.to_string_lossy());
        let mut folders = vec![(name.into_owned(), root.to_owned(), 0)];
        while let Some((name, path, depth)) = folders.pop() {
            if self.models.len() >= MODELS_MAX || !self.is_new(&path) {
                continue;
            }
            let Listing { folders: inner, size, is_model } = Listing::of(&path);
            if is_model {
                self.models.push((name, path, size));
                continue;
            }
            if depth >= DEPTH_MAX {
                continue;
            }
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(HUB)) {
                let of_hub = snapshots(&path).into_iter();
                folders.extend(of_hub.map(|(name, path)| (name, path, DEPTH_MAX)));
                continue;
            }
            for (own, path) in inner.into_iter().filter(|(own, _)| is_wanted(own)) {
                let name = if depth == 0 { own } else { format!("{name}/{own}") };
                folders.push((name, path, depth + 1));
            }
        }
    }

    fn is_new(&mut self, path: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        let Ok(found) = std::fs::metadata(path) else { return false };
        self.seen.len() < FOLDERS_MAX && self.seen.insert((found.dev(), found.ino()))
    }
}

/// What is hidden is not offered, nor what a hub's cache holds beside models.
fn is_wanted(name: &str) -> bool {
    !name.starts_with('.') && !name.starts_with("datasets--") && !name.starts_with("spaces--")
}

/// The snapshots of a hub's repository, by what to call them: the one that its main branch is at
/// has the repository's name, and so has an only one.
fn snapshots(repository: &Path) -> Vec<(String, PathBuf)> {
    let own = repository.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = own.unwrap_or_default().trim_start_matches(HUB).replacen("--", "/", 1);
    let main = std::fs::read_to_string(repository.join("refs/main")).unwrap_or_default();
    let listing = Listing::of(&repository.join("snapshots"));
    let alone = listing.folders.len() == 1;
    let called = |(revision, path): (String, PathBuf)| {
        if alone || revision == main.trim() {
            return (name.clone(), path);
        }
        let short: String = revision.chars().take(8).collect();
        (format!("{name}@{short}"), path)
    };
    listing.folders.into_iter().map(called).collect()
}

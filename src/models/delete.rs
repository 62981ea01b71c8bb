//! What goes with a model, and nothing else: in a hub's cache a snapshot is a folder of links, and
//! what they lead to may be another snapshot's too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use schemars::JsonSchema;
use serde::Serialize;

/// Deeper folders are not counted; they are deleted with the rest.
const DEPTH_MAX: usize = 16;

/// What is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    folders: Vec<PathBuf>,
    /// Of a hub's repository that stays.
    files: Vec<PathBuf>,
    bytes: u64,
}

/// What went.
#[derive(Clone, Debug, JsonSchema, PartialEq, Eq, Serialize)]
pub struct Deleted {
    /// Folders and files, each with all below it.
    pub paths: Vec<PathBuf>,
    /// What they took.
    pub bytes: u64,
}

/// What goes with the model at `path`, which must lie below one of `roots`, by no link.
///
/// # Errors
/// It does not.
pub fn plan(path: &Path, roots: &[PathBuf]) -> Result<Plan> {
    let real = path.canonicalize().with_context(|| path.display().to_string())?;
    let below = |root: &PathBuf| {
        root.canonicalize().is_ok_and(|root| real != root && real.starts_with(root))
    };
    if !roots.iter().any(below) {
        let shown = real.display();
        bail!("{shown} is not below a folder of models: delete it by hand if you mean it");
    }
    // Deeper than the folder itself, links are kept from by being no folders.
    if fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink()) {
        bail!("{} is a link: delete it by hand if you mean it", path.display());
    }
    let Some(repository) = repository_of(&real) else {
        let bytes = tree(&real).values().sum();
        return Ok(Plan { folders: vec![real], files: vec![], bytes });
    };
    let snapshots = fs::read_dir(repository.join("snapshots"))?;
    let others: Vec<PathBuf> =
        snapshots.flatten().map(|entry| entry.path()).filter(|other| *other != real).collect();
    if others.is_empty() {
        let bytes = tree(&repository).values().sum();
        return Ok(Plan { folders: vec![repository], files: vec![], bytes });
    }
    let kept: BTreeSet<PathBuf> = others.iter().flat_map(|other| targets(other)).collect();
    let blobs = repository.join("blobs");
    let own = targets(&real).into_iter();
    let files: Vec<PathBuf> =
        own.filter(|file| file.starts_with(&blobs) && !kept.contains(file)).collect();
    let sizes = files.iter().filter_map(|file| Some(fs::metadata(file).ok()?.len()));
    let bytes = sizes.sum::<u64>() + tree(&real).values().sum::<u64>();
    Ok(Plan { folders: vec![real], files, bytes })
}

impl Plan {
    /// What is to go.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.folders.iter().chain(&self.files)
    }

    /// What it takes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Deletes it. Links are deleted, never followed.
    ///
    /// # Errors
    /// Something cannot be deleted; what comes after it is still there.
    pub fn carry_out(self) -> Result<Deleted> {
        let told = |path: &Path| format!("cannot delete {}", path.display());
        for folder in &self.folders {
            fs::remove_dir_all(folder).with_context(|| told(folder))?;
        }
        for file in &self.files {
            match fs::remove_file(file) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| told(file));
                }
                _ => {}
            }
        }
        let paths = self.paths().cloned().collect();
        Ok(Deleted { paths, bytes: self.bytes })
    }
}

/// The repository of a hub's cache that `path` is a snapshot of.
fn repository_of(path: &Path) -> Option<PathBuf> {
    let snapshots = path.parent().filter(|parent| parent.ends_with("snapshots"))?;
    let repository = snapshots.parent()?;
    let name = repository.file_name()?.to_string_lossy();
    name.starts_with("models--").then(|| repository.to_owned())
}

/// What the links and files below `folder` come to.
fn targets(folder: &Path) -> BTreeSet<PathBuf> {
    let mut targets = BTreeSet::new();
    walk(folder, 0, &mut |path, _| targets.extend(path.canonicalize().ok()));
    targets
}

/// The files below `folder` themselves and their sizes, those of links left out.
fn tree(folder: &Path) -> BTreeMap<PathBuf, u64> {
    let mut tree = BTreeMap::new();
    walk(folder, 0, &mut |path, found| {
        let len = if found.is_file() { found.len() } else { 0 };
        tree.insert(path.to_owned(), len);
    });
    tree
}

fn walk(folder: &Path, depth: usize, seen: &mut dyn FnMut(&Path, &Metadata)) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(found) = fs::symlink_metadata(&path) else { continue };
        if found.is_dir() && depth < DEPTH_MAX {
            walk(&path, depth + 1, seen);
        } else {
            seen(&path, &found);
        }
    }
}

//! The hub's cache as its own tools lay it out: `blobs` by digest, `snapshots` of links to them by
//! commit, `refs` from branches to commits. Models that were fetched here are found by others, and
//! theirs by us.

use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::hub::{self, File, Listing};

/// All models of this user.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
}

/// A folder of the environment's; an empty variable is none.
fn named(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Where tools of the hub keep what is theirs.
pub(super) fn hub_home() -> Option<PathBuf> {
    let cache = || named("XDG_CACHE_HOME").or_else(|| Some(named("HOME")?.join(".cache")));
    named("HF_HOME").or_else(|| Some(cache()?.join("huggingface")))
}

impl Cache {
    /// The one that `HF_HUB_CACHE`, `HF_HOME` or the home folder names.
    ///
    /// # Errors
    /// Where none of them is set.
    pub fn of_environment() -> Result<Self> {
        let folder = named("HF_HUB_CACHE").or_else(|| Some(hub_home()?.join("hub")));
        let folder = folder.context("no cache is named: set HF_HOME, or HOME")?;
        Ok(Self { folder })
    }

    /// Where it is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Bytes that may still be written there.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub fn room(&self) -> Result<u64> {
        room(&self.folder)
    }

    /// Names of the models that are there in whole, by their main branch.
    #[must_use]
    pub fn models(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names
            .filter_map(|name| Some(name.strip_prefix("models--")?.replacen("--", "/", 1)))
            .filter(|name| fetched(Path::new(name)).is_some())
            .collect();
        names.sort();
        names
    }

    pub(super) fn model(&self, repo: &str) -> Place {
        Place { folder: self.folder.join(format!("models--{}", repo.replace('/', "--"))) }
    }
}

/// Bytes that may be written at a path that need not be there yet.
pub(crate) fn room(path: &Path) -> Result<u64> {
    let path = std::path::absolute(path)?;
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(there)
        .with_context(|| format!("cannot tell how much room {} has", there.display()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// The folder of a model that was fetched, if `name` is `owner/name`, with or without `@revision`,
/// and no folder by itself.
#[must_use]
pub fn fetched(name: &Path) -> Option<PathBuf> {
    if name.exists() {
        return None;
    }
    let (repo, revision) = name.to_str().map(|n| n.split_once('@').unwrap_or((n, "main")))?;
    hub::check_repo(repo).ok().filter(|()| repo.contains('/'))?;
    hub::check_revision(revision).ok()?;
    let place = Cache::of_environment().ok()?.model(repo);
    let known = std::fs::read_to_string(place.folder.join("refs").join(revision));
    let commit = known.map_or_else(|_| revision.to_owned(), |commit| commit.trim().to_owned());
    let whole = hub::is_hex(&commit, 40).then(|| place.snapshot(&commit))?;
    whole.join("config.json").exists().then_some(whole)
}

/// One model's part of it.
#[derive(Debug)]
pub(super) struct Place {
    folder: PathBuf,
}

impl Place {
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    pub(super) fn blob(&self, file: &File) -> PathBuf {
        self.folder.join("blobs").join(&file.blob)
    }

    pub(super) fn partial(&self, file: &File) -> PathBuf {
        self.folder.join("blobs").join(format!("{}.incomplete", file.blob))
    }

    /// Bytes of a file that are here, whole or in part.
    pub(super) fn have(&self, file: &File) -> u64 {
        let bytes = |path: PathBuf| std::fs::metadata(path).map(|m| m.len()).ok();
        bytes(self.blob(file)).or_else(|| bytes(self.partial(file))).unwrap_or(0)
    }

    /// Links every file into the snapshot, then lets the branch name it: who reads meanwhile finds
    /// the former commit or the whole of this one.
    pub(super) fn publish(&self, listing: &Listing, files: &[&File], revision: &str) -> Result<()> {
        let snapshot = self.snapshot(&listing.commit);
        for file in files {
            let link = snapshot.join(&file.name);
            // From where the link is up to the model's folder, then down to its blobs.
            let depth = Path::new(&file.name).components().count() + 1;
            let target: PathBuf = std::iter::repeat_n(Component::ParentDir, depth).collect();
            put_link(&target.join("blobs").join(&file.blob), &link)
                .with_context(|| format!("cannot make {}", link.display()))?;
        }
        if revision != listing.commit {
            let name = self.folder.join("refs").join(revision);
            let folder = name.parent().context("it stands below refs")?;
            std::fs::create_dir_all(folder)?;
            crate::files::replace_shared(&name, &listing.commit)?;
        }
        Ok(())
    }
}

fn put_link(target: &Path, link: &Path) -> Result<()> {
    std::fs::create_dir_all(link.parent().context("it stands below a snapshot")?)?;
    match std::fs::read_link(link) {
        Ok(old) if old == target => return Ok(()),
        Ok(_) => std::fs::remove_file(link)?,
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        // A file of somebody's own is not ours to replace.
        Err(_) => bail!("something else stands in its place"),
    }
    Ok(std::os::unix::fs::symlink(target, link)?)
}

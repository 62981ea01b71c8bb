//! Where a checkpoint's files come from: a folder on disk, or the binary itself.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::ops::{Deref, Range};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use super::Error;
use super::error::DOWNLOAD;

/// The files of one checkpoint. Clones share everything.
///
/// Files of a folder are mapped, not read. While a checkpoint lives, its files must not be cut or
/// written to in place; replacing them by renaming is harmless.
#[derive(Clone, Debug)]
pub struct Files {
    label: Arc<str>,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Folder(Arc<Path>),
    Embedded(&'static [(&'static str, &'static [u8])]),
}

impl Files {
    /// The files of the folder `path`.
    ///
    /// # Errors
    /// `path` is missing, or no folder, or a link that leads nowhere.
    pub fn folder(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let label = path.display().to_string();
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => {
                Ok(Self { label: label.into(), place: Place::Folder(path.into()) })
            }
            Ok(_) => Err(Error::file(&label, "is not a folder", "give the folder that holds it")),
            Err(e) if e.kind() == ErrorKind::NotFound && path.is_symlink() => {
                Err(dangling(&label, path))
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {
                Err(Error::file(&label, "does not exist", "give the checkpoint's folder"))
            }
            Err(e) => Err(unreadable(&label, &e)),
        }
    }

    /// Files built into the binary, as pairs of name and content.
    #[must_use]
    pub fn embedded(label: &'static str, files: &'static [(&'static str, &'static [u8])]) -> Self {
        Self { label: label.into(), place: Place::Embedded(files) }
    }

    /// What to call this checkpoint in messages: the folder's path, or the given label.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// How messages call the file `name`.
    #[must_use]
    pub fn path_of(&self, name: &str) -> String {
        format!("{}/{name}", self.label)
    }

    /// The names at the top level, sorted.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn names(&self) -> Result<Vec<String>, Error> {
        let mut names: Vec<String> = match &self.place {
            Place::Embedded(files) => files.iter().map(|(name, _)| (*name).to_owned()).collect(),
            Place::Folder(path) => fs::read_dir(path)
                .and_then(|entries| {
                    // A name that is not UTF-8 is no name of ours.
                    entries
                        .filter_map(|e| e.map(|e| e.file_name().into_string().ok()).transpose())
                        .collect::<io::Result<_>>()
                })
                .map_err(|e| unreadable(&self.label, &e))?,
        };
        names.sort();
        Ok(names)
    }

    /// The content of the file `name`, a relative path; `None` where there is none.
    ///
    /// # Errors
    /// `name` leads out of the folder, or is a dangling link, or no regular file, or unreadable.
    pub fn open(&self, name: &str) -> Result<Option<Bytes>, Error> {
        let shown = self.path_of(name);
        if name.is_empty()
            || !Path::new(name).components().all(|c| matches!(c, Component::Normal(_)))
        {
            let problem = "is not a plain path inside the checkpoint's folder";
            return Err(Error::file(&shown, problem, "name a file of the folder"));
        }
        match &self.place {
            Place::Embedded(files) => Ok(files
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, content)| Bytes::from_static(content))),
            Place::Folder(folder) => map(&folder.join(name), &shown),
        }
    }

    /// The content of the file `name` as text; `None` where there is none.
    ///
    /// # Errors
    /// As [`open`](Self::open), and where the content is not UTF-8.
    pub fn text(&self, name: &str) -> Result<Option<String>, Error> {
        let Some(bytes) = self.open(name)? else { return Ok(None) };
        match std::str::from_utf8(&bytes) {
            Ok(text) => Ok(Some(text.to_owned())),
            Err(e) => Err(Error::file(&self.path_of(name), format!("is no text: {e}"), DOWNLOAD)),
        }
    }
}

fn map(path: &PathBuf, shown: &str) -> Result<Option<Bytes>, Error> {
    match fs::symlink_metadata(path) {
        Ok(_) => {}
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(e) => return Err(unreadable(shown, &e)),
    }
    let found = match fs::metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == ErrorKind::NotFound => return Err(dangling(shown, path)),
        Err(e) => return Err(unreadable(shown, &e)),
    };
    // Asked before opening: to open a pipe would wait for its writer.
    if !found.is_file() {
        return Err(Error::file(shown, "is not a regular file", "put the file itself there"));
    }
    if found.len() == 0 {
        return Ok(Some(Bytes::from_static(&[])));
    }
    let file = File::open(path).map_err(|e| unreadable(shown, &e))?;
    // SAFETY: the mapping is read-only and private; `Files` asks that nobody cuts or rewrites the
    // file while a checkpoint lives.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| unreadable(shown, &e))?;
    Ok(Some(Bytes::of(map)))
}

fn dangling(shown: &str, path: &Path) -> Error {
    let target = fs::read_link(path).unwrap_or_default();
    Error::file(
        shown,
        format!("is a link to {}, which does not exist", target.display()),
        "finish the download it belongs to, or replace the link by the file",
    )
}

fn unreadable(shown: &str, error: &io::Error) -> Error {
    Error::file(shown, format!("cannot be read: {error}"), "check its permissions and the disk")
}

/// A stretch of a mapped file, of the binary or of memory. Clones share it.
#[derive(Clone)]
pub struct Bytes {
    source: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl Bytes {
    fn of(source: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Self { range: 0..source.as_ref().len(), source: Arc::new(source) }
    }

    /// Bytes that live as long as the program.
    #[must_use]
    pub fn from_static(content: &'static [u8]) -> Self {
        Self::of(content)
    }

    /// The part `range` of these bytes; `None` where it leads outside.
    pub(super) fn part(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.range.len() {
            return None;
        }
        let range = self.range.start + range.start..self.range.start + range.end;
        Some(Self { source: Arc::clone(&self.source), range })
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(content: Vec<u8>) -> Self {
        Self::of(content)
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &(*self.source).as_ref()[self.range.clone()]
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({})", self.len())
    }
}

//! Where a checkpoint's files come from: a folder on disk, or the binary itself.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::ops::{Deref, Range};
use std::path::{Component, Path};
use std::sync::Arc;

use memmap2::Mmap;

use super::error::DOWNLOAD;
use super::json::JSON_BYTES_MAX;
use super::shards::INDEX;
use super::{Error, header};

/// Far more than any checkpoint has.
const ENTRIES_MAX: usize = 1 << 16;
/// Ten times the largest index of shards.
const INDEX_BYTES_MAX: usize = 64 << 20;

/// The files of one checkpoint. Clones share everything.
///
/// Files of a folder are mapped, not read, but for [`Self::headers`]. While a checkpoint lives, its
/// files must not be cut or written to in place; replacing them by renaming is harmless.
#[derive(Clone, Debug)]
pub struct Files {
    label: Arc<str>,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Folder(Arc<Path>),
    /// A folder of which elements are never touched.
    Headers(Arc<Path>),
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

    /// The files of the folder `path`, of which nothing is mapped: of safetensors files only the
    /// header is read, and the elements stay where they are. For [`Checkpoint::survey`].
    ///
    /// [`Checkpoint::survey`]: super::Checkpoint::survey
    ///
    /// # Errors
    /// As [`Self::folder`].
    pub fn headers(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let Self { label, .. } = Self::folder(path)?;
        Ok(Self { label, place: Place::Headers(path.into()) })
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
            Place::Folder(path) | Place::Headers(path) => fs::read_dir(path)
                .and_then(|entries| {
                    // A name that is not UTF-8 is no name of ours.
                    entries
                        .take(ENTRIES_MAX)
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
            Place::Headers(folder) => read(&folder.join(name), &shown),
        }
    }

    /// Whether there is content under `name`, of which nothing is read.
    ///
    /// # Errors
    /// It is a dangling link, no regular file, empty or not on this disk.
    pub fn has(&self, name: &str) -> Result<bool, Error> {
        let shown = self.path_of(name);
        let len = match &self.place {
            Place::Embedded(files) => {
                files.iter().find(|(known, _)| *known == name).map(|(_, content)| content.len())
            }
            Place::Folder(folder) | Place::Headers(folder) => {
                let found = regular(&folder.join(name), &shown)?;
                if found.as_ref().is_some_and(is_dataless) {
                    return Err(dataless(&shown));
                }
                found.map(|found| found.len() as usize)
            }
        };
        match len {
            Some(0) => Err(Error::file(&shown, "is empty", DOWNLOAD)),
            len => Ok(len.is_some()),
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

fn map(path: &Path, shown: &str) -> Result<Option<Bytes>, Error> {
    let Some(found) = regular(path, shown)? else { return Ok(None) };
    if found.len() == 0 {
        return Ok(Some(Bytes::from_static(&[])));
    }
    let file = File::open(path).map_err(|e| unreadable(shown, &e))?;
    // SAFETY: the mapping is read-only and private; `Files` asks that nobody cuts or rewrites the
    // file while a checkpoint lives.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| unreadable(shown, &e))?;
    Ok(Some(Bytes::of(map)))
}

/// Of a safetensors file what stands before its elements; of others all.
fn read(path: &Path, shown: &str) -> Result<Option<Bytes>, Error> {
    let Some(found) = regular(path, shown)? else { return Ok(None) };
    if is_dataless(&found) {
        return Err(dataless(shown));
    }
    let len = usize::try_from(found.len()).unwrap_or(usize::MAX);
    let io = |e| unreadable(shown, &e);
    let mut file = File::open(path).map_err(io)?;
    let mut content = Vec::new();
    if path.extension().is_none_or(|extension| extension != "safetensors") {
        let most = if path.ends_with(INDEX) { INDEX_BYTES_MAX } else { JSON_BYTES_MAX };
        if len > most {
            let problem = format!("has {len} bytes, too many for a configuration");
            return Err(Error::file(shown, problem, DOWNLOAD));
        }
        file.take(most as u64).read_to_end(&mut content).map_err(io)?;
        return Ok(Some(content.into()));
    }
    file.by_ref().take(header::START as u64).read_to_end(&mut content).map_err(io)?;
    // What is no header is not read: whoever splits it will say so.
    if let Some(bytes) = header::announced(&content).filter(|&bytes| bytes <= len as u64) {
        let rest = (header::START - header::LENGTH_BYTES) as u64;
        file.take(bytes.saturating_sub(rest)).read_to_end(&mut content).map_err(io)?;
    }
    Ok(Some(Bytes { source: Arc::new(content), range: 0..len }))
}

/// What is known of the file; `None` where there is none.
fn regular(path: &Path, shown: &str) -> Result<Option<Metadata>, Error> {
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
    Ok(Some(found))
}

/// Whether the file's content is elsewhere, as that of files which a cloud keeps is. Reading one
/// would fetch it, which can take hours. Some file systems keep very small files in their own
/// records, so that no block is theirs.
fn is_dataless(found: &Metadata) -> bool {
    #[cfg(target_os = "macos")]
    {
        const SF_DATALESS: u32 = 0x4000_0000;
        if std::os::macos::fs::MetadataExt::st_flags(found) & SF_DATALESS != 0 {
            return true;
        }
    }
    const INLINE_BYTES_MAX: u64 = 4096;
    std::os::unix::fs::MetadataExt::blocks(found) == 0 && found.len() > INLINE_BYTES_MAX
}

fn dataless(shown: &str) -> Error {
    let problem = "has a size but no content on this disk: it was moved to a cloud, or its \
                   download was only begun";
    Error::file(shown, problem, "have the file fetched in full")
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
///
/// Of a file whose elements are never touched the source holds only the beginning: then what can be
/// looked at is shorter than [`Self::len`].
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

    /// How many there are, here or in the file.
    #[must_use]
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Of a safetensors file what stands before its elements, as far as it is there; of others all.
    #[must_use]
    pub fn header(&self) -> &[u8] {
        let end = header::announced(self)
            .and_then(|bytes| usize::try_from(bytes).ok()?.checked_add(header::LENGTH_BYTES));
        end.and_then(|end| self.get(..end)).unwrap_or(self)
    }

    /// Those of `parts` one after the other.
    pub(super) fn joined(parts: &[Self]) -> Self {
        let total: usize = parts.iter().map(Self::len).sum();
        let source = parts.iter().map(|part| &**part).collect::<Vec<_>>().concat();
        Self { source: Arc::new(source), range: 0..total }
    }

    /// The part `range` of these bytes; `None` where it leads outside.
    pub(super) fn part(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.len() {
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
        let source = (*self.source).as_ref();
        let end = self.range.end.min(source.len());
        source.get(self.range.start..end).unwrap_or_default()
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({})", self.len())
    }
}

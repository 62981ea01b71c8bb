//! The bank's second tier: states as files, which outlive their eviction and the process.
//!
//! One file holds one whole state, pages included: two states of one conversation store what they
//! have in common twice. Shared blocks would save disk, and cost an index of references that must
//! survive being killed at any moment; whole files need none, and each is good or bad by itself.
//! That is also why neither redb nor foyer keeps them: a database's journal would write every state
//! twice, and foyer's blocks know no longest prefix and restore nothing a rename does not.
//!
//! A file is written under a temporary name, synced and renamed, so that its name exists only when
//! it is whole; that its directory is not synced can lose a state at a power cut, never spoil one.
//! What is on its way to the disk is bounded in bytes: beyond that states are dropped, not queued.

use std::collections::BTreeMap;
use std::fs::{self, File as OpenFile, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, SystemTime};

use mtplx_core::Tenant;
use mtplx_core::image::Image;
use serde::{Deserialize, Serialize};

use super::Passage;
use crate::metrics;

mod bounds;
pub(super) mod format;
mod shelf;
#[cfg(test)]
mod tests;

use bounds::Bounds;
pub use format::{Id, Label, Refused};
pub(super) use format::{read, size, write};
pub(super) use shelf::File;
use shelf::Shelf;

const WHOLE: &str = "state";
const PARTIAL: &str = "part";
/// Bytes that are read at once.
const READ_BYTES: usize = 1 << 20;

/// Bounds of the files.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Their folder; empty for none.
    pub path: PathBuf,
    /// Most bytes of all files.
    pub bytes_max: u64,
    /// Most bytes on their way to them.
    pub queue_bytes_max: u64,
    /// Shorter prefixes are computed again instead.
    pub tokens_min: usize,
    /// Seconds after which a state that nobody used is written, though it is still in memory.
    pub idle_s: u64,
}

/// The files, and the thread that writes them.
#[derive(Debug)]
pub struct Store {
    bounds: Bounds,
    shelf: Arc<Mutex<Shelf>>,
    jobs: Mutex<mpsc::Sender<Job>>,
    queued: Arc<AtomicU64>,
    expected: Arc<Expected>,
}

/// What is on its way to the disk, each with whether it was cancelled.
type Expected = Mutex<BTreeMap<Id, Arc<AtomicBool>>>;

#[derive(Debug)]
enum Job {
    /// Unless it was cancelled meanwhile.
    Write(Box<Label>, Arc<Image>, Arc<AtomicBool>),
    /// Answered when all before is written.
    Flush(mpsc::Sender<()>),
}

impl Store {
    /// Opens a folder: takes it for this process alone, removes what an earlier one left half
    /// written, refuses and removes what is damaged, and starts the writer.
    ///
    /// # Errors
    /// When the folder cannot be made, listed or had alone.
    pub fn open(config: Config) -> io::Result<Self> {
        make_folder(&config.path)?;
        warn_if_open(&config.path);
        let lock = private().truncate(false).open(config.path.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => io::Error::other("another server uses this folder"),
            fs::TryLockError::Error(error) => error,
        })?;
        let mut shelf = survey(&config.path)?;
        let gone = make_room(&config, &mut shelf, 0);
        evict(&config, &gone);
        metrics::bank_files(shelf.len(), shelf.bytes());
        let (shelf, queued) = (Arc::new(Mutex::new(shelf)), Arc::new(AtomicU64::new(0)));
        let (jobs, work) = mpsc::channel();
        let expected = Arc::default();
        let bounds = Bounds::new(config);
        let writer = Writer {
            bounds: bounds.clone(),
            shelf: Arc::clone(&shelf),
            queued: Arc::clone(&queued),
            expected: Arc::clone(&expected),
            _lock: lock,
        };
        std::thread::Builder::new()
            .name("bank-writer".into())
            .spawn(move || work.into_iter().for_each(|job| writer.work(job)))?;
        Ok(Self { bounds, shelf, jobs: Mutex::new(jobs), queued, expected })
    }

    /// Its bounds.
    #[must_use]
    pub fn config(&self) -> Arc<Config> {
        self.bounds.get()
    }

    /// From now on goes by these, in its old folder; what they leave no room for goes with the
    /// next file.
    pub fn configure(&self, config: Config) {
        self.bounds.set(config);
    }

    /// Whether a state of so many bytes may be given to the writer now.
    #[must_use]
    pub fn has_room(&self, bytes: u64) -> bool {
        let (queued, config) = (self.queued.load(Ordering::Relaxed), self.config());
        // One that is larger than the bound goes alone, or it would never go.
        let fits = queued == 0 || queued.saturating_add(bytes) <= config.queue_bytes_max;
        fits && bytes <= config.bytes_max
    }

    /// Gives a state to the writer; never waits. False if too many bytes are on their way, or it is
    /// there or on its way already.
    pub fn put(&self, label: Label, image: impl Into<Arc<Image>>) -> bool {
        let (id, image) = (label.id(), image.into());
        let bytes = format::size(&label, &image);
        if self.has_or_expects(id) {
            return false;
        }
        let kept = self.has_room(bytes) && {
            self.queued.fetch_add(bytes, Ordering::Relaxed);
            let cancelled = Arc::default();
            held(&self.expected).insert(id, Arc::clone(&cancelled));
            self.send(Job::Write(Box::new(label), image, cancelled))
        };
        if !kept {
            metrics::bank_file("dropped");
        }
        kept
    }

    /// Whether a state has a file, or will soon.
    #[must_use]
    pub fn has_or_expects(&self, id: Id) -> bool {
        held(&self.expected).contains_key(&id) || self.has(id)
    }

    /// Takes back what was given to the writer, if it is not written yet.
    pub fn cancel(&self, id: Id) -> bool {
        let cancelled = held(&self.expected).remove(&id);
        if let Some(cancelled) = &cancelled {
            cancelled.store(true, Ordering::SeqCst);
        }
        cancelled.is_some()
    }

    fn send(&self, job: Job) -> bool {
        held(&self.jobs).send(job).is_ok()
    }

    /// Waits until all that was given is written; false if that takes longer than `limit`.
    pub fn flush(&self, limit: Duration) -> bool {
        let (done, waiting) = mpsc::channel();
        self.send(Job::Flush(done)) && waiting.recv_timeout(limit).is_ok()
    }

    /// Bytes of a state's file; 0 if there is none.
    #[must_use]
    pub fn size_of(&self, id: Id) -> u64 {
        self.shelf().size_of(id)
    }

    /// Whether a state has a file.
    #[must_use]
    pub fn has(&self, id: Id) -> bool {
        self.shelf().has(id)
    }

    /// The longest state of this identity that covers more than `above` tokens of a prompt with
    /// these hashes.
    #[must_use]
    pub fn longest(
        &self,
        identity: &str,
        tenant: Tenant,
        chain: &[u64],
        above: usize,
    ) -> Option<(Id, usize)> {
        self.shelf().longest((identity, true), tenant, chain, above)
    }

    /// Tokens of the longest state of another identity.
    #[must_use]
    pub fn foreign(&self, identity: &str, tenant: Tenant, chain: &[u64]) -> Option<usize> {
        self.shelf().longest((identity, false), tenant, chain, 0).map(|(_, len)| len)
    }

    /// Reads a state and notes how far it has come; blocks. One that is damaged is removed; one
    /// that could not be read may be good, and is there for the next process.
    ///
    /// # Errors
    /// [`Refused`] when it cannot be used.
    pub fn restore(&self, id: Id, passage: &Passage) -> Result<(Label, Image), Refused> {
        let result = self.open_file(id).and_then(|(file, len)| {
            let file = Noted { file, passage };
            let state = read(&mut BufReader::with_capacity(READ_BYTES, file), len)?;
            let same = state.0.id() == id;
            same.then_some(state).ok_or(Refused::Damaged("it is another's"))
        });
        match &result {
            Ok(_) => {
                self.shelf().touch(id);
                metrics::bank_file("restored");
                // So that a later process knows what was used last.
                let now = OpenOptions::new().append(true).open(self.path(id));
                let _ = now.and_then(|file| file.set_modified(SystemTime::now()));
            }
            Err(refused) => {
                tracing::warn!(%id, %refused, "a parked state on disk");
                metrics::bank_file("refused");
                match refused {
                    Refused::Damaged(_) => drop(self.remove(id)),
                    Refused::Read(_) => drop(self.take_down(id)),
                }
            }
        }
        result
    }

    /// A state's file as it is, unchecked; blocks.
    ///
    /// # Errors
    /// When there is none or it cannot be read.
    pub fn bytes_of(&self, id: Id) -> io::Result<Vec<u8>> {
        fs::read(self.path(id))
    }

    fn open_file(&self, id: Id) -> Result<(OpenFile, u64), Refused> {
        let file = OpenFile::open(self.path(id))?;
        let len = file.metadata()?.len();
        Ok((file, len))
    }

    /// Removes a state, also one that is still to be written; false if there was none.
    pub fn remove(&self, id: Id) -> bool {
        let expected = self.cancel(id);
        let known = self.take_down(id);
        remove(&self.path(id));
        known || expected
    }

    /// Forgets a file, which stays; false if there was none.
    fn take_down(&self, id: Id) -> bool {
        let mut shelf = self.shelf();
        let known = shelf.remove(id).is_some();
        metrics::bank_files(shelf.len(), shelf.bytes());
        known
    }

    /// All files.
    pub(super) fn all(&self) -> Vec<(Id, File)> {
        self.shelf().all().map(|(id, file)| (id, file.clone())).collect()
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        held(&self.shelf)
    }

    fn path(&self, id: Id) -> PathBuf {
        path_of(&self.config().path, id)
    }
}

/// A file, of which it is noted what was read.
struct Noted<'a> {
    file: OpenFile,
    passage: &'a Passage,
}

impl Read for Noted<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        // Much at once would look like standing still on a slow disk.
        let most = into.len().min(READ_BYTES);
        let bytes = self.file.read(&mut into[..most])?;
        self.passage.moved(bytes as u64);
        Ok(bytes)
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What people wrote is nobody else's on the machine.
fn make_folder(path: &Path) -> io::Result<()> {
    let mut folder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut folder, 0o700);
    folder.recursive(true).create(path)
}

/// Makes files that their owner alone may read: they hold what people wrote.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// A folder that was there before may be open to others; its owner may want that, or not know.
fn warn_if_open(path: &Path) {
    #[cfg(unix)]
    if let Ok(metadata) = fs::metadata(path)
        && std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o077 != 0
    {
        let path = path.display();
        tracing::warn!(%path, "others on this machine can look into the folder of parked states");
    }
}

fn path_of(folder: &Path, id: Id) -> PathBuf {
    folder.join(format!("{id}.{WHOLE}"))
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(path = %path.display(), %error, "cannot remove a file"),
    }
}

/// What a folder holds, in the order of use. Files of other kinds are left alone.
fn survey(folder: &Path) -> io::Result<Shelf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        match path.extension().and_then(|e| e.to_str()) {
            Some(PARTIAL) => remove(&path),
            Some(WHOLE) => match look(&path) {
                Ok(seen) => found.push(seen),
                Err(refused) => {
                    let damaged = matches!(refused, Refused::Damaged(_));
                    tracing::warn!(path = %path.display(), %refused, removed = damaged, "a file");
                    metrics::bank_file("refused");
                    if damaged {
                        remove(&path);
                    }
                }
            },
            Some(_) | None => {}
        }
    }
    found.sort_by_key(|(used, id, _)| (*used, *id));
    let mut shelf = Shelf::default();
    for (_, id, file) in found {
        shelf.add(id, file);
    }
    Ok(shelf)
}

fn look(path: &Path) -> Result<(SystemTime, Id, File), Refused> {
    let name = path.file_stem().and_then(|stem| stem.to_str()).and_then(Id::parse);
    let id = name.ok_or(Refused::Damaged("its name is none of ours"))?;
    let file = OpenFile::open(path)?;
    let metadata = file.metadata()?;
    let head = format::read_head(&mut BufReader::new(file), metadata.len())?;
    let (Some(kind), Some(hash)) = (head.kind(), head.hash()) else {
        return Err(Refused::Damaged("its head is not understood"));
    };
    let tenant = Tenant(head.tenant);
    let (identity, tokens, bytes) = (head.identity.into(), head.tokens, metadata.len());
    let file = File { identity, tenant, kind, hash, tokens, bytes };
    Ok((metadata.modified()?, id, file))
}

/// Takes the files down that were not used for longest, until `more` bytes fit; whoever asks
/// removes them, and need not hold the shelf meanwhile.
fn make_room(config: &Config, shelf: &mut Shelf, more: u64) -> Vec<Id> {
    let mut gone = Vec::new();
    while shelf.bytes().saturating_add(more) > config.bytes_max
        && let Some(id) = shelf.oldest()
    {
        shelf.remove(id);
        gone.push(id);
    }
    gone
}

fn evict(config: &Config, gone: &[Id]) {
    for &id in gone {
        remove(&path_of(&config.path, id));
        metrics::bank_file("evicted");
    }
}

/// The thread's side.
struct Writer {
    bounds: Bounds,
    shelf: Arc<Mutex<Shelf>>,
    queued: Arc<AtomicU64>,
    expected: Arc<Expected>,
    /// Held while it may write: two servers would remove each other's files.
    _lock: OpenFile,
}

impl Writer {
    fn work(&self, job: Job) {
        match job {
            Job::Write(label, image, cancelled) => {
                let written = self.write(&label, &image, &cancelled);
                self.queued.fetch_sub(format::size(&label, &image), Ordering::Relaxed);
                match written {
                    Ok(true) => metrics::bank_file("written"),
                    Ok(false) => metrics::bank_file("dropped"),
                    Err(error) => {
                        tracing::warn!(%error, "cannot write a parked state");
                        metrics::bank_file("failed");
                    }
                }
                let mut expected = held(&self.expected);
                // After it was cancelled the same may have been given anew.
                if expected.get(&label.id()).is_some_and(|own| Arc::ptr_eq(own, &cancelled)) {
                    expected.remove(&label.id());
                }
            }
            // Whoever asked may have stopped waiting.
            Job::Flush(done) => drop(done.send(())),
        }
    }

    /// Writes a file under its name. False if it was cancelled meanwhile.
    fn write(&self, label: &Label, image: &Image, cancelled: &AtomicBool) -> io::Result<bool> {
        if cancelled.load(Ordering::SeqCst) {
            return Ok(false);
        }
        let (id, config) = (label.id(), self.bounds.get());
        let partial = config.path.join(format!("{id}.{PARTIAL}"));
        let written = write_file(&partial, label, image).and_then(|bytes| {
            let tokens = &label.prefix.tokens;
            let file = File {
                identity: Arc::clone(&label.identity),
                tenant: label.prefix.tenant,
                kind: label.kind,
                hash: mtplx_core::prefix::chain(tokens)[tokens.len()],
                tokens: tokens.len(),
                bytes,
            };
            let gone = make_room(&config, &mut held(&self.shelf), bytes);
            evict(&config, &gone);
            let path = path_of(&config.path, id);
            fs::rename(&partial, &path)?;
            let mut shelf = held(&self.shelf);
            // Whoever cancels it after this finds it on the shelf.
            if cancelled.load(Ordering::SeqCst) {
                drop(shelf);
                remove(&path);
                return Ok(false);
            }
            shelf.add(id, file);
            metrics::bank_files(shelf.len(), shelf.bytes());
            Ok(true)
        });
        if written.is_err() {
            remove(&partial);
        }
        written
    }
}

fn write_file(path: &Path, label: &Label, image: &Image) -> io::Result<u64> {
    let mut file = BufWriter::with_capacity(1 << 20, private().truncate(true).open(path)?);
    write(&mut file, label, image)?;
    file.flush()?;
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    // Before the rename: a name must never stand for less than all of it.
    file.sync_all()?;
    Ok(file.metadata()?.len())
}

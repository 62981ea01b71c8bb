//! The index of warm prefixes: moka for bounds, recency and expiry; chained hashes for the match.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use mtplx_core::batch::{Deposit, Warm};
use mtplx_core::prefix::{Lengths, chain};
use mtplx_core::{SnapshotId, Token};

use super::Config;

/// A prefix: its chained hash and its length. Hashes may collide; tokens are compared.
type Key = (u64, usize);

#[derive(Debug)]
struct Entry {
    snapshot: SnapshotId,
    tokens: Arc<[Token]>,
    bytes: u64,
    /// The use at which it was last touched; moka knows its order but does not tell.
    used: AtomicU64,
}

/// What left the index.
#[derive(Debug)]
pub(super) struct Gone {
    pub(super) snapshot: SnapshotId,
    pub(super) cause: RemovalCause,
    len: usize,
    bytes: u64,
}

#[derive(Debug)]
pub(super) struct Index {
    warm: Cache<Key, Arc<Entry>>,
    /// moka's listener runs inside its calls; what it saw is collected here.
    left: mpsc::Receiver<Gone>,
    lengths: Lengths,
    uses: u64,
    entries: u64,
    bytes: u64,
}

impl Index {
    pub(super) fn new(config: &Config) -> Self {
        let (leaving, left) = mpsc::channel();
        let capacity_kib = config.bytes_max / 1024;
        // Every entry weighs at least its share of the capacity, which bounds their number too.
        let share_kib = (capacity_kib / u64::from(config.entries_max.max(1))).max(1);
        let warm = Cache::builder()
            // The default policy refuses newcomers when full; sessions need the opposite.
            .eviction_policy(EvictionPolicy::lru())
            .max_capacity(capacity_kib)
            // moka counts in 32 bits: in kibibytes that is 4 TiB.
            .weigher(move |_, entry: &Arc<Entry>| {
                u32::try_from(entry.bytes.div_ceil(1024).max(share_kib)).unwrap_or(u32::MAX)
            })
            .time_to_idle(Duration::from_secs(config.idle_s))
            .eviction_listener(move |key: Arc<Key>, entry: Arc<Entry>, cause| {
                let (snapshot, bytes) = (entry.snapshot, entry.bytes);
                // Fails only while the index is dropped, when names mean nothing any more.
                let _ = leaving.send(Gone { snapshot, cause, len: key.1, bytes });
            })
            .build();
        Self { warm, left, lengths: Lengths::default(), uses: 0, entries: 0, bytes: 0 }
    }

    /// The longest stored prefix of `prompt`, which may be all of it.
    pub(super) fn longest(&mut self, prompt: &[Token]) -> Option<Warm> {
        let hashes = chain(prompt);
        let mut found = None;
        for len in self.lengths.descending(prompt.len()) {
            if let Some(entry) = self.warm.get(&(hashes[len], len))
                && *entry.tokens == prompt[..len]
            {
                found = Some((entry, len));
                break;
            }
        }
        let (entry, len) = found?;
        self.touch(&entry);
        Some(Warm { snapshot: entry.snapshot, len })
    }

    /// Stores a prefix. False if it is here already: the old one was touched instead.
    pub(super) fn put(&mut self, deposit: Deposit) -> bool {
        let Deposit { snapshot, tokens, bytes } = deposit;
        let len = tokens.len();
        let key = (chain(&tokens)[len], len);
        if let Some(entry) = self.warm.get(&key)
            && entry.tokens == tokens
        {
            self.touch(&entry);
            return false;
        }
        let entry = Arc::new(Entry { snapshot, tokens, bytes, used: AtomicU64::new(0) });
        self.touch(&entry);
        self.lengths.add(len);
        self.entries += 1;
        self.bytes += bytes;
        self.warm.insert(key, entry);
        true
    }

    /// Drops the least recently used prefix. False if there is none.
    pub(super) fn reclaim(&mut self) -> bool {
        let used = |entry: &Arc<Entry>| entry.used.load(Ordering::Relaxed);
        let oldest = self.warm.iter().min_by_key(|(_, entry)| used(entry));
        let Some((key, _)) = oldest else { return false };
        self.warm.invalidate(&*key);
        true
    }

    /// What left since the last time; each stored prefix leaves once.
    pub(super) fn gone(&mut self) -> Vec<Gone> {
        self.warm.run_pending_tasks();
        let gone: Vec<Gone> = self.left.try_iter().collect();
        for Gone { len, bytes, .. } in &gone {
            self.lengths.remove(*len);
            self.entries -= 1;
            self.bytes -= bytes;
        }
        gone
    }

    /// Prefixes stored and the bytes they keep alive.
    pub(super) fn holds(&self) -> (u64, u64) {
        (self.entries, self.bytes)
    }

    fn touch(&mut self, entry: &Entry) {
        self.uses += 1;
        entry.used.store(self.uses, Ordering::Relaxed);
    }
}

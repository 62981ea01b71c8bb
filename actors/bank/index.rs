//! The index of warm prefixes: moka for bounds, recency and expiry; chained hashes for the match.
//! What groups of conversations begin with (roots) is bounded apart from what they became, so that
//! no chat evicts it; what a person pinned is bounded apart from both, and never goes by itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use mtplx_core::batch::{Deposit, Kind, Warm};
use mtplx_core::prefix::{Lengths, chain};
use mtplx_core::{SnapshotId, Tenant, Token};
use tokio::time::Instant;

use super::disk::{Id, Label};
use super::{Config, Pinned};

/// A prefix: whose it is, its chained hash and its length. Hashes may collide; tokens are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Key {
    tenant: Tenant,
    hash: u64,
    len: usize,
}

/// A state that is warm.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) snapshot: SnapshotId,
    pub(super) label: Label,
    pub(super) id: Id,
    pub(super) bytes: u64,
    pub(super) since: Instant,
    key: Key,
    /// The use at which it was last touched; moka knows its order but does not tell.
    used: AtomicU64,
    /// Milliseconds from `since` to its last use.
    idle_from: AtomicU64,
    hits: AtomicU64,
    fate: Arc<Fate>,
    /// The use after which it was last given to be written; 0 for none.
    written: AtomicU64,
    /// Whether it leaves its tier for another.
    moving: AtomicBool,
}

impl Entry {
    /// Time since its last use.
    pub(super) fn idle(&self) -> Duration {
        let from = Duration::from_millis(self.idle_from.load(Ordering::Relaxed));
        self.since.elapsed().saturating_sub(from)
    }

    /// How many requests started from it.
    pub(super) fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    pub(super) fn fate(&self) -> &Arc<Fate> {
        &self.fate
    }

    /// Whether it was used since it was last given to be written, or was not taken then. The disk
    /// may have let it go meanwhile, for others that were used later: it comes back with its next
    /// use, or when memory lets it go.
    pub(super) fn is_news(&self) -> bool {
        let since = self.written.load(Ordering::Relaxed) < self.used.load(Ordering::Relaxed);
        since || self.fate.in_vain.load(Ordering::Relaxed)
    }

    pub(super) fn note_written(&self) {
        self.written.store(self.used.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    pub(super) fn hash(&self) -> u64 {
        self.key.hash
    }
}

/// What is to become of a state's file; whoever carries the state looks.
#[derive(Debug, Default)]
pub struct Fate {
    /// Whether it is on its way to the writer.
    leaving: AtomicBool,
    /// Whether it was not taken when it came there.
    in_vain: AtomicBool,
    /// Whether a person wants it gone: then it is not written.
    dropped: AtomicBool,
}

impl Fate {
    /// Notes that it is on its way to the writer. False if it was.
    pub(super) fn leave(&self) -> bool {
        !self.leaving.swap(true, Ordering::Relaxed)
    }

    /// Whether it is on its way to the writer.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// It came to the writer, or will not: from now on the store knows.
    pub fn arrived(&self, taken: bool) {
        self.in_vain.store(!taken, Ordering::Relaxed);
        self.leaving.store(false, Ordering::Relaxed);
    }

    /// Notes that it is never to be written. False if that was so.
    pub(super) fn drop_it(&self) -> bool {
        !self.dropped.swap(true, Ordering::SeqCst)
    }

    /// Whether nobody dropped it.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        !self.dropped.load(Ordering::SeqCst)
    }
}

/// What left the index.
#[derive(Debug)]
pub(super) struct Gone {
    pub(super) entry: Arc<Entry>,
    pub(super) cause: RemovalCause,
}

type Tier = Cache<Key, Arc<Entry>>;

#[derive(Debug)]
pub(super) struct Index {
    identity: Arc<str>,
    chats: Tier,
    roots: Tier,
    /// Most that the roots may weigh, and what each state weighs at least.
    roots_kib: u64,
    share_kib: u64,
    pinned: BTreeMap<Key, Arc<Entry>>,
    /// Most that all may weigh, of which the pinned may have half.
    all_kib: u64,
    /// Of all that, what it may hold until further notice, from 0 to 1.
    limit: f64,
    names: BTreeMap<SnapshotId, Key>,
    /// moka's listener runs inside its calls; what it saw is collected here.
    left: mpsc::Receiver<Gone>,
    leaving: mpsc::Sender<Gone>,
    lengths: Lengths,
    uses: u64,
    bytes: u64,
}

/// Every entry weighs at least its share of the capacity, which bounds their number too.
fn share_kib(config: &Config) -> u64 {
    (config.bytes_max / 1024 / u64::from(config.entries_max.max(1))).max(1)
}

fn weight_kib(bytes: u64, share_kib: u64) -> u64 {
    bytes.div_ceil(1024).max(share_kib)
}

fn tier(config: &Config, bytes_max: u64, leaving: mpsc::Sender<Gone>) -> Tier {
    // Where there is no room at all moka takes nothing and tells nobody.
    let capacity_kib = (bytes_max / 1024).max(1);
    let share_kib = share_kib(config);
    Cache::builder()
        // The default policy refuses newcomers when full; sessions need the opposite.
        .eviction_policy(EvictionPolicy::lru())
        .max_capacity(capacity_kib)
        // moka counts in 32 bits: in kibibytes that is 4 TiB.
        .weigher(move |_, entry: &Arc<Entry>| {
            u32::try_from(weight_kib(entry.bytes, share_kib)).unwrap_or(u32::MAX)
        })
        .time_to_idle(Duration::from_secs(config.idle_s))
        .eviction_listener(move |_, entry: Arc<Entry>, cause| {
            // Fails only while the index is dropped, when names mean nothing any more.
            let _ = leaving.send(Gone { entry, cause });
        })
        .build()
}

impl Index {
    pub(super) fn new(config: &Config, identity: Arc<str>) -> Self {
        let (leaving, left) = mpsc::channel();
        let roots = config.roots_bytes();
        Self {
            identity,
            chats: tier(config, config.bytes_max - roots, leaving.clone()),
            roots: tier(config, roots, leaving.clone()),
            roots_kib: roots / 1024,
            share_kib: share_kib(config),
            pinned: BTreeMap::new(),
            all_kib: config.bytes_max / 1024,
            limit: 1.0,
            names: BTreeMap::new(),
            left,
            leaving,
            lengths: Lengths::default(),
            uses: 0,
            bytes: 0,
        }
    }

    /// The longest stored prefix of `prompt`, which may be all of it; `chain` are its hashes.
    pub(super) fn longest(
        &mut self,
        tenant: Tenant,
        prompt: &[Token],
        chain: &[u64],
    ) -> Option<Warm> {
        let found = self.lengths.descending(prompt.len()).find_map(|len| {
            let entry = self.get(&Key { tenant, hash: chain[len], len })?;
            (*entry.label.prefix.tokens == prompt[..len]).then_some(entry)
        });
        let entry = found?;
        self.touch(&entry);
        entry.hits.fetch_add(1, Ordering::Relaxed);
        Some(Warm { snapshot: entry.snapshot, len: entry.key.len })
    }

    fn get(&self, key: &Key) -> Option<Arc<Entry>> {
        let tiers = self.chats.get(key).or_else(|| self.roots.get(key));
        tiers.or_else(|| self.pinned.get(key).cloned())
    }

    /// Stores a prefix. False if it is here already: the old one was touched instead.
    pub(super) fn put(&mut self, deposit: Deposit) -> bool {
        let Deposit { snapshot, prefix, kind, bytes } = deposit;
        let len = prefix.tokens.len();
        let key = Key { tenant: prefix.tenant, hash: chain(&prefix.tokens)[len], len };
        if let Some(entry) = self.get(&key) {
            if entry.label.prefix == prefix {
                self.touch(&entry);
                return false;
            }
            // Another text of the same hash: one name holds one of them.
            self.drop_key(&key, &entry);
        }
        let label = Label { identity: Arc::clone(&self.identity), prefix, kind };
        let entry = Arc::new(Entry {
            snapshot,
            id: label.id(),
            label,
            bytes,
            key,
            since: Instant::now(),
            used: AtomicU64::new(0),
            idle_from: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            fate: Arc::default(),
            written: AtomicU64::new(0),
            moving: AtomicBool::new(false),
        });
        self.touch(&entry);
        self.lengths.add(len);
        self.names.insert(snapshot, key);
        self.bytes += bytes;
        self.tier(&entry).insert(key, entry);
        self.keep_within();
        true
    }

    /// Where a state belongs. A root that is heavier than all roots may be would be turned away
    /// there, and is as good as a chat.
    fn tier(&self, entry: &Entry) -> &Tier {
        if self.is_among_roots(entry) { &self.roots } else { &self.chats }
    }

    fn is_among_roots(&self, entry: &Entry) -> bool {
        entry.label.kind == Kind::Root && self.weight(entry) <= self.roots_kib
    }

    /// What a state counts: its bytes, but at least its share, which bounds their number too.
    fn weight(&self, entry: &Entry) -> u64 {
        weight_kib(entry.bytes, self.share_kib)
    }

    fn pinned_weight(&self) -> u64 {
        self.pinned.values().map(|entry| self.weight(entry)).sum()
    }

    /// The tiers' own bounds do not know of what is pinned, nor of a limit, as moka cannot be
    /// resized: others go until all fit together, and roots until they fit in their share of it.
    fn keep_within(&mut self) {
        let pinned = self.pinned_weight();
        if pinned == 0 && self.limit >= 1.0 {
            return;
        }
        let (most, roots_most) = (self.limited(self.all_kib), self.limited(self.roots_kib));
        // The least recently used are last.
        let all = self.all();
        let free = all.iter().filter(|entry| !self.is_pinned(entry));
        let (mut roots, mut free): (Vec<_>, Vec<_>) =
            free.partition(|entry| self.is_among_roots(entry));
        let weight = |of: &[&Arc<Entry>]| of.iter().map(|entry| self.weight(entry)).sum::<u64>();
        let mut rooted = weight(&roots);
        let mut held = pinned + rooted + weight(&free);
        let mut goes = Vec::new();
        while rooted > roots_most
            && let Some(entry) = roots.pop()
        {
            (rooted, held) = (rooted - self.weight(entry), held - self.weight(entry));
            goes.push(entry);
        }
        // Of what is left, roots stay longest.
        while held > most
            && let Some(entry) = free.pop().or_else(|| roots.pop())
        {
            held -= self.weight(entry);
            goes.push(entry);
        }
        goes.into_iter().for_each(|entry| self.tier(entry).invalidate(&entry.key));
        // Only a limit comes before what a person would like to keep.
        let mut pinned: Vec<_> = all.iter().filter(|entry| self.is_pinned(entry)).collect();
        let mut unpinned = Vec::new();
        while held > most
            && let Some(entry) = pinned.pop()
        {
            held -= self.weight(entry);
            unpinned.push(entry.key);
        }
        unpinned.iter().for_each(|key| self.unpin(key, RemovalCause::Size));
    }

    #[expect(clippy::cast_precision_loss, reason = "kibibytes")]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within 0 to 1")]
    fn limited(&self, kib: u64) -> u64 {
        if self.limit < 1.0 { (kib as f64 * self.limit) as u64 } else { kib }
    }

    /// From now on it goes by these bounds. As moka cannot be resized, what is held moves to new
    /// tiers, what was used last at the end, so that what does not fit any more goes in its order.
    pub(super) fn resize(&mut self, config: &Config) {
        let held = self.all();
        let roots = config.roots_bytes();
        let new = |bytes| tier(config, bytes, self.leaving.clone());
        let (chats, roots_tier) = (new(config.bytes_max - roots), new(roots));
        let old = [
            std::mem::replace(&mut self.chats, chats),
            std::mem::replace(&mut self.roots, roots_tier),
        ];
        (self.roots_kib, self.share_kib) = (roots / 1024, share_kib(config));
        self.all_kib = config.bytes_max / 1024;
        for entry in held.into_iter().rev().filter(|entry| !self.pinned.contains_key(&entry.key)) {
            entry.moving.store(true, Ordering::Relaxed);
            old.iter().for_each(|tier| tier.invalidate(&entry.key));
            self.tier(&entry).insert(entry.key, entry);
        }
        // What was too old already has left all the same.
        old.iter().for_each(Tier::run_pending_tasks);
        self.keep_within();
    }

    /// From now on it holds such a share of what it may at most.
    pub(super) fn set_limit(&mut self, share: f64) {
        // What is no number limits nothing.
        self.limit = if share.is_nan() { 1.0 } else { share.clamp(0.0, 1.0) };
        self.keep_within();
    }

    /// Bytes it may hold now.
    pub(super) fn bytes_max(&self) -> u64 {
        self.limited(self.all_kib) * 1024
    }

    /// A row started from this state without asking here.
    pub(super) fn used(&mut self, snapshot: SnapshotId) {
        if let Some(key) = self.names.get(&snapshot).copied()
            && let Some(entry) = self.get(&key)
        {
            self.touch(&entry);
            entry.hits.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Drops the least recently used prefix, roots last. False if there is none.
    pub(super) fn reclaim(&mut self) -> bool {
        let used = |entry: &Arc<Entry>| entry.used.load(Ordering::Relaxed);
        let oldest = |tier: &Tier| tier.iter().min_by_key(|(_, entry)| used(entry));
        if let Some((key, _)) = oldest(&self.chats) {
            self.chats.invalidate(&*key);
        } else if let Some((key, _)) = oldest(&self.roots) {
            self.roots.invalidate(&*key);
        } else if let Some(key) = self.pinned.values().min_by_key(|e| used(e)).map(|e| e.key) {
            // A request that runs comes before what a person would like to keep.
            self.unpin(&key, RemovalCause::Explicit);
        } else {
            return false;
        }
        true
    }

    fn unpin(&mut self, key: &Key, cause: RemovalCause) {
        if let Some(entry) = self.pinned.remove(key) {
            // The index holds the other end.
            let _ = self.leaving.send(Gone { entry, cause });
        }
    }

    fn drop_key(&mut self, key: &Key, entry: &Entry) {
        self.tier(entry).invalidate(key);
        self.unpin(key, RemovalCause::Explicit);
    }

    /// Drops a state by name; false if there is none.
    pub(super) fn drop_id(&mut self, id: Id) -> bool {
        let found = self.all().into_iter().find(|entry| entry.id == id);
        if let Some(entry) = &found {
            self.drop_key(&entry.key, entry);
        }
        found.is_some()
    }

    /// Keeps a state from going by itself, or lets it go again.
    pub(super) fn pin(&mut self, id: Id, on: bool) -> Pinned {
        let Some(entry) = self.all().into_iter().find(|entry| entry.id == id) else {
            return Pinned::Unknown;
        };
        let key = entry.key;
        if on && !self.pinned.contains_key(&key) {
            if self.pinned_weight() + self.weight(&entry) > self.limited(self.all_kib) / 2 {
                return Pinned::Full;
            }
            entry.moving.store(true, Ordering::Relaxed);
            self.tier(&entry).invalidate(&key);
            self.pinned.insert(key, entry);
            self.keep_within();
        } else if !on && self.pinned.remove(&key).is_some() {
            self.tier(&entry).insert(key, entry);
        }
        Pinned::Done
    }

    pub(super) fn is_pinned(&self, entry: &Entry) -> bool {
        self.pinned.contains_key(&entry.key)
    }

    /// All states, the most recently used first.
    pub(super) fn all(&self) -> Vec<Arc<Entry>> {
        let tiers = self.chats.iter().chain(self.roots.iter()).map(|(_, entry)| entry);
        let mut all: Vec<Arc<Entry>> = tiers.chain(self.pinned.values().cloned()).collect();
        all.sort_by_key(|entry| std::cmp::Reverse(entry.used.load(Ordering::Relaxed)));
        all
    }

    /// What left since the last time; each stored prefix leaves once.
    pub(super) fn gone(&mut self) -> Vec<Gone> {
        self.chats.run_pending_tasks();
        self.roots.run_pending_tasks();
        let stays = |gone: &Gone| gone.entry.moving.swap(false, Ordering::Relaxed);
        let gone: Vec<Gone> = self.left.try_iter().filter(|gone| !stays(gone)).collect();
        for Gone { entry, .. } in &gone {
            self.lengths.remove(entry.key.len);
            self.names.remove(&entry.snapshot);
            self.bytes -= entry.bytes;
        }
        gone
    }

    /// Prefixes stored and the bytes they keep alive.
    pub(super) fn holds(&self) -> (u64, u64) {
        (self.names.len() as u64, self.bytes)
    }

    fn touch(&mut self, entry: &Entry) {
        self.uses += 1;
        entry.used.store(self.uses, Ordering::Relaxed);
        let now = u64::try_from(entry.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        entry.idle_from.store(now, Ordering::Relaxed);
    }
}

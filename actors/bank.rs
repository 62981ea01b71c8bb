//! The session bank: which prefixes are warm, and the longest of them for each request.
//!
//! * **Owns** the index of warm prefixes: names of snapshots, the tokens they cover, their bytes;
//!   and the memory of why others are not. The tensors stay with the engine, the files with the
//!   [`Store`], which outlives generations.
//! * **Hears** `Open`, `Deposit`, `Used`, `Reclaim`, `Limit`, `Configure`, `Sweep` and `Look` (own
//!   timers), `Read`, `Landed`, `Unpacked` and `Imported` (own tasks), `Drain`, `Part`, `Observe`,
//!   `Manage`.
//! * **Says** `decode::Admit`, `decode::Release` exactly once for every deposit,
//!   `decode::Reclaimed`, `decode::Export`, `decode::Import`, `decode::Drain`, `decode::Leave`.
//! * **Dies** with its generation: its names mean nothing to the next engine.
//!
//! It is an actor although its index could be shared, because a match handed out, an eviction and a
//! deposit must be seen in one order: decode holds a match before it hears of its release. What
//! becomes warm after it looked, the batch finds by itself when it gives a seat.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use mtplx_core::batch::Deposit;
use mtplx_core::prefix::chain;
use mtplx_core::recall::{Miss, Recall};
use mtplx_core::{SnapshotId, Tenant};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use serde::{Deserialize, Serialize};
use tracing::field::Empty;

use crate::admission::Admission;
use crate::{decode, metrics};

mod disk;
mod index;
mod manage;
mod passage;
#[cfg(test)]
mod tests;
mod tiers;

pub use disk::{Config as DiskConfig, Id, Label, Refused, Store};
pub use index::Fate;
use index::Index;
pub use manage::{Command, Failure, Item, Listing, Pinned, handle as manage};
use passage::Reading;
pub use passage::{Passage, PromptPace};

/// Blocks of prompts that are remembered, to say why something was not warm: some MiB.
const REMEMBERED: usize = 1 << 16;

/// A boundary learnt from texts that part there is kept only if this far from the next one below.
const APART: usize = 64;

/// What the bank hears.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "an admission is moved once and never kept here")]
pub enum Message {
    /// Find the longest warm prefix of this request and pass it on.
    Open(Admission),
    /// Keep this state's name.
    Deposit(Deposit),
    /// Rows started from these without asking.
    Used(Vec<SnapshotId>),
    /// Pages are short: let the least recently used prefix go, then say whether there was one.
    Reclaim,
    /// Let go of what was idle too long; write what was idle for long enough.
    Sweep,
    /// A file was read.
    Read(tiers::Restored),
    /// The state of a file is in the engine, or will not be.
    Landed(Id),
    /// See whether a file is to be waited for.
    Look(Id),
    /// A file that a person brought was unpacked.
    Unpacked(manage::Unpacked),
    /// Its state came in, or did not.
    Imported(Arc<Passage>),
    /// From now on hold such a share of `bytes_max` at most, from 0 to 1.
    Limit(f64),
    /// From now on go by these bounds; and who waits for a state so many seconds is sent away.
    Configure(Config, u32),
    /// Nothing will be opened after this; tell decode, behind all that was.
    Drain,
    /// Decode has finished: have written what is not, then let it leave.
    Part,
    /// Say what is held.
    Observe(RpcReplyPort<Snapshot>),
    /// What a person wants of it.
    Manage(Command),
}

impl ractor::Message for Message {}

/// Bounds of the bank.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Most bytes that warm prefixes keep alive; pages shared by two are counted twice.
    pub bytes_max: u64,
    /// Of these, the share of what groups of conversations begin with: no chat evicts it.
    pub roots_share: f64,
    /// Most warm prefixes. Below the engine's `snapshots_max`, or finished states find no room.
    pub entries_max: u32,
    /// Seconds after which an unused prefix is let go.
    pub idle_s: u64,
    /// A long prompt's state is kept every so many tokens; 0 for never.
    pub every_tokens: usize,
    /// Whether all tenants start from each other's prefixes. What is warm answers sooner, so who
    /// may start from a text can find out whether somebody sent it.
    pub share_between_tenants: bool,
}

impl Config {
    fn roots_bytes(&self) -> u64 {
        (self.bytes_max as f64 * self.roots_share.clamp(0.0, 1.0)) as u64
    }
}

/// The bank in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Warm prefixes.
    pub entries: u64,
    /// Bytes they keep alive.
    pub bytes: u64,
    /// Requests that found one.
    pub hits: u64,
    /// Requests that did not.
    pub misses: u64,
    /// States heard of.
    pub deposits: u64,
    /// States let go.
    pub releases: u64,
}

/// The actor.
#[derive(Debug)]
pub struct Bank;

/// What it begins with.
#[derive(Debug)]
pub struct Arguments {
    /// Its bounds.
    pub config: Config,
    /// Whom it serves.
    pub decode: ActorRef<decode::Message>,
    /// Of the engine: states of another mean nothing to it.
    pub identity: String,
    /// Where states go that are let go, if they go anywhere.
    pub store: Option<Arc<Store>>,
    /// What decode says of its pace.
    pub prompt_pace: PromptPace,
    /// Seconds after which whoever waits for a state is sent away; 0 for never.
    pub queue_s: u32,
}

/// What it remembers.
#[derive(Debug)]
pub struct State {
    config: Config,
    index: Index,
    recall: Recall,
    decode: ActorRef<decode::Message>,
    identity: Arc<str>,
    store: Option<Arc<Store>>,
    /// Who waits for a file to be read.
    reading: BTreeMap<Id, Reading>,
    /// States of files that a person brought, until they are in or refused.
    importing: Vec<(Id, Arc<Passage>)>,
    /// States on their way to the disk: some have left the index and are not in the store yet.
    leaving: Vec<(Id, Weak<Fate>)>,
    prompt_pace: PromptPace,
    queue_max: Option<Duration>,
    /// Whether decode is to be told to drain, once nobody waits for a file.
    draining: bool,
    counts: Snapshot,
}

impl Actor for Bank {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Message>,
        Arguments { config, decode, identity, store, prompt_pace, queue_s }: Arguments,
    ) -> Result<State, ActorProcessingErr> {
        // Often enough that memory follows the setting, seldom enough to cost nothing.
        let write_s = store.as_ref().map_or(config.idle_s, |store| store.config().idle_s);
        let period = Duration::from_secs((config.idle_s.min(write_s) / 8).clamp(1, 60));
        myself.send_interval(period, || Message::Sweep);
        let identity: Arc<str> = identity.into();
        Ok(State {
            config,
            index: Index::new(&config, Arc::clone(&identity)),
            recall: Recall::new(REMEMBERED),
            decode,
            identity,
            store,
            reading: BTreeMap::new(),
            importing: Vec::new(),
            leaving: Vec::new(),
            prompt_pace,
            queue_max: (queue_s > 0).then(|| Duration::from_secs(queue_s.into())),
            draining: false,
            counts: Snapshot::default(),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Open(admission) => state.open(admission, &myself)?,
            Message::Deposit(deposit) => state.deposit(deposit)?,
            Message::Used(snapshots) => {
                snapshots.into_iter().for_each(|snapshot| state.index.used(snapshot));
            }
            Message::Reclaim => {
                let found = state.index.reclaim();
                state.let_go()?;
                state.decode.cast(decode::Message::Reclaimed(found))?;
            }
            Message::Sweep => state.write_idle()?,
            Message::Read(restored) => state.restored(restored, &myself)?,
            Message::Landed(id) => state.landed(id, &myself)?,
            Message::Look(id) => state.look(id, &myself)?,
            Message::Unpacked(unpacked) => state.unpacked(unpacked, &myself),
            Message::Imported(passage) => {
                state.importing.retain(|(_, own)| !Arc::ptr_eq(own, &passage));
            }
            Message::Limit(share) => state.index.set_limit(share),
            Message::Configure(config, queue_s) => {
                state.index.resize(&config);
                state.queue_max = (queue_s > 0).then(|| Duration::from_secs(queue_s.into()));
                state.config = config;
            }
            Message::Drain => {
                state.draining = true;
                state.drain()?;
            }
            Message::Part => state.part()?,
            Message::Observe(reply) => {
                state.let_go()?;
                // Whoever asked may have gone.
                let _ = reply.send(state.counts);
                return Ok(());
            }
            Message::Manage(command) => state.manage(command, &myself)?,
        }
        state.let_go()?;
        Ok(())
    }
}

impl State {
    fn open(
        &mut self,
        mut admission: Admission,
        home: &ActorRef<Message>,
    ) -> Result<(), ActorProcessingErr> {
        let request = &mut admission.request;
        if self.config.share_between_tenants {
            request.sharing.tenant = Tenant::default();
        }
        let tenant = request.sharing.tenant;
        let span = tracing::info_span!(
            parent: &admission.span, "bank", warm = Empty, reason = Empty, on_disk = Empty
        );
        let hashes = chain(&request.prompt);
        let warm = self.index.longest(tenant, &request.prompt, &hashes);
        let len = warm.map_or(0, |warm| warm.len);
        let file = self.file_for(tenant, &hashes, len);
        let known = file.map_or(len, |(_, len)| len);
        let foreign = self.store.as_ref().and_then(|s| s.foreign(&self.identity, tenant, &hashes));
        let miss = self.recall.explain(tenant, &hashes, known, foreign);
        if !request.sharing.background {
            self.recall.asked(tenant, &hashes);
        }
        self.count(known, file.is_some(), miss);
        let (id, tokens) = (request.id.0, request.prompt.len());
        let (reason, at) = (miss.reason(), miss.position());
        span.record("warm", known).record("reason", reason).record("on_disk", file.is_some());
        tracing::debug!(request = id, tokens, warm = known, reason, at, "looked up");
        add_boundaries(&mut request.boundaries, tokens, (known, miss), self.config.every_tokens);
        if let Some((id, _)) = file {
            return self.read((id, known - len), admission, home);
        }
        let home = home.clone();
        self.decode.cast(decode::Message::Admit { admission, warm, home })?;
        Ok(())
    }

    fn count(&mut self, known: usize, on_disk: bool, miss: Miss) {
        let hit = known > 0;
        metrics::bank_lookup(hit);
        if hit {
            self.counts.hits += 1;
            metrics::bank_hit(on_disk);
        } else {
            self.counts.misses += 1;
        }
        // Beyond what is warm there is always something new; only more than that is a miss.
        if !hit || miss != Miss::NeverSeen {
            let missed = miss.position().map_or(0, |at| at - known);
            metrics::bank_miss(miss.reason(), missed);
        }
    }

    fn deposit(&mut self, deposit: Deposit) -> Result<(), ActorProcessingErr> {
        self.counts.deposits += 1;
        let newcomer = deposit.snapshot;
        let kept = !self.was_dropped(&deposit.prefix, deposit.kind) && self.index.put(deposit);
        metrics::bank_deposit(kept);
        if kept { Ok(()) } else { self.release(newcomer) }
    }

    /// Releases whatever left the index since the last time; first it may be written.
    fn let_go(&mut self) -> Result<(), ActorProcessingErr> {
        for gone in self.index.gone() {
            metrics::bank_eviction(gone.cause);
            let entry = gone.entry;
            self.write(&entry)?;
            let prefix = &entry.label.prefix;
            self.recall.let_go(prefix.tenant, entry.hash(), prefix.tokens.len());
            self.release(entry.snapshot)?;
        }
        (self.counts.entries, self.counts.bytes) = self.index.holds();
        metrics::bank_holds(self.counts.entries, self.counts.bytes, self.index.bytes_max());
        Ok(())
    }

    fn release(&mut self, snapshot: SnapshotId) -> Result<(), ActorProcessingErr> {
        self.counts.releases += 1;
        self.decode.cast(decode::Message::Release(snapshot))?;
        Ok(())
    }
}

/// Places at which this prompt's state is worth keeping, beside its own: where an earlier text went
/// another way, so that a third finds a state there; and every so many tokens of a long one.
fn add_boundaries(
    boundaries: &mut Vec<usize>,
    tokens: usize,
    (warm, miss): (usize, Miss),
    every: usize,
) {
    if let Miss::DivergedAt(at) = miss
        && at < tokens
        && boundaries.iter().chain([&warm]).all(|&below| below > at || at - below >= APART)
    {
        boundaries.push(at);
    }
    if every > 0 {
        let places = (1..).map(|i| i * every).skip_while(|&at| at <= warm);
        boundaries.extend(places.take_while(|&at| at < tokens));
    }
    boundaries.sort_unstable();
    boundaries.dedup();
}

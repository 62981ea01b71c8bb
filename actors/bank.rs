//! The session bank: which prefixes are warm, and the longest of them for each request.
//!
//! * **Owns** the index of warm prefixes: names of snapshots, the tokens they cover, their bytes.
//!   The tensors stay with the engine.
//! * **Hears** `Open`, `Deposit`, `Reclaim`, `Sweep` (own timer), `Drain`, `Observe`.
//! * **Says** `decode::Admit`, `decode::Release` exactly once for every deposit,
//!   `decode::Reclaimed`, `decode::Drain`.
//! * **Dies** with its generation: its names mean nothing to the next engine.
//!
//! It is an actor although its index could be shared, because a match handed out, an eviction and a
//! deposit must be seen in one order: decode holds a match before it hears of its release.

use std::time::Duration;

use mtplx_core::SnapshotId;
use mtplx_core::batch::Deposit;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use serde::{Deserialize, Serialize};

use crate::admission::Admission;
use crate::{decode, metrics};

mod index;
#[cfg(test)]
mod tests;

use index::Index;

/// What the bank hears.
#[derive(Debug)]
pub enum Message {
    /// Find the longest warm prefix of this request and pass it on.
    Open(Admission),
    /// Keep this state's name.
    Deposit(Deposit),
    /// Pages are short: let the least recently used prefix go, then say whether there was one.
    Reclaim,
    /// Let go of what was idle too long.
    Sweep,
    /// Nothing will be opened after this; tell decode, behind all that was.
    Drain,
    /// Say what is held.
    Observe(RpcReplyPort<Snapshot>),
}

/// Bounds of the bank.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Most bytes that warm prefixes keep alive; pages shared by two are counted twice.
    pub bytes_max: u64,
    /// Most warm prefixes. Below the engine's `snapshots_max`, or finished states find no room.
    pub entries_max: u32,
    /// Seconds after which an unused prefix is let go.
    pub idle_s: u64,
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
}

/// What it remembers.
#[derive(Debug)]
pub struct State {
    config: Config,
    index: Index,
    decode: ActorRef<decode::Message>,
    counts: Snapshot,
}

impl Actor for Bank {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Message>,
        Arguments { config, decode }: Arguments,
    ) -> Result<State, ActorProcessingErr> {
        // Often enough that memory follows the setting, seldom enough to cost nothing.
        let period = Duration::from_secs((config.idle_s / 8).clamp(1, 60));
        myself.send_interval(period, || Message::Sweep);
        let index = Index::new(&config);
        Ok(State { config, index, decode, counts: Snapshot::default() })
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Open(admission) => state.open(admission, myself)?,
            Message::Deposit(deposit) => state.deposit(deposit)?,
            Message::Reclaim => {
                let found = state.index.reclaim();
                state.let_go()?;
                state.decode.cast(decode::Message::Reclaimed(found))?;
            }
            Message::Sweep => {}
            Message::Drain => state.decode.cast(decode::Message::Drain)?,
            Message::Observe(reply) => {
                state.let_go()?;
                // Whoever asked may have gone.
                let _ = reply.send(state.counts);
                return Ok(());
            }
        }
        state.let_go()?;
        Ok(())
    }
}

impl State {
    fn open(
        &mut self,
        admission: Admission,
        home: ActorRef<Message>,
    ) -> Result<(), ActorProcessingErr> {
        let warm = self.index.longest(&admission.request.prompt);
        metrics::bank_lookup(warm.is_some());
        match warm {
            Some(_) => self.counts.hits += 1,
            None => self.counts.misses += 1,
        }
        self.decode.cast(decode::Message::Admit { admission, warm, home })?;
        Ok(())
    }

    fn deposit(&mut self, deposit: Deposit) -> Result<(), ActorProcessingErr> {
        self.counts.deposits += 1;
        let newcomer = deposit.snapshot;
        let kept = self.index.put(deposit);
        metrics::bank_deposit(kept);
        if kept { Ok(()) } else { self.release(newcomer) }
    }

    /// Releases whatever left the index since the last time.
    fn let_go(&mut self) -> Result<(), ActorProcessingErr> {
        for gone in self.index.gone() {
            metrics::bank_eviction(gone.cause);
            self.release(gone.snapshot)?;
        }
        (self.counts.entries, self.counts.bytes) = self.index.holds();
        metrics::bank_holds(self.counts.entries, self.counts.bytes, self.config.bytes_max);
        Ok(())
    }

    fn release(&mut self, snapshot: SnapshotId) -> Result<(), ActorProcessingErr> {
        self.counts.releases += 1;
        self.decode.cast(decode::Message::Release(snapshot))?;
        Ok(())
    }
}

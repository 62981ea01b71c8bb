//! Between memory and disk: which states are written and when, and who waits for one to be read.

use std::sync::Arc;
use std::time::Duration;

use mtplx_core::batch::{Kind, Warm};
use mtplx_core::image::Image;
use mtplx_core::prefix::chain;
use mtplx_core::{Tenant, Token};
use ractor::{ActorProcessingErr, ActorRef, RpcReplyPort};

use super::index::Entry;
use super::{Id, Label, Message, Refused, State};
use crate::admission::Admission;
use crate::decode;

/// Longest wait for a file; then a request starts with what memory has.
const READ_TIME: Duration = Duration::from_secs(5);

/// Bytes of idle states that are taken out between two looks, one state at least: rows that run
/// stand still meanwhile.
const IDLE_BYTES: u64 = 64 << 20;

/// A file that is being read.
#[derive(Debug)]
pub(super) struct Reading {
    number: u64,
    waiting: Vec<Admission>,
}

/// What came of reading a file.
#[derive(Debug)]
pub struct Restored {
    pub(super) id: Id,
    /// Of the read: the time of an earlier one of the same file may be up during a later one.
    pub(super) number: u64,
    pub(super) state: Result<(Label, Image), Refused>,
}

impl State {
    /// The file whose state covers enough more of a prompt than what is warm.
    pub(super) fn file_for(
        &self,
        tenant: Tenant,
        hashes: &[u64],
        warm: usize,
    ) -> Option<(Id, usize)> {
        let store = self.store.as_ref()?;
        let above = warm + store.config().tokens_min.max(1) - 1;
        store.longest(&self.identity, tenant, hashes, above)
    }

    /// Reads a file beside the actor; the request goes on once it is read.
    pub(super) fn read(
        &mut self,
        id: Id,
        admission: Admission,
        home: &ActorRef<Message>,
    ) -> Result<(), ActorProcessingErr> {
        if let Some(reading) = self.reading.get_mut(&id) {
            reading.waiting.push(admission);
            return Ok(());
        }
        self.reads += 1;
        let number = self.reads;
        self.reading.insert(id, Reading { number, waiting: vec![admission] });
        let store = self.store.clone().ok_or("a file without a folder")?;
        home.send_after(READ_TIME, move || {
            let late = std::io::Error::from(std::io::ErrorKind::TimedOut);
            Message::Read(Restored { id, number, state: Err(late.into()) })
        });
        let home = home.clone();
        tokio::task::spawn_blocking(move || {
            let state = store.restore(id);
            // A bank that is gone has let its admissions go too.
            let _ = home.cast(Message::Read(Restored { id, number, state }));
        });
        Ok(())
    }

    /// A file was read, or was not: its state goes to the engine first, then those who waited.
    pub(super) fn restored(
        &mut self,
        restored: Restored,
        home: &ActorRef<Message>,
    ) -> Result<(), ActorProcessingErr> {
        let Restored { id, number, state } = restored;
        if self.reading.get(&id).is_none_or(|reading| reading.number != number) {
            return Ok(());
        }
        let waiting = self.reading.remove(&id).map_or(Vec::new(), |reading| reading.waiting);
        if let Ok((Label { identity, prefix, kind }, image)) = state
            && identity == self.identity
            && waiting.iter().any(|a| a.request.prompt.starts_with(&prefix.tokens))
        {
            let (home, told) = (home.clone(), self.remove_unfit(id));
            let arrival = decode::Arrival { prefix, kind, image, home, told };
            self.decode.cast(decode::Message::Import(arrival))?;
        }
        for admission in waiting {
            let request = &admission.request;
            let warm = self.warm(request.sharing.tenant, &request.prompt);
            // The state that was read has no name here yet; the batch finds it.
            let home = home.clone();
            self.decode.cast(decode::Message::Admit { admission, warm, home })?;
        }
        self.drain()
    }

    /// Where the engine tells how it likes a state: what it calls unfit would be read again for
    /// every prompt that it covers.
    fn remove_unfit(&self, id: Id) -> Option<RpcReplyPort<Result<bool, String>>> {
        let store = self.store.clone()?;
        let (told, answer) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            if let Ok(Err(_)) = answer.await {
                // Waits for nobody: who started it has gone on.
                drop(tokio::task::spawn_blocking(move || store.remove(id)));
            }
        });
        Some(told.into())
    }

    /// Passes on that nothing will be opened any more, behind those who wait for a file.
    pub(super) fn drain(&mut self) -> Result<(), ActorProcessingErr> {
        if !self.draining || !self.reading.is_empty() {
            return Ok(());
        }
        self.draining = false;
        if self.store.is_some() {
            self.decode.cast(decode::Message::Stay)?;
        }
        self.decode.cast(decode::Message::Drain)?;
        Ok(())
    }

    fn warm(&mut self, tenant: Tenant, prompt: &[Token]) -> Option<Warm> {
        self.index.longest(tenant, prompt, &chain(prompt))
    }

    /// Has a state written, unless it is, or is too short to be worth it; whether it does.
    pub(super) fn write(&self, entry: &Arc<Entry>) -> Result<bool, ActorProcessingErr> {
        let Some(store) = &self.store else { return Ok(false) };
        let long = entry.label.prefix.tokens.len() >= store.config().tokens_min;
        // One that never fits would be tried again and again.
        let fits = entry.bytes <= store.config().bytes_max;
        let wanted = long && fits && entry.is_wanted();
        let wanted = wanted && !store.has(entry.id) && entry.mark_written();
        if wanted {
            let (store, label) = (Arc::clone(store), entry.label.clone());
            let outlet = decode::Outlet::Disk(store, label, entry.written());
            self.decode.cast(decode::Message::Export(entry.snapshot, outlet))?;
        }
        Ok(wanted)
    }

    /// Has written what nobody used for a while, so that a process that is killed loses little.
    /// The end of a prompt is not among it: the end of its reply serves the next turn, and a
    /// boundary those who part before.
    pub(super) fn write_idle(&self) -> Result<(), ActorProcessingErr> {
        let Some(store) = &self.store else { return Ok(()) };
        let idle = Duration::from_secs(store.config().idle_s);
        let mut bytes = 0;
        for entry in self.index.all() {
            let due = entry.label.kind != Kind::Prompt && entry.idle() >= idle;
            if due && bytes < IDLE_BYTES && self.write(&entry)? {
                bytes += entry.bytes;
            }
        }
        Ok(())
    }

    /// Decode has finished: what was used last is written first, then it may leave.
    pub(super) fn part(&mut self) -> Result<(), ActorProcessingErr> {
        for entry in self.index.all() {
            self.write(&entry)?;
        }
        self.decode.cast(decode::Message::Leave)?;
        Ok(())
    }
}

//! Between memory and disk: which states are written and when, and who waits for one to be read.

use std::sync::Arc;
use std::time::Duration;

use mtplx_core::batch::{Kind, Warm};
use mtplx_core::image::Image;
use mtplx_core::prefix::{Prefix, chain};
use mtplx_core::{Tenant, Token};
use ractor::{ActorProcessingErr, ActorRef};

use super::index::Entry;
use super::passage::{LOOK, Reading, Verdict};
use super::{Id, Label, Message, Refused, State};
use crate::admission::Admission;
use crate::decode;

/// Bytes of idle states that are taken out between two looks, one state at least.
const IDLE_BYTES: u64 = 64 << 20;

/// What came of reading a file.
#[derive(Debug)]
pub struct Restored {
    pub(super) id: Id,
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

    /// Reads a file beside the actor; the request goes on once its state, which saves computing so
    /// many tokens, is in the engine. One that takes too long is not waited for, and read to its
    /// end: the next one finds it warm.
    pub(super) fn read(
        &mut self,
        (id, tokens): (Id, usize),
        admission: Admission,
        home: &ActorRef<Message>,
    ) -> Result<(), ActorProcessingErr> {
        let store = self.store.clone().ok_or("a file without a folder")?;
        if let Some(reading) = self.reading.get_mut(&id) {
            reading.join(admission);
            return Ok(());
        }
        let mut reading = Reading::new(store.size_of(id), tokens);
        reading.join(admission);
        let passage = Arc::clone(&reading.passage);
        self.reading.insert(id, reading);
        home.send_after(LOOK, move || Message::Look(id));
        let home = home.clone();
        tokio::task::spawn_blocking(move || {
            let state = store.restore(id, &passage);
            // A bank that is gone has let its admissions go too.
            let _ = home.cast(Message::Read(Restored { id, state }));
        });
        Ok(())
    }

    /// A file was read, or could not be: its state goes to the engine first, then those who wait.
    pub(super) fn restored(
        &mut self,
        Restored { id, state }: Restored,
        home: &ActorRef<Message>,
    ) -> Result<(), ActorProcessingErr> {
        let Some(reading) = self.reading.get(&id) else { return Ok(()) };
        let Ok((label, image)) = state else { return self.landed(id, home) };
        let fits = |a: &Admission| a.request.prompt.starts_with(&label.prefix.tokens);
        let of_use = reading.waiting().next().is_none() || reading.waiting().any(fits);
        if label.identity != self.identity || !of_use || !reading.passage.is_wanted() {
            return self.landed(id, home);
        }
        let (told, answer) = tokio::sync::oneshot::channel();
        let (prefix, kind, image) = (label.prefix, label.kind, Arc::new(image));
        let (passage, told) = (Arc::clone(&reading.passage), told.into());
        let home_of = home.clone();
        let arrival = decode::Arrival { prefix, kind, image, passage, home: home_of, told };
        self.decode.cast(decode::Message::Import(arrival))?;
        let (home, store) = (home.clone(), self.store.clone());
        tokio::spawn(async move {
            // What the engine calls unfit would be read again for every prompt that it covers.
            if let (Ok(Err(_)), Some(store)) = (answer.await, store) {
                // Waits for nobody: who started it has gone on.
                drop(tokio::task::spawn_blocking(move || store.remove(id)));
            }
            // Behind the state's name.
            let _ = home.cast(Message::Landed(id));
        });
        Ok(())
    }

    /// A state is in the engine, or will not be: those who waited for it go on.
    pub(super) fn landed(
        &mut self,
        id: Id,
        home: &ActorRef<Message>,
    ) -> Result<(), ActorProcessingErr> {
        let waiting = self.reading.remove(&id).map(|mut reading| reading.take_waiting());
        self.go_on(waiting.unwrap_or_default(), home)
    }

    /// Sees how far a state has come; those who would wait too long go on with what there is.
    pub(super) fn look(
        &mut self,
        id: Id,
        home: &ActorRef<Message>,
    ) -> Result<(), ActorProcessingErr> {
        let Some(reading) = self.reading.get_mut(&id) else { return Ok(()) };
        home.send_after(LOOK, move || Message::Look(id));
        reading.forget_gone(self.queue_max);
        let verdict = reading.look(self.prompt_pace.tokens_per_s());
        if verdict == Verdict::Wait || reading.waiting().next().is_none() {
            // Who left may have been the last whom the end waited for.
            return self.drain();
        }
        let waiting = reading.take_waiting();
        tracing::warn!(%id, ?verdict, requests = waiting.len(), "a parked state is not waited for");
        self.go_on(waiting, home)
    }

    /// Has a state dropped that is on its way in; false if there is none. Those who waited for it
    /// go on without.
    pub(super) fn drop_arriving(
        &mut self,
        id: Id,
        home: &ActorRef<Message>,
    ) -> Result<bool, ActorProcessingErr> {
        let imports = self.importing.iter().filter(|(own, _)| *own == id);
        let imported = imports.map(|(_, passage)| passage.drop_it()).count() > 0;
        let Some(reading) = self.reading.get_mut(&id) else { return Ok(imported) };
        reading.passage.drop_it();
        let waiting = reading.take_waiting();
        self.go_on(waiting, home)?;
        Ok(true)
    }

    /// Has a state dropped that is on its way to the disk; false if there is none.
    pub(super) fn drop_leaving(&self, id: Id) -> bool {
        let fates = self.leaving.iter().filter(|(own, _)| *own == id);
        let fates = fates.filter_map(|(_, fate)| fate.upgrade()).filter(|fate| fate.is_leaving());
        fates.filter(|fate| fate.drop_it()).count() > 0
    }

    /// Whether a state that has come was dropped on its way.
    pub(super) fn was_dropped(&self, prefix: &Prefix, kind: Kind) -> bool {
        let reading = self.reading.iter().map(|(id, reading)| (id, &reading.passage));
        let arriving = reading.chain(self.importing.iter().map(|(id, passage)| (id, passage)));
        let mut dropped = arriving.filter(|(_, passage)| !passage.is_wanted()).peekable();
        // Names cost a hash of all tokens.
        dropped.peek().is_some() && {
            let (identity, prefix) = (Arc::clone(&self.identity), prefix.clone());
            let id = Label { identity, prefix, kind }.id();
            dropped.any(|(&dropped, _)| dropped == id)
        }
    }

    fn go_on(
        &mut self,
        admissions: Vec<Admission>,
        home: &ActorRef<Message>,
    ) -> Result<(), ActorProcessingErr> {
        for admission in admissions {
            let request = &admission.request;
            let warm = self.warm(request.sharing.tenant, &request.prompt);
            let home = home.clone();
            self.decode.cast(decode::Message::Admit { admission, warm, home })?;
        }
        self.drain()
    }

    /// Passes on that nothing will be opened any more, behind those who wait for a file.
    pub(super) fn drain(&mut self) -> Result<(), ActorProcessingErr> {
        let waited_for = self.reading.values().any(|reading| reading.waiting().next().is_some());
        if !self.draining || waited_for {
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
    pub(super) fn write(&mut self, entry: &Arc<Entry>) -> Result<bool, ActorProcessingErr> {
        let Some(store) = self.store.clone() else { return Ok(false) };
        let long = entry.label.prefix.tokens.len() >= store.config().tokens_min;
        // One that never fits would be tried again and again.
        let fits = entry.bytes <= store.config().bytes_max;
        let wanted = long && fits && entry.fate().is_wanted();
        let wanted = wanted && !store.has_or_expects(entry.id) && entry.fate().leave();
        if wanted {
            entry.note_written();
            self.leaving.retain(|(_, fate)| fate.upgrade().is_some_and(|fate| fate.is_leaving()));
            self.leaving.push((entry.id, Arc::downgrade(entry.fate())));
            let label = entry.label.clone();
            let outlet = decode::Outlet::Disk(store, label, Arc::clone(entry.fate()));
            self.decode.cast(decode::Message::Export(entry.snapshot, outlet))?;
        }
        Ok(wanted)
    }

    /// Has written what nobody used for a while, so that a process that is killed loses little.
    /// The end of a prompt is not among it: the end of its reply serves the next turn, and a
    /// boundary those who part before.
    pub(super) fn write_idle(&mut self) -> Result<(), ActorProcessingErr> {
        let Some(store) = self.store.clone() else { return Ok(()) };
        let idle = Duration::from_secs(store.config().idle_s);
        let mut bytes = 0;
        for entry in self.index.all() {
            let due = entry.label.kind != Kind::Prompt && entry.idle() >= idle && entry.is_news();
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

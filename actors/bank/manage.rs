//! What a person may want of the bank: to see, pin, drop, carry out and carry in.

use std::collections::BTreeMap;
use std::sync::Arc;

use mtplx_core::prefix::Prefix;
use ractor::{ActorProcessingErr, ActorRef, RpcReplyPort};
use serde::Serialize;

use super::disk::{self, format::kind_name};
use super::{Id, Label, Message, Passage, Snapshot, State, Store};
use crate::decode;

/// What a file has beside its state, at most: its head, and the tokens.
const FRAME: u64 = 16 << 20;

/// What is wanted.
#[derive(Debug)]
pub enum Command {
    /// All that is held.
    List(RpcReplyPort<Listing>),
    /// Keep a state from going by itself, or let it go again.
    Pin(Id, bool, RpcReplyPort<Pinned>),
    /// Let a state go, from memory and disk; false if there is none.
    Drop(Id, RpcReplyPort<bool>),
    /// A state as a file.
    Export(Id, RpcReplyPort<Result<Vec<u8>, Failure>>),
    /// Most bytes of a file that could be of use: whatever memory may hold comes back.
    FileMax(RpcReplyPort<u64>),
    /// A file as a state; its name.
    Import(Vec<u8>, RpcReplyPort<Result<Id, Failure>>),
}

/// How pinning went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pinned {
    /// As wanted.
    Done,
    /// No such state is in memory.
    Unknown,
    /// Pinned states may take half of the bank.
    Full,
}

/// Why a state could not be carried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// There is none of this name.
    #[error("there is no such state")]
    Unknown,
    /// The file is damaged, foreign, or of another model.
    #[error("the file {0}")]
    Refused(String),
    /// Neither memory nor disk has room.
    #[error("there is no room for it now, or it is warm already")]
    NoRoom,
    /// The engine has gone.
    #[error("the engine is not available")]
    Gone,
}

/// All that is held.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Listing {
    /// In numbers.
    pub bank: Snapshot,
    /// Most bytes in memory, as it is limited now.
    pub bytes_max: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Most bytes on disk; 0 without a folder.
    pub disk_bytes_max: u64,
    /// Each state, the most recently used first, then those on disk only.
    pub states: Vec<Item>,
}

/// One state.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Item {
    /// Its name.
    pub id: String,
    /// Whose it is.
    pub tenant: u64,
    /// `root`, `boundary`, `prompt` or `reply`.
    pub kind: &'static str,
    /// Tokens it covers.
    pub tokens: usize,
    /// Bytes it keeps alive in memory, pages shared with others counted in full.
    pub bytes: u64,
    /// Bytes of its file.
    pub disk_bytes: u64,
    /// Requests that started from it.
    pub hits: u64,
    /// Seconds since it became warm here.
    pub age_s: u64,
    /// Seconds since it was last used.
    pub idle_s: u64,
    /// Whether it is kept from going by itself.
    pub pinned: bool,
}

/// A file that a person brought, and who waits to hear how it went.
#[derive(Debug)]
pub struct Unpacked {
    label: Label,
    image: mtplx_core::image::Image,
    port: RpcReplyPort<Result<Id, Failure>>,
}

/// Sends a command and waits for its answer; `None` if the bank is gone.
pub async fn handle<T: Send + 'static>(
    bank: &ActorRef<Message>,
    command: impl FnOnce(RpcReplyPort<T>) -> Command,
) -> Option<T> {
    let told = bank.call(|port| Message::Manage(command(port)), None).await;
    told.ok()?.success_or(()).ok()
}

impl State {
    pub(super) fn manage(
        &mut self,
        command: Command,
        home: &ActorRef<Message>,
    ) -> Result<(), ActorProcessingErr> {
        // Whoever asked may have gone.
        match command {
            Command::List(port) => drop(port.send(self.listing())),
            Command::Pin(id, on, port) => drop(port.send(self.index.pin(id, on))),
            Command::Drop(id, port) => {
                let warm = self.index.all().into_iter().find(|entry| entry.id == id);
                // Or leaving memory would bring it to disk.
                if let Some(entry) = &warm {
                    let _ = entry.fate().drop_it();
                }
                let on_its_way_out = self.drop_leaving(id);
                let in_memory = self.index.drop_id(id);
                let on_its_way = self.drop_arriving(id, home)?;
                let on_disk = self.store.as_ref().is_some_and(|store| store.remove(id));
                let found = in_memory || on_its_way || on_its_way_out || on_disk;
                drop(port.send(found));
            }
            Command::Export(id, port) => self.carry_out(id, port)?,
            Command::FileMax(port) => drop(port.send(self.file_max())),
            Command::Import(bytes, port) => self.carry_in(bytes, port, home),
        }
        Ok(())
    }

    fn file_max(&self) -> u64 {
        self.index.bytes_max().saturating_add(FRAME)
    }

    fn listing(&mut self) -> Listing {
        let on_disk = self.store.as_ref().map(|store| store.all()).unwrap_or_default();
        let mut on_disk: BTreeMap<Id, disk::File> = on_disk.into_iter().collect();
        let disk_bytes = on_disk.values().map(|file| file.bytes).sum();
        let mut states = Vec::new();
        for entry in self.index.all() {
            let file = on_disk.remove(&entry.id);
            states.push(Item {
                id: entry.id.to_string(),
                tenant: entry.label.prefix.tenant.0,
                kind: kind_name(entry.label.kind),
                tokens: entry.label.prefix.tokens.len(),
                bytes: entry.bytes,
                disk_bytes: file.map_or(0, |file| file.bytes),
                hits: entry.hits(),
                age_s: entry.since.elapsed().as_secs(),
                idle_s: entry.idle().as_secs(),
                pinned: self.index.is_pinned(&entry),
            });
        }
        let own = on_disk.into_iter().filter(|(_, file)| file.identity == self.identity);
        states.extend(own.map(|(id, file)| Item {
            id: id.to_string(),
            tenant: file.tenant.0,
            kind: kind_name(file.kind),
            tokens: file.tokens,
            bytes: 0,
            disk_bytes: file.bytes,
            hits: 0,
            age_s: 0,
            idle_s: 0,
            pinned: false,
        }));
        (self.counts.entries, self.counts.bytes) = self.index.holds();
        let disk_bytes_max = self.store.as_ref().map_or(0, |store| store.config().bytes_max);
        let (bank, bytes_max) = (self.counts, self.index.bytes_max());
        Listing { bank, bytes_max, disk_bytes, disk_bytes_max, states }
    }

    fn carry_out(
        &self,
        id: Id,
        port: RpcReplyPort<Result<Vec<u8>, Failure>>,
    ) -> Result<(), ActorProcessingErr> {
        let Some(entry) = self.index.all().into_iter().find(|entry| entry.id == id) else {
            let store = self.store.clone().filter(|store| store.has(id));
            tokio::task::spawn_blocking(move || {
                let bytes = store.and_then(|store| store.bytes_of(id).ok());
                drop(port.send(bytes.ok_or(Failure::Unknown)));
            });
            return Ok(());
        };
        let (told, image) = tokio::sync::oneshot::channel();
        let outlet = decode::Outlet::Answer(RpcReplyPort::from(told));
        self.decode.cast(decode::Message::Export(entry.snapshot, outlet))?;
        tokio::spawn(async move {
            let bytes = match image.await {
                Ok(Some(image)) => {
                    let mut bytes = Vec::with_capacity(disk::size(&entry.label, &image) as usize);
                    let written = disk::write(&mut bytes, &entry.label, &image);
                    written.map(|()| bytes).map_err(|_| Failure::NoRoom)
                }
                Ok(None) => Err(Failure::Unknown),
                Err(_) => Err(Failure::Gone),
            };
            drop(port.send(bytes));
        });
        Ok(())
    }

    fn carry_in(
        &self,
        bytes: Vec<u8>,
        port: RpcReplyPort<Result<Id, Failure>>,
        home: &ActorRef<Message>,
    ) {
        let (identity, home) = (Arc::clone(&self.identity), home.clone());
        tokio::task::spawn_blocking(move || match parse(&bytes, &identity) {
            // A bank that is gone is not going to answer.
            Ok((label, image)) => {
                drop(home.cast(Message::Unpacked(Unpacked { label, image, port })));
            }
            Err(failure) => drop(port.send(Err(failure))),
        });
    }

    /// Has a state that a person brought taken in; who drops it meanwhile finds it.
    pub(super) fn unpacked(
        &mut self,
        Unpacked { label, image, port }: Unpacked,
        home: &ActorRef<Message>,
    ) {
        let passage = Arc::default();
        self.importing.push((label.id(), Arc::clone(&passage)));
        let (decode, home, store) = (self.decode.clone(), home.clone(), self.store.clone());
        tokio::spawn(async move {
            let answer = carry((label, image), &decode, &home, (store, &passage)).await;
            // Behind the state's name.
            let _ = home.cast(Message::Imported(passage));
            drop(port.send(answer));
        });
    }
}

fn dropped() -> Failure {
    Failure::Refused("was dropped on its way in".into())
}

fn parse(bytes: &[u8], identity: &str) -> Result<(Label, mtplx_core::image::Image), Failure> {
    let (label, image) = disk::read(&mut &*bytes, bytes.len() as u64)
        .map_err(|refused| Failure::Refused(refused.to_string()))?;
    if *label.identity != *identity {
        return Err(Failure::Refused("is of another model, quantisation or numerics".into()));
    }
    Ok((label, image))
}

async fn carry(
    (label, image): (Label, mtplx_core::image::Image),
    decode: &ActorRef<decode::Message>,
    home: &ActorRef<Message>,
    (store, passage): (Option<Arc<Store>>, &Arc<Passage>),
) -> Result<Id, Failure> {
    let (id, image) = (label.id(), Arc::new(image));
    let Label { prefix, kind, .. } = &label;
    let arrival = |told| {
        let prefix = Prefix::clone(prefix);
        let (kind, image) = (*kind, Arc::clone(&image));
        let (passage, home) = (Arc::clone(passage), home.clone());
        decode::Message::Import(decode::Arrival { prefix, kind, image, passage, home, told })
    };
    let told = decode.call(arrival, None).await.ok().and_then(|told| told.success_or(()).ok());
    match told.ok_or(Failure::Gone)? {
        _ if !passage.is_wanted() => Err(dropped()),
        Ok(true) => Ok(id),
        // Memory is full, or it is warm already; disk is the next best.
        Ok(false) => match store {
            Some(store) if store.has_or_expects(id) || store.put(label, image) => {
                // Whoever dropped it meanwhile may have found nothing in the store.
                if passage.is_wanted() {
                    return Ok(id);
                }
                store.remove(id);
                Err(dropped())
            }
            Some(_) | None => Err(Failure::NoRoom),
        },
        Err(unfit) => Err(Failure::Refused(unfit)),
    }
}

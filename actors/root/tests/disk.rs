//! A whole house with files: what was warm outlives eviction, generations and the house itself.

use std::time::Duration;

use mtplx_core::Token;
use tempfile::TempDir;

use super::*;
use crate::bank::{Command, DiskConfig, Failure, Id, Listing, Pinned, Store, manage};
use crate::oracle::request;

fn store(folder: &TempDir) -> Arc<Store> {
    let config = DiskConfig {
        path: folder.path().to_owned(),
        bytes_max: 1 << 20,
        queue_bytes_max: 1 << 20,
        tokens_min: 8,
        idle_s: 3600,
    };
    loop {
        // The writer of the one before may still be ending.
        match Store::open(config.clone()) {
            Ok(store) => return Arc::new(store),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

async fn with(configs: Configs, store: &Arc<Store>) -> World {
    let (tell, told) = watch::channel((0, None));
    let sensor: MakeSensor = Arc::new(|| Box::new(Numb));
    let (open, door) = (Arc::new(|| Ok(small())), Arc::new(Lobby(tell)));
    let store = Some(Arc::clone(store));
    let (notes, flight) = (None, unwritten());
    let house =
        start(Blueprint { configs, open, sensor, store, notes, flight, door }).await.unwrap();
    World { house, told, permits: Arc::new(Semaphore::new(100)) }
}

/// A prompt of 40 tokens of its own.
fn first(id: u64) -> Vec<Token> {
    (0..40).map(|i| ((i * (id + 3) + id) % 31) as Token).collect()
}

impl World {
    /// Serves a prompt; the reply, and how much of the prompt was warm.
    async fn serve(&mut self, id: u64, prompt: &[Token]) -> (Vec<Token>, usize) {
        let guest = self.ask(1, request(id, prompt, 12)).await;
        let text = crate::oracle::alone(&guest.request);
        (text, guest.hear_truth().await.cached)
    }

    async fn leave(mut self, store: &Store) {
        self.house.drain(LONG);
        assert_eq!(self.house.end().await, End::Drained);
        assert!(store.flush(Duration::from_secs(30)));
    }

    async fn listing(&mut self) -> Listing {
        manage(&self.bank(1).await, Command::List).await.unwrap()
    }
}

/// A house whose first turn is on disk and that has ended; the reply.
async fn after_a_first_turn(folder: &TempDir) -> Vec<Token> {
    let files = store(folder);
    let mut world = with(configs(), &files).await;
    let (reply, _) = world.serve(1, &first(1)).await;
    world.leave(&files).await;
    reply
}

#[tokio::test]
async fn a_second_turn_is_warm_after_the_house_was_built_anew() {
    let folder = tempfile::tempdir().unwrap();
    let reply = after_a_first_turn(&folder).await;
    let files = store(&folder);
    let mut world = with(configs(), &files).await;
    let second = [first(1), reply.clone(), vec![5, 6, 7]].concat();
    // Twice at once: one file is read for both.
    let guests =
        [world.ask(1, request(2, &second, 12)).await, world.ask(1, request(3, &second, 9)).await];
    for guest in guests {
        let cached = guest.hear_truth().await.cached;
        assert!(cached >= 40 + reply.len() - 1, "{cached} were warm");
    }
    world.leave(&files).await;
}

#[tokio::test]
async fn what_memory_lets_go_comes_back_from_disk() {
    let folder = tempfile::tempdir().unwrap();
    let files = store(&folder);
    let mut configs = configs();
    // Two states of 8 KiB.
    (configs.bank.bytes_max, configs.bank.roots_share) = (20 << 10, 0.0);
    let mut world = with(configs, &files).await;
    let (reply, _) = world.serve(1, &first(1)).await;
    for id in 2..9 {
        world.serve(id, &first(id)).await;
    }
    assert!(files.flush(Duration::from_secs(30)));
    let second = [first(1), reply.clone(), vec![5, 6, 7]].concat();
    let (_, cached) = world.serve(20, &second).await;
    assert_eq!(cached, 40 + reply.len() - 1);
    world.leave(&files).await;
}

#[tokio::test]
async fn a_damaged_file_makes_a_request_cold_and_nothing_worse() {
    let folder = tempfile::tempdir().unwrap();
    let reply = after_a_first_turn(&folder).await;
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "state") {
            let mut bytes = std::fs::read(&path).unwrap();
            let last = bytes.len() - 40;
            bytes[last] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
    }
    let files = store(&folder);
    let mut world = with(configs(), &files).await;
    let second = [first(1), reply, vec![5, 6, 7]].concat();
    assert_eq!(world.serve(2, &second).await.1, 0);
    world.leave(&files).await;
}

#[tokio::test]
async fn a_person_sees_pins_drops_carries_out_and_in() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let files = folders.each_ref().map(store);
    let mut world = with(configs(), &files[0]).await;
    let (reply, _) = world.serve(1, &first(1)).await;
    let listing = world.listing().await;
    let kinds: Vec<&str> = listing.states.iter().map(|state| state.kind).collect();
    assert_eq!(kinds, ["reply", "prompt"], "the last used is first");
    let state = &listing.states[0];
    assert_eq!((state.tokens, state.pinned), (40 + reply.len() - 1, false));
    let id = Id::parse(&state.id).unwrap();
    let bank = world.bank(1).await;
    let pin = |on| manage(&bank, move |port| Command::Pin(id, on, port));
    assert_eq!(pin(true).await, Some(Pinned::Done));
    assert!(world.listing().await.states.iter().any(|s| s.pinned && s.id == id.to_string()));
    assert_eq!(pin(false).await, Some(Pinned::Done));
    let bytes = manage(&bank, |port| Command::Export(id, port)).await.unwrap().unwrap();
    // Another house, which never saw it.
    let mut other = with(configs(), &files[1]).await;
    let there = other.bank(1).await;
    let mut spoilt = bytes.clone();
    spoilt[100] ^= 1;
    let refused = manage(&there, |port| Command::Import(spoilt, port)).await.unwrap();
    assert!(matches!(refused, Err(Failure::Refused(_))), "{refused:?}");
    let taken = manage(&there, |port| Command::Import(bytes, port)).await.unwrap();
    assert_eq!(taken, Ok(id));
    let second = [first(1), reply.clone(), vec![5, 6, 7]].concat();
    assert_eq!(other.serve(9, &second).await.1, 40 + reply.len() - 1);
    // Dropped, it is nowhere, also not on disk.
    let drop_it = || manage(&bank, |port| Command::Drop(id, port));
    assert_eq!((drop_it().await, drop_it().await), (Some(true), Some(false)));
    assert!(world.listing().await.states.iter().all(|state| state.id != id.to_string()));
    world.leave(&files[0]).await;
    assert!(!files[0].has(id));
    other.leave(&files[1]).await;
}

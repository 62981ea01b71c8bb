//! What becomes of files whose states the engine or the disk refuses.

use mtplx_core::batch::RowEvent;
use mtplx_core::image::{Image, Part};
use tempfile::TempDir;

use super::*;

const PROMPT: [Token; 6] = [1, 2, 3, 4, 5, 6];

/// A bank whose only state is a file of four tokens.
async fn filed() -> (World, Arc<Store>, Id, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let config = DiskConfig {
        path: folder.path().join("bank"),
        bytes_max: 1 << 20,
        queue_bytes_max: 1 << 20,
        tokens_min: 2,
        idle_s: 3600,
    };
    let store = Arc::new(Store::open(config).unwrap());
    let prefix = Prefix { tenant: Tenant(0), tokens: PROMPT[..4].into() };
    let label = Label { identity: "a model".into(), prefix, kind: Kind::Reply };
    let part = Part { name: "s".into(), dtype: "u8".into(), shape: vec![2], bytes: vec![7, 8] };
    let id = label.id();
    assert!(store.put(label, Image { parts: vec![part] }));
    assert!(store.flush(Duration::from_secs(30)));
    let world = world_with(ROOMY, Some(Arc::clone(&store)), probe().await).await;
    (world, store, id, folder)
}

impl World {
    async fn arrived(&mut self) -> decode::Arrival {
        match self.heard.recv().await {
            Some(decode::Message::Import(arrival)) => arrival,
            other => panic!("expected a state, heard {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_whole_file_that_the_engine_calls_unfit_is_removed() {
    let (mut world, store, id, _folder) = filed().await;
    world.open(&PROMPT).await;
    let arrival = world.arrived().await;
    assert!(store.has(id));
    arrival.told.send(Err("of other shapes".into())).unwrap();
    while store.has(id) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(world.warm().await, None);
}

#[tokio::test]
async fn whoever_waits_for_a_file_starts_from_its_state() {
    let (mut world, _store, _id, _folder) = filed().await;
    world.open(&PROMPT).await;
    world.open(&PROMPT[..5]).await;
    let arrival = world.arrived().await;
    assert_eq!(arrival.image.bytes(), 2);
    world.deposit(7, &PROMPT[..4], 10);
    arrival.told.send(Ok(true)).unwrap();
    assert_eq!((world.warm().await, world.warm().await), (warm(7, 4), warm(7, 4)));
}

#[tokio::test(start_paused = true)]
async fn a_file_that_comes_late_is_waited_for_no_longer_and_is_warm_once_it_came() {
    let (mut world, _store, _id, _folder) = filed().await;
    let _guest = world.guest(&PROMPT).await;
    let arrival = world.arrived().await;
    // The engine takes its time.
    assert_eq!(world.warm().await, None);
    // Who comes meanwhile waits for the same and starts no second read.
    let _other = world.guest(&PROMPT).await;
    world.deposit(7, &PROMPT[..4], 10);
    arrival.told.send(Ok(true)).unwrap();
    assert_eq!(world.warm().await, warm(7, 4));
}

#[tokio::test(start_paused = true)]
async fn a_state_that_comes_slowly_is_waited_for_where_computing_it_takes_longer() {
    for (tokens_per_s, waits) in [(1000.0, false), (0.01, true)] {
        let (mut world, _store, _id, _folder) = filed().await;
        // As decode tells with the first prompt that it feeds, before any state came by it.
        world.pace.tell(tokens_per_s);
        let _guest = world.guest(&PROMPT).await;
        let arrival = world.arrived().await;
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            arrival.passage.moved(1);
        }
        assert_eq!(world.heard.try_recv().is_err(), waits, "{tokens_per_s}");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_leaves_while_a_state_comes_keeps_no_permit() {
    let (mut world, _store, _id, _folder) = filed().await;
    world.pace.tell(0.01);
    let guest = world.guest(&PROMPT).await;
    let _arrival = world.arrived().await;
    assert_eq!(world.permits.available_permits(), 999);
    drop(guest);
    world.bank.cast(Message::Drain).unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.permits.available_permits(), 1000);
    // Nor does the end of the house wait for them.
    let heard = [world.heard.try_recv().unwrap(), world.heard.try_recv().unwrap()];
    assert!(matches!(heard, [decode::Message::Stay, decode::Message::Drain]), "{heard:?}");
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_longer_for_a_state_than_for_a_slot() {
    let (mut world, _store, _id, _folder) = filed().await;
    world.pace.tell(0.01);
    let mut guest = world.guest(&PROMPT).await;
    let arrival = world.arrived().await;
    for _ in 0..32 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        arrival.passage.moved(0);
    }
    assert_eq!(guest.events.try_recv(), Ok(RowEvent::Late));
    assert_eq!(world.permits.available_permits(), 1000);
    assert!(world.heard.try_recv().is_err(), "it is never begun");
}

#[tokio::test]
async fn what_is_dropped_on_its_way_in_stays_out() {
    let (mut world, store, id, _folder) = filed().await;
    world.open(&PROMPT).await;
    let arrival = world.arrived().await;
    assert!(arrival.passage.is_wanted());
    assert_eq!(manage(&world.bank, |port| Command::Drop(id, port)).await, Some(true));
    assert!(!arrival.passage.is_wanted() && !store.has(id));
    assert_eq!(world.warm().await, None, "who waited for it starts cold");
    // Decode had let it in already.
    world.deposit(7, &PROMPT[..4], 10);
    arrival.told.send(Ok(true)).unwrap();
    assert_eq!(world.released().await, 7);
    world.open(&PROMPT).await;
    assert_eq!(world.warm().await, None);
    assert_eq!(world.observe().await.entries, 0);
    assert_eq!(manage(&world.bank, |port| Command::Drop(id, port)).await, Some(false));
}

#[tokio::test]
async fn what_is_dropped_while_its_file_is_read_never_comes_to_the_engine() {
    let (mut world, _store, id, _folder) = filed().await;
    world.open(&PROMPT).await;
    assert_eq!(manage(&world.bank, |port| Command::Drop(id, port)).await, Some(true));
    // Either it was on its way already and is unwanted, or it is never sent.
    loop {
        match world.heard.recv().await {
            Some(decode::Message::Import(arrival)) => assert!(!arrival.passage.is_wanted()),
            Some(decode::Message::Admit { warm, .. }) => break assert_eq!(warm, None),
            other => panic!("heard {other:?}"),
        }
    }
}

/// The fate of the next state that is to be written.
async fn leaving(world: &mut World) -> Arc<Fate> {
    match world.heard.recv().await {
        Some(decode::Message::Export(_, decode::Outlet::Disk(_, _, fate))) => fate,
        other => panic!("expected an export, heard {other:?}"),
    }
}

async fn leaves(world: &mut World) {
    let heard = world.heard.recv().await;
    assert!(matches!(heard, Some(decode::Message::Leave)), "{heard:?}");
}

#[tokio::test]
async fn a_state_that_found_the_way_to_disk_full_is_written_later() {
    let (mut world, _store, _id, _folder) = filed().await;
    world.deposit(1, &[9, 9, 9], 10);
    for _ in 0..2 {
        world.bank.cast(Message::Part).unwrap();
        // As decode does where there is no room.
        leaving(&mut world).await.arrived(false);
        leaves(&mut world).await;
    }
    world.bank.cast(Message::Part).unwrap();
    let _on_its_way = leaving(&mut world).await;
    leaves(&mut world).await;
    world.bank.cast(Message::Part).unwrap();
    leaves(&mut world).await;
}

#[tokio::test]
async fn a_state_that_the_disk_let_go_is_written_again_when_memory_lets_it_go() {
    let (mut world, store, _id, _folder) = filed().await;
    world.deposit(1, &[9, 9, 9], 10);
    world.bank.cast(Message::Part).unwrap();
    let fate = leaving(&mut world).await;
    leaves(&mut world).await;
    let prefix = Prefix { tenant: Tenant(0), tokens: [9, 9, 9].into() };
    let label = Label { identity: "a model".into(), prefix, kind: Kind::Reply };
    let id = label.id();
    assert!(store.put(label, Image::default()));
    fate.arrived(true);
    world.bank.cast(Message::Part).unwrap();
    leaves(&mut world).await;
    assert!(store.flush(Duration::from_secs(30)) && store.remove(id));
    world.bank.cast(Message::Reclaim).unwrap();
    leaving(&mut world).await;
    assert_eq!(world.released().await, 1);
}

#[tokio::test]
async fn a_state_that_is_dropped_on_its_way_to_the_disk_is_not_wanted_there() {
    let (mut world, _store, _id, _folder) = filed().await;
    world.deposit(1, &[9, 9, 9], 10);
    world.bank.cast(Message::Part).unwrap();
    let fate = leaving(&mut world).await;
    leaves(&mut world).await;
    assert!(fate.is_wanted());
    let prefix = Prefix { tenant: Tenant(0), tokens: [9, 9, 9].into() };
    let id = Label { identity: "a model".into(), prefix, kind: Kind::Reply }.id();
    let dropped = manage(&world.bank, |port| Command::Drop(id, port)).await;
    assert!(dropped == Some(true) && !fate.is_wanted());
    assert_eq!(world.released().await, 1);
}

#[tokio::test]
async fn what_is_dropped_after_its_eviction_and_before_its_file_never_has_one() {
    let (mut world, _store, _id, _folder) = filed().await;
    world.deposit(1, &[9, 9, 9], 10);
    world.bank.cast(Message::Reclaim).unwrap();
    let fate = leaving(&mut world).await;
    assert_eq!(world.released().await, 1);
    let prefix = Prefix { tenant: Tenant(0), tokens: [9, 9, 9].into() };
    let id = Label { identity: "a model".into(), prefix, kind: Kind::Reply }.id();
    // In no index any more, and not in the store yet.
    assert_eq!(manage(&world.bank, |port| Command::Drop(id, port)).await, Some(true));
    assert!(!fate.is_wanted());
    assert_eq!(manage(&world.bank, |port| Command::Drop(id, port)).await, Some(false));
}

#[tokio::test]
async fn what_is_dropped_while_a_person_brings_it_stays_out() {
    for taken in [true, false] {
        let (mut world, store, id, _folder) = filed().await;
        let file = store.bytes_of(id).unwrap();
        assert!(store.remove(id));
        let bank = world.bank.clone();
        let import = async move { manage(&bank, |port| Command::Import(file, port)).await };
        let import = tokio::spawn(import);
        let arrival = world.arrived().await;
        assert_eq!(manage(&world.bank, |port| Command::Drop(id, port)).await, Some(true));
        assert!(!arrival.passage.is_wanted());
        // Decode had let it in already, or had no room.
        if taken {
            world.deposit(7, &PROMPT[..4], 10);
        }
        arrival.told.send(Ok(taken)).unwrap();
        let answer = import.await.unwrap().unwrap();
        assert!(matches!(answer, Err(Failure::Refused(_))), "{answer:?}");
        if taken {
            assert_eq!(world.released().await, 7);
        }
        assert!(!store.has_or_expects(id));
        // Nothing is remembered of it: it may be brought again.
        assert_eq!(manage(&world.bank, |port| Command::Drop(id, port)).await, Some(false));
    }
}

#[tokio::test]
async fn whatever_memory_may_hold_may_come_back_and_nothing_larger() {
    for memory in [1 << 20, 1 << 30, 13 << 30] {
        let config = Config { bytes_max: memory, ..ROOMY };
        let world = world(config).await;
        let most = manage(&world.bank, Command::FileMax).await.unwrap();
        assert_eq!(most - memory, 16 << 20, "a head and its tokens");
    }
}

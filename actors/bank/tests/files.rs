//! What becomes of files whose states the engine or the disk refuses.

use mtplx_core::image::{Image, Part};
use tempfile::TempDir;

use super::tiers::Restored;
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
    arrival.told.unwrap().send(Err("of other shapes".into())).unwrap();
    while store.has(id) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(world.warm().await, None);
}

#[tokio::test]
async fn the_time_of_an_earlier_read_does_not_end_a_later_one() {
    let (mut world, _store, id, _folder) = filed().await;
    for number in 1..=2 {
        world.open(&PROMPT).await;
        // Those before this one are over; whether it comes before the file or after, it is nothing.
        let state = Err(Refused::Read(std::io::ErrorKind::TimedOut.into()));
        let late = Restored { id, number: number - 1, state };
        world.bank.cast(Message::Read(late)).unwrap();
        world.arrived().await;
        assert_eq!(world.warm().await, None);
    }
}

#[tokio::test]
async fn a_state_that_found_the_way_to_disk_full_is_written_later() {
    let (mut world, _store, _id, _folder) = filed().await;
    world.deposit(1, &[9, 9, 9], 10);
    let mut written = async |again: bool| {
        world.bank.cast(Message::Part).unwrap();
        match world.heard.recv().await {
            Some(decode::Message::Export(_, decode::Outlet::Disk(_, _, written))) => {
                // As decode does.
                written.store(!again, std::sync::atomic::Ordering::Relaxed);
            }
            other => panic!("expected an export, heard {other:?}"),
        }
        assert!(matches!(world.heard.recv().await, Some(decode::Message::Leave)));
    };
    written(true).await;
    written(false).await;
    world.bank.cast(Message::Part).unwrap();
    assert!(matches!(world.heard.recv().await, Some(decode::Message::Leave)), "it was taken");
}

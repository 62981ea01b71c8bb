use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mtplx_core::Token;
use mtplx_core::batch::{Kind, Warm};
use mtplx_core::prefix::Prefix;
use proptest::prelude::*;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedReceiver;

use super::*;
use crate::oracle::{Guest, admit, request};
use crate::probe::probe;

mod files;
mod places;

const ROOMY: Config = Config {
    bytes_max: 1 << 30,
    roots_share: 0.0,
    entries_max: 1000,
    idle_s: 3600,
    every_tokens: 0,
    share_between_tenants: false,
};

/// A bank in front of a listening decode.
struct World {
    bank: ActorRef<Message>,
    heard: UnboundedReceiver<decode::Message>,
    permits: Arc<Semaphore>,
    pace: PromptPace,
}

async fn world(config: Config) -> World {
    let (decode, heard) = probe().await;
    world_with(config, None, (decode, heard)).await
}

async fn world_with(
    config: Config,
    store: Option<Arc<Store>>,
    (decode, heard): (ActorRef<decode::Message>, UnboundedReceiver<decode::Message>),
) -> World {
    let (prompt_pace, queue_s) = (PromptPace::default(), 30);
    let pace = prompt_pace.clone();
    let identity = "a model".into();
    let arguments = Arguments { config, decode, identity, store, prompt_pace, queue_s };
    let (bank, _) = Actor::spawn(None, Bank, arguments).await.unwrap();
    World { bank, heard, permits: Arc::new(Semaphore::new(1000)), pace }
}

impl World {
    fn deposit(&self, snapshot: u64, tokens: &[Token], bytes: u64) {
        self.keep(snapshot, tokens, bytes, Kind::Reply);
    }

    fn keep(&self, snapshot: u64, tokens: &[Token], bytes: u64, kind: Kind) {
        let prefix = Prefix { tenant: Tenant(0), tokens: tokens.into() };
        let snapshot = SnapshotId(snapshot);
        self.bank.cast(Message::Deposit(Deposit { snapshot, prefix, kind, bytes })).unwrap();
    }

    async fn open(&self, prompt: &[Token]) {
        drop(self.guest(prompt).await);
    }

    async fn guest(&self, prompt: &[Token]) -> Guest {
        let (admission, guest) = admit(&self.permits, request(1, prompt, 1)).await;
        self.bank.cast(Message::Open(admission)).unwrap();
        guest
    }

    /// What decode is told to start the next request from.
    async fn warm(&mut self) -> Option<Warm> {
        match self.heard.recv().await {
            Some(decode::Message::Admit { warm, .. }) => warm,
            other => panic!("expected an admission, heard {other:?}"),
        }
    }

    async fn released(&mut self) -> u64 {
        match self.heard.recv().await {
            Some(decode::Message::Release(SnapshotId(id))) => id,
            other => panic!("expected a release, heard {other:?}"),
        }
    }

    async fn observe(&self) -> Snapshot {
        ractor::call!(self.bank, Message::Observe).unwrap()
    }
}

fn warm(snapshot: u64, len: usize) -> Option<Warm> {
    Some(Warm { snapshot: SnapshotId(snapshot), len })
}

#[tokio::test]
async fn the_longest_warm_prefix_is_found_even_if_it_is_all() {
    let mut world = world(ROOMY).await;
    world.deposit(1, &[1, 2], 10);
    world.deposit(2, &[1, 2, 3, 4], 20);
    world.deposit(3, &[9], 5);
    for (prompt, expected) in [
        (&[1, 2, 3, 4][..], warm(2, 4)),
        (&[1, 2, 3, 4, 5], warm(2, 4)),
        (&[1, 2, 3], warm(1, 2)),
        (&[1], None),
        (&[2, 1, 3, 4], None),
    ] {
        world.open(prompt).await;
        assert_eq!(world.warm().await, expected, "{prompt:?}");
    }
    let seen = world.observe().await;
    assert_eq!((seen.entries, seen.bytes, seen.hits, seen.misses), (3, 35, 3, 2));
}

#[tokio::test]
async fn a_second_state_of_a_known_prefix_is_let_go() {
    let mut world = world(ROOMY).await;
    world.deposit(1, &[1, 2], 10);
    world.deposit(2, &[1, 2], 10);
    assert_eq!(world.released().await, 2);
    world.open(&[1, 2, 3]).await;
    assert_eq!(world.warm().await, warm(1, 2));
    assert_eq!(world.observe().await.entries, 1);
}

#[tokio::test]
async fn the_least_recently_used_goes_first_when_there_are_too_many() {
    let mut world = world(Config { entries_max: 3, ..ROOMY }).await;
    for id in 1..=3 {
        world.deposit(id, &[id as Token], 1);
    }
    // Both a match and a second state of the same prefix are uses.
    world.open(&[1]).await;
    assert_eq!(world.warm().await, warm(1, 1));
    world.deposit(4, &[2], 1);
    assert_eq!(world.released().await, 4);
    world.deposit(5, &[5], 1);
    assert_eq!(world.released().await, 3);
    world.bank.cast(Message::Reclaim).unwrap();
    assert_eq!(world.released().await, 1);
    assert!(matches!(world.heard.recv().await, Some(decode::Message::Reclaimed(true))));
}

#[tokio::test]
async fn an_empty_bank_says_so_when_pages_are_short() {
    let mut world = world(ROOMY).await;
    world.bank.cast(Message::Reclaim).unwrap();
    assert!(matches!(world.heard.recv().await, Some(decode::Message::Reclaimed(false))));
}

#[tokio::test]
async fn bytes_are_bounded_and_what_never_fits_is_let_go() {
    let mut world = world(Config { bytes_max: 100 << 10, ..ROOMY }).await;
    world.deposit(1, &[1], 60 << 10);
    world.deposit(2, &[2], 60 << 10);
    assert_eq!(world.released().await, 1);
    world.deposit(3, &[3], 200 << 10);
    let gone = world.released().await;
    assert_eq!(gone, 3);
    assert_eq!(world.observe().await.bytes, 60 << 10);
}

#[tokio::test]
async fn new_bounds_hold_at_once_and_what_was_used_last_stays() {
    let mut world = world(ROOMY).await;
    for id in 1..=4 {
        world.deposit(id, &[id as Token], 20 << 10);
    }
    world.open(&[1]).await;
    assert_eq!(world.warm().await, warm(1, 1));
    let tight = Config { bytes_max: 50 << 10, ..ROOMY };
    world.bank.cast(Message::Configure(tight, 0)).unwrap();
    assert_eq!([world.released().await, world.released().await], [2, 3]);
    assert_eq!(world.observe().await.bytes, 40 << 10);
    // And with more room again nothing else goes.
    world.bank.cast(Message::Configure(ROOMY, 0)).unwrap();
    world.deposit(5, &[5], 20 << 10);
    assert_eq!(world.observe().await.entries, 3);
    world.open(&[1, 2]).await;
    assert_eq!(world.warm().await, warm(1, 1));
}

#[tokio::test]
async fn a_match_is_told_before_the_release_that_follows_it() {
    let mut world = world(Config { entries_max: 1, ..ROOMY }).await;
    world.deposit(1, &[1], 1);
    world.open(&[1]).await;
    world.deposit(2, &[2], 1);
    assert_eq!(world.warm().await, warm(1, 1));
    assert_eq!(world.released().await, 1);
}

#[tokio::test]
async fn what_is_idle_too_long_is_let_go() {
    let mut world = world(Config { idle_s: 0, ..ROOMY }).await;
    world.deposit(1, &[1], 1);
    world.bank.cast(Message::Sweep).unwrap();
    assert_eq!(world.released().await, 1);
}

#[tokio::test]
async fn drain_follows_what_was_opened() {
    let mut world = world(ROOMY).await;
    world.open(&[1]).await;
    world.bank.cast(Message::Drain).unwrap();
    assert_eq!(world.warm().await, None);
    assert!(matches!(world.heard.recv().await, Some(decode::Message::Drain)));
}

/// What may happen to a bank.
#[derive(Clone, Debug)]
enum Event {
    Open(Vec<Token>),
    Deposit(Vec<Token>, u64),
    Reclaim,
    Sweep,
    Configure { kib_max: u64, entries_max: u32, roots_share: f64 },
}

fn event() -> impl Strategy<Value = Event> {
    let tokens = || prop::collection::vec(0_u32..2, 1..7);
    prop_oneof![
        4 => tokens().prop_map(Event::Open),
        6 => (tokens(), 1_u64..40).prop_map(|(tokens, kib)| Event::Deposit(tokens, kib << 10)),
        1 => Just(Event::Reclaim),
        1 => Just(Event::Sweep),
        1 => (20_u64..200, 1_u32..12, 0.0..1.0_f64).prop_map(|(kib_max, entries_max, roots_share)| {
            Event::Configure { kib_max, entries_max, roots_share }
        }),
    ]
}

/// Plays `events`, then has everything let go; every deposit must be released once, and no match
/// may name a state that was.
async fn play(config: Config, events: Vec<Event>) {
    let mut world = world(config).await;
    let mut deposits = BTreeMap::new();
    let (mut opens, mut reclaims) = (0, 0);
    for (id, event) in (1..).zip(&events) {
        match event {
            Event::Open(prompt) => {
                opens += 1;
                world.open(prompt).await;
            }
            Event::Deposit(tokens, bytes) => {
                deposits.insert(id, tokens.clone());
                world.deposit(id, tokens, *bytes);
            }
            Event::Reclaim => {
                reclaims += 1;
                world.bank.cast(Message::Reclaim).unwrap();
            }
            Event::Sweep => world.bank.cast(Message::Sweep).unwrap(),
            &Event::Configure { kib_max, entries_max, roots_share } => {
                let bytes_max = kib_max << 10;
                let config = Config { bytes_max, entries_max, roots_share, ..config };
                world.bank.cast(Message::Configure(config, 0)).unwrap();
                assert!(world.observe().await.bytes <= config.bytes_max);
            }
        }
    }
    while world.observe().await.entries > 0 {
        reclaims += 1;
        world.bank.cast(Message::Reclaim).unwrap();
    }
    assert_eq!(world.observe().await.bytes, 0);
    let mut released = BTreeSet::new();
    for _ in 0..opens + reclaims + deposits.len() {
        match world.heard.recv().await {
            Some(decode::Message::Release(SnapshotId(id))) => {
                assert!(deposits.contains_key(&id) && released.insert(id), "{id} released twice");
            }
            Some(decode::Message::Admit { warm, admission, .. }) => {
                if let Some(Warm { snapshot: SnapshotId(id), len }) = warm {
                    assert!(!released.contains(&id), "{id} was let go before");
                    assert_eq!(deposits[&id][..], admission.request.prompt[..len]);
                }
            }
            Some(decode::Message::Reclaimed(_)) => {}
            other => panic!("unexpected {other:?}"),
        }
    }
    assert_eq!(released.len(), deposits.len());
    assert!(world.heard.try_recv().is_err(), "nothing else is said");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 60,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_deposit_is_released_exactly_once(
        events in prop::collection::vec(event(), 1..200),
        entries_max in 1_u32..12,
        kib_max in 20_u64..200,
        idle in prop_oneof![9 => Just(3600_u64), 1 => Just(0)],
    ) {
        let config = Config { bytes_max: kib_max << 10, entries_max, idle_s: idle, ..ROOMY };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(play(config, events));
    }
}

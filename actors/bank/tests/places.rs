//! Roots, pins, tenants, and the boundaries that the bank adds.

use super::*;

fn tokens(len: usize, tail: Token) -> Vec<Token> {
    (0..len as Token).chain([tail; 40]).collect()
}

impl World {
    /// What the next request is told: where it starts and where its state is worth keeping.
    async fn opened(&mut self) -> (usize, Vec<usize>) {
        match self.heard.recv().await {
            Some(decode::Message::Admit { warm, admission, .. }) => {
                (warm.map_or(0, |w| w.len), admission.request.boundaries)
            }
            other => panic!("expected an admission, heard {other:?}"),
        }
    }

    async fn open_for(&self, tenant: u64, prompt: &[Token]) {
        let (mut admission, _) = admit(&self.permits, request(1, prompt, 1)).await;
        admission.request.sharing.tenant = Tenant(tenant);
        self.bank.cast(Message::Open(admission)).unwrap();
    }
}

#[tokio::test]
async fn no_chat_evicts_a_root_and_roots_go_last_when_pages_are_short() {
    let config = Config { bytes_max: 100 << 10, roots_share: 0.3, ..ROOMY };
    let mut world = world(config).await;
    world.keep(1, &[1, 2], 20 << 10, Kind::Root);
    for id in 2..30 {
        world.deposit(id, &[id as Token], 20 << 10);
        if id > 4 {
            assert_eq!(world.released().await, id - 3);
        }
    }
    world.open(&[1, 2, 3]).await;
    assert_eq!(world.warm().await, warm(1, 2));
    // A second one that has no room beside it takes its place, not that of a chat.
    world.keep(40, &[7, 7], 20 << 10, Kind::Root);
    assert_eq!(world.released().await, 1);
    for gone in [27, 28, 29, 40] {
        world.bank.cast(Message::Reclaim).unwrap();
        assert_eq!(world.released().await, gone);
        assert!(matches!(world.heard.recv().await, Some(decode::Message::Reclaimed(true))));
    }
}

#[tokio::test]
async fn a_root_heavier_than_all_roots_may_be_is_warm_among_the_chats() {
    for roots_share in [0.0, 0.1] {
        let config = Config { bytes_max: 100 << 10, roots_share, ..ROOMY };
        let mut world = world(config).await;
        world.keep(1, &[1, 2], 30 << 10, Kind::Root);
        world.open(&[1, 2, 3]).await;
        assert_eq!(world.warm().await, warm(1, 2));
        let prefix = Prefix { tenant: Tenant(0), tokens: [1, 2].into() };
        let id = Label { identity: "a model".into(), prefix, kind: Kind::Root }.id();
        for on in [true, false] {
            let pinned = manage(&world.bank, |port| Command::Pin(id, on, port)).await;
            assert_eq!(pinned, Some(Pinned::Done));
            world.open(&[1, 2, 3]).await;
            assert_eq!(world.warm().await, warm(1, 2), "pinned: {on}");
        }
        assert_eq!(manage(&world.bank, |port| Command::Drop(id, port)).await, Some(true));
        assert_eq!(world.released().await, 1);
        assert_eq!(world.observe().await.entries, 0);
    }
}

#[tokio::test]
async fn what_is_pinned_stays_until_nothing_else_is_left() {
    let mut world = world(Config { bytes_max: 100 << 10, ..ROOMY }).await;
    world.deposit(1, &[1], 30 << 10);
    world.deposit(2, &[2], 30 << 10);
    let ids: Vec<Id> = [1, 2]
        .map(|token| {
            let prefix = Prefix { tenant: Tenant(0), tokens: [token].into() };
            Label { identity: "a model".into(), prefix, kind: Kind::Reply }.id()
        })
        .into();
    let pin = |id, on| {
        let bank = world.bank.clone();
        async move { manage(&bank, |port| Command::Pin(id, on, port)).await.unwrap() }
    };
    assert_eq!(pin(ids[0], true).await, Pinned::Done);
    assert_eq!(pin(ids[1], true).await, Pinned::Full, "half of the bank");
    assert_eq!(pin(Id::parse(&"0".repeat(32)).unwrap(), true).await, Pinned::Unknown);
    for id in 3..9 {
        world.deposit(id, &[id as Token], 30 << 10);
    }
    let mut released = Vec::new();
    for _ in 0..5 {
        released.push(world.released().await);
    }
    assert_eq!(released, [2, 3, 4, 5, 6], "what is pinned counts among all");
    world.open(&[1]).await;
    assert_eq!(world.warm().await, warm(1, 1));
    for gone in [7, 8, 1] {
        world.bank.cast(Message::Reclaim).unwrap();
        assert_eq!(world.released().await, gone);
        assert!(matches!(world.heard.recv().await, Some(decode::Message::Reclaimed(true))));
    }
    let seen = world.observe().await;
    assert_eq!((seen.entries, seen.bytes), (0, 0));
}

#[tokio::test]
async fn of_what_is_pinned_the_least_recently_used_goes_first() {
    let mut world = world(ROOMY).await;
    for token in 1..=8 {
        world.deposit(token, &[token as Token], 1);
        let prefix = Prefix { tenant: Tenant(0), tokens: [token as Token].into() };
        let id = Label { identity: "a model".into(), prefix, kind: Kind::Reply }.id();
        let told = manage(&world.bank, |port| Command::Pin(id, true, port)).await;
        assert_eq!(told, Some(Pinned::Done));
    }
    for used in [3, 1] {
        world.open(&[used, 9]).await;
        assert_eq!(world.warm().await, warm(used.into(), 1));
    }
    for gone in [2, 4, 5, 6, 7, 8, 3, 1] {
        world.bank.cast(Message::Reclaim).unwrap();
        assert_eq!(world.released().await, gone);
        assert!(matches!(world.heard.recv().await, Some(decode::Message::Reclaimed(true))));
    }
}

#[tokio::test]
async fn however_small_pinned_states_are_half_of_all_places_stay_free() {
    let mut world = world(Config { entries_max: 8, ..ROOMY }).await;
    let mut pinned = 0;
    for id in 1..=8 {
        world.deposit(id, &[id as Token], 1);
        let prefix = Prefix { tenant: Tenant(0), tokens: [id as Token].into() };
        let id = Label { identity: "a model".into(), prefix, kind: Kind::Reply }.id();
        let told = manage(&world.bank, |port| Command::Pin(id, true, port)).await;
        pinned += u32::from(told == Some(Pinned::Done));
    }
    assert_eq!(pinned, 4);
    for id in 9..=20 {
        world.deposit(id, &[id as Token], 1);
        assert!(world.observe().await.entries <= 8);
    }
    assert_eq!(world.released().await, 5);
}

#[tokio::test]
async fn tenants_do_not_meet_unless_the_house_says_so() {
    for (shared, found) in [(false, 0), (true, 2)] {
        let mut world = world(Config { share_between_tenants: shared, ..ROOMY }).await;
        world.deposit(1, &[1, 2], 1);
        world.open_for(7, &[1, 2, 3]).await;
        assert_eq!(world.opened().await.0, found);
        world.open_for(0, &[1, 2, 3]).await;
        assert_eq!(world.opened().await.0, 2);
    }
}

#[tokio::test]
async fn where_texts_part_a_state_is_kept_from_the_second_on() {
    let mut world = world(ROOMY).await;
    world.open(&tokens(200, 1)).await;
    assert_eq!(world.opened().await, (0, vec![]));
    world.open(&tokens(200, 2)).await;
    assert_eq!(world.opened().await, (0, vec![192]));
    // It is there for the third, which parts from them nowhere else.
    world.keep(5, &tokens(200, 2)[..192], 1, Kind::Boundary);
    world.open(&tokens(200, 3)).await;
    assert_eq!(world.opened().await, (192, vec![]));
}

#[tokio::test]
async fn the_state_of_a_long_prompt_is_kept_on_its_way() {
    let mut world = world(Config { every_tokens: 100, ..ROOMY }).await;
    world.keep(5, &tokens(150, 2)[..150], 1, Kind::Boundary);
    world.open(&tokens(350, 2)[..350]).await;
    let (warm, boundaries) = world.opened().await;
    assert_eq!((warm, boundaries), (150, vec![200, 300]));
}

#[tokio::test]
async fn a_limit_makes_the_least_recently_used_go_and_holds_until_the_next_word() {
    let config = Config { bytes_max: 200 << 10, roots_share: 0.4, ..ROOMY };
    let mut world = world(config).await;
    // Two roots of the 80 KiB that they may be, and six chats of the 120 KiB that are left.
    for id in 1..=2 {
        world.keep(id, &[id as Token, 0], 40 << 10, Kind::Root);
    }
    for id in 3..=8 {
        world.deposit(id, &[id as Token], 20 << 10);
    }
    assert_eq!(world.observe().await.bytes, 200 << 10);
    world.bank.cast(Message::Limit(0.5)).unwrap();
    let mut gone = BTreeSet::new();
    for _ in 0..4 {
        gone.insert(world.released().await);
    }
    assert_eq!(gone, BTreeSet::from([1, 3, 4, 5]), "roots are halved, as chats are");
    let listing = manage(&world.bank, Command::List).await.unwrap();
    assert_eq!((listing.bank.bytes, listing.bytes_max), (100 << 10, 100 << 10));
    // Newcomers are taken in, and it stays within.
    world.deposit(9, &[9], 20 << 10);
    assert_eq!(world.released().await, 6);
    assert_eq!(world.observe().await.bytes, 100 << 10);
    world.bank.cast(Message::Limit(1.0)).unwrap();
    for id in 10..=12 {
        world.deposit(id, &[id as Token], 20 << 10);
    }
    assert_eq!(world.observe().await.bytes, 160 << 10);
    world.bank.cast(Message::Limit(0.0)).unwrap();
    assert_eq!(world.observe().await.bytes, 0);
    world.bank.cast(Message::Limit(f64::NAN)).unwrap();
    assert_eq!(manage(&world.bank, Command::List).await.unwrap().bytes_max, 200 << 10);
}

#[tokio::test]
async fn what_is_pinned_is_the_last_that_a_limit_takes() {
    let mut world = world(Config { bytes_max: 100 << 10, ..ROOMY }).await;
    for id in 1..=5 {
        world.deposit(id, &[id as Token], 20 << 10);
    }
    for id in 1..=2 {
        let prefix = Prefix { tenant: Tenant(0), tokens: [id].into() };
        let id = Label { identity: "a model".into(), prefix, kind: Kind::Reply }.id();
        let pinned = manage(&world.bank, |port| Command::Pin(id, true, port)).await;
        assert_eq!(pinned, Some(Pinned::Done));
    }
    world.bank.cast(Message::Limit(0.4)).unwrap();
    let gone = [world.released().await, world.released().await, world.released().await];
    assert_eq!(BTreeSet::from(gone), BTreeSet::from([3, 4, 5]));
    world.bank.cast(Message::Limit(0.2)).unwrap();
    assert_eq!(world.released().await, 1);
    assert_eq!(world.observe().await.entries, 1);
}

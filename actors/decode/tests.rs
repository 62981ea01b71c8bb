use mtplx_core::batch::{Deposit, Kind, RowEvent};
use mtplx_core::guard::Budget;
use mtplx_core::request::Finish;
use mtplx_core::scripted::Scripted;
use ractor::thread_local::ThreadLocalActorSpawner;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;

use super::*;
use crate::oracle::{Guest, admit, alone, request, script, varied};
use crate::probe::probe;

mod carrying;
mod ending;

/// A decode between listeners.
struct World {
    decode: ActorRef<Message>,
    thread: JoinHandle<()>,
    permits: Arc<Semaphore>,
    home: ActorRef<bank::Message>,
    banked: UnboundedReceiver<bank::Message>,
    tuner: ActorRef<tuner::Message>,
    reports: UnboundedReceiver<tuner::Message>,
}

/// It is not tuned yet: nothing runs.
async fn world<E: Engine + 'static>(engine: impl Fn() -> E + Send + Sync + 'static) -> World {
    let config = Config { snapshots_max: 64, chunk_grain_tokens: 8, queue_s: 0 };
    let (heart, pace) = (Heart::default(), PromptPace::default());
    let open = Arc::new(move || Ok(engine()));
    let flight = Recorder::new(8);
    let arguments = Arguments { open, config, heart, prompt_pace: pace, flight };
    let spawner = ThreadLocalActorSpawner::new();
    let spawned = Decode::<E>::spawn(None, arguments, spawner).await;
    let (decode, thread) = spawned.unwrap();
    let (home, banked) = probe().await;
    let (tuner, reports) = probe().await;
    let permits = Arc::new(Semaphore::new(100));
    World { decode, thread, permits, home, banked, tuner, reports }
}

fn small() -> Scripted {
    Scripted::small(script())
}

impl World {
    async fn admit(&self, request: mtplx_core::request::Request) -> Guest {
        let (admission, guest) = admit(&self.permits, request).await;
        let admit = Message::Admit { admission, warm: None, home: self.home.clone() };
        self.decode.cast(admit).unwrap();
        guest
    }

    fn tune(&self) {
        self.decode.cast(Message::Tune(Knobs::fixed(3, 8, (16, 64)), self.tuner.clone())).unwrap();
    }

    async fn observe(&self) -> Snapshot {
        ractor::call!(self.decode, Message::Observe).unwrap()
    }

    /// A bank that keeps everything until it is asked, and then lets the oldest go.
    async fn keep_until_asked(
        &mut self,
        kept: &mut Vec<Deposit>,
        mut asked: impl FnMut(&[Deposit]),
    ) {
        loop {
            match self.banked.recv().await {
                Some(bank::Message::Deposit(deposit)) => kept.push(deposit),
                Some(bank::Message::Reclaim) => {
                    asked(kept);
                    let found = !kept.is_empty();
                    if found {
                        self.decode.cast(Message::Release(kept.remove(0).snapshot)).unwrap();
                    }
                    self.decode.cast(Message::Reclaimed(found)).unwrap();
                }
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// Everybody has left: all permits are back.
    async fn all_left(&self) {
        drop(self.permits.acquire_many(100).await.unwrap());
    }
}

#[tokio::test]
async fn many_at_once_hear_what_each_would_hear_alone() {
    let world = world(small).await;
    world.tune();
    let mut guests = Vec::new();
    for id in 1..=40 {
        guests.push(world.admit(varied(id)).await);
    }
    let mut drafted = 0;
    for guest in guests {
        drafted += guest.hear_truth().await.drafted;
    }
    assert!(drafted > 100, "only {drafted} tokens were drafted");
    world.all_left().await;
}

#[tokio::test]
async fn nothing_runs_before_the_first_tune() {
    let world = world(small).await;
    let guest = world.admit(varied(1)).await;
    let seen = world.observe().await;
    assert_eq!((seen.cycles, seen.running, seen.waiting), (0, 0, 1));
    world.tune();
    guest.hear_truth().await;
}

#[tokio::test]
async fn whoever_leaves_frees_slot_pages_and_permit() {
    let mut world = world(small).await;
    let mut leaver = world.admit(request(1, &[1, 2, 3], 500)).await;
    let waiting_leaver = world.admit(request(2, &[4, 5], 500)).await;
    let stayer = world.admit(request(3, &[6, 7], 60)).await;
    drop(waiting_leaver);
    world.tune();
    assert_eq!(leaver.events.recv().await, Some(RowEvent::Seated));
    assert!(matches!(leaver.events.recv().await, Some(RowEvent::Tokens(..))));
    drop(leaver);
    stayer.hear_truth().await;
    world.all_left().await;
    // Only parked states are left; whoever holds their names lets go of them.
    let mut snapshots = world.observe().await.snapshots;
    while snapshots > 0 {
        if let Some(bank::Message::Deposit(deposit)) = world.banked.recv().await {
            world.decode.cast(Message::Release(deposit.snapshot)).unwrap();
        }
        snapshots = world.observe().await.snapshots;
    }
    let seen = world.observe().await;
    assert_eq!((seen.running, seen.slots_free, seen.pages_free), (0, 8, 400));
}

#[tokio::test]
async fn a_cycle_is_reported_with_its_tokens() {
    let mut world = world(small).await;
    world.tune();
    let guest = world.admit(request(1, &[1, 2, 3], 30)).await;
    let usage = guest.hear_truth().await;
    let mut emitted = 0;
    while emitted < usage.generated {
        match world.reports.recv().await {
            Some(tuner::Message::Report(report)) => emitted += report.emitted,
            other => panic!("expected a report, heard {other:?}"),
        }
    }
    assert_eq!(emitted, usage.generated);
}

#[tokio::test]
async fn a_fault_ends_the_actor_and_every_stream() {
    let faulty = || {
        let mut engine = small();
        engine.fault_at_step = Some(4);
        engine
    };
    let world = world(faulty).await;
    world.tune();
    let guest = world.admit(request(1, &[1, 2, 3], 500)).await;
    let truth = alone(&guest.request);
    let heard = guest.hear().await;
    assert_eq!(heard.end, None);
    assert!(!heard.text.is_empty() && truth.starts_with(&heard.text));
    world.thread.await.unwrap();
    drop(world.permits.acquire_many(100).await.unwrap());
}

#[tokio::test]
async fn an_engine_that_does_not_open_is_not_spawned() {
    let config = Config { snapshots_max: 1, chunk_grain_tokens: 1, queue_s: 0 };
    let open: Open<Scripted> = Arc::new(|| Err(Fault("no device".into())));
    let arguments = Arguments {
        open,
        config,
        heart: Heart::default(),
        prompt_pace: PromptPace::default(),
        flight: Recorder::new(8),
    };
    let spawned = Decode::<Scripted>::spawn(None, arguments, ThreadLocalActorSpawner::new()).await;
    assert!(spawned.unwrap_err().to_string().contains("no device"));
}

#[tokio::test]
async fn drained_it_ends_after_its_last_row() {
    let world = world(small).await;
    let guests = [world.admit(varied(5)).await, world.admit(varied(8)).await];
    world.decode.cast(Message::Drain).unwrap();
    world.tune();
    for guest in guests {
        guest.hear_truth().await;
    }
    world.thread.await.unwrap();
}

#[tokio::test]
async fn drained_while_idle_it_ends_at_once() {
    let world = world(small).await;
    world.decode.cast(Message::Drain).unwrap();
    world.thread.await.unwrap();
}

#[tokio::test]
async fn a_stream_without_room_costs_its_row_and_nobody_else() {
    let world = world(small).await;
    let (mut admission, _) = admit(&world.permits, request(1, &[1, 2], 300)).await;
    let (events, mut narrow) = tokio::sync::mpsc::channel(2);
    admission.events = events;
    let admit = Message::Admit { admission, warm: None, home: world.home.clone() };
    world.decode.cast(admit).unwrap();
    let other = world.admit(request(2, &[3, 4], 40)).await;
    world.tune();
    other.hear_truth().await;
    world.all_left().await;
    assert_eq!(narrow.recv().await, Some(RowEvent::Seated));
    assert!(matches!(narrow.recv().await, Some(RowEvent::Tokens(..))));
    assert_eq!(narrow.recv().await, None);
}

#[tokio::test]
async fn a_row_that_lacks_pages_only_makes_the_bank_let_go() {
    // Ten pages of 16 tokens: one row of 100 fits, two do not.
    let narrow = || {
        let info = EngineInfo { pages_max: 10, ..small().info().clone() };
        Scripted::new(info, script())
    };
    let mut world = world(narrow).await;
    let first = world.admit(request(1, &[1; 20], 80)).await;
    let second = world.admit(request(2, &[2; 20], 80)).await;
    world.tune();
    let mut kept = Vec::new();
    let mut reclaims = 0;
    tokio::select! {
        () = world.keep_until_asked(&mut kept, |_| reclaims += 1) => {}
        _ = async { (first.hear_truth().await, second.hear_truth().await) } => {}
    }
    assert!(reclaims > 0);
}

#[tokio::test]
async fn a_row_that_cannot_fit_beside_a_running_one_leaves_the_bank_untouched() {
    // Ten pages of 16 tokens: two are parked, one row of seven fits beside them, two never do.
    let narrow = || {
        let info = EngineInfo { pages_max: 10, ..small().info().clone() };
        Scripted::new(info, script())
    };
    let mut world = world(narrow).await;
    world.tune();
    world.admit(request(1, &[1; 20], 1)).await.hear_truth().await;
    let mut kept = Vec::new();
    match world.banked.recv().await {
        Some(bank::Message::Deposit(deposit)) => kept.push(deposit),
        other => panic!("expected a deposit, heard {other:?}"),
    }
    let first = world.admit(request(2, &[2; 20], 80)).await;
    let second = world.admit(request(3, &[3; 20], 80)).await;
    let mut asked_after_the_first = Vec::new();
    let ended = |d: &Deposit| d.kind == Kind::Reply && d.prefix.tokens[0] == 2;
    tokio::select! {
        () = world.keep_until_asked(&mut kept, |kept| {
            asked_after_the_first.push(kept.iter().any(ended));
        }) => {}
        _ = async { (first.hear_truth().await, second.hear_truth().await) } => {}
    }
    assert_eq!(asked_after_the_first.first(), Some(&true), "it was asked while the first ran");
}

#[tokio::test]
async fn a_row_that_fits_nowhere_is_told_so() {
    let narrow = || {
        let info = EngineInfo { pages_max: 2, ..small().info().clone() };
        Scripted::new(info, script())
    };
    let mut world = world(narrow).await;
    let wide = world.admit(request(1, &[1; 20], 80)).await;
    let other = world.admit(request(2, &[2; 20], 10)).await;
    world.tune();
    assert!(matches!(world.banked.recv().await, Some(bank::Message::Reclaim)));
    world.decode.cast(Message::Reclaimed(false)).unwrap();
    assert!(matches!(wide.hear().await.end, Some((Finish::Fault, _))));
    other.hear_truth().await;
}

/// An engine with room for one request of 100 tokens beside a parked state.
fn tight() -> Scripted {
    let budget = Budget { bytes: (1024 + 16) << 10, base: 1 << 20, step: 0 };
    Scripted::new(EngineInfo { budget, ..small().info().clone() }, script())
}

#[tokio::test]
async fn who_lacks_memory_makes_warm_prefixes_go_and_is_served() {
    let mut world = world(tight).await;
    // Two states of two pages each are parked: what is left does not hold the next request.
    world.tune();
    let mut kept = Vec::new();
    for id in 1..=2 {
        world.admit(request(id, &[id as u32; 20], 1)).await.hear_truth().await;
        match world.banked.recv().await {
            Some(bank::Message::Deposit(deposit)) => kept.push(deposit.snapshot),
            other => panic!("expected a deposit, heard {other:?}"),
        }
    }
    let guest = world.admit(request(3, &[3; 20], 80)).await;
    let mut reclaims = 0;
    let mut let_go = async || loop {
        match world.banked.recv().await {
            Some(bank::Message::Deposit(deposit)) => kept.push(deposit.snapshot),
            Some(bank::Message::Reclaim) => {
                reclaims += 1;
                let found = !kept.is_empty();
                if found {
                    world.decode.cast(Message::Release(kept.remove(0))).unwrap();
                }
                world.decode.cast(Message::Reclaimed(found)).unwrap();
            }
            other => panic!("unexpected {other:?}"),
        }
    };
    tokio::select! {
        () = let_go() => {}
        _ = guest.hear_truth() => {}
    }
    assert!(reclaims > 0);
}

#[tokio::test]
async fn who_lacks_memory_when_nobody_holds_any_is_refused() {
    let mut world = world(tight).await;
    let mut wide = world.admit(request(1, &[1; 20], 300)).await;
    let other = world.admit(request(2, &[2; 20], 10)).await;
    world.tune();
    assert!(matches!(world.banked.recv().await, Some(bank::Message::Reclaim)));
    world.decode.cast(Message::Reclaimed(false)).unwrap();
    match wide.events.recv().await {
        Some(RowEvent::Refused(shortage)) => assert_eq!(shortage.needed, 24 << 10),
        heard => panic!("expected a refusal, heard {heard:?}"),
    }
    assert_eq!(wide.events.recv().await, None);
    other.hear_truth().await;
    drop(world.permits.acquire_many(99).await.unwrap());
}

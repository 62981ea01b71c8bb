//! Whole houses on the scripted engine, with a door that notes what it is told.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;

use mtplx_core::RequestId;
use mtplx_core::engine::{EngineInfo, Fault, Outcome, Plan, Rows};
use mtplx_core::request::Request;
use mtplx_core::scripted::Scripted;
use tokio::sync::{Semaphore, watch};

use super::*;
use crate::oracle::{Guest, admit, alone, request, script, varied};
use crate::thermal::{MakeSensor, Reading, Sensor};
use crate::tuner;

mod anew;
mod disk;
mod flight;

/// Longer than any test.
const LONG: Duration = Duration::from_secs(1000);

pub(super) fn configs() -> Configs {
    Configs {
        root: Config {
            failures_max: 3,
            window_s: 1000.0,
            backoff_s: 0.001,
            backoff_max_s: 0.002,
            drain_s: 1000.0,
            stuck_s: 1000.0,
            bury_s: 1000.0,
        },
        decode: decode::Config { snapshots_max: 100, chunk_grain_tokens: 8, queue_s: 0 },
        bank: bank::Config {
            bytes_max: 1 << 20,
            roots_share: 0.25,
            entries_max: 50,
            idle_s: 3600,
            every_tokens: 0,
            share_between_tenants: false,
        },
        tuner: tuner::Config {
            depth: 2,
            depth_auto: true,
            depth_max: 4,
            rows_max: 8,
            itl_ms: 0.0,
            chunk_auto: true,
            prefill_busy_tokens: 16,
            prefill_idle_tokens: 64,
            prefill_stretch: 2.0,
        },
        thermal: thermal::Config {
            sample_s: 1000.0,
            timeout_s: 1.0,
            target_celsius: 80.0,
            pause_max: 0.5,
            warm_celsius: 85.0,
            hot_celsius: 95.0,
            hysteresis_celsius: 5.0,
            silent_readings_max: 3,
            bank_hot_share: 0.5,
        },
    }
}

/// Nothing is written.
pub(super) fn unwritten() -> crate::flight::Config {
    crate::flight::Config { path: std::path::PathBuf::new(), cycles: 4, files_max: 1 }
}

/// How often somebody served, and who does now.
type Told = (u32, Option<ActorRef<bank::Message>>);

struct Lobby(watch::Sender<Told>);

impl Door for Lobby {
    fn serve(&self, served: Served) {
        let bank = served.bank().cloned().unwrap();
        self.0.send_modify(|(times, now)| (*times, *now) = (*times + 1, Some(bank)));
    }

    fn between(&self, reason: String) {
        assert!(!reason.contains("script"), "inner reasons stay inside");
        self.0.send_modify(|(_, now)| *now = None);
    }

    fn over(&self, reason: String) {
        self.between(reason);
    }
}

/// No sensor.
struct Numb;

impl Sensor for Numb {
    fn read(&mut self) -> Reading {
        Reading::default()
    }
}

struct World {
    house: House,
    told: watch::Receiver<Told>,
    permits: Arc<Semaphore>,
}

async fn build<E: Engine + 'static>(
    configs: Configs,
    sensor: MakeSensor,
    open: impl Fn() -> Result<E, Fault> + Send + Sync + 'static,
) -> World {
    configs.check().unwrap();
    let (tell, told) = watch::channel((0, None));
    let (open, door) = (Arc::new(open), Arc::new(Lobby(tell)));
    let (store, notes, flight) = (None, None, unwritten());
    let house =
        start(Blueprint { configs, open, sensor, store, notes, flight, door }).await.unwrap();
    World { house, told, permits: Arc::new(Semaphore::new(100)) }
}

async fn world<E: Engine + 'static>(
    configs: Configs,
    open: impl Fn() -> Result<E, Fault> + Send + Sync + 'static,
) -> World {
    build(configs, Arc::new(|| Box::new(Numb)), open).await
}

fn small() -> Scripted {
    Scripted::small(script())
}

/// Breaks at its fourth step in each of the first `times` generations.
fn breaking(times: u32) -> impl Fn() -> Result<Scripted, Fault> + Send + Sync + 'static {
    let opened = AtomicU32::new(0);
    move || {
        let mut engine = small();
        if opened.fetch_add(1, Ordering::Relaxed) < times {
            engine.fault_at_step = Some(4);
        }
        Ok(engine)
    }
}

impl World {
    /// The bank of the `times`-th to serve.
    async fn bank(&mut self, times: u32) -> ActorRef<bank::Message> {
        let serving = |(n, now): &Told| *n >= times && now.is_some();
        self.told.wait_for(serving).await.unwrap().1.clone().unwrap()
    }

    async fn ask(&mut self, times: u32, request: Request) -> Guest {
        let (admission, guest) = admit(&self.permits, request).await;
        self.bank(times).await.cast(bank::Message::Open(admission)).unwrap();
        guest
    }

    async fn overview(&self) -> Overview {
        self.house.observe().await.expect("the house stands")
    }
}

#[tokio::test]
async fn a_crowd_hears_the_truth_and_leaves_nothing_behind() {
    let mut world = world(configs(), || Ok(small())).await;
    let (mut guests, mut cached) = (VecDeque::new(), 0);
    for id in 1..=90 {
        let guest = world.ask(1, varied(id)).await;
        // Every seventh leaves without listening.
        if id % 7 > 0 {
            guests.push_back(guest);
        }
        if guests.len() > 12
            && let Some(first) = guests.pop_front()
        {
            cached += first.hear_truth().await.cached;
        }
    }
    for guest in guests {
        cached += guest.hear_truth().await.cached;
    }
    assert!(cached > 100, "only {cached} tokens were warm");
    drop(world.permits.acquire_many(100).await.unwrap());
    let seen = world.overview().await;
    let (decode, bank) = (seen.decode.unwrap(), seen.bank.unwrap());
    assert_eq!((decode.running, decode.waiting, bank.hits + bank.misses), (0, 0, 90));
    assert!(seen.tuner.unwrap().reports > 0);
    assert_eq!(seen.root, Snapshot { generation: 1, phase: "serving", ..Snapshot::default() });
}

#[tokio::test]
async fn a_house_short_of_pages_serves_everybody() {
    // With few pages, warm states of those who wait can hold all of them while nothing runs.
    for pages_max in [8, 9, 12] {
        let narrow = move || {
            let info = EngineInfo { pages_max, ..small().info().clone() };
            Ok(Scripted::new(info, script()))
        };
        let mut world = world(configs(), narrow).await;
        for round in 0..3 {
            let mut guests = Vec::new();
            for id in 1..=40 {
                let request = Request { id: RequestId(40 * round + id), ..varied(id) };
                guests.push(world.ask(1, request).await);
            }
            for guest in guests {
                guest.hear_truth().await;
            }
        }
    }
}

#[tokio::test]
async fn the_same_prompt_is_warm_the_second_time() {
    let mut world = world(configs(), || Ok(small())).await;
    let prompt: Vec<_> = (0..50).map(|i| i * 5 % 32).collect();
    let first = world.ask(1, request(1, &prompt, 20)).await.hear_truth().await;
    let second = world.ask(1, request(2, &prompt, 20)).await.hear_truth().await;
    assert_eq!((first.cached, second.cached), (0, 50));
    let longer = [&prompt[..], &alone(&request(1, &prompt, 20))].concat();
    let third = world.ask(1, request(3, &longer, 20)).await.hear_truth().await;
    assert_eq!(third.cached, 69, "all but the answer's last token, which was never fed");
}

#[tokio::test]
async fn a_fault_ends_the_generation_and_the_next_one_serves() {
    let mut world = world(configs(), breaking(1)).await;
    let cut = world.ask(1, request(1, &[1, 2, 3], 200)).await;
    let waiting = world.ask(1, request(2, &[4], 200)).await;
    assert_eq!(cut.hear().await.end, None);
    assert_eq!(waiting.hear().await.end, None);
    drop(world.permits.acquire_many(100).await.unwrap());
    let after = world.ask(2, request(3, &[1, 2, 3], 40)).await;
    assert_eq!(after.hear_truth().await.cached, 0, "names of the old generation mean nothing");
    let seen = world.overview().await.root;
    assert_eq!((seen.generation, seen.failures), (2, 1));
}

#[tokio::test]
async fn the_next_engine_opens_after_the_last_was_dropped() {
    struct Sole(Scripted, Arc<AtomicU32>);
    impl Engine for Sole {
        fn info(&self) -> &EngineInfo {
            self.0.info()
        }
        fn run(&mut self, plan: &Plan, rows: &Rows) -> Result<Outcome, Fault> {
            self.0.run(plan, rows)
        }
    }
    impl Drop for Sole {
        fn drop(&mut self) {
            self.1.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let (alive, scripted) = (Arc::new(AtomicU32::new(0)), breaking(2));
    let open = move || match alive.fetch_add(1, Ordering::SeqCst) {
        0 => Ok(Sole(scripted()?, Arc::clone(&alive))),
        _ => Err(Fault("the device is taken".into())),
    };
    let mut world = world(configs(), open).await;
    for times in 1..=2 {
        let guest = world.ask(times, request(1, &[1, 2, 3], 200)).await;
        assert_eq!(guest.hear().await.end, None);
    }
    world.ask(3, request(1, &[1, 2, 3], 40)).await.hear_truth().await;
}

#[tokio::test]
async fn repeated_faults_end_the_house() {
    let mut world = world(configs(), breaking(u32::MAX)).await;
    for times in 1..=3 {
        let guest = world.ask(times, request(1, &[1, 2, 3], 200)).await;
        assert_eq!(guest.hear().await.end, None);
    }
    let end = world.house.end().await;
    assert_eq!(end, End::GaveUp("engine fault: the script breaks at step 4".into()));
    assert!(world.told.borrow().1.is_none());
}

#[tokio::test]
async fn a_panic_of_the_engine_is_a_fault_too() {
    struct Panicking(Scripted);
    impl Engine for Panicking {
        fn info(&self) -> &EngineInfo {
            self.0.info()
        }
        fn run(&mut self, plan: &Plan, rows: &Rows) -> Result<Outcome, Fault> {
            assert!(plan.step < 3, "the script panics");
            self.0.run(plan, rows)
        }
    }
    let mut world = world(configs(), || Ok(Panicking(small()))).await;
    let guest = world.ask(1, request(1, &[1, 2, 3], 200)).await;
    assert_eq!(guest.hear().await.end, None);
    world.bank(2).await;
}

#[tokio::test]
async fn a_bank_that_dies_takes_its_generation_along() {
    let mut world = world(configs(), || Ok(small())).await;
    world.bank(1).await.kill();
    let guest = world.ask(2, request(1, &[1, 2, 3], 40)).await;
    guest.hear_truth().await;
    assert_eq!(world.overview().await.root.generation, 2);
}

#[tokio::test]
async fn an_engine_that_never_opened_is_not_tried_twice() {
    let missing = || Err::<Scripted, _>(Fault("no such model".into()));
    let mut world = world(configs(), missing).await;
    assert_eq!(world.house.end().await, End::GaveUp("engine fault: no such model".into()));
}

#[tokio::test]
async fn an_engine_that_does_not_reopen_is_tried_until_patience_ends() {
    let opened = AtomicU32::new(0);
    let once = move || match opened.fetch_add(1, Ordering::Relaxed) {
        0 => breaking(1)(),
        _ => Err(Fault("the device is lost".into())),
    };
    let mut world = world(configs(), once).await;
    let guest = world.ask(1, request(1, &[1, 2, 3], 200)).await;
    assert_eq!(guest.hear().await.end, None);
    assert_eq!(world.house.end().await, End::GaveUp("engine fault: the device is lost".into()));
}

#[tokio::test]
async fn drained_the_house_ends_after_its_last_row() {
    let mut world = world(configs(), || Ok(small())).await;
    let mut guests = Vec::new();
    for id in 1..=12 {
        guests.push(world.ask(1, varied(id)).await);
    }
    world.house.drain(LONG);
    for guest in guests {
        guest.hear_truth().await;
    }
    assert_eq!(world.house.end().await, End::Drained);
    assert!(world.told.borrow().1.is_none());
    assert_eq!(world.house.observe().await, None);
}

#[tokio::test]
async fn a_house_that_is_still_opening_can_be_drained() {
    let mut world = world(configs(), || Ok(small())).await;
    world.house.drain(LONG);
    assert_eq!(world.house.end().await, End::Drained);
}

/// An engine each of whose steps waits for a word.
struct Gated {
    inner: Scripted,
    gate: mpsc::Receiver<()>,
}

impl Engine for Gated {
    fn info(&self) -> &EngineInfo {
        self.inner.info()
    }

    fn run(&mut self, plan: &Plan, rows: &Rows) -> Result<Outcome, Fault> {
        self.gate.recv().map_err(|_| Fault("the gate is gone".into()))?;
        self.inner.run(plan, rows)
    }
}

async fn gated(configs: Configs) -> (World, mpsc::Sender<()>) {
    let (word, gate) = mpsc::channel();
    let gate = Mutex::new(Some(gate));
    let open = move || match gate.lock().unwrap().take() {
        Some(gate) => Ok(Gated { inner: small(), gate }),
        None => Err(Fault("there is one gate".into())),
    };
    (world(configs, open).await, word)
}

#[tokio::test]
async fn at_the_deadline_of_a_drain_rows_are_cut_off() {
    let mut configs = configs();
    configs.root.bury_s = 0.01;
    let (mut world, word) = gated(configs).await;
    let guest = world.ask(1, request(1, &[1, 2, 3], 200)).await;
    world.house.drain(Duration::from_millis(10));
    assert_eq!(world.house.end().await, End::CutOff);
    drop(word);
    assert_eq!(guest.hear().await.end, None);
}

#[tokio::test]
async fn a_device_that_hangs_ends_the_house() {
    let mut configs = configs();
    (configs.root.stuck_s, configs.root.bury_s) = (0.1, 0.05);
    let (mut world, word) = gated(configs).await;
    let guest = world.ask(1, request(1, &[1, 2, 3], 200)).await;
    let end = world.house.end().await;
    assert_eq!(end, End::GaveUp("the device's thread does not end".into()));
    drop(word);
    assert_eq!(guest.hear().await.end, None);
}

#[tokio::test]
async fn thermal_is_restarted_alone() {
    let made = Arc::new(AtomicU32::new(0));
    let (told, mut asked) = tokio::sync::mpsc::unbounded_channel();
    /// Panics unless it is the second.
    struct Second(u32, tokio::sync::mpsc::UnboundedSender<()>);
    impl Sensor for Second {
        fn read(&mut self) -> Reading {
            assert!(self.0 > 0, "a broken sensor");
            let _ = self.1.send(());
            let mut reading = Reading::default();
            reading.add(thermal::Quantity::Celsius, "test", "die", 99.0);
            reading
        }
    }
    let make = move || Second(made.fetch_add(1, Ordering::Relaxed), told.clone());
    let mut configs = configs();
    (configs.thermal.sample_s, configs.thermal.timeout_s) = (0.1, 0.05);
    let sensor: MakeSensor = Arc::new(move || Box::new(make()));
    let mut world = build(configs, sensor, || Ok(small())).await;
    // By the third look the second was heeded: one alone cuts no rows.
    for _ in 0..3 {
        asked.recv().await.unwrap();
    }
    let seen = world.overview().await;
    assert_eq!((seen.root.generation, seen.root.thermal_restarts), (1, 1));
    assert_eq!(seen.thermal.unwrap().ceiling, "low");
    assert_eq!(seen.tuner.unwrap().rows_max, 2);
    world.ask(1, request(1, &[1], 10)).await.hear_truth().await;
}

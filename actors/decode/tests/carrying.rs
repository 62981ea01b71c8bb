//! States that are carried out and in while rows run.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use mtplx_core::Tenant;
use mtplx_core::engine::{Outcome, Parcel, Plan, Rows, Stretch};
use mtplx_core::image::{Image, Part, Unfit};
use mtplx_core::prefix::Prefix;

use super::*;
use crate::bank::Passage;

/// Bytes of a state of this engine, and what it copies in a second.
const BYTES: usize = 24 << 20;
const BYTES_PER_S: usize = 1 << 30;
/// What a step takes, at least.
const STEP: Duration = Duration::from_millis(16);

/// What the engine did, in order: how many rows a step ran, or a stretch of at most so many bytes,
/// so long after the step before it had begun.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Deed {
    Step(usize),
    Stretch(usize, Duration),
}

/// An engine whose states are large.
struct Heavy {
    inner: Scripted,
    deeds: Arc<Mutex<Vec<Deed>>>,
    carried: usize,
    stepped: Instant,
}

impl Heavy {
    /// Copies a stretch; whether it is the last, and its bytes.
    fn stretch(&mut self, most: usize) -> (bool, usize) {
        self.deeds.lock().unwrap().push(Deed::Stretch(most, self.stepped.elapsed()));
        let bytes = most.min(BYTES - self.carried);
        std::thread::sleep(Duration::from_secs_f64(bytes as f64 / BYTES_PER_S as f64));
        self.carried = (self.carried + bytes) % BYTES;
        (self.carried == 0, bytes)
    }
}

impl Engine for Heavy {
    fn info(&self) -> &EngineInfo {
        self.inner.info()
    }

    fn run(&mut self, plan: &Plan, rows: &Rows) -> Result<Outcome, Fault> {
        self.stepped = Instant::now();
        self.deeds.lock().unwrap().push(Deed::Step(rows.len()));
        std::thread::sleep(STEP);
        self.inner.run(plan, rows)
    }

    fn export(&mut self, at: Parcel<'_>, image: &mut Image, most: usize) -> Result<bool, Unfit> {
        let (last, bytes) = self.stretch(most);
        if last {
            image.parts.clear();
            return self.inner.export(at, image, usize::MAX / 2);
        }
        if image.parts.is_empty() {
            let (name, dtype) = ("weight".into(), "u8".into());
            image.parts.push(Part { name, dtype, shape: vec![], bytes: vec![] });
        }
        let part = &mut image.parts[0].bytes;
        part.resize(part.len() + bytes, 0);
        Ok(false)
    }

    fn import(&mut self, at: Parcel<'_>, image: &Image, part: Stretch<'_>) -> Result<bool, Unfit> {
        let (last, bytes) = self.stretch(part.most);
        *part.done += bytes as u64;
        let whole = Stretch { done: &mut 0, most: usize::MAX / 2 };
        Ok(last && self.inner.import(at, image, whole)?)
    }
}

/// The next reply's state of this tenant.
async fn deposit(world: &mut World, tenant: Tenant) -> Deposit {
    loop {
        match world.banked.recv().await {
            Some(bank::Message::Deposit(deposit))
                if deposit.kind == Kind::Reply && deposit.prefix.tenant == tenant =>
            {
                return deposit;
            }
            Some(_) => {}
            None => panic!("the house is gone"),
        }
    }
}

/// A world with one large state in it, what its engine did and does, and the state.
async fn heavy_world() -> (World, Arc<Mutex<Vec<Deed>>>, Deposit) {
    let deeds = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&deeds);
    let heavy = move || Heavy {
        inner: small(),
        deeds: Arc::clone(&seen),
        carried: 0,
        stepped: Instant::now(),
    };
    let mut world = super::world(heavy).await;
    world.tune();
    world.admit(request(1, &[1, 2, 3], 9)).await.hear_truth().await;
    let first = deposit(&mut world, Tenant(0)).await;
    (world, deeds, first)
}

/// Has a state carried out.
async fn carried_out(world: &World, deposit: &Deposit) -> Image {
    let (told, image) = tokio::sync::oneshot::channel();
    let outlet = Outlet::Answer(told.into());
    world.decode.cast(Message::Export(deposit.snapshot, outlet)).unwrap();
    image.await.unwrap().unwrap()
}

/// Has it carried in for tenant 7; whether it was taken.
async fn carried_in(world: &World, image: Image, first: &Deposit, passage: Arc<Passage>) -> bool {
    let (told, answer) = tokio::sync::oneshot::channel();
    let prefix = Prefix { tenant: Tenant(7), tokens: first.prefix.tokens.clone() };
    let (image, home, told) = (Arc::new(image), world.home.clone(), told.into());
    let arrival = Arrival { prefix, kind: Kind::Reply, image, passage, home, told };
    world.decode.cast(Message::Import(arrival)).unwrap();
    answer.await.unwrap().unwrap()
}

#[tokio::test]
async fn whoever_runs_waits_a_quarter_of_a_cycle_for_a_stretch_of_a_large_state_at_most() {
    let (mut world, deeds, first) = heavy_world().await;
    let guest = world.admit(request(2, &[4, 5, 6], 300)).await;
    deeds.lock().unwrap().clear();
    let image = carried_out(&world, &first).await;
    assert!(carried_in(&world, image, &first, Arc::default()).await);
    // Its name came before the answer.
    let back = deposit(&mut world, Tenant(7)).await;
    assert_eq!(back.prefix.tokens, first.prefix.tokens);
    let deeds = deeds.lock().unwrap().clone();
    drop(guest);
    let (mut running, mut longest) = (1, 0);
    for pair in deeds.windows(2) {
        if let Deed::Stretch(most, since) = pair[0]
            && running > 0
        {
            // Between two of them there is a step, as long as somebody runs.
            assert_eq!(pair[1], Deed::Step(1), "{deeds:?}");
            // It was never seen to copy more in a second, and no cycle to take longer.
            let quarter = BYTES_PER_S as f64 * since.as_secs_f64() / 4.0;
            assert!(most as f64 <= quarter, "{most} bytes after {since:?}");
            longest = longest.max(most);
        }
        if let Deed::Step(rows) = pair[1] {
            running = rows;
        }
    }
    assert!(longest >= 4 << 20, "no fixed count of bytes, where a cycle is long: {longest}");
}

#[tokio::test]
async fn a_state_that_is_dropped_on_its_way_in_is_nobodys_and_leaves_nothing_behind() {
    let (mut world, _, first) = heavy_world().await;
    let image = carried_out(&world, &first).await;
    let passage = Arc::new(Passage::default());
    passage.drop_it();
    let before = world.observe().await;
    assert!(!carried_in(&world, image, &first, passage).await);
    // The next step forgets it.
    world.admit(request(2, &[4, 5, 6], 1)).await.hear_truth().await;
    let after = world.observe().await;
    assert_eq!(after.snapshots, before.snapshots + 1, "the new prompt's alone");
    let rest = std::iter::from_fn(|| world.banked.try_recv().ok());
    let names = rest.filter(|m| matches!(m, bank::Message::Deposit(d) if d.prefix.tenant.0 == 7));
    assert_eq!(names.count(), 0);
}

#[tokio::test]
async fn what_nobody_wants_any_more_is_not_carried_to_its_end() {
    let (world, deeds, first) = heavy_world().await;
    let (told, image) = tokio::sync::oneshot::channel();
    drop(image);
    world.decode.cast(Message::Export(first.snapshot, Outlet::Answer(told.into()))).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(world.observe().await.snapshots >= 1);
    let stretches = deeds.lock().unwrap().clone();
    let stretches = stretches.iter().filter(|deed| matches!(deed, Deed::Stretch(..))).count();
    assert_eq!(stretches, 1, "one, and it is seen that nobody waits");
}

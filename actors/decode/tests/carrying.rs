//! States that are carried out and in while rows run.

use std::sync::Mutex;
use std::time::Duration;

use mtplx_core::Tenant;
use mtplx_core::engine::{Outcome, Parcel, Plan, Rows, Stretch};
use mtplx_core::image::{Image, Unfit};
use mtplx_core::prefix::Prefix;

use super::*;

/// Stretches that a state of this engine takes, either way.
const STRETCHES: usize = 12;

/// What the engine did, in order: how many rows a step ran, or a stretch of so many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Step(usize),
    Stretch(usize),
}

/// An engine whose states are large.
struct Heavy {
    inner: Scripted,
    deeds: Arc<Mutex<Vec<Deed>>>,
    left: usize,
}

impl Heavy {
    /// Whether this stretch is the last.
    fn stretch(&mut self, most: usize) -> bool {
        self.deeds.lock().unwrap().push(Deed::Stretch(most));
        self.left = if self.left == 0 { STRETCHES - 1 } else { self.left - 1 };
        self.left == 0
    }
}

impl Engine for Heavy {
    fn info(&self) -> &EngineInfo {
        self.inner.info()
    }

    fn run(&mut self, plan: &Plan, rows: &Rows) -> Result<Outcome, Fault> {
        self.deeds.lock().unwrap().push(Deed::Step(rows.len()));
        self.inner.run(plan, rows)
    }

    fn export(&mut self, at: Parcel<'_>, image: &mut Image, most: usize) -> Result<bool, Unfit> {
        let last = self.stretch(most);
        Ok(last && self.inner.export(at, image, usize::MAX / 2)?)
    }

    fn import(&mut self, at: Parcel<'_>, image: &Image, part: Stretch<'_>) -> Result<bool, Unfit> {
        let last = self.stretch(part.most);
        let whole = Stretch { most: usize::MAX / 2, ..part };
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
    let heavy = move || Heavy { inner: small(), deeds: Arc::clone(&seen), left: 0 };
    let mut world = super::world(heavy).await;
    world.tune();
    world.admit(request(1, &[1, 2, 3], 9)).await.hear_truth().await;
    let first = deposit(&mut world, Tenant(0)).await;
    (world, deeds, first)
}

#[tokio::test]
async fn whoever_runs_waits_for_one_stretch_of_a_large_state_at_most() {
    let (mut world, deeds, first) = heavy_world().await;
    let guest = world.admit(request(2, &[4, 5, 6], 200)).await;
    deeds.lock().unwrap().clear();
    let (told, image) = tokio::sync::oneshot::channel();
    let outlet = Outlet::Answer(told.into());
    world.decode.cast(Message::Export(first.snapshot, outlet)).unwrap();
    let image = image.await.unwrap().unwrap();
    let (told, answer) = tokio::sync::oneshot::channel();
    let prefix = Prefix { tenant: Tenant(7), tokens: first.prefix.tokens.clone() };
    let arrival = Arrival {
        prefix,
        kind: Kind::Reply,
        image: Arc::new(image),
        home: world.home.clone(),
        told: told.into(),
    };
    world.decode.cast(Message::Import(arrival)).unwrap();
    assert_eq!(answer.await.unwrap(), Ok(true));
    // Its name came before the answer.
    let back = deposit(&mut world, Tenant(7)).await;
    assert_eq!(back.prefix.tokens, first.prefix.tokens);
    let deeds = deeds.lock().unwrap().clone();
    guest.hear_truth().await;
    let stretches = deeds.iter().filter(|deed| matches!(deed, Deed::Stretch(_))).count();
    assert_eq!(stretches, 2 * STRETCHES);
    // Between two of them there is a step, as long as somebody runs.
    let mut running = 1;
    for pair in deeds.windows(2) {
        if let [Deed::Stretch(most), next] = pair {
            assert!(running == 0 || *next == Deed::Step(1), "{deeds:?}");
            assert!(running == 0 || *most <= 2 << 20, "{deeds:?}");
        }
        if let Deed::Step(rows) = pair[1] {
            running = rows;
        }
    }
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
    let stretches = stretches.iter().filter(|deed| matches!(deed, Deed::Stretch(_))).count();
    assert_eq!(stretches, 1, "one, and it is seen that nobody waits");
}

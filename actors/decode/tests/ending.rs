//! What the metrics say of a decode that ended in the middle.

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use mtplx_core::engine::{Outcome, Plan, Rows};

use super::*;

/// An engine that panics at its third step.
struct Panics(Scripted, u32);

impl Engine for Panics {
    fn info(&self) -> &EngineInfo {
        self.0.info()
    }

    fn run(&mut self, plan: &Plan, rows: &Rows) -> Result<Outcome, Fault> {
        self.1 += 1;
        assert!(self.1 < 3, "a kernel");
        self.0.run(plan, rows)
    }
}

/// Has what the calling thread counts from now on counted apart.
fn counted_apart() -> PrometheusHandle {
    let recorder = Box::leak(Box::new(PrometheusBuilder::new().build_recorder()));
    // As long as the thread lives.
    std::mem::forget(::metrics::set_default_local_recorder(recorder));
    recorder.handle()
}

/// The sum of all series of a counter.
fn sum(rendered: &str, name: &str) -> u64 {
    let lines = rendered.lines().filter(|line| line.starts_with(name));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

/// A decode whose engine is made by `engine`, and what it counts.
async fn counting<E: Engine + 'static>(
    engine: impl Fn() -> E + Send + Sync + 'static,
) -> (World, PrometheusHandle) {
    let (tell, told) = std::sync::mpsc::channel();
    let world = world(move || {
        tell.send(counted_apart()).unwrap();
        engine()
    });
    (world.await, told.recv().unwrap())
}

/// What was seated adds up with what became of it, and some of it was neither fed nor restored.
fn add_up(counts: &PrometheusHandle) {
    let text = counts.render();
    let seated = sum(&text, "mtplx_prompt_seated_tokens_total");
    assert_eq!(seated, 400, "{text}");
    assert_eq!(sum(&text, "mtplx_prompt_tokens_total"), seated, "{text}");
    assert!(sum(&text, "mtplx_prompt_tokens_total{source=\"unfed\"}") > 0, "{text}");
    assert_eq!(sum(&text, "mtplx_rows_running"), 0, "{text}");
}

#[tokio::test]
async fn the_books_add_up_after_a_panic_of_the_engine() {
    let (world, counts) = counting(|| Panics(small(), 0)).await;
    let guests =
        [world.admit(request(1, &[1; 200], 9)).await, world.admit(request(2, &[2; 200], 9)).await];
    world.tune();
    for guest in guests {
        assert_eq!(guest.hear().await.end, None);
    }
    // It is heard by those who were served only after it was booked.
    add_up(&counts);
}

/// An engine whose steps take their time.
struct Slow(Scripted);

impl Engine for Slow {
    fn info(&self) -> &EngineInfo {
        self.0.info()
    }

    fn run(&mut self, plan: &Plan, rows: &Rows) -> Result<Outcome, Fault> {
        std::thread::sleep(Duration::from_millis(20));
        self.0.run(plan, rows)
    }
}

#[tokio::test]
async fn the_books_add_up_after_the_root_killed_it() {
    let (world, counts) = counting(|| Slow(small())).await;
    let guests =
        [world.admit(request(1, &[1; 200], 9)).await, world.admit(request(2, &[2; 200], 9)).await];
    world.tune();
    while world.observe().await.cycles == 0 {}
    world.decode.kill();
    for guest in guests {
        assert_eq!(guest.hear().await.end, None);
    }
    add_up(&counts);
}

#[tokio::test]
async fn pauses_for_heat_change_no_token() {
    let world = world(small).await;
    let guests = [world.admit(varied(1)).await, world.admit(varied(2)).await];
    let knobs = Knobs { pause: 0.9, ..Knobs::fixed(3, 8, (16, 64)) };
    world.decode.cast(Message::Tune(knobs, world.tuner.clone())).unwrap();
    for guest in guests {
        guest.hear_truth().await;
    }
}

#[tokio::test]
async fn who_comes_after_a_rest_does_not_wait_for_a_pause_that_is_over() {
    let world = world(|| Slow(small())).await;
    let knobs = Knobs { pause: 0.95, ..Knobs::fixed(0, 8, (16, 64)) };
    world.decode.cast(Message::Tune(knobs, world.tuner.clone())).unwrap();
    world.admit(request(1, &[1; 8], 1)).await.hear_truth().await;
    // 20 ms of work are followed by 380 of rest.
    let rest = Duration::from_millis(380);
    for id in 2..30 {
        tokio::time::sleep(rest).await;
        let began = Instant::now();
        world.admit(request(id, &[1; 8], 1)).await.hear_truth().await;
        // A machine that is busy otherwise may be slow once, or twice.
        if began.elapsed() < rest {
            return;
        }
    }
    panic!("everybody waited");
}

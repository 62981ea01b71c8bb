use std::sync::Arc;

use super::*;
use crate::batch::{Batch, BatchLimits, Knobs};
use crate::request::{Drafts, Limits, Request};
use crate::sample::Sampling;

/// An engine and a row of 20 prompt tokens that has decoded for three steps.
fn decoding() -> (Scripted, Batch, Plan) {
    let mut engine = Scripted::small(Script { head_noise: 0.0, ..Script::default() });
    let limits = BatchLimits { snapshots_max: 0, chunk_grain: 8 };
    let mut batch = Batch::new(engine.info().clone(), limits);
    admit(&mut batch, 1);
    let mut plan = Plan::default();
    for _ in 0..4 {
        plan = batch.plan(Knobs::fixed(2, 1, (64, 64)));
        let outcome = engine.run(&plan, batch.rows()).unwrap();
        batch.settle(&plan, outcome);
    }
    (engine, batch, plan)
}

fn admit(batch: &mut Batch, id: u64) {
    let request = Request {
        id: RequestId(id),
        prompt: Arc::from([5; 20]),
        sampling: Sampling::greedy(),
        limits: Limits { new_tokens_max: 100, stop_tokens: Arc::default() },
        draft_tokens: Drafts::Tuned,
        boundaries: Vec::new(),
        resumed: 0,
        sharing: crate::request::Sharing::default(),
        standing: crate::fairness::Standing::default(),
    };
    batch.admit(request, None);
}

fn fault(engine: &mut Scripted, plan: &Plan, batch: &Batch) -> String {
    engine.run(plan, batch.rows()).unwrap_err().0
}

#[test]
fn a_rewind_of_more_than_one_cycle_is_a_fault() {
    let (mut engine, batch, last) = decoding();
    let slot = last.verify[0].slot;
    let back = |start| Prefill { slot, start, end: start, sample: false, mark: None };
    // To where the last cycle began is what a verdict may ask for.
    let here = Plan { prefill: vec![back(last.verify[0].position)], ..Plan::default() };
    engine.run(&here, batch.rows()).unwrap();
    let before = Plan { prefill: vec![back(last.verify[0].position - 1)], ..Plan::default() };
    let told = fault(&mut engine, &before, &batch);
    assert!(told.contains("any more"), "{told}");
}

#[test]
fn a_forgotten_clear_is_a_fault() {
    let (mut engine, mut batch, _) = decoding();
    batch.cancel(RequestId(1));
    admit(&mut batch, 2);
    let mut plan = batch.plan(Knobs::fixed(2, 1, (64, 64)));
    plan.moves.clear();
    let told = fault(&mut engine, &plan, &batch);
    assert!(told.contains("was not cleared"), "{told}");
    let mut fresh = Scripted::small(Script::default());
    let told = fault(&mut fresh, &plan, &batch);
    assert!(told.contains("was never cleared"), "{told}");
}

#[test]
fn a_state_is_saved_within_the_last_cycle_only() {
    let (mut engine, batch, last) = decoding();
    let Verify { slot, position, .. } = last.verify[0];
    let save = |len| {
        let save = Move::Save { slot, snapshot: SnapshotId(9), len };
        Plan { moves: vec![save], ..Plan::default() }
    };
    let told = fault(&mut engine, &save(position - 1), &batch);
    assert!(told.contains("cannot be saved"), "{told}");
    engine.run(&save(position + 1), batch.rows()).unwrap();
}

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use super::*;
use crate::engine::Engine;
use crate::request::Limits;
use crate::sample::Sampling;
use crate::scripted::{Script, Scripted};

/// An engine of few pages and its batch.
fn narrow(pages_max: usize) -> (Scripted, Batch) {
    let script = Script::default();
    let info = EngineInfo { pages_max, ..Scripted::small(script).info().clone() };
    let limits = BatchLimits { snapshots_max: 9, chunk_grain: 8 };
    (Scripted::new(info.clone(), script), Batch::new(info, limits))
}

pub(super) fn knobs() -> Knobs {
    Knobs::fixed(2, 8, (16, 64))
}

pub(super) fn request(id: u64, prompt: &[Token], new_tokens_max: usize) -> Request {
    Request {
        id: RequestId(id),
        prompt: prompt.into(),
        sampling: Sampling::greedy(),
        limits: Limits { new_tokens_max, stop_tokens: Arc::new(BTreeSet::new()) },
        draft_tokens: Drafts::Tuned,
        boundaries: Vec::new(),
    }
}

pub(super) fn step(engine: &mut Scripted, batch: &mut Batch) -> Settled {
    let plan = batch.plan(knobs());
    let outcome = engine.run(&plan, batch.rows()).unwrap();
    let settled = batch.settle(&plan, outcome);
    batch.check_integrity().unwrap();
    settled
}

/// Steps until nobody runs or waits; what finished, and all deposits.
fn finish(engine: &mut Scripted, batch: &mut Batch) -> (Vec<(RequestId, Finish)>, Vec<Deposit>) {
    let (mut finished, mut deposits) = (Vec::new(), Vec::new());
    for _ in 0..1000 {
        if batch.rows().is_empty() && batch.waiting() == 0 {
            break;
        }
        let settled = step(engine, batch);
        deposits.extend(settled.deposits);
        finished.extend(settled.events.into_iter().filter_map(|(id, event)| match event {
            RowEvent::Finished(finish, _) => Some((id, finish)),
            RowEvent::Tokens(..) => None,
        }));
    }
    (finished, deposits)
}

#[test]
fn warm_states_of_those_who_wait_give_way_when_nothing_runs() {
    // Four pages of 16 tokens. The state of 40 tokens holds three of them; whoever starts from it
    // needs two more than it shares, and one is free.
    let (mut engine, mut batch) = narrow(4);
    let prompt: Vec<Token> = (0..40).map(|i| i % 32).collect();
    batch.admit(request(1, &prompt, 1), None);
    let (_, deposits) = finish(&mut engine, &mut batch);
    let [Deposit { snapshot, tokens, .. }] = deposits.as_slice() else { panic!("{deposits:?}") };
    let warm = Some(Warm { snapshot: *snapshot, len: tokens.len() });
    for id in [2, 3] {
        batch.admit(request(id, &prompt, 24), warm);
    }
    // The bank lets go of it and has nothing else: only those who wait hold it now.
    batch.release(*snapshot);
    assert_eq!(batch.ledger().snapshots(), 1);
    assert_eq!(batch.give_up(), None, "they fit without it");
    let plan = batch.plan(knobs());
    assert!(plan.moves.contains(&Move::Forget { snapshot: *snapshot }), "{plan:?}");
    assert!(plan.moves.iter().any(|m| matches!(m, Move::Clear { .. })), "the first starts cold");
    // The bank gives up what the first leaves behind, so that the second fits.
    let outcome = engine.run(&plan, batch.rows()).unwrap();
    let mut deposits = batch.settle(&plan, outcome).deposits;
    for _ in 0..100 {
        deposits.drain(..).for_each(|deposit| batch.release(deposit.snapshot));
        if batch.waiting() == 0 {
            break;
        }
        deposits = step(&mut engine, &mut batch).deposits;
    }
    let (finished, _) = finish(&mut engine, &mut batch);
    assert_eq!(finished, [(RequestId(3), Finish::Length)]);
}

#[test]
fn only_what_an_empty_engine_cannot_hold_is_given_up() {
    let (mut engine, mut batch) = narrow(2);
    batch.admit(request(1, &[1; 20], 80), None);
    batch.admit(request(2, &[2; 20], 10), None);
    assert_eq!(batch.plan(knobs()).moves, [], "the first stands in the way");
    let usage = Usage { prompt: 20, ..Usage::default() };
    let told = (RequestId(1), RowEvent::Finished(Finish::Fault, usage));
    assert_eq!(batch.give_up(), Some(told));
    assert_eq!(batch.give_up(), None);
    assert_eq!(finish(&mut engine, &mut batch).0, [(RequestId(2), Finish::Length)]);
}

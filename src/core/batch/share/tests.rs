#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use super::super::tests::{knobs, request};
use super::super::*;
use crate::Tenant;
use crate::engine::Engine;
use crate::scripted::{Script, Scripted};

fn world() -> (Scripted, Batch) {
    let info = Scripted::small(Script::default()).info().clone();
    let info = EngineInfo { context_tokens_max: 8192, pages_max: 4096, ..info };
    let limits = BatchLimits { snapshots_max: 40, chunk_grain: 1 };
    (Scripted::new(info.clone(), Script::default()), Batch::new(info, limits))
}

/// A common beginning of 2000 tokens and `private` more.
fn prompt(id: u64, private: usize) -> Vec<Token> {
    let stem = (0..2000).map(|i| i * 7 % 31);
    stem.chain((0..private as u32).map(|i| (i * 5 + id as u32) % 31)).collect()
}

fn guest(id: u64, private: usize) -> Request {
    request(id, &prompt(id, private), 3)
}

/// Serves them all; tokens fed for each.
fn serve(
    engine: &mut Scripted,
    batch: &mut Batch,
    mut after: impl FnMut(&mut Batch),
) -> BTreeMap<RequestId, usize> {
    let mut fed = BTreeMap::new();
    for _ in 0..2000 {
        if batch.rows().is_empty() && batch.waiting() == 0 {
            return fed;
        }
        let plan = batch.plan(knobs());
        for chunk in &plan.prefill {
            let id = batch.rows()[&chunk.slot].request.id;
            *fed.entry(id).or_default() += chunk.end - chunk.start;
        }
        let outcome = engine.run(&plan, batch.rows()).unwrap();
        batch.settle(&plan, outcome);
        batch.check_integrity().unwrap();
        after(batch);
    }
    panic!("not done");
}

#[test]
fn what_sixteen_prompts_begin_with_is_computed_once() {
    let (mut engine, mut batch) = world();
    for id in 1..=16 {
        let mut request = guest(id, 20 + id as usize);
        (request.boundaries, request.sharing.root) = (vec![2000], 2000);
        batch.admit(request, None);
    }
    let fed = serve(&mut engine, &mut batch, |_| {});
    let private: usize = (1..=16).map(|id| 20 + id).sum();
    assert_eq!(fed.values().sum::<usize>(), 2000 + private);
}

#[test]
fn prompts_that_name_no_boundary_share_what_they_have_in_common() {
    let (mut engine, mut batch) = world();
    for id in [1, 2, 3] {
        batch.admit(guest(id, 100), None);
    }
    let fed = serve(&mut engine, &mut batch, |_| {});
    assert_eq!(fed.values().sum::<usize>(), 2000 + 3 * 100);
    // Equal prompts to the last token are one, however many answers are wanted.
    for id in [4, 5, 6] {
        batch.admit(Request { id: RequestId(id), ..guest(9, 300) }, None);
    }
    let fed = serve(&mut engine, &mut batch, |_| {});
    assert_eq!(fed.values().sum::<usize>(), 300);
}

#[test]
fn if_the_first_leaves_the_next_computes_for_all() {
    let (mut engine, mut batch) = world();
    for id in 1..=4 {
        batch.admit(guest(id, 50), None);
    }
    let mut steps = 0;
    let fed = serve(&mut engine, &mut batch, |batch| {
        steps += 1;
        if steps == 10 {
            assert!(batch.cancel(RequestId(1)));
        }
    });
    assert_eq!(fed[&RequestId(1)], 640);
    assert_eq!(fed[&RequestId(2)], 2050);
    assert_eq!([3, 4].map(|id| fed[&RequestId(id)]), [50, 50]);
}

#[test]
fn who_waits_for_a_long_prompt_is_not_passed_because_of_its_length() {
    let (mut engine, mut batch) = world();
    batch.admit(guest(1, 5000), None);
    batch.admit(guest(2, 10), None);
    let plan = batch.plan(knobs());
    assert_eq!(plan.prefill.len(), 1, "the second waits");
    let outcome = engine.run(&plan, batch.rows()).unwrap();
    batch.settle(&plan, outcome);
    // Shorter than the first, longer than what the second has left.
    batch.admit(request(3, &[5; 3000], 1), None);
    let plan = batch.plan(knobs());
    let first = plan.prefill[0].slot;
    assert_eq!(
        batch.rows()[&first].request.id,
        RequestId(1),
        "it goes before for the second's sake"
    );
}

#[test]
fn nothing_is_shared_with_another_tenant_or_by_background_work() {
    let (mut engine, mut batch) = world();
    let mut requests = [1, 2, 3].map(|id| guest(id, 10));
    requests[0].sharing.background = true;
    requests[1].sharing.tenant = Tenant(1);
    batch.admit(requests[0].clone(), None);
    batch.admit(requests[1].clone(), None);
    batch.admit(requests[2].clone(), None);
    let fed = serve(&mut engine, &mut batch, |_| {});
    assert_eq!(fed.values().copied().collect::<Vec<_>>(), [2010; 3]);
    // But it may start from what is warm.
    requests[0].id = RequestId(4);
    requests[0].prompt = prompt(3, 40).into();
    batch.admit(requests[0].clone(), None);
    let fed = serve(&mut engine, &mut batch, |_| {});
    assert_eq!(fed[&RequestId(4)], 30);
    assert_eq!(batch.ledger().find(Tenant(0), &prompt(3, 40)).unwrap().1, 2010);
}

#[test]
fn without_room_for_a_state_nobody_waits() {
    let (mut engine, mut batch) = world();
    batch.limits.snapshots_max = 0;
    for id in [1, 2] {
        batch.admit(guest(id, 10), None);
    }
    let fed = serve(&mut engine, &mut batch, |_| {});
    assert_eq!(fed.values().copied().collect::<Vec<_>>(), [2010; 2]);
}

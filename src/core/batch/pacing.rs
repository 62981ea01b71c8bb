//! How prompts share steps with each other and with rows that decode, in the time that scripted
//! machines take.

#![allow(clippy::unwrap_used, reason = "tests")]

use super::tests::{knobs, request, step};
use super::*;
use crate::engine::Engine;
use crate::scripted::{Script, Scripted};

fn world(pace: fn(&Plan) -> u64) -> (Scripted, Batch) {
    let info = Scripted::small(Script::default()).info().clone();
    let info = EngineInfo { context_tokens_max: 8192, pages_max: 4096, ..info };
    let mut engine = Scripted::new(info.clone(), Script::default());
    engine.pace = pace;
    (engine, Batch::new(info, BatchLimits { snapshots_max: 0, chunk_grain: 4 }))
}

fn prompt(len: usize) -> Vec<Token> {
    (0..len).map(|i| (i * 7 % 31) as Token).collect()
}

fn fed(plan: &Plan) -> u64 {
    plan.prefill.iter().map(|c| (c.end - c.start) as u64).sum()
}

fn verified(plan: &Plan) -> u64 {
    plan.verify.iter().map(|v| 1 + u64::from(v.depth)).sum()
}

/// Attention over what lies before a chunk.
fn far(plan: &Plan) -> u64 {
    plan.prefill.iter().map(|c| (c.end - c.start) as u64 * c.start as u64 / 100).sum()
}

/// Up to a tenth more, from step to step.
fn noise(plan: &Plan, micros: u64) -> u64 {
    micros + micros * (plan.step * 7919 % 11) / 100
}

/// Every token costs the same.
fn per_token(plan: &Plan) -> u64 {
    noise(plan, 1_000 + 900 * (verified(plan) + fed(plan)) + far(plan))
}

/// Reading the weights costs, tokens hardly.
fn per_pass(plan: &Plan) -> u64 {
    noise(plan, 15_000 + 20 * (verified(plan) + fed(plan)) + far(plan))
}

/// Rows cost little up to a width; beyond it another kernel takes over.
fn two_regimes(plan: &Plan) -> u64 {
    let tokens = verified(plan) + fed(plan);
    let regime = if tokens > 12 { 9_000 } else { 0 };
    noise(plan, 10_000 + regime + 60 * tokens + far(plan))
}

fn stretched() -> Knobs {
    Knobs { depths: Depths::all(2), prefill_idle: 512, stretch: Some(2.0), ..knobs() }
}

/// Steps that decoded, in microseconds: first those without a prompt beside them, then those while
/// one of 4000 tokens was fed.
fn gaps(pace: fn(&Plan) -> u64) -> (Vec<u64>, Vec<u64>) {
    let (mut engine, mut batch) = world(pace);
    batch.admit(request(1, &prompt(30), 6000), None);
    let (mut before, mut beside) = (Vec::new(), Vec::new());
    for i in 0..3000 {
        if i == 60 {
            batch.admit(request(2, &prompt(4000), 1), None);
        }
        let plan = batch.plan(stretched());
        let outcome = engine.run(&plan, batch.rows()).unwrap();
        let micros = outcome.phases.verify_us;
        batch.settle(&plan, outcome);
        if !plan.verify.is_empty() {
            if i < 60 { &mut before } else { &mut beside }.push(micros);
        }
        if i > 60 && batch.rows().len() == 1 {
            return (before, beside);
        }
    }
    panic!("the prompt was not fed within 3000 steps");
}

#[test]
fn a_long_prompt_keeps_the_gaps_of_those_who_decode_within_three_medians() {
    for (name, pace) in [
        ("per token", per_token as fn(&Plan) -> u64),
        ("per pass", per_pass),
        ("two regimes", two_regimes),
    ] {
        let (mut before, mut beside) = gaps(pace);
        before.sort_unstable();
        beside.sort_unstable();
        // Against the undisturbed median, which is stricter than against the stream's own.
        let (median, largest) = (before[before.len() / 2], beside[beside.len() - 1]);
        assert!(largest <= 3 * median, "{name}: {largest} us against {median} us");
        // The target is used: a prompt is not starved to keep the gaps short.
        let typical = beside[beside.len() / 2];
        assert!(5 * typical >= 7 * median, "{name}: {typical} us against {median} us");
    }
}

#[test]
fn an_unknown_width_is_measured_once_and_prompts_go_on() {
    let (mut engine, mut batch) = world(per_token);
    for id in 1..=6 {
        batch.admit(request(id, &prompt(20 * id as usize), 400), None);
    }
    batch.admit(request(7, &prompt(3000), 1), None);
    let (mut left_out, mut twice, mut last) = (0, 0, false);
    for _ in 0..300 {
        let plan = batch.plan(stretched());
        let out = plan.prefill.is_empty();
        left_out += u32::from(out);
        twice += u32::from(out && last);
        last = out;
        let outcome = engine.run(&plan, batch.rows()).unwrap();
        if batch.settle(&plan, outcome).events.iter().any(|(id, _)| *id == RequestId(7)) {
            break;
        }
    }
    assert_eq!(twice, 0, "no two steps in a row leave prompts out");
    assert!((1..=6).contains(&left_out), "one step for each width: {left_out}");
}

#[test]
fn short_prompts_pass_a_long_one_and_share_its_steps() {
    let (mut engine, mut batch) = world(|_| 0);
    batch.admit(request(1, &prompt(300), 1), None);
    step(&mut engine, &mut batch);
    batch.admit(request(2, &prompt(10), 1), None);
    batch.admit(request(3, &prompt(20), 1), None);
    let plan = batch.plan(knobs());
    let shares: Vec<usize> = plan.prefill.iter().map(|c| c.end - c.start).collect();
    assert_eq!(shares, [10, 20, 32], "64 tokens, cut at multiples of 4");
    assert!(plan.prefill[0].sample && plan.prefill[1].sample && !plan.prefill[2].sample);
}

#[test]
fn a_long_prompt_under_endless_short_ones_is_done_within_its_bound() {
    let (mut engine, mut batch) = world(|_| 0);
    let (long, slots) = (2000_u64, 8);
    batch.admit(request(1, &prompt(long as usize), 1), None);
    let (mut next, mut total, mut passed) = (1, 0, 0);
    loop {
        // There is always a short one waiting, and every one is shorter than what is left.
        while batch.waiting() < 8 {
            next += 1;
            batch.admit(request(next, &prompt(30 + next as usize % 9), 1), None);
        }
        let plan = batch.plan(knobs());
        total += fed(&plan);
        let outcome = engine.run(&plan, batch.rows()).unwrap();
        let events = batch.settle(&plan, outcome).events;
        passed += events.len() / 2;
        if events.iter().any(|(id, _)| *id == RequestId(1)) {
            break;
        }
        assert!(total <= (PASSED + slots) * long, "not done after {total} tokens");
    }
    assert!(passed > 100, "only {passed} short ones passed");
}

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use super::*;
use crate::accept::Rule;
use crate::engine::{Engine, Stretch};
use crate::fairness::Standing;
use crate::grammar::Constraint;
use crate::guard::Budget;
use crate::image::{Image, Part};
use crate::request::{Limits, Sharing};
use crate::sample::Sampling;
use crate::scripted::{Script, Scripted, ScriptedGrammar};

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
        resumed: 0,
        sharing: Sharing::default(),
        standing: Standing::default(),
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
            RowEvent::Tokens(..) | RowEvent::Logprobs(_) => None,
            RowEvent::Seated | RowEvent::Refused(_) | RowEvent::Late => None,
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
    let [Deposit { snapshot, prefix, .. }] = deposits.as_slice() else { panic!("{deposits:?}") };
    let warm = Some(Warm { snapshot: *snapshot, len: prefix.tokens.len() });
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

#[test]
fn a_state_from_outside_finds_room_while_one_that_was_let_go_is_still_to_be_saved() {
    let (mut engine, mut batch) = narrow(4);
    batch.admit(request(1, &[1; 40], 1), None);
    let (_, deposits) = finish(&mut engine, &mut batch);
    let prefix = deposits[0].prefix.clone();
    // Its pages are free, and the next plan's moves name it.
    batch.release(deposits[0].snapshot);
    assert!(batch.moves.iter().any(|m| matches!(m, Move::Save { .. })), "{:?}", batch.moves);
    let back = batch.import(prefix, Kind::Prompt).expect("there is room for it");
    step(&mut engine, &mut batch);
    let text: Vec<u8> = [1_u32; 40].iter().flat_map(|token| token.to_le_bytes()).collect();
    let part = Part { name: "text".into(), dtype: "u32".into(), shape: vec![40], bytes: text };
    let stretch = Stretch { done: &mut 0, most: 1 << 20 };
    let parcel = batch.parcel(back.snapshot).unwrap();
    assert_eq!(engine.import(parcel, &Image { parts: vec![part] }, stretch), Ok(true));
    batch.arrived(back.snapshot);
    batch.admit(request(2, &[1; 41], 3), None);
    assert_eq!(finish(&mut engine, &mut batch).0, [(RequestId(2), Finish::Length)]);
    assert_eq!(batch.take_books().restored, 40);
}

/// A batch whose engine has `kib` beside its base of 1 MiB, and measures itself.
fn bounded(kib: u64) -> (Scripted, Batch) {
    let script = Script::default();
    let budget = Budget { bytes: (1024 + kib) << 10, base: 1 << 20, step: 0 };
    let info = EngineInfo { budget, ..Scripted::small(script).info().clone() };
    let limits = BatchLimits { snapshots_max: 9, chunk_grain: 8 };
    (Scripted::new(info.clone(), script), Batch::new(info, limits))
}

#[test]
fn nobody_is_seated_whose_last_token_would_exceed_the_budget() {
    // A request of 96 tokens needs 6 pages of 1 KiB and a state of 4 KiB: one fits into 15 KiB
    // beside the state of another, two do not.
    let (mut engine, mut batch) = bounded(15);
    for id in 1..=5 {
        batch.admit(request(id, &[id as Token; 30], 66), None);
    }
    let mut finished = Vec::new();
    for _ in 0..500 {
        batch.measured(engine.memory());
        let settled = step(&mut engine, &mut batch);
        assert!(engine.memory() <= batch.info.budget.bytes, "{}", engine.memory());
        assert!(batch.rows().len() <= 1);
        // Whoever keeps states lets them go at once.
        settled.deposits.iter().for_each(|deposit| batch.release(deposit.snapshot));
        let ended = settled.events.iter().filter(|(_, e)| matches!(e, RowEvent::Finished(..)));
        finished.extend(ended.map(|(id, _)| id.0));
    }
    assert_eq!(finished, [1, 2, 3, 4, 5], "they wait for each other");
    assert_eq!(batch.give_up(), None);
}

#[test]
fn who_would_wait_for_memory_for_ever_is_told_what_is_missing() {
    let (mut engine, mut batch) = bounded(16);
    batch.admit(request(1, &[1; 30], 200), None);
    batch.admit(request(2, &[2; 30], 30), None);
    batch.measured(engine.memory());
    assert_eq!(batch.plan(knobs()).moves, []);
    let shortage = Shortage { needed: 19 << 10, left: 16 << 10, budget: (1024 + 16) << 10 };
    assert_eq!(batch.shortage(), Some(shortage));
    assert_eq!(batch.give_up(), Some((RequestId(1), RowEvent::Refused(shortage))));
    assert_eq!(finish(&mut engine, &mut batch).0, [(RequestId(2), Finish::Length)]);
}

#[test]
fn pages_that_others_left_behind_are_paid_for() {
    let (mut engine, mut batch) = bounded(16);
    batch.admit(request(1, &[1; 30], 90), None);
    let (_, deposits) = finish(&mut engine, &mut batch);
    deposits.iter().for_each(|deposit| batch.release(deposit.snapshot));
    step(&mut engine, &mut batch);
    // Eight pages are free again, but their memory is not: it is used anew.
    batch.measured(engine.memory());
    assert_eq!(engine.memory(), (1024 + 8) << 10);
    batch.admit(request(2, &[2; 30], 160), None);
    assert_eq!(batch.shortage(), None, "four more pages and a state");
    batch.admit(request(3, &[3; 30], 160), None);
    step(&mut engine, &mut batch);
    assert_eq!(batch.waiting(), 1);
}

/// The text of a request among `others`, with so many drafts a cycle; and drafts made and accepted.
fn text_among(others: u64, depth: u8, sampling: &Sampling) -> (Vec<Token>, Usage) {
    let mut engine = Scripted::small(Script { head_noise: 3.0, ..Script::default() });
    let limits = BatchLimits { snapshots_max: 0, chunk_grain: 8 };
    let mut batch = Batch::new(engine.info().clone(), limits);
    for id in 0..=others {
        let mut request = request(id, &[id as Token + 1, 2, 3], 60);
        request.sampling = Sampling { seed: sampling.seed + id, ..sampling.clone() };
        if id % 2 == 1 {
            request.sampling.grammar = None;
        }
        batch.admit(request, None);
    }
    let (mut text, mut cost) = (Vec::new(), Usage::default());
    while batch.is_busy() {
        let plan = batch.plan(Knobs::fixed(depth, 8, (16, 64)));
        let outcome = engine.run(&plan, batch.rows()).unwrap();
        for (id, event) in batch.settle(&plan, outcome).events {
            if let (RequestId(0), RowEvent::Tokens(tokens, usage)) = (id, event) {
                text.extend(tokens);
                cost = usage;
            }
        }
    }
    (text, cost)
}

#[test]
fn under_a_grammar_too_a_text_is_a_function_of_the_request_alone() {
    for (seed, temperature) in [(1, 0.0), (2, 0.6), (3, 1.0)] {
        let grammar = ScriptedGrammar { seed, vocab: 32, end: 7 };
        let grammar = Some(Constraint::new(Arc::new(grammar)));
        let rule = Rule::Coupled;
        let sampling = Sampling { temperature, seed, rule, grammar, ..Sampling::default() };
        let (alone, _) = text_among(0, 0, &sampling);
        for depth in 0..=4 {
            for others in [0, 5] {
                assert_eq!(text_among(others, depth, &sampling).0, alone, "{depth} {others}");
            }
        }
    }
}

#[test]
fn what_a_grammar_forces_is_drafted_whatever_the_tuner_says_and_always_accepted() {
    let grammar = ScriptedGrammar { seed: 1, vocab: 32, end: 7 };
    let grammar = Some(Constraint::new(Arc::new(grammar)));
    for rule in [Rule::Ratio, Rule::Coupled] {
        let sampling = Sampling { rule, grammar: grammar.clone(), ..Sampling::default() };
        let (text, cost) = text_among(0, 0, &sampling);
        assert!(cost.drafted > 10 && cost.drafted == cost.accepted, "{cost:?} of {}", text.len());
        // Who wants none gets none.
        let plain = Sampling { grammar: None, ..sampling };
        assert_eq!(text_among(0, 0, &plain).1.drafted, 0);
    }
}

//! Drafting and accepting within the scheduler leaves the distribution of every token as it is,
//! under a grammar too.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a statistic is a test")]

use std::collections::BTreeMap;

use super::*;
use crate::accept::Rule;
use crate::engine::Engine;
use crate::grammar::{Constraint, Mask};
use crate::request::Limits;
use crate::sample::Sampling;
use crate::scripted::{Script, Scripted, ScriptedGrammar};

const PROMPT: [Token; 5] = [3, 1, 4, 1, 5];
const DRAWS: u64 = 30_000;

/// Probabilities of the `i`-th token after `prompt`, all continuations summed up: by definition,
/// the logits of tokens that are not allowed are as though they were not there.
fn marginals(engine: &Scripted, prompt: &[Token], sampling: &Sampling, i: usize) -> Vec<f64> {
    let mut logits = engine.logits(prompt);
    if let Some(grammar) = &sampling.grammar {
        let mask = grammar.allowed(&prompt[PROMPT.len()..]).unwrap();
        for (token, logit) in (0..).zip(&mut logits) {
            *logit = if mask.allows(token) { *logit } else { -1e30 };
        }
    }
    let p = crate::sample::Dist::from_logits(&logits, sampling, &Seen::default(), &[]).unwrap();
    let mut sums = vec![0.0; engine.info().vocab];
    for (&token, &prob) in p.ids().iter().zip(p.probs()) {
        if i == 0 {
            sums[token as usize] += f64::from(prob);
            continue;
        }
        let rest = marginals(engine, &[prompt, &[token]].concat(), sampling, i - 1);
        for (sum, q) in sums.iter_mut().zip(rest) {
            *sum += f64::from(prob) * q;
        }
    }
    sums
}

/// How often each token came at each of the first four places.
fn counts(engine: &mut Scripted, sampling: impl Fn(u64) -> Sampling) -> Vec<Vec<f64>> {
    let limits = BatchLimits { snapshots_max: 0, chunk_grain: 8 };
    let mut batch = Batch::new(engine.info().clone(), limits);
    let mut counts = vec![vec![0.0; engine.info().vocab]; 4];
    let mut told: BTreeMap<RequestId, usize> = BTreeMap::new();
    for id in 0..DRAWS {
        let limits = Limits { new_tokens_max: 7, stop_tokens: Arc::default() };
        let (boundaries, draft_tokens) = (Vec::new(), Drafts::Tuned);
        let (sharing, standing) = Default::default();
        let (id, prompt, sampling) = (RequestId(id), PROMPT.into(), sampling(id));
        let request = Request {
            id,
            prompt,
            sampling,
            limits,
            draft_tokens,
            boundaries,
            resumed: 0,
            sharing,
            standing,
        };
        batch.admit(request, None);
    }
    while batch.is_busy() {
        let plan = batch.plan(Knobs::fixed(3, 8, (64, 64)));
        let outcome = engine.run(&plan, batch.rows()).unwrap();
        for (id, event) in batch.settle(&plan, outcome).events {
            if let RowEvent::Tokens(tokens, _) = event {
                let at = told.entry(id).or_default();
                for (counts, &token) in counts.iter_mut().skip(*at).zip(&tokens) {
                    counts[token as usize] += 1.0;
                }
                *at += tokens.len();
            }
        }
    }
    counts
}

/// Compares what came with what is enumerated.
fn check(what: &str, engine: &Scripted, sampling: &Sampling, counts: &[Vec<f64>]) {
    for (i, counts) in counts.iter().enumerate() {
        let p = marginals(engine, &PROMPT, sampling, i);
        let never = p.iter().zip(counts).filter(|&(&p, _)| p == 0.0).map(|(_, count)| count);
        assert_eq!(never.sum::<f64>(), 0.0, "{what}: tokens came that cannot");
        let cells = p.iter().zip(counts).filter(|&(p, _)| p * DRAWS as f64 > 5.0);
        let (chi, cells) = cells.fold((0.0, 0), |(chi, n), (p, count)| {
            let expected = p * DRAWS as f64;
            (chi + (count - expected).powi(2) / expected, n + 1)
        });
        if cells == 1 {
            assert_eq!(counts.iter().sum::<f64>(), DRAWS as f64);
            continue;
        }
        // Wilson and Hilferty 1931: the cube root of chi-square over its freedom is normal.
        let k = f64::from(cells - 1);
        let z = ((chi / k).cbrt() - (1.0 - 2.0 / (9.0 * k))) / (2.0 / (9.0 * k)).sqrt();
        println!(
            "{what} token {}: chi-square {chi:.1}, {k} degrees of freedom, z = {z:.2}, \
             {DRAWS} draws",
            i + 1
        );
        assert!(z < 3.5, "{what} token {}: z = {z}", i + 1);
    }
}

const LAWS: [(f32, Rule); 4] =
    [(0.6, Rule::Ratio), (1.0, Rule::Ratio), (0.6, Rule::Coupled), (1.0, Rule::Coupled)];

#[test]
fn drafted_tokens_follow_the_enumerated_distribution() {
    for (temperature, rule) in LAWS {
        let mut engine = Scripted::small(Script { head_noise: 3.0, ..Script::default() });
        let sampling =
            |seed| Sampling { temperature, top_k: 12, seed, rule, ..Sampling::default() };
        let counts = counts(&mut engine, sampling);
        check(&format!("{rule:?} T={temperature}"), &engine, &sampling(0), &counts);
    }
}

/// Grammars that differ, one of them after a beginning that anything may be.
fn grammars() -> Vec<(&'static str, Constraint)> {
    let grammar = |seed| Arc::new(ScriptedGrammar { seed, vocab: 32, end: 7 });
    let late = Constraint::new(grammar(3)).after([0].into(), Mask::all_but(32, [7, 8, 9]));
    vec![("grammar", Constraint::new(grammar(2))), ("late grammar", late)]
}

#[test]
fn drafted_tokens_follow_the_enumerated_distribution_under_a_grammar() {
    for (name, grammar) in grammars() {
        for (temperature, rule) in LAWS {
            let mut engine = Scripted::small(Script { head_noise: 3.0, ..Script::default() });
            let sampling = |seed| {
                let grammar = Some(grammar.clone());
                Sampling { temperature, top_k: 12, seed, rule, grammar, ..Sampling::default() }
            };
            let counts = counts(&mut engine, sampling);
            check(&format!("{name} {rule:?} T={temperature}"), &engine, &sampling(0), &counts);
        }
    }
}

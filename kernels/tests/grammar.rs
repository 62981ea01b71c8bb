//! L1 on the real engine under a grammar: bit for bit on the CPU, whatever the depth, the company
//! or the warmth, also where rows need no head because all their drafts are certain.

use std::sync::Arc;

use mtplx_core::Token;
use mtplx_core::accept::Rule;
use mtplx_core::grammar::{Broken, Constraint, Grammar, Mask};
use mtplx_core::sample::Sampling;

use crate::house::{House, Q8, Told, engine, prompts};

const VOCAB: Token = 8192;
const NEW: usize = 40;

/// Runs of `free` tokens, of which three quarters are allowed, and of `forced` ones.
#[derive(Debug)]
struct Runs {
    free: usize,
    forced: usize,
}

impl Runs {
    fn forces(&self, at: usize) -> Option<Token> {
        (at % (self.free + self.forced) >= self.free).then(|| 300 + (at * 7) as Token)
    }
}

impl Grammar for Runs {
    fn allowed(&self, text: &[Token]) -> Result<Mask, Broken> {
        let at = text.len();
        Ok(match self.forces(at) {
            Some(token) => [token].into_iter().collect(),
            None => (0..VOCAB).filter(|token| *token as usize % 4 != at % 4).collect(),
        })
    }
}

fn sampling(i: usize) -> Sampling {
    // Forced runs shorter and longer than what is drafted; one request in five is free.
    let (free, forced) = [(5, 2), (3, 4), (2, 11), (40, 0), (0, 0)][i % 5];
    let grammar = (free > 0).then(|| Constraint::new(Arc::new(Runs { free, forced })));
    let temperature = [0.0, 0.8][i / 5 % 2];
    let seeded = Sampling { seed: i as u64, rule: Rule::Coupled, ..Sampling::default() };
    Sampling { temperature, grammar, ..seeded }
}

#[test]
fn text_under_a_grammar_is_the_same_at_every_depth_and_in_company() {
    let mut house = House::new(engine(Q8, None, 8));
    let prompts = prompts(20);
    let mut want = Vec::new();
    for (i, prompt) in prompts.iter().enumerate() {
        want.push(house.alone(prompt, sampling(i), NEW, 0).tokens);
        if let Some(grammar) = sampling(i).grammar {
            let text = &want[i];
            let allowed = |n: usize| grammar.allowed(&text[..n]).unwrap().allows(text[n]);
            assert!((0..NEW).all(allowed), "prompt {i}");
        }
    }
    for depth in 1..=4 {
        for (i, prompt) in prompts.iter().enumerate() {
            let Told { tokens, usage, .. } = house.alone(prompt, sampling(i), NEW, depth);
            assert_eq!(tokens, want[i], "prompt {i} at K={depth}");
            assert!(usage.accepted > 0, "prompt {i} at K={depth}");
        }
        let ids: Vec<_> = (0..20).map(|i| house.ask(&prompts[i], sampling(i), NEW, true)).collect();
        house.run(depth);
        for (i, id) in ids.into_iter().enumerate() {
            assert_eq!(house.told(id).tokens, want[i], "prompt {i} in company at K={depth}");
        }
        for deposit in std::mem::take(&mut house.deposits) {
            house.batch.release(deposit.snapshot);
        }
    }
}

#[test]
fn where_all_is_forced_the_head_is_never_asked() {
    let mut house = House::new(engine(Q8, None, 1));
    let grammar = Some(Constraint::new(Arc::new(Runs { free: 1, forced: 40 })));
    let sampling = Sampling { grammar, ..Sampling::greedy() };
    let Told { tokens, usage, .. } = house.alone(&prompts(3)[2], sampling, NEW, 2);
    assert_eq!((tokens.len(), usage.drafted), (NEW, usage.accepted));
    // Five tokens a step, though the tuner says two drafts.
    let steps = house.reports.iter().filter(|report| report.rows > 0).count();
    assert_eq!(steps, (NEW - 1).div_ceil(5));
    let drafting: u64 = house.reports.iter().map(|report| report.phases.draft_us).sum();
    let verifying: u64 = house.reports.iter().map(|report| report.phases.verify_us).sum();
    assert!(drafting * 10 < verifying, "{drafting} us of drafts beside {verifying} us");
}

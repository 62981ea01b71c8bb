//! Drafting and accepting within the scheduler leaves the distribution of every token as it is.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a statistic is a test")]

use std::collections::BTreeMap;

use super::*;
use crate::accept::Rule;
use crate::engine::Engine;
use crate::request::Limits;
use crate::sample::Sampling;
use crate::scripted::{Script, Scripted};

/// Probabilities of the `i`-th token after `prompt`, all continuations summed up.
fn marginals(engine: &Scripted, prompt: &[Token], sampling: &Sampling, i: usize) -> Vec<f64> {
    let logits = engine.logits(prompt);
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

#[test]
fn drafted_tokens_follow_the_enumerated_distribution() {
    for (temperature, rule) in
        [(0.6, Rule::Ratio), (1.0, Rule::Ratio), (0.6, Rule::Coupled), (1.0, Rule::Coupled)]
    {
        let script = Script { head_noise: 3.0, ..Script::default() };
        let mut engine = Scripted::small(script);
        let limits = BatchLimits { snapshots_max: 0, chunk_grain: 8 };
        let mut batch = Batch::new(engine.info().clone(), limits);
        let sampling =
            |seed| Sampling { temperature, top_k: 12, seed, rule, ..Sampling::default() };
        let prompt: Arc<[Token]> = [3, 1, 4, 1, 5].into();
        let draws = 30_000_u64;
        let mut counts = vec![vec![0.0; engine.info().vocab]; 4];
        let mut told: BTreeMap<RequestId, usize> = BTreeMap::new();
        for id in 0..draws {
            let limits = Limits { new_tokens_max: 7, stop_tokens: Arc::default() };
            let (id, prompt) = (RequestId(id), Arc::clone(&prompt));
            let (boundaries, draft_tokens) = (Vec::new(), Drafts::Tuned);
            let (sampling, sharing) = (sampling(id.0), Default::default());
            let request =
                Request { id, prompt, sampling, limits, draft_tokens, boundaries, sharing };
            batch.admit(request, None);
        }
        while batch.is_busy() {
            let knobs = Knobs::fixed(3, 8, (64, 64));
            let plan = batch.plan(knobs);
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
        for (i, counts) in counts.iter().enumerate() {
            let p = marginals(&engine, &prompt, &sampling(0), i);
            let cells = p.iter().zip(counts).filter(|&(p, _)| p * draws as f64 > 5.0);
            let (chi, cells) = cells.fold((0.0, 0), |(chi, n), (p, count)| {
                let expected = p * draws as f64;
                (chi + (count - expected).powi(2) / expected, n + 1)
            });
            // Wilson and Hilferty 1931: the cube root of chi-square over its freedom is normal.
            let k = f64::from(cells - 1);
            let z = ((chi / k).cbrt() - (1.0 - 2.0 / (9.0 * k))) / (2.0 / (9.0 * k)).sqrt();
            println!(
                "{rule:?} T={temperature} token {}: chi-square {chi:.1}, {k} degrees of \
                 freedom, z = {z:.2}, {draws} draws",
                i + 1
            );
            assert!(z < 3.5, "{rule:?} T={temperature} token {}: z = {z}", i + 1);
        }
    }
}

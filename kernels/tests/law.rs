//! Speculation leaves the distribution alone: on the real model, tokens sampled with drafts follow
//! the distribution computed without them.

use std::collections::BTreeMap;

use mtplx_core::Token;
use mtplx_core::accept::Rule;
use mtplx_core::sample::Sampling;
use statrs::distribution::{ChiSquared, ContinuousCDF};

use crate::house::{House, Q8, engine};

/// Pooled so that every cell expects at least this many draws.
const EXPECTED_MIN: f64 = 10.0;

fn sampling(temperature: f32, seed: u64) -> Sampling {
    Sampling { temperature, top_k: 20, seed, rule: Rule::Ratio, ..Sampling::default() }
}

/// The first tokens after a prompt. The first of all is never drafted; the next are, two deep.
const TOKENS: usize = 5;

/// Draws them `n` times.
fn draws(
    house: &mut House,
    prompt: &[Token],
    temperature: f32,
    (n, depth): (u64, u8),
) -> Vec<[Token; TOKENS]> {
    // One deposit makes all others start warm: only decoding is computed again.
    house.alone(prompt, sampling(temperature, 0), 1, 0);
    let base = u64::from(depth) << 32;
    let ids: Vec<_> =
        (0..n).map(|i| house.ask(prompt, sampling(temperature, base + i), TOKENS, true)).collect();
    house.run(depth);
    for deposit in std::mem::take(&mut house.deposits) {
        house.batch.release(deposit.snapshot);
    }
    ids.iter().map(|&id| house.told(id).tokens.as_slice().try_into().unwrap()).collect()
}

/// p-value of the hypothesis that two samples of one size have the same law (chi-square test of
/// homogeneity; cells with few observations are pooled), and the degrees of freedom.
fn p_value(a: &[Token], b: &[Token]) -> (f64, usize) {
    let mut cells: BTreeMap<Token, [f64; 2]> = BTreeMap::new();
    a.iter().for_each(|&t| cells.entry(t).or_default()[0] += 1.0);
    b.iter().for_each(|&t| cells.entry(t).or_default()[1] += 1.0);
    let (many, few): (Vec<[f64; 2]>, Vec<[f64; 2]>) =
        cells.into_values().partition(|c| c[0] + c[1] >= 2.0 * EXPECTED_MIN);
    let pooled = few.iter().fold([0.0; 2], |sum, c| [sum[0] + c[0], sum[1] + c[1]]);
    let cells: Vec<[f64; 2]> =
        many.into_iter().chain((pooled[0] + pooled[1] >= EXPECTED_MIN).then_some(pooled)).collect();
    if cells.len() < 2 {
        return (1.0, 0);
    }
    let chi: f64 = cells.iter().map(|[x, y]| (x - y).powi(2) / (x + y)).sum();
    let freedom = cells.len() - 1;
    (1.0 - ChiSquared::new(freedom as f64).unwrap().cdf(chi), freedom)
}

/// Sampled tokens with drafts against those without; the degrees of freedom.
fn compare(house: &mut House, prompt: &[Token], temperature: f32, n: u64) -> usize {
    let plain = draws(house, prompt, temperature, (n, 0));
    let spec = draws(house, prompt, temperature, (n, 2));
    let mut freedoms = 0;
    for i in 0..TOKENS {
        let at = |draws: &[[Token; TOKENS]]| draws.iter().map(|d| d[i]).collect::<Vec<_>>();
        let (p, freedom) = p_value(&at(&plain), &at(&spec));
        freedoms += freedom;
        let of = format!("T={temperature} token {}", i + 1);
        println!("{of}: p = {p:.3}, {freedom} degrees of freedom, {n} draws each");
        assert!(p > 1e-3, "{of}: p = {p}");
    }
    freedoms
}

#[test]
fn sampled_tokens_with_speculation_follow_the_plain_distribution() {
    let mut house = House::new(engine(Q8, None, 16));
    // The story begins with a name, and many are possible.
    let prompt = &crate::golden::cases()[0].ids;
    let freedoms: usize =
        [0.6, 1.0].into_iter().map(|t| compare(&mut house, prompt, t, 2_000)).sum();
    let deep = house.reports.iter().filter(|r| r.positions.len() == 2).count();
    assert!(deep > 200, "{deep} cycles judged a second draft");
    assert!(freedoms > 20, "{freedoms}: the prompt leaves something open");
}

/// Drafts from a third of the vocabulary in two bits: many are wrong, and none may show.
#[test]
fn sampled_tokens_with_a_poor_draft_head_follow_the_plain_distribution() {
    let mut house = House::new(crate::draft_head::engine(Some(2), 0.3, 16));
    let prompt = &crate::golden::cases()[0].ids;
    let freedoms = compare(&mut house, prompt, 1.0, 1_500);
    assert!(freedoms > 10, "{freedoms}: the prompt leaves something open");
}

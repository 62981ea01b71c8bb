//! The whole scheduler against the scripted engine: seeded joins, leaves, cancels and depths. One
//! law above all: the text of a request is what it would be alone and without drafts (L1).

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a simulation is a test")]

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::accept::Rule;
use crate::engine::Engine;
use crate::request::{Drafts, Limits};
use crate::sample::Sampling;
use crate::scripted::{Script, Scripted};

/// A small generator for the simulation itself (xorshift64*; Vigna 2016).
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

/// The text of `request` served alone, cold, without drafts.
fn alone(request: &Request, script: Script, context: usize) -> Vec<Token> {
    let engine = Scripted::small(script);
    let s = &request.sampling;
    let mut tokens = request.prompt.to_vec();
    let mut seen = Seen::default();
    seen.add_prompt(&tokens);
    let mut out = Vec::new();
    while out.len() < request.limits.new_tokens_max && tokens.len() < context {
        let logits = engine.logits(&tokens);
        let p = crate::sample::Dist::from_logits(&logits, s, &seen, &[]).unwrap();
        let next = crate::accept::draw(s.rule, s.seed, tokens.len() as u64, &p);
        tokens.push(next);
        out.push(next);
        seen.add_output(&[next]);
        if request.limits.stop_tokens.contains(&next) {
            break;
        }
    }
    out
}

fn random_request(rng: &mut Rng, id: u64, stems: &[Vec<Token>]) -> Request {
    let mut prompt = stems[rng.below(stems.len() as u64) as usize].clone();
    let boundary = prompt.len();
    prompt.extend((0..rng.below(90)).map(|_| rng.below(32) as Token));
    if prompt.is_empty() {
        prompt.push(3);
    }
    let greedy = rng.chance(3);
    let penalised = rng.chance(4);
    let sampling = Sampling {
        temperature: if greedy { 0.0 } else { 0.8 },
        top_k: [0, 5, 20][rng.below(3) as usize],
        top_p: [1.0, 0.9][rng.below(2) as usize],
        presence_penalty: if penalised { 0.7 } else { 0.0 },
        repetition_penalty: if penalised { 1.2 } else { 1.0 },
        seed: rng.below(1 << 40),
        rule: Rule::Coupled,
        ..Sampling::default()
    };
    Request {
        id: RequestId(id),
        boundaries: if boundary > 0 && boundary < prompt.len() { vec![boundary] } else { vec![] },
        prompt: prompt.into(),
        sampling,
        limits: Limits {
            new_tokens_max: 1 + rng.below(60) as usize,
            stop_tokens: Arc::new(BTreeSet::from([7])),
        },
        draft_tokens: [Drafts::Tuned, Drafts::AtLeast(1), Drafts::Exactly(0), Drafts::Exactly(3)]
            [rng.below(4) as usize],
    }
}

/// A bank as simple as can be: it keeps a few deposits and hands out the longest match.
#[derive(Default)]
struct Shelf(Vec<Deposit>);

impl Shelf {
    fn warmest(&self, prompt: &[Token]) -> Option<Warm> {
        let fits = self.0.iter().filter(|d| prompt.starts_with(&d.tokens));
        fits.max_by_key(|d| d.tokens.len())
            .map(|d| Warm { snapshot: d.snapshot, len: d.tokens.len() })
    }
}

struct World {
    rng: Rng,
    engine: Scripted,
    batch: Batch,
    shelf: Shelf,
    asked: BTreeMap<RequestId, Request>,
    told: BTreeMap<RequestId, Vec<Token>>,
    finished: usize,
    cached: usize,
}

impl World {
    fn new(seed: u64, script: Script) -> Self {
        let mut info = Scripted::small(script).info().clone();
        // Every other world is short of pages, some of context.
        info.pages_max = [400, 24][seed as usize % 2];
        info.context_tokens_max = [512, 150][seed as usize / 2 % 2];
        let engine = Scripted::new(info, script);
        let limits = BatchLimits { snapshots_max: 12, chunk_grain: 8 };
        Self {
            rng: Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            batch: Batch::new(engine.info().clone(), limits),
            engine,
            shelf: Shelf::default(),
            asked: BTreeMap::new(),
            told: BTreeMap::new(),
            finished: 0,
            cached: 0,
        }
    }

    fn step(&mut self, script: Script) {
        let knobs = Knobs {
            depth: self.rng.below(5) as u8,
            rows_max: 1 + self.rng.below(8) as usize,
            prefill_busy: 1 + self.rng.below(32) as usize,
            prefill_idle: 64,
        };
        let plan = self.batch.plan(knobs);
        let outcome = self.engine.run(&plan, self.batch.rows()).unwrap();
        let settled = self.batch.settle(&plan, outcome);
        self.batch.check_integrity().unwrap();
        self.shelf.0.extend(settled.deposits);
        while self.shelf.0.len() > 8 || (!self.shelf.0.is_empty() && self.rng.chance(40)) {
            let evicted = self.shelf.0.remove(0);
            self.batch.release(evicted.snapshot);
        }
        if self.batch.rows().is_empty() && self.batch.waiting() > 0 && !self.shelf.0.is_empty() {
            // Pages are short: whoever keeps states gives the oldest up.
            let oldest = self.shelf.0.remove(0);
            self.batch.release(oldest.snapshot);
        }
        for (id, event) in settled.events {
            match event {
                RowEvent::Tokens(tokens, _) => self.told.entry(id).or_default().extend(tokens),
                RowEvent::Finished(finish, usage) => {
                    let request = self.asked.remove(&id).expect("finished once (L2)");
                    let text = self.told.remove(&id).unwrap_or_default();
                    let context = self.engine.info().context_tokens_max;
                    assert_eq!(text, alone(&request, script, context), "L1 for {request:?}");
                    assert_eq!(usage.generated, text.len());
                    let stopped = text.last() == Some(&7);
                    assert_eq!(finish, if stopped { Finish::Stop } else { Finish::Length });
                    self.finished += 1;
                    self.cached += usage.cached;
                }
            }
        }
    }
}

fn simulate(seed: u64, steps: u64) -> (usize, usize) {
    let script =
        Script { seed, head_noise: [0.0, 1.0, 6.0][seed as usize % 3], ..Script::default() };
    let mut world = World::new(seed, script);
    let stems: Vec<Vec<Token>> =
        [0, 16, 33].map(|n| (0..n).map(|_| world.rng.below(32) as Token).collect()).to_vec();
    let mut next = 0;
    for _ in 0..steps {
        if world.rng.chance(4) && world.asked.len() < 30 {
            next += 1;
            let request = random_request(&mut world.rng, next, &stems);
            let warm = world.shelf.warmest(&request.prompt);
            world.asked.insert(request.id, request.clone());
            world.batch.admit(request, warm);
        }
        if world.rng.chance(25) && !world.asked.is_empty() {
            let i = world.rng.below(world.asked.len() as u64) as usize;
            let id = *world.asked.keys().nth(i).unwrap();
            assert!(world.batch.cancel(id));
            world.asked.remove(&id);
            world.told.remove(&id);
        }
        world.step(script);
    }
    // L5: with no new arrivals everything ends within the longest request's worst case.
    for _ in 0..30 * 80 {
        if world.asked.is_empty() {
            break;
        }
        world.step(script);
    }
    assert!(world.asked.is_empty(), "L5: {:?} never ended", world.asked.keys());
    for deposit in std::mem::take(&mut world.shelf.0) {
        world.batch.release(deposit.snapshot);
    }
    let info = world.engine.info();
    assert_eq!(world.batch.ledger().free(), (info.slots, info.pages_max), "L4");
    (world.finished, world.cached)
}

#[test]
fn text_depends_on_the_request_alone() {
    let (mut finished, mut cached) = (0, 0);
    for seed in 1..=30 {
        let (f, c) = simulate(seed, 600);
        finished += f;
        cached += c;
    }
    assert!(finished > 1_500, "only {finished} requests finished");
    assert!(cached > 10_000, "only {cached} tokens came from the shelf");
}

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
            let sampling = sampling(id.0);
            let request = Request { id, prompt, sampling, limits, draft_tokens, boundaries };
            batch.admit(request, None);
        }
        while batch.is_busy() {
            let knobs = Knobs { depth: 3, rows_max: 8, prefill_busy: 64, prefill_idle: 64 };
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

//! L1 on the real engine: bit for bit on the CPU, whatever the depth, the company or the warmth.

use mtplx_core::Token;
use mtplx_core::accept::Rule;
use mtplx_core::logprobs::Logprobs;
use mtplx_core::sample::Sampling;

use crate::house::{House, Q8, Told, engine, prompts};

/// Seeded sampling whose text must not depend on anything but the seed.
fn seeded(seed: u64) -> Sampling {
    Sampling { temperature: 0.8, top_p: 0.95, seed, rule: Rule::Coupled, ..Sampling::default() }
}

fn sampling(i: usize) -> Sampling {
    match i % 3 {
        0 => Sampling::greedy(),
        1 => seeded(i as u64),
        _ => Sampling { presence_penalty: 0.5, repetition_penalty: 1.1, ..seeded(i as u64) },
    }
}

const NEW: usize = 24;

/// Every prompt served alone without drafts.
fn plain(house: &mut House, prompts: &[Vec<Token>]) -> Vec<Vec<Token>> {
    let each = prompts.iter().enumerate();
    each.map(|(i, p)| house.alone(p, sampling(i), NEW, 0).tokens).collect()
}

#[test]
fn text_is_the_same_at_every_depth() {
    let mut house = House::new(engine(Q8, None, 4));
    let prompts = prompts(24);
    let want = plain(&mut house, &prompts);
    let (mut drafted, mut accepted) = (0, 0);
    for depth in 1..=4 {
        for (i, prompt) in prompts.iter().enumerate() {
            let Told { tokens, usage, .. } = house.alone(prompt, sampling(i), NEW, depth);
            assert_eq!(tokens, want[i], "prompt {i} at K={depth}");
            drafted += usage.drafted;
            accepted += usage.accepted;
        }
    }
    assert!(accepted * 3 > drafted, "{accepted} of {drafted} accepted: drafts are not mere noise");
}

#[test]
fn text_is_the_same_in_a_batch_with_arrivals() {
    let mut house = House::new(engine(Q8, None, 8));
    let prompts = prompts(40);
    let want = plain(&mut house, &prompts);
    for seed in 0..2_usize {
        let mut asked = Vec::new();
        let mut next = 0;
        let mut step = seed;
        while next < prompts.len() || house.batch.is_busy() {
            // Eight at once, then one every other step, at depths that change all the time.
            while next < prompts.len() && (next < 8 || step % 2 == 0 && asked.len() == next) {
                asked.push(house.ask(&prompts[next], sampling(next), NEW, false));
                next += 1;
                if next > 8 {
                    break;
                }
            }
            house.step(((step * 7 + seed) % 5) as u8);
            step += 1;
        }
        for (i, id) in asked.into_iter().enumerate() {
            assert_eq!(house.told(id).tokens, want[i], "prompt {i}, run {seed}");
        }
    }
}

#[test]
fn greedy_text_is_the_same_drafted_plain_and_in_a_batch_of_eight() {
    let mut house = House::new(engine(Q8, None, 8));
    let prompts = prompts(24);
    let greedy = Sampling::greedy;
    let alone = |house: &mut House, p: &[Token], k| house.alone(p, greedy(), NEW, k).tokens;
    let want: Vec<_> = prompts.iter().map(|p| alone(&mut house, p, 0)).collect();
    for depth in 1..=4 {
        for (i, p) in prompts.iter().enumerate() {
            assert_eq!(alone(&mut house, p, depth), want[i], "prompt {i} at K={depth}");
        }
        let ids: Vec<_> = prompts.iter().map(|p| house.ask(p, greedy(), NEW, false)).collect();
        house.run(depth);
        for (i, id) in ids.into_iter().enumerate() {
            assert_eq!(house.told(id).tokens, want[i], "prompt {i} in a batch at K={depth}");
        }
    }
}

#[test]
fn a_warm_continuation_equals_the_cold_run() {
    let mut house = House::new(engine(Q8, None, 4));
    for (i, prompt) in prompts(12).into_iter().enumerate() {
        let first = house.alone(&prompt, sampling(i), NEW, 3).tokens;
        // A second turn: the first text, its reply, and something new. And the first once more.
        let mut turn = [prompt.clone(), first.clone()].concat();
        turn.extend([17, 300, 5 + i as Token]);
        // The state at a reply's end covers all but its last token, which was never fed.
        let covered = prompt.len() + first.len() - 1;
        for (text, cached) in [(turn, covered), (prompt.clone(), prompt.len())] {
            // Warm first: the cold run would leave a state of its own.
            let warm = house.ask(&text, sampling(i), NEW, true);
            house.run(3);
            let warm = house.told(warm).clone();
            let cold = house.alone(&text, sampling(i), NEW, 2);
            assert_eq!((warm.usage.cached, cold.usage.cached), (cached, 0), "prompt {i}");
            assert_eq!(warm.tokens, cold.tokens, "prompt {i}");
        }
        for deposit in std::mem::take(&mut house.deposits) {
            house.batch.release(deposit.snapshot);
        }
    }
}

#[test]
fn long_prompts_in_chunks_equal_one_pass() {
    let mut house = House::new(engine(Q8, None, 4));
    let prompts = prompts(60);
    let long: Vec<Token> = prompts.concat().into_iter().take(700).collect();
    let alone = house.alone(&long, seeded(3), NEW, 0).tokens;
    // With another row decoding, prompts are fed in small chunks beside it.
    let other = house.ask(&prompts[0], Sampling::greedy(), 80, false);
    for _ in 0..3 {
        house.step(2);
    }
    let busy = house.ask(&long, seeded(3), NEW, false);
    house.run(2);
    assert_eq!(house.told(busy).tokens, alone);
    assert_eq!(house.told(other).tokens.len(), 80);
}

#[test]
fn what_the_model_thought_of_a_text_is_the_same_at_every_depth() {
    let mut house = House::new(engine(Q8, None, 4));
    for (i, prompt) in prompts(6).iter().enumerate() {
        let sampling = || Sampling { logprobs: Some(4), ..sampling(i) };
        let plain = house.alone(prompt, sampling(), NEW, 0);
        assert_eq!(plain.logprobs.len(), plain.tokens.len());
        for told in &plain.logprobs {
            assert!(told.chosen <= 0.0 && told.likeliest.len() == 4);
            assert!(told.likeliest[0].1 >= told.chosen);
        }
        for depth in 1..=4 {
            let drafted = house.alone(prompt, sampling(), NEW, depth);
            assert_eq!(drafted.tokens, plain.tokens, "prompt {i} at K={depth}");
            assert_eq!(drafted.logprobs, plain.logprobs, "prompt {i} at K={depth}");
        }
        if i == 0 {
            // The greedy token is the likeliest.
            let same = |(told, &token): (&Logprobs, &Token)| told.likeliest[0].0 == token;
            assert!(plain.logprobs.iter().zip(&plain.tokens).all(same));
        }
    }
}

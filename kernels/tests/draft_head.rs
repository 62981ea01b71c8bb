//! Drafts read off a head of their own: fewer may be accepted, and no text changes.

use std::sync::Arc;

use mtplx_core::accept::Rule;
use mtplx_core::sample::Sampling;
use mtplx_kernels::place::Place;
use mtplx_kernels::{DraftHeadOptions, EngineOptions, MlxEngine};

use crate::house::{House, Q8, Told, checkpoint, exact_place, prompts};

const NEW: usize = 24;

/// The small model with such a head.
pub fn engine(bits: Option<usize>, share: f32, slots: usize) -> MlxEngine {
    at(exact_place(), DraftHeadOptions { bits, share }, slots)
}

fn at(place: Place, draft_head: DraftHeadOptions, slots: usize) -> MlxEngine {
    let options = EngineOptions { slots, draft_head, place: Some(place), ..Default::default() };
    mtplx_kernels::open(&checkpoint(Q8), &options).unwrap()
}

fn sampling(i: usize) -> Sampling {
    let (seed, rule) = (i as u64, Rule::Coupled);
    let seeded = Sampling { temperature: 0.8, top_k: 20, seed, rule, ..Sampling::default() };
    match i % 3 {
        0 => Sampling::greedy(),
        1 => seeded,
        _ => {
            let logit_bias = Arc::new([(8170, 2.0)].into());
            Sampling { presence_penalty: 1.5, logit_bias, ..seeded }
        }
    }
}

#[test]
fn text_is_the_same_with_every_head_for_drafts() {
    let prompts = prompts(12);
    let mut plain = House::new(engine(None, 1.0, 8));
    let want: Vec<_> =
        prompts.iter().enumerate().map(|(i, p)| plain.alone(p, sampling(i), NEW, 0)).collect();
    let mut rates = Vec::new();
    for (bits, share) in [(None, 1.0), (Some(4), 1.0), (None, 0.5), (Some(4), 0.25), (Some(2), 0.1)]
    {
        let mut house = House::new(engine(bits, share, 8));
        let (mut drafted, mut accepted) = (0, 0);
        for depth in 1..=4 {
            let each = prompts.iter().enumerate();
            let ids: Vec<_> = each.map(|(i, p)| house.ask(p, sampling(i), NEW, false)).collect();
            house.run(depth);
            for (i, id) in ids.into_iter().enumerate() {
                let Told { tokens, usage, .. } = house.told(id);
                assert_eq!(*tokens, want[i].tokens, "{bits:?} {share} K={depth}, prompt {i}");
                drafted += usage.drafted;
                accepted += usage.accepted;
            }
        }
        println!("{bits:?} bits, share {share}: {accepted} of {drafted} drafts accepted");
        rates.push(accepted as f64 / drafted as f64);
    }
    assert!(rates[1] > 0.9 * rates[0], "four bits draft nearly as well: {rates:?}");
    assert!(rates.iter().all(|&rate| rate > 0.05), "all draft something: {rates:?}");
    assert!(rates[4] < rates[0], "the poorest head is the one that was used: {rates:?}");
}

#[test]
fn both_paths_have_it() {
    let prompt = &prompts(5)[4];
    let options = DraftHeadOptions { bits: Some(4), share: 0.5 };
    let tell = |place| House::new(at(place, options, 2)).alone(prompt, Sampling::greedy(), 12, 3);
    let texts: Vec<_> = crate::golden::places().into_iter().map(tell).collect();
    assert!(texts.iter().all(|told| told.tokens == texts[0].tokens), "{texts:?}");
    assert!(texts.iter().all(|told| told.usage.accepted > 0), "{texts:?}");
}

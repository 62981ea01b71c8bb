//! Who is simulated: a generator of chance, requests of many kinds, and what each must hear.

use super::*;
use std::num::NonZeroU32;

use crate::accept::Rule;
use crate::fairness::{Client, Standing};
use crate::grammar::{Constraint, Mask};
use crate::request::{Limits, Sharing};
use crate::sample::{Dist, NotFinite, Sampling};
use crate::scripted::ScriptedGrammar;

/// A small generator for the simulation itself (xorshift64*; Vigna 2016).
pub(in crate::batch) struct Rng(u64);

impl Rng {
    pub(in crate::batch) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(in crate::batch) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }

    pub(in crate::batch) fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

/// The text of `request` served alone, cold, without drafts, and how it ends.
pub(in crate::batch) fn alone(request: &Request, engine: &Scripted) -> (Vec<Token>, Finish) {
    let s = &request.sampling;
    let mut tokens = request.prompt.to_vec();
    let mut seen = Seen::default();
    seen.add_prompt(&tokens);
    let mut out = Vec::new();
    while out.len() < request.limits.new_tokens_max
        && tokens.len() < engine.info().context_tokens_max
    {
        let logits = engine.logits(&tokens);
        let mask = s.grammar.as_ref().map(|grammar| grammar.allowed(&out));
        let Ok(p) = mask
            .transpose()
            .map_err(|_| NotFinite)
            .and_then(|mask| Dist::masked(&logits, s, (&seen, &[]), mask.as_ref()))
        else {
            return (out, Finish::Fault);
        };
        let next = crate::accept::draw(s.rule, s.seed, tokens.len() as u64, &p);
        tokens.push(next);
        out.push(next);
        seen.add_output(&[next]);
        if request.limits.stop_tokens.contains(&next) {
            return (out, Finish::Stop);
        }
    }
    (out, Finish::Length)
}

pub(super) fn anybody(rng: &mut Rng, id: u64, stems: &[Vec<Token>]) -> Request {
    let mut prompt = stems[rng.below(stems.len() as u64) as usize].clone();
    let boundary = prompt.len();
    prompt.extend((0..rng.below(90)).map(|_| rng.below(32) as Token));
    if prompt.is_empty() {
        prompt.push(3);
    }
    let root = if rng.chance(2) && boundary < prompt.len() { boundary } else { 0 };
    let greedy = rng.chance(3);
    let penalised = rng.chance(4);
    // Some go on for so long that they may step back.
    let longest = if rng.chance(6) { 200 } else { 60 };
    let sampling = Sampling {
        temperature: if greedy { 0.0 } else { 0.8 },
        top_k: [0, 5, 20][rng.below(3) as usize],
        top_p: [1.0, 0.9][rng.below(2) as usize],
        presence_penalty: if penalised { 0.7 } else { 0.0 },
        repetition_penalty: if penalised { 1.2 } else { 1.0 },
        seed: rng.below(1 << 40),
        rule: Rule::Coupled,
        grammar: grammar(rng),
        logprobs: rng.chance(8).then_some(3),
        ..Sampling::default()
    };
    Request {
        id: RequestId(id),
        boundaries: if boundary > 0 && boundary < prompt.len() { vec![boundary] } else { vec![] },
        prompt: prompt.into(),
        sampling,
        limits: Limits {
            new_tokens_max: 1 + rng.below(longest) as usize,
            stop_tokens: Arc::new(BTreeSet::from([7])),
        },
        resumed: 0,
        sharing: Sharing { tenant: Tenant(rng.below(2)), background: rng.chance(8), root },
        standing: standing(rng),
        draft_tokens: [Drafts::Tuned, Drafts::AtLeast(1), Drafts::Exactly(0), Drafts::Exactly(3)]
            [rng.below(4) as usize],
    }
}

/// Every other request is of one client; the others have few.
fn standing(rng: &mut Rng) -> Standing {
    let client = if rng.chance(2) { 0 } else { 1 + rng.below(3) };
    let class = if rng.chance(6) { Class::Background } else { Class::Interactive };
    let weight = NonZeroU32::MIN.saturating_add((client % 2) as u32);
    let client = Client(client);
    // Some stand behind one key.
    let group = if client.0 > 1 { Client(2) } else { client };
    Standing { client, group, weight, class }
}

/// A grammar for every third, and for every third of these one that begins late.
fn grammar(rng: &mut Rng) -> Option<Constraint> {
    let seed = rng.below(1 << 40);
    let grammar = ScriptedGrammar { seed, vocab: 32, end: 7 };
    let whole = rng.chance(3).then(|| Constraint::new(Arc::new(grammar)))?;
    let late = rng.chance(3);
    Some(if late { whole.after([5].into(), Mask::all_but(32, [7])) } else { whole })
}

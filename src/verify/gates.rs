//! The gates themselves, each with the bound that it holds something against.

use anyhow::Result;
use mtplx_core::Token;
use mtplx_core::accept::Rule;
use mtplx_core::logprobs::ALTERNATIVES_MAX;
use mtplx_core::sample::Sampling;

use super::homogeneity::p_value;
use super::runner::{Runner, Text};
use crate::tiers::contract::Gate;

/// Deepest draft that is tried.
const DEPTH_MAX: u8 = 3;
/// Two likeliest tokens that a GPU may swap, as it rounds otherwise for more rows: apart by no more
/// than so many nats. Logits of 16 to 32 have steps of an eighth in bf16.
const NEAR_TIE: f64 = 0.5;
/// Of drawn texts: the first token is never drafted, those after it are.
const DRAWN_TOKENS: usize = 4;
/// Prompts that are drawn from.
const DRAWN_PROMPTS: usize = 2;
/// A law that holds fails so seldom, all tests of the gate together.
const FALSE_ALARM: f64 = 1e-3;
/// Below it drafts are noise, as with norms that were understood wrongly, and cost more than they
/// bring.
const ACCEPTANCE_MIN: f64 = 0.3;

/// A model on trial.
pub(super) struct Trial {
    pub(super) runner: Runner,
    pub(super) prompts: Vec<Vec<Token>>,
    pub(super) tokens: usize,
    pub(super) draws: u64,
    /// Whether texts are promised to be the same to the bit here.
    pub(super) exact: bool,
}

impl Trial {
    fn depth_max(&self) -> u8 {
        self.runner.depth_max().min(DEPTH_MAX)
    }

    /// Greedy texts with drafts, in company, against those without, one at a time.
    pub(super) fn greedy(&mut self) -> Result<Gate> {
        let logprobs = Some(ALTERNATIVES_MAX).filter(|_| !self.exact);
        let plain = self.alone(|_| Sampling { logprobs, ..Sampling::greedy() })?;
        let (mut parted, mut widest) = (0, 0.0_f64);
        for depth in 1..=self.depth_max() {
            let size = (self.tokens, depth);
            let drafted = self.runner.together(&self.prompts, |_| Sampling::greedy(), size)?;
            for (plain, drafted) in plain.iter().zip(&drafted) {
                parted += usize::from(plain.tokens != drafted.tokens);
                widest = widest.max(gap(plain, &drafted.tokens));
            }
        }
        let texts = self.prompts.len() * usize::from(self.depth_max());
        let name = "greedy-parity".to_owned();
        let of = format!("{parted} of {texts} texts differ from those without drafts");
        Ok(match self.exact {
            true => {
                let told = format!("{of}; none may");
                Gate { name, passed: parted == 0, told, measured: parted as f64, bound: 0.0 }
            }
            false => {
                let told = format!(
                    "{of}, where tokens were at most {widest:.3} nats apart; {NEAR_TIE} may be"
                );
                Gate { name, passed: widest <= NEAR_TIE, told, measured: widest, bound: NEAR_TIE }
            }
        })
    }

    /// The same of texts that are drawn by a seed, where that decides them.
    pub(super) fn seeded(&mut self) -> Result<Gate> {
        let sampling = |i: usize| Sampling {
            temperature: 0.8,
            top_p: 0.95,
            seed: i as u64,
            rule: Rule::Coupled,
            ..Sampling::default()
        };
        let plain = self.alone(sampling)?;
        let mut parted = 0;
        for depth in 1..=self.depth_max() {
            let size = (self.tokens, depth);
            let drafted = self.runner.together(&self.prompts, sampling, size)?;
            let both = plain.iter().zip(&drafted);
            parted += both.filter(|(plain, drafted)| plain.tokens != drafted.tokens).count();
        }
        let texts = self.prompts.len() * usize::from(self.depth_max());
        Ok(Gate {
            name: "seeded-parity".to_owned(),
            passed: parted == 0,
            told: format!("{parted} of {texts} texts differ from those without drafts; none may"),
            measured: parted as f64,
            bound: 0.0,
        })
    }

    /// Tokens that are drawn with drafts against those without, place by place.
    pub(super) fn distribution(&mut self) -> Result<Gate> {
        let depth = self.depth_max();
        let (mut least, mut tests) = (1.0_f64, 0_u32);
        for prompt in self.prompts.iter().take(DRAWN_PROMPTS) {
            let mut draw = |depth: u8| {
                // Samples are independent: their seeds have nothing in common.
                let base = u64::from(depth) << 32;
                let sampling = |i| Sampling {
                    temperature: 1.0,
                    top_k: 20,
                    seed: base + i,
                    rule: Rule::Ratio,
                    ..Sampling::default()
                };
                self.runner.draws(prompt, sampling, (self.draws, DRAWN_TOKENS, depth))
            };
            let (plain, drafted) = (draw(0)?, draw(depth)?);
            for place in 0..DRAWN_TOKENS {
                let at = |texts: &[Text]| -> Vec<Token> {
                    texts.iter().filter_map(|text| text.tokens.get(place).copied()).collect()
                };
                if let Some(p) = p_value(at(&plain).into_iter(), at(&drafted).into_iter())? {
                    least = least.min(p);
                    tests += 1;
                }
            }
        }
        // Bonferroni: the smallest of several is smaller by chance.
        let (p, draws) = ((least * f64::from(tests)).min(1.0), self.draws);
        let told = format!(
            "p = {p:.3} of {tests} chi-square tests together, {draws} draws each; at least \
             {FALSE_ALARM}"
        );
        let passed = p >= FALSE_ALARM;
        Ok(Gate { name: "distribution".into(), passed, told, measured: p, bound: FALSE_ALARM })
    }

    /// First drafts that were accepted of all that were judged in the gates before.
    pub(super) fn acceptance(&self) -> Gate {
        let rates =
            self.runner.tried.iter().map(|at| f64::from(at.accepted) / f64::from(at.tried.max(1)));
        let rates: Vec<f64> = rates.collect();
        let first = rates.first().copied().unwrap_or(0.0);
        let all = rates.iter().map(|rate| format!("{rate:.2}")).collect::<Vec<_>>().join(" / ");
        Gate {
            name: "acceptance".into(),
            passed: first >= ACCEPTANCE_MIN,
            told: format!("{all} by place; the first at least {ACCEPTANCE_MIN}"),
            measured: first,
            bound: ACCEPTANCE_MIN,
        }
    }

    /// Texts without drafts, one at a time.
    fn alone(&mut self, sampling: impl Fn(usize) -> Sampling) -> Result<Vec<Text>> {
        let mut texts = Vec::new();
        for (i, prompt) in self.prompts.iter().enumerate() {
            let one = std::slice::from_ref(prompt);
            texts.extend(self.runner.together(one, |_| sampling(i), (self.tokens, 0))?);
        }
        Ok(texts)
    }
}

/// How far apart the model held the two tokens at which the texts part, in nats; infinitely far
/// where the other was none of the likeliest.
fn gap(plain: &Text, other: &[Token]) -> f64 {
    let Some(at) = plain.tokens.iter().zip(other).position(|(a, b)| a != b) else { return 0.0 };
    let Some(told) = plain.logprobs.get(at) else { return f64::INFINITY };
    let likeliest = told.likeliest.iter().find(|(token, _)| *token == other[at]);
    likeliest.map_or(f64::INFINITY, |(_, log)| f64::from(told.chosen - log))
}

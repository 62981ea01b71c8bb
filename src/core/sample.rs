//! From logits to a distribution: penalties, bias, temperature, top-k, top-p, min-p, in this order
//! (that of transformers). The same function makes p (target) and q (draft).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::Token;
use crate::accept::Rule;
use crate::grammar::{Constraint, Mask};
use crate::request::Refusal;

/// Below this a temperature is greedy: fp32 could not tell them apart, and its reciprocal may
/// overflow.
pub const TEMPERATURE_MIN: f32 = 1e-4;

/// How tokens of a request are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0, or less than [`TEMPERATURE_MIN`], is greedy: the likeliest token, the lowest id at a tie.
    pub temperature: f32,
    /// Keep the smallest set of likeliest tokens that has this mass; 1 keeps all.
    pub top_p: f32,
    /// Keep this many likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Drop tokens less likely than this share of the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or output; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from logits of tokens in the output; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted for each occurrence in the output; 0 is off.
    pub frequency_penalty: f32,
    /// Added to the logits of single tokens.
    pub logit_bias: Arc<BTreeMap<Token, f32>>,
    /// Seed of all randomness of this request.
    pub seed: u64,
    /// How drafts are accepted.
    pub rule: Rule,
    /// What the text may be, if not anything.
    pub grammar: Option<Constraint>,
    /// With how many alternatives to tell what the model thought of each token, if at all.
    pub logprobs: Option<u8>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Arc::default(),
            seed: 0,
            rule: Rule::Ratio,
            grammar: None,
            logprobs: None,
        }
    }
}

/// Bands of temperature, within which drafts are accepted about as often.
pub const TEMPERATURES: usize = 3;

/// What the bands are called: greedy, up to 0.8, above.
pub const TEMPERATURE_NAMES: [&str; TEMPERATURES] = ["greedy", "medium", "high"];

/// Above this a temperature is high.
const TEMPERATURE_HIGH: f32 = 0.8;

impl Sampling {
    /// Its band of temperature.
    #[must_use]
    pub fn temperature_band(&self) -> usize {
        let above = |bound: f32| usize::from(self.temperature > bound);
        above(TEMPERATURE_MIN) + above(TEMPERATURE_HIGH)
    }

    /// Greedy decoding.
    #[must_use]
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Refuses values outside their domains, naming the field.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] for the first field that is out of range.
    pub fn check(&self, vocab: usize) -> Result<(), Refusal> {
        let ranges: [(&'static str, f32, f32, f32); 6] = [
            ("temperature", self.temperature, 0.0, 2.0),
            ("top_p", self.top_p, f32::MIN_POSITIVE, 1.0),
            ("min_p", self.min_p, 0.0, 1.0),
            ("presence_penalty", self.presence_penalty, -2.0, 2.0),
            ("frequency_penalty", self.frequency_penalty, -2.0, 2.0),
            ("repetition_penalty", self.repetition_penalty, 0.01, 100.0),
        ];
        for (field, value, low, high) in ranges {
            if !(low..=high).contains(&value) {
                let low =
                    if low == f32::MIN_POSITIVE { "above 0".into() } else { format!("{low}") };
                let reason = format!("must be a number from {low} to {high}, got {value}");
                return Err(Refusal::Invalid { field, reason });
            }
        }
        for (&token, &bias) in self.logit_bias.iter() {
            if token as usize >= vocab {
                let reason = format!("token {token} is not below the vocabulary size {vocab}");
                return Err(Refusal::Invalid { field: "logit_bias", reason });
            }
            if !(-100.0..=100.0).contains(&bias) {
                let reason = format!("must be from -100 to 100, got {bias} for token {token}");
                return Err(Refusal::Invalid { field: "logit_bias", reason });
            }
        }
        Ok(())
    }

    /// Whether the history of a row changes its distribution.
    #[must_use]
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }
}

/// How often each token was seen, kept as the row grows. Empty while no penalty asks for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    counts: BTreeMap<Token, Count>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    in_prompt: bool,
    in_output: u32,
}

impl Seen {
    /// Notes the prompt's tokens.
    pub fn add_prompt(&mut self, tokens: &[Token]) {
        for &token in tokens {
            self.counts.entry(token).or_default().in_prompt = true;
        }
    }

    /// Notes generated tokens.
    pub fn add_output(&mut self, tokens: &[Token]) {
        for &token in tokens {
            self.counts.entry(token).or_default().in_output += 1;
        }
    }

    fn penalise(&self, logits: &mut [f32], sampling: &Sampling, ahead: &[Token]) {
        for (&token, &count) in &self.counts {
            penalise_one(logits, sampling, token, count, ahead);
        }
        for (i, &token) in ahead.iter().enumerate() {
            let first = !ahead[..i].contains(&token);
            if first && !self.counts.contains_key(&token) {
                penalise_one(logits, sampling, token, Count::default(), ahead);
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^24")]
fn penalise_one(logits: &mut [f32], s: &Sampling, token: Token, count: Count, ahead: &[Token]) {
    let Some(logit) = logits.get_mut(token as usize) else { return };
    let in_output = count.in_output as usize + ahead.iter().filter(|&&t| t == token).count();
    if in_output == 0 && !count.in_prompt {
        return;
    }
    if *logit > 0.0 {
        *logit /= s.repetition_penalty;
    } else {
        *logit *= s.repetition_penalty;
    }
    if in_output > 0 {
        *logit -= s.presence_penalty + s.frequency_penalty * in_output as f32;
    }
}

/// A distribution over the tokens that may be chosen, ascending by id; probabilities sum to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Dist {
    ids: Vec<Token>,
    probs: Vec<f32>,
}

/// The engine returned a logit that is NaN or infinite, or no logit at all; or a grammar gave up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotFinite;

impl Dist {
    /// All mass on one token.
    #[must_use]
    pub fn one_hot(token: Token) -> Self {
        Self { ids: vec![token], probs: vec![1.0] }
    }

    /// From (id, weight) pairs ascending by id; weights are normalised.
    ///
    /// # Errors
    /// [`NotFinite`] if there is no weight at all, or one that is NaN or infinite.
    pub fn from_weights(pairs: Vec<(Token, f32)>) -> Result<Self, NotFinite> {
        debug_assert!(pairs.windows(2).all(|w| w[0].0 < w[1].0), "ids ascend");
        // In f64: many small weights vanish beside a large sum in f32.
        let sum: f64 = pairs.iter().map(|&(_, w)| f64::from(w)).sum();
        if !(sum.is_finite() && sum > 0.0) {
            return Err(NotFinite);
        }
        #[expect(clippy::cast_possible_truncation, reason = "probabilities are fp32")]
        let (ids, probs) =
            pairs.into_iter().map(|(id, w)| (id, (f64::from(w) / sum) as f32)).unzip();
        Ok(Self { ids, probs })
    }

    /// Tokens with a chance, ascending.
    #[must_use]
    pub fn ids(&self) -> &[Token] {
        &self.ids
    }

    /// Their probabilities.
    #[must_use]
    pub fn probs(&self) -> &[f32] {
        &self.probs
    }

    /// The probability of `token`; 0 outside the support.
    #[must_use]
    pub fn prob(&self, token: Token) -> f32 {
        self.ids.binary_search(&token).map_or(0.0, |i| self.probs[i])
    }

    /// The token at quantile `u` in [0, 1) of the cumulative distribution in id order.
    #[must_use]
    pub fn quantile(&self, u: f64) -> Token {
        let mut sum = 0.0;
        let mut likeliest = (self.ids[0], 0.0);
        for (&id, &p) in self.ids.iter().zip(&self.probs) {
            sum += f64::from(p);
            if u < sum && p > 0.0 {
                return id;
            }
            if p > likeliest.1 {
                likeliest = (id, p);
            }
        }
        // Rounding can leave the sum a little below 1.
        likeliest.0
    }

    /// The distribution that `sampling` makes of one row of `logits` [vocab], for the token after
    /// the row's history and the drafts `ahead` of it.
    ///
    /// # Errors
    /// [`NotFinite`] if the device returned NaN or infinity.
    pub fn from_logits(
        logits: &[f32],
        sampling: &Sampling,
        seen: &Seen,
        ahead: &[Token],
    ) -> Result<Self, NotFinite> {
        Self::masked(logits, sampling, (seen, ahead), None)
    }

    /// As [`Self::from_logits`], of the tokens in `mask` alone, if there is one: as though the row
    /// had no others.
    ///
    /// # Errors
    /// [`NotFinite`] if the device returned NaN or infinity, or no token is allowed.
    pub fn masked(
        logits: &[f32],
        sampling: &Sampling,
        (seen, ahead): (&Seen, &[Token]),
        mask: Option<&Mask>,
    ) -> Result<Self, NotFinite> {
        if !sampling.has_penalties() && sampling.logit_bias.is_empty() {
            return within(logits, sampling, mask);
        }
        let mut logits = logits.to_vec();
        if sampling.has_penalties() {
            seen.penalise(&mut logits, sampling, ahead);
        }
        for (&token, &bias) in sampling.logit_bias.iter() {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
        within(&logits, sampling, mask)
    }
}

fn within(logits: &[f32], s: &Sampling, mask: Option<&Mask>) -> Result<Dist, NotFinite> {
    let Some(mask) = mask else { return truncated(logits, s) };
    // Places ascend as their ids do, so ties fall to the same tokens.
    let Dist { ids: places, probs } = truncated(&mask.gather(logits), s)?;
    Ok(Dist { ids: mask.at(&places), probs })
}

/// The likeliest token, the lowest id at a tie.
///
/// # Errors
/// [`NotFinite`] if the row is empty or holds NaN or infinity.
pub fn argmax(logits: &[f32]) -> Result<Token, NotFinite> {
    // In integers both maxima are reduced by vectors: floats ordered by `f32::total_cmp`'s key,
    // and magnitudes, which are largest for NaN and infinity.
    let (top, magnitude) = logits.iter().fold((i32::MIN, 0), |(top, magnitude), logit| {
        let bits = logit.to_bits().cast_signed();
        let key = bits ^ ((bits >> 31).cast_unsigned() >> 1).cast_signed();
        (top.max(key), magnitude.max(bits & i32::MAX))
    });
    if magnitude >= f32::INFINITY.to_bits().cast_signed() {
        return Err(NotFinite);
    }
    let bits = top ^ ((top >> 31).cast_unsigned() >> 1).cast_signed();
    let top = f32::from_bits(bits.cast_unsigned());
    let at = logits.iter().position(|&logit| logit == top).ok_or(NotFinite)?;
    Token::try_from(at).map_err(|_| NotFinite)
}

fn truncated(logits: &[f32], s: &Sampling) -> Result<Dist, NotFinite> {
    let top = argmax(logits)?;
    if s.temperature < TEMPERATURE_MIN {
        return Ok(Dist::one_hot(top));
    }
    let mut kept = candidates(logits, s.top_k);
    let highest = logits[top as usize];
    let scale = s.temperature.recip();
    for (_, weight) in &mut kept {
        *weight = ((*weight - highest) * scale).exp();
    }
    if s.top_p < 1.0 {
        keep_nucleus(&mut kept, s.top_p);
    }
    if s.min_p > 0.0 {
        // The likeliest token has weight 1.
        kept.retain(|&(_, weight)| weight >= s.min_p);
    }
    Dist::from_weights(kept)
}

/// The `top_k` (0: all) largest logits as (id, logit), ascending by id; ties keep the lowest ids.
fn candidates(logits: &[f32], top_k: usize) -> Vec<(Token, f32)> {
    if top_k == 0 || top_k >= logits.len() {
        return (0..).zip(logits.iter().copied()).collect();
    }
    // Most logits are below the bar that the best so far have set: whole chunks are passed over
    // by one vector comparison.
    let room = 4 * top_k;
    let mut best: Vec<(Token, f32)> = Vec::with_capacity(room);
    let mut bar = f32::NEG_INFINITY;
    for (first, chunk) in (0..).step_by(CHUNK).zip(logits.chunks(CHUNK)) {
        if !chunk.iter().fold(false, |any, &logit| any | (logit >= bar)) {
            continue;
        }
        for (id, &logit) in (first..).zip(chunk) {
            if logit >= bar {
                if best.len() == room {
                    keep_best(&mut best, top_k);
                    bar = best.iter().map(|&(_, logit)| logit).fold(f32::INFINITY, f32::min);
                }
                best.push((id, logit));
            }
        }
    }
    keep_best(&mut best, top_k);
    best.sort_unstable_by_key(|&(id, _)| id);
    best
}

/// Logits compared at once.
const CHUNK: usize = 32;

fn keep_best(best: &mut Vec<(Token, f32)>, top_k: usize) {
    if best.len() > top_k {
        best.select_nth_unstable_by(top_k - 1, by_weight_then_id);
        best.truncate(top_k);
    }
}

/// Keeps the fewest heaviest entries whose share reaches `top_p`; the order by id remains.
#[expect(clippy::cast_precision_loss, reason = "a bound, not a probability")]
fn keep_nucleus(kept: &mut Vec<(Token, f32)>, top_p: f32) {
    let total: f64 = kept.iter().map(|&(_, w)| f64::from(w)).sum();
    // All entries below this threshold together weigh less than what the nucleus leaves out, so
    // none of them is in it: only the others need sorting.
    let threshold = total * (1.0 - f64::from(top_p)) / (kept.len() as f64 * 1.001);
    kept.retain(|&(_, w)| f64::from(w) >= threshold);
    kept.sort_unstable_by(by_weight_then_id);
    let goal = total * f64::from(top_p);
    let mut sum = 0.0;
    let mut count = 0;
    for &(_, w) in kept.iter() {
        sum += f64::from(w);
        count += 1;
        if sum >= goal {
            break;
        }
    }
    kept.truncate(count.max(1));
    kept.sort_unstable_by_key(|&(id, _)| id);
}

fn by_weight_then_id(a: &(Token, f32), b: &(Token, f32)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

#[cfg(test)]
mod tests;

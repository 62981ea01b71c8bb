//! From logits to a distribution: penalties, bias, temperature, top-k, top-p, min-p, in this order
//! (that of transformers). The same function makes p (target) and q (draft).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::Token;
use crate::accept::Rule;
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
        }
    }
}

impl Sampling {
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

/// The engine returned a logit that is NaN or infinite, or no logit at all.
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
        if !sampling.has_penalties() && sampling.logit_bias.is_empty() {
            return truncated(logits, sampling);
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
        truncated(&logits, sampling)
    }
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
mod tests {
    use super::*;

    fn dist(logits: &[f32], sampling: &Sampling) -> Dist {
        Dist::from_logits(logits, sampling, &Seen::default(), &[]).unwrap()
    }

    #[test]
    fn greedy_takes_the_lowest_id_at_a_tie() {
        assert_eq!(dist(&[1.0, 3.0, 3.0], &Sampling::greedy()), Dist::one_hot(1));
    }

    #[test]
    fn plain_sampling_is_the_softmax() {
        let d = dist(&[0.0, 1.0, 2.0], &Sampling::default());
        let z: f32 = 1.0 + 1.0_f32.exp() + 2.0_f32.exp();
        for (p, l) in d.probs().iter().zip([0.0_f32, 1.0, 2.0]) {
            assert!((p - l.exp() / z).abs() < 1e-6);
        }
    }

    #[test]
    fn top_k_keeps_the_lowest_ids_at_a_tie() {
        let s = Sampling { top_k: 2, ..Sampling::default() };
        assert_eq!(dist(&[5.0, 1.0, 5.0, 5.0], &s).ids(), [0, 2]);
    }

    #[test]
    fn top_k_of_many_is_what_sorting_gives() {
        let logits: Vec<f32> =
            (0..5000_u64).map(|i| (i.wrapping_mul(2_654_435_761) % 997) as f32 - 400.0).collect();
        for top_k in [1, 3, 20, 400, 4999] {
            let mut sorted: Vec<(Token, f32)> = (0..).zip(logits.iter().copied()).collect();
            sorted.sort_by(by_weight_then_id);
            sorted.truncate(top_k);
            sorted.sort_by_key(|&(id, _)| id);
            assert_eq!(candidates(&logits, top_k), sorted, "top {top_k}");
        }
        assert_eq!(argmax(&logits), Ok(sorted_first(&logits)));
        assert_eq!(argmax(&[-3.0, -1.0, -1.0, -2.0]), Ok(1));
        assert_eq!(argmax(&[-0.0, 0.0]), Ok(0), "zeros are equal");
    }

    fn sorted_first(logits: &[f32]) -> Token {
        let mut all: Vec<(Token, f32)> = (0..).zip(logits.iter().copied()).collect();
        all.sort_by(by_weight_then_id);
        all[0].0
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_the_mass() {
        let logits = [0.5_f32.ln(), 0.3_f32.ln(), 0.15_f32.ln(), 0.05_f32.ln()];
        let at = |top_p| dist(&logits, &Sampling { top_p, ..Sampling::default() }).ids().len();
        assert_eq!((at(0.4), at(0.79), at(0.9), at(0.99), at(1.0)), (1, 2, 3, 4, 4));
    }

    #[test]
    fn min_p_is_relative_to_the_likeliest() {
        let logits = [0.5_f32.ln(), 0.3_f32.ln(), 0.2_f32.ln()];
        let s = Sampling { min_p: 0.5, ..Sampling::default() };
        assert_eq!(dist(&logits, &s).ids(), [0, 1]);
    }

    #[test]
    fn penalties_count_the_drafts_ahead() {
        let s = Sampling { frequency_penalty: 1.0, presence_penalty: 0.5, ..Sampling::greedy() };
        let mut seen = Seen::default();
        seen.add_prompt(&[0]);
        let next = |seen: &Seen, ahead: &[Token]| {
            Dist::from_logits(&[3.0, 2.0, 1.0], &s, seen, ahead).unwrap().ids()[0]
        };
        assert_eq!(next(&seen, &[]), 0, "the prompt is not penalised by presence or frequency");
        assert_eq!(next(&seen, &[0]), 1);
        seen.add_output(&[0]);
        assert_eq!(next(&seen, &[]), 1);
        assert_eq!(next(&seen, &[1]), 0, "1.5 off both: token 0 leads again");
        assert_eq!(next(&seen, &[0, 1]), 2);
    }

    #[test]
    fn repetition_penalty_covers_prompt_and_output() {
        let s = Sampling { repetition_penalty: 2.0, ..Sampling::greedy() };
        let mut seen = Seen::default();
        seen.add_prompt(&[0]);
        let d = Dist::from_logits(&[3.0, 2.0, -1.0], &s, &seen, &[]).unwrap();
        assert_eq!(d.ids(), [1]);
    }

    #[test]
    fn no_temperature_breaks_a_row() {
        for temperature in [0.0, f32::MIN_POSITIVE, 1e-39, 1e-5, 1e-4, 1e-3, 2.0] {
            for (top_p, min_p) in [(1.0, 0.0), (0.95, 0.0), (0.5, 0.9)] {
                let s = Sampling { temperature, top_p, min_p, ..Sampling::default() };
                let d = dist(&[3.0, -70.0, 88.0, 2.0], &s);
                assert_eq!(d.quantile(0.5), 2, "{temperature} {top_p} {min_p}");
            }
        }
    }

    #[test]
    fn a_broken_device_is_noticed() {
        let s = Sampling::greedy();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let d = Dist::from_logits(&[0.0, bad], &s, &Seen::default(), &[]);
            assert_eq!(d, Err(NotFinite));
        }
        assert_eq!(Dist::from_logits(&[], &s, &Seen::default(), &[]), Err(NotFinite));
    }

    #[test]
    fn out_of_range_parameters_are_refused_by_name() {
        let bad = Sampling { temperature: f32::NAN, ..Sampling::default() };
        let Err(Refusal::Invalid { field, .. }) = bad.check(10) else { panic!("refused") };
        assert_eq!(field, "temperature");
        let bias = Arc::new(BTreeMap::from([(10, 1.0)]));
        let bad = Sampling { logit_bias: bias, ..Sampling::default() };
        assert!(bad.check(10).is_err());
        assert!(bad.check(11).is_ok());
    }
}

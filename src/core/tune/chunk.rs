//! How long a chunk of a prompt is while nobody decodes: as long as allowed, unless shorter ones
//! cost clearly less a token, as where a chunk outgrows a cache. Now and then a chunk of another
//! length is put between two of the usual one and compared with both: attention makes later chunks
//! dearer, and so their order cancels out.

/// Halvings of the longest chunk that are tried.
const HALVINGS: usize = 3;
/// No chunk is shorter than this.
const TOKENS_MIN: usize = 128;
/// Chunks between two trials; fewer before each length was tried.
const REST: u32 = 400;
const REST_NEW: u32 = 4;
/// Weight of a new measurement once there are some.
const WEIGHT: f64 = 0.3;
/// A shorter chunk must cost so much less, as a logarithm: a longer one has fewer steps.
const ADVANTAGE: f64 = 0.05;
/// How often a length must have been measured to be used.
const LEAST: u32 = 3;

/// Lengths and what a token costs in them.
#[derive(Clone, Debug)]
pub(super) struct Chunks {
    /// Longest first.
    lengths: Vec<Length>,
    chosen: usize,
    trial: Option<usize>,
    /// What a token cost in the usual chunk before the trial, and in the trial.
    before: Option<f64>,
    within: Option<f64>,
    since: u32,
}

#[derive(Clone, Copy, Debug)]
struct Length {
    tokens: usize,
    /// Logarithm of its cost beside that of the longest.
    log: f64,
    measured: u32,
}

impl Chunks {
    pub(super) fn new(most: usize) -> Self {
        let length = |halvings| most >> halvings;
        let shorter = (1..HALVINGS).map(length).take_while(|&tokens| tokens >= TOKENS_MIN);
        let lengths = std::iter::once(most).chain(shorter);
        let lengths = lengths.map(|tokens| Length { tokens, log: 0.0, measured: 0 }).collect();
        Self { lengths, chosen: 0, trial: None, before: None, within: None, since: 0 }
    }

    /// The length of the next chunk.
    pub(super) fn tokens(&self) -> usize {
        let trial = self.trial.filter(|_| self.within.is_none());
        self.lengths.get(trial.unwrap_or(self.chosen)).map_or(1, |length| length.tokens)
    }

    /// Lengths, what they cost beside the longest, and how often that was measured.
    pub(super) fn view(&self) -> impl Iterator<Item = (usize, f64, u32)> + '_ {
        self.lengths.iter().map(|one| (one.tokens, one.log.exp(), one.measured))
    }

    /// A step fed so many tokens and nothing else.
    #[expect(clippy::cast_precision_loss, reason = "tokens of one step")]
    pub(super) fn hear(&mut self, tokens: usize, micros: f64) {
        if micros <= 0.0 || self.lengths.len() < 2 {
            return;
        }
        self.since = self.since.saturating_add(1);
        // The last chunk of a prompt is short without a reason, and ends the comparison.
        let whole = |length: &Length| tokens <= length.tokens && tokens * 8 >= length.tokens * 7;
        let Some(at) = self.lengths.iter().position(whole) else {
            (self.trial, self.before, self.within) = (None, None, None);
            return;
        };
        let cost = micros / tokens as f64;
        match (self.trial, self.before, self.within) {
            (Some(trial), Some(_), None) if at == trial => self.within = Some(cost),
            (Some(trial), Some(before), Some(within)) if at == self.chosen => {
                self.learn(trial, within / (0.5 * (before + cost)));
                (self.trial, self.within, self.before) = (None, None, Some(cost));
                self.since = 0;
            }
            (None, ..) if at == self.chosen => {
                self.before = Some(cost);
                self.trial = self.next();
            }
            _ => (self.trial, self.before, self.within) = (None, None, None),
        }
    }

    /// The length to try, if it is time: the one measured least.
    fn next(&self) -> Option<usize> {
        let others = self.lengths.iter().enumerate().filter(|(i, _)| *i != self.chosen);
        let (i, least) = others.min_by_key(|(_, length)| length.measured)?;
        let rest = if least.measured < LEAST { REST_NEW } else { REST };
        (self.since >= rest).then_some(i)
    }

    fn learn(&mut self, trial: usize, ratio: f64) {
        let base = self.lengths[self.chosen].log;
        let one = &mut self.lengths[trial];
        one.measured = one.measured.saturating_add(1);
        let weight = WEIGHT.max(1.0 / f64::from(one.measured));
        // A pause in one chunk says nothing of its length.
        let seen = base + ratio.ln().clamp(-0.5, 0.5);
        one.log += weight * (seen - one.log);
        // The longest is what others are compared with.
        if trial == 0 {
            let shift = one.log;
            self.lengths.iter_mut().for_each(|length| length.log -= shift);
        }
        let known = |i: &usize| *i == self.chosen || self.lengths[*i].measured >= LEAST;
        let worth = |i: usize| self.lengths[i].log + ADVANTAGE * i as f64;
        let best = (0..self.lengths.len())
            .filter(known)
            .min_by(|&a, &b| worth(a).total_cmp(&worth(b)))
            .unwrap_or(self.chosen);
        // Hysteresis: half of what speaks for longer ones.
        if worth(best) + ADVANTAGE / 2.0 < worth(self.chosen) {
            self.chosen = best;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds prompts of 4096 tokens of which each costs `cost(length, position)`.
    fn fed(cost: impl Fn(usize, usize) -> f64) -> Chunks {
        let mut chunks = Chunks::new(512);
        let mut step = 0;
        for _ in 0..60 {
            let mut at = 0;
            while at < 4000 {
                let tokens = chunks.tokens().min(4000 - at);
                step += 1;
                let noise = 1.0 + 0.03 * f64::from(step * 7919 % 11 - 5) / 5.0;
                chunks.hear(tokens, cost(tokens, at) * tokens as f64 * noise);
                at += tokens;
            }
        }
        chunks
    }

    #[test]
    fn chunks_stay_as_long_as_allowed_where_that_costs_no_more() {
        assert_eq!(fed(|_, at| 10.0 + at as f64 / 1000.0).tokens(), 512);
        assert_eq!(fed(|length, _| 10.0 + 500.0 / length as f64).tokens(), 512);
    }

    #[test]
    fn chunks_that_outgrow_a_cache_are_cut() {
        let outgrown = |length: usize, at: usize| {
            if length > 128 { 14.0 + at as f64 / 2000.0 } else { 10.0 + at as f64 / 2000.0 }
        };
        assert_eq!(fed(outgrown).chosen, 2);
    }

    #[test]
    fn a_short_longest_leaves_nothing_to_choose() {
        let mut chunks = Chunks::new(200);
        (0..100).for_each(|_| chunks.hear(200, 1000.0));
        assert_eq!(chunks.tokens(), 200);
    }
}

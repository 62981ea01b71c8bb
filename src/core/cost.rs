//! What a step costs, learnt from reports: so much for the rows that decode, so much for every
//! prompt token that is fed along with them.
//!
//! The first part is kept for every width and depth that was met without prompts, the second as one
//! price of a token. That price includes its share of what a chunk costs whatever its length, at
//! the length in use: choosing the length by the price and learning the price at that length
//! settles where the step takes the time wanted (a fixed point whose slope is the share of the
//! constant part, below 1). What decoding takes is the lower quartile of its last few steps, the
//! price the median of its own: machines pause now and then, memory is cold after a long chunk, and
//! such a step taken for the usual one would lengthen every chunk, or shorten it. A chunk is at
//! most twice as long as the one before: what a short one cost beside the noise of decoding says
//! little about a long one.

use std::collections::{BTreeMap, VecDeque};

use crate::batch::Report;
use crate::recent::Recent;

/// Weight of a new price once a few are known; before, all weigh the same.
const WEIGHT: f64 = 0.2;
/// A price counts for at most so many times the estimate, and for at least its inverse.
const HICCUP: f64 = 2.0;
/// Steps whose lower quartile is what decoding takes.
const RECENT: usize = 5;
/// Steps whose median is the price of a prompt's token.
const PRICES: usize = 9;
/// Steps after which the cost of decoding at one width is measured anew.
const STALE_STEPS: u64 = 32;
/// A prompt token is never taken for cheaper than decoding divided by this.
const FREE: f64 = 2048.0;
/// The first step of a width counts for at most so many times what its neighbours say.
const FIRST_MOST: f64 = 3.0;
/// The first chunk beside rows that decode is at most so long.
const FIRST: usize = 16;

/// What is known of costs, in microseconds.
#[derive(Clone, Debug, Default)]
pub struct Costs {
    /// Steps that only decode, by width and depth.
    decode: BTreeMap<(u32, u8), Known>,
    /// Prompt tokens beside rows that decode.
    beside: Beside,
    /// A prompt token of a step that only feeds prompts.
    alone: Option<Mean>,
    steps: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Known {
    recent: Recent<RECENT>,
    /// The step it was last measured at.
    at: u64,
}

/// What a token of the prompts in them made the last few steps longer.
#[derive(Clone, Debug, Default)]
struct Beside {
    /// How much longer, and for how many tokens; the newest last.
    steps: VecDeque<(f64, usize)>,
    last: usize,
}

#[derive(Clone, Copy, Debug)]
struct Mean {
    value: f64,
    samples: u32,
}

impl Mean {
    fn learn(mean: &mut Option<Self>, sample: f64) {
        let Some(mean) = mean else {
            *mean = Some(Self { value: sample, samples: 1 });
            return;
        };
        let sample = sample.clamp(mean.value / HICCUP, mean.value * HICCUP);
        mean.samples = mean.samples.saturating_add(1);
        mean.value += WEIGHT.max(1.0 / f64::from(mean.samples)) * (sample - mean.value);
    }
}

impl Beside {
    #[expect(clippy::cast_precision_loss, reason = "tokens of one step")]
    fn learn(&mut self, extra: f64, tokens: usize) {
        if self.steps.len() == PRICES {
            self.steps.pop_front();
        }
        // Below zero, too: noise is to cancel out.
        self.steps.push_back((extra / tokens as f64, tokens));
        // The last piece of a prompt is short without a reason in time.
        self.last = tokens.max(self.last / 2);
    }

    /// The median by tokens: as a chunk may be twice as long as the one before, the newest of a
    /// growing row of them decides alone.
    fn price(&self) -> Option<f64> {
        let mut steps: Vec<(f64, usize)> = self.steps.iter().copied().collect();
        steps.sort_by(|a, b| a.0.total_cmp(&b.0));
        let all: usize = steps.iter().map(|step| step.1).sum();
        let mut below = 0;
        let median = steps.into_iter().find(|&(_, tokens)| {
            below += tokens;
            2 * below >= all
        });
        median.map(|(price, _)| price)
    }
}

impl Costs {
    /// Learns from one step. An engine that reports no time teaches nothing.
    #[expect(clippy::cast_precision_loss, reason = "microseconds and tokens of one step")]
    pub fn hear(&mut self, report: &Report) {
        let phases = report.phases;
        let micros = (phases.draft_us + phases.verify_us + phases.accept_us) as f64;
        if micros <= 0.0 {
            return;
        }
        self.steps += 1;
        let prefilled = report.prefilled as f64;
        match (report.rows, report.prefilled) {
            (0, 0) => {}
            (0, _) => Mean::learn(&mut self.alone, micros / prefilled),
            (rows, 0) => {
                let key = (width(rows), report.depth);
                // The first of its kind has only its neighbours to be judged by.
                let new = !self.decode.contains_key(&key);
                let most = self.decode(rows, report.depth).filter(|_| new);
                let known = self.decode.entry(key).or_default();
                known.recent.add(most.map_or(micros, |near| micros.min(FIRST_MOST * near)));
                known.at = self.steps;
            }
            (rows, _) => {
                if let Some(decode) = self.decode(rows, report.depth) {
                    self.beside.learn(micros - decode, report.prefilled);
                }
            }
        }
    }

    /// Whether a step without prompts is worth its delay to them: nothing recent is known of this
    /// width and depth, though the engine reports times.
    #[must_use]
    pub fn is_unknown(&self, rows: usize, depth: u8) -> bool {
        let known = self.decode.get(&(width(rows), depth));
        self.steps > 0 && known.is_none_or(|known| self.steps - known.at > STALE_STEPS)
    }

    /// Most prompt tokens beside `rows` that draft `depth` with which a step takes at most
    /// `stretch` times as long as without; `None` while that cannot be told.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "saturates")]
    #[expect(clippy::cast_sign_loss, reason = "a cost is not negative")]
    pub fn prefill_within(&self, rows: usize, depth: u8, stretch: f64) -> Option<usize> {
        let decode = self.decode(rows, depth)?;
        let alone = self.alone.map(|mean| mean.value);
        let token = self.beside.price().or(alone)?.max(decode / FREE);
        let most = if self.beside.last == 0 { FIRST } else { 2 * self.beside.last };
        Some(((decode * (stretch - 1.0).max(0.0) / token) as usize).min(most))
    }

    /// The cost of decoding; at a width that was never met, that of the next narrower one, or a
    /// share of a wider one: rather too little than too much. Other depths only if nothing else.
    fn decode(&self, rows: usize, depth: u8) -> Option<f64> {
        let key = (width(rows), depth);
        let near = |all: &dyn Fn(u8) -> bool| {
            let known = self.decode.iter().filter(|((_, d), _)| all(*d));
            known.min_by_key(|((w, _), _)| w.abs_diff(key.0)).and_then(|((w, _), known)| {
                // Two steps of width are twice the rows.
                let narrower = f64::from(w.saturating_sub(key.0)) / 2.0;
                Some(known.recent.usual()? / narrower.exp2())
            })
        };
        let known = self.decode.get(&key).and_then(|known| known.recent.usual());
        known.or_else(|| near(&|d| d == depth)).or_else(|| near(&|_| true))
    }
}

/// Two steps of width for every doubling of rows: 1, 2, 3, 4, 5-6, 7-8, 9-12, 13-16, …
fn width(rows: usize) -> u32 {
    let whole = rows.max(1).next_power_of_two();
    let half = u32::from(rows * 4 <= whole * 3 && rows > 1);
    2 * whole.trailing_zeros() - half
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Phases;

    fn report(rows: usize, prefilled: usize, micros: f64) -> Report {
        let phases = Phases { verify_us: micros as u64, ..Phases::default() };
        Report { rows, prefilled, depth: 2, phases, ..Report::default() }
    }

    #[test]
    fn widths_rise_by_half_octaves() {
        let widths: Vec<u32> = [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16].map(width).into();
        assert_eq!(widths, [0, 2, 3, 4, 5, 5, 6, 6, 7, 7, 8, 8]);
    }

    #[test]
    fn nothing_is_said_before_both_parts_are_known() {
        let mut costs = Costs::default();
        assert!(!costs.is_unknown(1, 2), "an engine without times is not waited for");
        costs.hear(&report(0, 100, 10_000.0));
        assert_eq!(costs.prefill_within(1, 2, 2.0), None);
        assert!(costs.is_unknown(1, 2));
        costs.hear(&report(1, 0, 500.0));
        assert!(!costs.is_unknown(1, 2) && costs.is_unknown(2, 2));
        assert_eq!(costs.prefill_within(1, 2, 2.0), Some(5));
        assert_eq!(costs.prefill_within(1, 2, 3.0), Some(10));
    }

    #[test]
    fn a_width_never_met_is_rather_taken_for_cheap() {
        let mut costs = Costs::default();
        costs.hear(&report(0, 100, 10_000.0));
        costs.hear(&report(4, 0, 800.0));
        assert_eq!(costs.prefill_within(8, 2, 2.0), Some(8), "at least as much as 4 rows");
        assert_eq!(costs.prefill_within(2, 2, 2.0), Some(4), "half of 4 rows");
        assert_eq!(costs.prefill_within(4, 0, 2.0), Some(8), "another depth");
    }

    /// A chunk of p tokens costs `fixed + token * p` more; the chosen length settles.
    fn settled(fixed: f64, token: f64) -> f64 {
        let mut costs = Costs::default();
        costs.hear(&report(0, 512, 10_000.0 + 512.0 * token));
        costs.hear(&report(1, 0, 10_000.0));
        let mut length = 0;
        for _ in 0..200 {
            length = costs.prefill_within(1, 2, 2.0).unwrap().clamp(1, 512);
            costs.hear(&report(1, length, 10_000.0 + fixed + token * length as f64));
        }
        (10_000.0 + fixed + token * length as f64) / 10_000.0
    }

    #[test]
    fn the_length_settles_where_the_step_takes_the_time_wanted() {
        for (fixed, token) in [(0.0, 100.0), (5_000.0, 100.0), (8_000.0, 40.0), (0.0, 2_500.0)] {
            let stretch = settled(fixed, token);
            assert!((1.7..=2.05).contains(&stretch), "{fixed} + {token} p: {stretch}");
        }
        assert!(settled(0.0, 1.0) < 1.1, "512 tokens are all a step may feed");
    }

    #[test]
    fn a_hiccup_moves_little() {
        let mut costs = Costs::default();
        costs.hear(&report(0, 100, 10_000.0));
        (0..50).for_each(|_| costs.hear(&report(1, 0, 500.0)));
        costs.hear(&report(1, 0, 1_000_000.0));
        let length = costs.prefill_within(1, 2, 2.0).unwrap();
        assert!((5..=7).contains(&length), "{length}");
    }

    #[test]
    fn chunks_that_seemed_free_do_not_outgrow_their_price() {
        let mut costs = Costs::default();
        costs.hear(&report(0, 100, 10_000.0));
        // Decoding was measured while the machine was slow.
        costs.hear(&report(1, 0, 6_000.0));
        let mut longest = 0.0_f64;
        for _ in 0..40 {
            let length = costs.prefill_within(1, 2, 1.6).unwrap().clamp(1, 512);
            let micros = 2_500.0 + 200.0 * length as f64;
            longest = longest.max(micros);
            costs.hear(&report(1, length, micros));
        }
        assert!(longest <= 1.6 * 6_000.0 * 1.7, "{longest}");
    }

    #[test]
    fn pauses_and_cold_steps_do_not_lengthen_chunks() {
        let mut costs = Costs::default();
        costs.hear(&report(0, 100, 10_000.0));
        let steps = [500.0, 510.0, 900.0, 850.0, 900.0];
        steps.into_iter().for_each(|micros| costs.hear(&report(1, 0, micros)));
        assert_eq!(costs.prefill_within(1, 2, 2.0), Some(5));
    }

    #[test]
    fn a_hiccup_in_the_first_step_of_a_width_is_no_measure() {
        let mut costs = Costs::default();
        costs.hear(&report(0, 100, 10_000.0));
        (0..5).for_each(|_| costs.hear(&report(4, 0, 800.0)));
        costs.hear(&report(5, 0, 100_000.0));
        assert!(costs.prefill_within(5, 2, 2.0).unwrap() <= 24);
    }

    #[test]
    fn noise_beside_short_chunks_does_not_make_long_ones() {
        let mut costs = Costs::default();
        (0..50).for_each(|i| costs.hear(&report(1, 0, 1_000.0 + f64::from(i % 7) * 100.0)));
        let mut longest = 0;
        for i in 0..3000 {
            let length = costs.prefill_within(1, 2, 2.0).unwrap_or(1).max(1);
            longest = longest.max(length);
            let noise = [0.0, 800.0, -300.0, 100.0, -600.0][i * 7919 % 5];
            costs.hear(&report(1, length, 1_300.0 + 900.0 * length as f64 + noise));
        }
        assert!(longest <= 4, "{longest}");
    }

    #[test]
    fn what_is_old_is_measured_anew() {
        let mut costs = Costs::default();
        costs.hear(&report(1, 0, 500.0));
        (0..STALE_STEPS).for_each(|_| costs.hear(&report(1, 10, 900.0)));
        assert!(!costs.is_unknown(1, 2));
        costs.hear(&report(1, 10, 900.0));
        assert!(costs.is_unknown(1, 2));
    }
}

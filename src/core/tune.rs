//! Cycle reports in, knobs out: how deep to draft for the number of rows that run.
//!
//! For every band of rows and every depth it keeps what a cycle usually costs, and for every draft
//! position a running acceptance. The best depth maximises expected tokens per microsecond,
//! E(K) = 1 + a1 + a1·a2 + …  over cost(rows, K). A depth whose cost is unknown or old is tried
//! for a few cycles, so that the estimate can never be wrong for long.

use crate::batch::Report;
use crate::knobs::{BANDS, Depths, Knobs, band_of};
use crate::recent::Recent;
use crate::thermal::Ceiling;

/// Bounds within which the tuner moves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TuneLimits {
    /// Knobs at start; `depths` are kept when `auto_depth` is off.
    pub start: Knobs,
    /// Whether the depth follows the measurements.
    pub auto_depth: bool,
    /// Deepest draft allowed.
    pub depth_max: u8,
}

/// Cycles for which a depth is tried when nothing recent is known of it.
const TRIAL_CYCLES: u32 = 6;
/// Cycles after which a trial that could not measure is given up.
const TRIAL_PATIENCE: u32 = 60;
/// Cycles after which a depth beside the chosen one is measured again.
const STALE_CYCLES: u64 = 600;
/// Measurements of a depth's cost that count.
const RECENT: usize = 12;
/// Weight of a new acceptance measurement, per judged draft.
const ACCEPT_WEIGHT: f64 = 0.02;
/// A deeper draft must promise this much more than the one in use, which a shallower one need not:
/// hysteresis against noise on the side of shorter gaps.
const ADVANTAGE: f64 = 1.05;
/// The same while prompts are fed: readers bear with those already.
const ADVANTAGE_BESIDE: f64 = 1.2;

/// The tuner's memory.
#[derive(Clone, Debug)]
pub struct Tuner {
    limits: TuneLimits,
    ceiling: Ceiling,
    accept: Vec<f64>,
    bands: Vec<Band>,
    band: usize,
    cycle: u64,
    /// Whether the last cycle fed a prompt, too.
    fed: bool,
}

/// What is known for one band of row counts: 1, 2, 3-4, 5-8, 9-16, …
#[derive(Clone, Debug)]
struct Band {
    chosen: u8,
    trial: Option<Trial>,
    costs: Vec<Cost>,
}

#[derive(Clone, Copy, Debug)]
struct Trial {
    depth: u8,
    /// Measurements still wanted.
    left: u32,
    /// Cycles after which it ends all the same: prompts or fixed depths may keep it from measuring.
    patience: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    /// Microseconds of a cycle, for each of its rows.
    micros: Recent<RECENT>,
    /// Cycle of the last measurement, or of the last attempt; 0 for never.
    at: u64,
}

impl Tuner {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(limits: TuneLimits) -> Self {
        let depths = usize::from(limits.depth_max) + 1;
        let costs = vec![Cost::default(); depths];
        let chosen = limits.start.depths.at(1).min(limits.depth_max);
        let bands = vec![Band { chosen, trial: None, costs }; BANDS];
        // Optimistic, so that depth is tried before it is judged.
        let accept = vec![0.7; usize::from(limits.depth_max)];
        Self { limits, ceiling: Ceiling::Full, accept, bands, band: 0, cycle: 0, fed: false }
    }

    /// The knobs for the next cycle.
    #[must_use]
    pub fn knobs(&self) -> Knobs {
        let depths = Depths::of_bands(|band| self.bands[band].depth());
        let rows_max = match self.ceiling {
            Ceiling::Full => self.limits.start.rows_max,
            Ceiling::Reduced => self.limits.start.rows_max.div_ceil(2),
            Ceiling::Low => self.limits.start.rows_max.div_ceil(4),
        };
        Knobs { depths, rows_max, ..self.limits.start }
    }

    /// The depth at the width that ran last.
    #[must_use]
    pub fn depth(&self) -> u8 {
        self.bands[self.band].depth()
    }

    /// Acceptance by draft position as now believed.
    #[must_use]
    pub fn acceptance(&self) -> &[f64] {
        &self.accept
    }

    /// Heeds a new thermal ceiling.
    pub fn set_ceiling(&mut self, ceiling: Ceiling) {
        self.ceiling = ceiling;
    }

    /// Learns from one cycle. Cycles that also fed prompts are used for acceptance only: their cost
    /// says little about decoding.
    #[expect(clippy::cast_precision_loss, reason = "microseconds of one cycle")]
    pub fn hear(&mut self, report: &Report) {
        if report.rows == 0 {
            self.fed |= report.prefilled > 0;
            return;
        }
        self.cycle += 1;
        for (rate, tried) in self.accept.iter_mut().zip(&report.positions) {
            if tried.tried > 0 {
                let seen = f64::from(tried.accepted) / f64::from(tried.tried);
                let weight = 1.0 - (1.0 - ACCEPT_WEIGHT).powi(tried.tried.cast_signed());
                *rate += weight * (seen - *rate);
            }
        }
        self.band = band_of(report.rows);
        if !self.limits.auto_depth || self.limits.depth_max == 0 {
            return;
        }
        let phases = report.phases;
        let micros = (phases.draft_us + phases.verify_us + phases.accept_us) as f64;
        if report.prefilled == 0 && micros > 0.0 && report.uniform {
            self.learn_cost(report.depth, micros / report.rows as f64);
        }
        self.lose_patience();
        // The one cycle that leaves prompts out for a measure is beside them, too.
        self.choose(report.prefilled > 0 || self.fed);
        self.fed = report.prefilled > 0;
    }

    fn learn_cost(&mut self, depth: u8, micros_per_row: f64) {
        let cycle = self.cycle;
        let band = &mut self.bands[self.band];
        let Some(cost) = band.costs.get_mut(usize::from(depth)) else { return };
        // Caches are cold after a prompt's chunk: better than nothing, and not to be compared with
        // what other depths took when they were warm.
        if self.fed && cost.micros.usual().is_some() {
            return;
        }
        if cycle - cost.at > STALE_CYCLES {
            cost.micros = Recent::default();
        }
        cost.micros.add(micros_per_row);
        cost.at = cycle;
        if let Some(trial) = band.trial.as_mut().filter(|t| t.depth == depth) {
            trial.left -= 1;
            if trial.left == 0 {
                band.trial = None;
            }
        }
    }

    /// A trial that cannot measure must not hold the depth for ever.
    fn lose_patience(&mut self) {
        let cycle = self.cycle;
        let band = &mut self.bands[self.band];
        let Some(trial) = &mut band.trial else { return };
        trial.patience = trial.patience.saturating_sub(1);
        if trial.patience == 0 {
            // As if measured at no advantage, until it is stale again.
            band.costs[usize::from(trial.depth)].at = cycle;
            band.trial = None;
        }
    }

    /// Beside prompts hardly anything can be measured, and readers notice a change of depth on top
    /// of them: what was measured once is not tried anew then.
    fn choose(&mut self, beside_prompts: bool) {
        let band = &mut self.bands[self.band];
        let known = |trial: &Trial| band.costs[usize::from(trial.depth)].at > 0;
        if beside_prompts && band.trial.as_ref().is_some_and(known) {
            band.trial = None;
        }
        if band.trial.is_some() {
            return;
        }
        let expected: Vec<f64> = (0..=self.limits.depth_max).map(|k| self.tokens(k)).collect();
        let cycle = self.cycle;
        let band = &mut self.bands[self.band];
        let stale = |c: &Cost| c.at == 0 || !beside_prompts && cycle - c.at > STALE_CYCLES;
        let unknown = (0..=self.limits.depth_max).find(|&k| stale(&band.costs[usize::from(k)]));
        if let Some(depth) = unknown {
            band.trial = Some(Trial { depth, left: TRIAL_CYCLES, patience: TRIAL_PATIENCE });
            return;
        }
        // A depth that was never measured has no speed at all.
        let speed = |k: u8| {
            let micros = band.costs[usize::from(k)].micros.usual().unwrap_or(f64::INFINITY);
            expected[usize::from(k)] / micros
        };
        let best = (0..=self.limits.depth_max)
            .max_by(|&a, &b| speed(a).total_cmp(&speed(b)))
            .unwrap_or(band.chosen);
        let deeper = if beside_prompts { ADVANTAGE_BESIDE } else { ADVANTAGE };
        let margin = if best > band.chosen { deeper } else { 1.0 };
        if speed(best) > speed(band.chosen) * margin {
            band.chosen = best;
        }
    }

    /// Expected tokens of a cycle at depth `k`.
    fn tokens(&self, k: u8) -> f64 {
        let mut stands = 1.0;
        let mut sum = 1.0;
        for rate in &self.accept[..usize::from(k)] {
            stands *= rate;
            sum += stands;
        }
        sum
    }
}

impl Band {
    fn depth(&self) -> u8 {
        self.trial.map_or(self.chosen, |trial| trial.depth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Tried;
    use crate::engine::Phases;

    fn limits() -> TuneLimits {
        let start = Knobs::fixed(2, 8, (64, 512));
        TuneLimits { start, auto_depth: true, depth_max: 4 }
    }

    /// A machine in which a cycle costs `base + per_depth * K` and drafts stand at `rate`.
    fn run(tuner: &mut Tuner, cycles: u32, rows: usize, rate: f64, per_depth: f64) {
        for i in 0..cycles {
            let depth = tuner.knobs().depths.at(rows);
            let mut tried = 1000.0;
            let positions = (0..depth)
                .map(|_| {
                    let here = tried;
                    tried *= rate;
                    Tried { tried: here as u32, accepted: tried as u32 }
                })
                .collect();
            let noise = f64::from(i * 7919 % 13) / 13.0 * 20.0;
            let micros = 1000.0 + per_depth * f64::from(depth) + noise;
            let phases = Phases { verify_us: micros as u64, ..Phases::default() };
            let uniform = true;
            tuner.hear(&Report { rows, depth, uniform, positions, phases, ..Report::default() });
        }
    }

    #[test]
    fn cheap_drafts_that_stand_are_drafted_deep() {
        let mut tuner = Tuner::new(limits());
        run(&mut tuner, 300, 1, 0.95, 50.0);
        assert_eq!(tuner.depth(), 4);
    }

    #[test]
    fn dear_drafts_that_fall_are_not_drafted_at_all() {
        let mut tuner = Tuner::new(limits());
        run(&mut tuner, 300, 1, 0.2, 500.0);
        assert_eq!(tuner.depth(), 0);
    }

    #[test]
    fn it_changes_its_mind_when_the_text_does() {
        let mut tuner = Tuner::new(limits());
        run(&mut tuner, 300, 1, 0.2, 300.0);
        assert_eq!(tuner.depth(), 0);
        run(&mut tuner, 2000, 1, 0.95, 50.0);
        assert!(tuner.depth() >= 3);
    }

    #[test]
    fn widths_are_learnt_apart() {
        let mut tuner = Tuner::new(limits());
        run(&mut tuner, 300, 1, 0.8, 100.0);
        run(&mut tuner, 300, 8, 0.8, 5000.0);
        assert_eq!(tuner.depth(), 0);
        let depths = tuner.knobs().depths;
        assert!(depths.at(1) >= 2 && depths.at(8) == 0, "{depths:?}");
    }

    #[test]
    fn a_trial_that_cannot_measure_ends() {
        let mut tuner = Tuner::new(limits());
        // Every cycle carries a prompt: nothing is learnt of costs.
        let mut seen = Vec::new();
        for _ in 0..500 {
            let depth = tuner.knobs().depths.at(2);
            seen.push(depth);
            tuner.hear(&Report { rows: 2, depth, prefilled: 64, ..Report::default() });
        }
        assert_eq!(seen[499], 2, "the depth it started with");
        assert!(seen.iter().filter(|&&d| d == 0).count() <= TRIAL_PATIENCE as usize + 1);
    }

    #[test]
    fn nothing_is_tried_anew_beside_prompts() {
        let mut tuner = Tuner::new(limits());
        run(&mut tuner, 300, 1, 0.95, 50.0);
        let mut beside = |cycles: u64| {
            (0..cycles).all(|_| {
                let depth = tuner.knobs().depths.at(1);
                tuner.hear(&Report { rows: 1, depth, prefilled: 8, ..Report::default() });
                depth == 4
            })
        };
        assert!(beside(2 * STALE_CYCLES));
        run(&mut tuner, 2, 1, 0.95, 50.0);
        assert_ne!(tuner.depth(), 4, "once the prompt is done, what is old is tried");
    }

    #[test]
    fn a_cycle_after_a_prompt_s_chunk_is_no_measure_of_a_known_depth() {
        let mut tuner = Tuner::new(limits());
        run(&mut tuner, 300, 1, 0.95, 50.0);
        for _ in 0..100 {
            tuner.hear(&Report { rows: 1, depth: 4, prefilled: 8, ..Report::default() });
            let phases = Phases { verify_us: 9000, ..Phases::default() };
            tuner.hear(&Report { rows: 1, depth: 4, phases, uniform: true, ..Report::default() });
        }
        assert_eq!(tuner.depth(), 4);
    }

    #[test]
    fn beside_prompts_only_a_large_advantage_deepens_drafts() {
        // Depth 4 promises 17 % more than 3 and twice as much as 1.
        for (chosen, prefilled, settled) in [(3, 8, 3), (3, 0, 4), (1, 8, 4)] {
            let mut tuner = Tuner::new(limits());
            run(&mut tuner, 300, 1, 0.95, 50.0);
            tuner.bands[band_of(1)].chosen = chosen;
            tuner.hear(&Report { rows: 1, depth: chosen, prefilled, ..Report::default() });
            assert_eq!(tuner.depth(), settled, "from {chosen} beside {prefilled}");
        }
    }

    #[test]
    fn a_fixed_depth_stays() {
        let mut tuner = Tuner::new(TuneLimits { auto_depth: false, ..limits() });
        run(&mut tuner, 100, 1, 0.1, 5000.0);
        assert_eq!(tuner.depth(), 2);
    }

    #[test]
    fn heat_narrows_the_batch_and_never_closes_it() {
        let mut tuner = Tuner::new(limits());
        tuner.set_ceiling(Ceiling::Low);
        assert_eq!(tuner.knobs().rows_max, 2);
        tuner.set_ceiling(Ceiling::Full);
        assert_eq!(tuner.knobs().rows_max, 8);
    }
}

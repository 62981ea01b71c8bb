//! Cycle reports in, knobs out: how deep to draft for the rows that run, and how long chunks of
//! prompts are while nobody decodes.
//!
//! The best depth maximises expected tokens per microsecond, E(K) = 1 + a1 + a1·a2 + … over the
//! cost of a cycle, under the inter-token target. Acceptance is believed by position and band of
//! temperature, whatever the width; costs by width of the batch and length of texts, as ratios. A
//! depth that might be better, by what is not known of it, is tried for a few cycles. What trials
//! lose has a budget, a small share of the time that went by, so that they never make anything slow
//! for long; and where two depths are about equal nothing is changed.
//!
//! Time is what cycles took: there is no clock here.

use crate::batch::Report;
use crate::knobs::{Depths, Knobs, WIDTHS, rows_of, width_of};
use crate::thermal::Ceiling;

mod acceptance;
mod cell;
mod chunk;
mod learnt;
#[cfg(test)]
mod tests;
#[cfg(any(test, feature = "scripted"))]
pub mod world;

use acceptance::{Acceptance, Mix};
pub use cell::Reason;
use cell::{Cell, Ended, TRIAL_CYCLES};
use chunk::Chunks;
pub use learnt::{Belief, Choice, Chunk, Learnt, LearntCost, Promise, View};

/// Bounds within which the tuner moves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TuneLimits {
    /// Knobs at start; `depths` are kept when `auto_depth` is off.
    pub start: Knobs,
    /// Whether the depth follows the measurements.
    pub auto_depth: bool,
    /// Deepest draft allowed.
    pub depth_max: u8,
    /// Most microseconds of a cycle, which is the time between what a stream gets and what it gets
    /// next; infinite for any.
    pub cycle_us_max: f64,
    /// Whether the length of chunks follows the measurements.
    pub auto_chunk: bool,
}

/// Lengths of texts at which costs are kept apart: up to these, and longer.
const CONTEXTS: [usize; 3] = [4096, 16_384, 65_536];
const CONTEXT_BANDS: usize = CONTEXTS.len() + 1;

/// A deeper draft must promise this much more than the one in use, a shallower one a little less:
/// hysteresis against noise on the side of shorter gaps. Logarithms.
const ADVANTAGE: f64 = 0.012;
const ADVANTAGE_SHALLOWER: f64 = 0.008;
/// The same while prompts are fed: readers bear with those already.
const ADVANTAGE_BESIDE: f64 = 0.182;
/// What is far better, and need not wait.
const FAR_BETTER: f64 = 0.06;
/// By how many deviations what is not known well is taken for better, for it to be tried.
const HOPE: f64 = 1.85;
/// By how many deviations another depth must be ahead to be taken.
const SURE: f64 = 0.6;
/// A trial must promise this much.
const PROMISE: f64 = 0.008;
/// What trials may lose, as a share of time, …
const LOSS_SHARE: f64 = 0.006;
/// … saved for so many cycles at most, and lent for so many.
const LOSS_CYCLES: f64 = 24.0;
const LOSS_CREDIT: f64 = 2.0;
/// Cycles between two trials, or seconds if these are over sooner; fewer where something is new, or
/// seems to be better.
const TRIAL_REST: u32 = 200;
const TRIAL_REST_S: f64 = 7.5;
const TRIAL_REST_EAGER: u32 = 16;
/// Trials that come sooner after a change of the text.
const EAGER: u32 = 6;
/// Seconds within which a second change grants no further trials.
const CHANGE_REST_S: f64 = 20.0;
/// Nothing is tried again before its ratio's variance has grown to this.
const WORTH_A_TRIAL: f64 = 6e-4;
/// What a change of the machine's heat adds to the variance of ratios.
const HEAT_VARIANCE: f64 = 0.01;
/// A cycle counts for at least so many seconds where it is about how old a measurement is: on a
/// fast machine as many cycles take less time, and trials cost less of it.
const CYCLE_S: f64 = 0.01;
/// Weight of a cycle in who decodes at a width.
const MIX_WEIGHT: f64 = 0.05;

/// The tuner's memory.
#[derive(Clone, Debug)]
pub struct Tuner {
    limits: TuneLimits,
    ceiling: Ceiling,
    acceptance: Acceptance,
    /// By width and length of texts.
    cells: Vec<Option<Cell>>,
    chunks: Chunks,
    mix: Mix,
    width: usize,
    context: usize,
    /// Seconds that cycles took so far, those of fast ones counted for more.
    now: f64,
    /// As they were.
    seconds: f64,
    /// Microseconds that trials may still lose.
    budget: f64,
    changed: f64,
    changes: u64,
    /// Whether the last cycle fed a prompt, too.
    fed: bool,
}

/// Logarithm of tokens by time beside those of the depth in use, and how far it may be off.
#[derive(Clone, Copy, Debug)]
struct Speed {
    mean: f64,
    deviation: f64,
}

impl Tuner {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(limits: TuneLimits) -> Self {
        Self {
            limits,
            ceiling: Ceiling::Full,
            acceptance: Acceptance::new(limits.depth_max),
            cells: vec![None; WIDTHS * CONTEXT_BANDS],
            chunks: Chunks::new(limits.start.prefill_idle),
            mix: std::array::from_fn(|band| f64::from(u8::from(band == 1))),
            width: 0,
            context: 0,
            now: 0.0,
            seconds: 0.0,
            budget: 0.0,
            changed: f64::NEG_INFINITY,
            changes: 0,
            fed: false,
        }
    }

    /// The knobs for the next cycle.
    #[must_use]
    pub fn knobs(&self) -> Knobs {
        let start = self.limits.start;
        let depths = match self.limits.auto_depth {
            true => Depths::of_widths(|width| self.nearest(width, self.context).0),
            false => start.depths,
        };
        let rows_max = match self.ceiling {
            Ceiling::Full => start.rows_max,
            Ceiling::Reduced => start.rows_max.div_ceil(2),
            Ceiling::Low => start.rows_max.div_ceil(4),
        };
        let auto = self.limits.auto_chunk;
        let prefill_idle = if auto { self.chunks.tokens() } else { start.prefill_idle };
        Knobs { depths, rows_max, prefill_idle, ..start }
    }

    /// The depth at the width that ran last.
    #[must_use]
    pub fn depth(&self) -> u8 {
        self.knobs().depths.at(rows_of(self.width))
    }

    /// Acceptance by draft position as now believed, for those who decoded last.
    #[must_use]
    pub fn acceptance(&self) -> Vec<f64> {
        let mut rates = vec![0.0; usize::from(self.limits.depth_max)];
        for (band, share) in self.mix.iter().enumerate() {
            for (rate, (mean, _)) in rates.iter_mut().zip(self.acceptance.believed(band)) {
                *rate += share * mean;
            }
        }
        rates
    }

    /// The thermal ceiling that it heeds.
    #[must_use]
    pub fn ceiling(&self) -> Ceiling {
        self.ceiling
    }

    /// Heeds a new thermal ceiling. Slower clocks do not slow all alike: ratios are doubted.
    pub fn set_ceiling(&mut self, ceiling: Ceiling) {
        if ceiling != self.ceiling {
            let now = self.now;
            self.cells.iter_mut().flatten().for_each(|cell| cell.doubt(now, HEAT_VARIANCE));
        }
        self.ceiling = ceiling;
    }

    /// Learns from one cycle. Cycles that also fed prompts are used for acceptance only: their cost
    /// says little about decoding.
    #[expect(clippy::cast_precision_loss, reason = "microseconds of one cycle")]
    pub fn hear(&mut self, report: &Report) {
        let phases = report.phases;
        let engine = phases.draft_us + phases.verify_us + phases.accept_us;
        let micros = (if report.wall_us > 0 { report.wall_us } else { engine }) as f64;
        if report.rows == 0 {
            self.chunks.hear(report.prefilled, micros);
            self.fed |= report.prefilled > 0;
            return;
        }
        let seconds = micros / 1e6;
        self.seconds += seconds;
        // Where nobody looks at a clock nothing gets old.
        let counted = if micros > 0.0 { seconds.max(CYCLE_S) } else { 0.0 };
        self.now += counted;
        if self.acceptance.hear(&report.judged, seconds, counted) {
            self.text_changed();
        }
        if !self.limits.auto_depth || self.limits.depth_max == 0 {
            self.width = width_of(report.rows);
            return;
        }
        self.enter(report);
        let now = self.now;
        self.save(report, micros);
        self.cell().spend(report.depth, micros, report.uniform);
        let ended = if report.prefilled == 0 && micros > 0.0 && report.uniform {
            let fed = self.fed;
            self.cell().learn((report.depth, micros), fed, now)
        } else {
            None
        };
        let ended = ended.or_else(|| self.cell().lose_patience(now));
        if let Some(ended) = ended {
            self.pay(ended);
        }
        if report.uniform {
            let cell = self.cell();
            cell.since_trial = cell.since_trial.saturating_add(1);
        }
        // The one cycle that leaves prompts out for a measure is beside them, too.
        self.choose(report.prefilled > 0 || self.fed);
        self.fed = report.prefilled > 0;
    }

    /// Goes to where this cycle ran, with what is known nearby if nothing is known there.
    #[expect(clippy::cast_precision_loss, reason = "rows of one cycle")]
    fn enter(&mut self, report: &Report) {
        self.width = width_of(report.rows);
        self.context = context_of(report.context);
        let index = index_of(self.width, self.context);
        if self.cells[index].is_none() {
            let cell = match self.nearest(self.width, self.context) {
                (_, Some((near, distance))) => {
                    self.cells[near].as_ref().map(|cell| cell.borrowed(self.now, distance as f64))
                }
                (_, None) => None,
            };
            let start = self.limits.start.depths.at(report.rows).min(self.limits.depth_max);
            self.cells[index] = cell.or_else(|| Some(Cell::new(start, self.limits.depth_max)));
        }
        let rows: usize = report.temperatures.iter().sum();
        if rows > 0 {
            for (share, &there) in self.mix.iter_mut().zip(&report.temperatures) {
                *share += MIX_WEIGHT * (there as f64 / rows as f64 - *share);
            }
        }
    }

    fn cell(&mut self) -> &mut Cell {
        let (start, most) = (self.limits.start.depths.at(1), self.limits.depth_max);
        self.cells[index_of(self.width, self.context)]
            .get_or_insert_with(|| Cell::new(start.min(most), most))
    }

    /// The depth at a width, by the nearest that is known, and which and how far off that is.
    fn nearest(&self, width: usize, context: usize) -> (u8, Option<(usize, usize)>) {
        let known = self.cells.iter().enumerate().filter_map(|(index, cell)| {
            let (w, c) = (index / CONTEXT_BANDS, index % CONTEXT_BANDS);
            let distance = w.abs_diff(width) + c.abs_diff(context);
            // A trial elsewhere is none here.
            let depth = |cell: &Cell| if distance == 0 { cell.depth() } else { cell.chosen };
            cell.as_ref().map(|cell| (distance, index, depth(cell)))
        });
        let near = known.min_by_key(|&(distance, ..)| distance);
        near.map_or_else(
            || (self.limits.start.depths.at(rows_of(width)).min(self.limits.depth_max), None),
            |(distance, index, depth)| (depth, Some((index, distance))),
        )
    }

    /// What is believed of costs is not touched; which depth is worth it is open.
    fn text_changed(&mut self) {
        self.changes += 1;
        if self.now - self.changed < CHANGE_REST_S {
            return;
        }
        self.changed = self.now;
        let cell = self.cell();
        cell.renew(EAGER);
        let grant = cell.usual.unwrap_or(0.0) * LOSS_CYCLES;
        self.budget = self.budget.max(grant);
    }

    /// Trials are paid for by the time in which somebody went by the depth in use: none of those
    /// who set their own is slower or faster for them.
    fn save(&mut self, report: &Report, micros: f64) {
        if !report.uniform {
            return;
        }
        let most = self.cell().usual.unwrap_or(0.0) * LOSS_CYCLES;
        self.budget = (self.budget + LOSS_SHARE * micros).min(most.max(self.budget));
    }

    /// Books what a trial lost beside what its time would have given. What must be measured once is
    /// free: it would be long before that was paid.
    fn pay(&mut self, Ended { depth, micros, first }: Ended) {
        if first {
            return;
        }
        let speeds = self.speeds();
        let chosen = usize::from(self.cell().chosen);
        let lost = 1.0 - (speeds[usize::from(depth)].mean - speeds[chosen].mean).exp();
        self.budget -= micros * lost.max(0.0);
    }

    /// What each depth gives, beside the one in use.
    fn speeds(&mut self) -> Vec<Speed> {
        let (mix, now) = (self.mix, self.now);
        let chosen = self.cell().chosen;
        let tokens = self.acceptance.tokens(&mix, chosen);
        let cell = self.cell();
        let speed = |((tokens, off), one): ((f64, f64), &cell::Relative)| {
            let variance = (off / tokens).powi(2) + one.variance(now);
            Speed { mean: tokens.ln() - one.log, deviation: variance.sqrt() }
        };
        tokens.into_iter().zip(&cell.relative).map(speed).collect()
    }

    /// Beside prompts hardly anything can be measured, and readers notice a change of depth on top
    /// of them: what was measured once is not tried anew then.
    fn choose(&mut self, beside_prompts: bool) {
        let depth_max = self.limits.depth_max;
        let target = self.limits.cycle_us_max;
        let cell = self.cell();
        let known = |cell: &Cell, depth: u8| cell.relative[usize::from(depth)].measured;
        if beside_prompts && cell.trial.is_some_and(|trial| known(cell, trial.depth)) {
            let given_up = cell.give_up();
            given_up.into_iter().for_each(|ended| self.pay(ended));
        }
        if self.cell().trial.is_some() {
            return;
        }
        let speeds = self.speeds();
        let (now, seconds) = (self.now, self.seconds);
        let cell = self.cell();
        let (chosen, usual) = (cell.chosen, cell.usual);
        let cost = |k: u8| cell.relative[usize::from(k)].log;
        let cheapest = (0..=depth_max).min_by(|&a, &b| cost(a).total_cmp(&cost(b)));
        let fits = |k: u8| {
            let within = usual.is_none_or(|usual| usual * cost(k).exp() <= target);
            within || cheapest == Some(k)
        };
        let speed = |k: u8| speeds[usize::from(k)].mean;
        // A depth that was never measured has no speed at all, unless it must be had.
        let usable = |&k: &u8| fits(k) && (k == chosen || known(cell, k) || !fits(chosen));
        let best = (0..=depth_max).filter(usable).max_by(|&a, &b| speed(a).total_cmp(&speed(b)));
        let best = best.unwrap_or(chosen);
        let ahead = speed(best) - speed(chosen);
        let margin = match (best > chosen, beside_prompts) {
            (true, true) => ADVANTAGE_BESIDE,
            (true, false) => ADVANTAGE,
            (false, _) => ADVANTAGE_SHALLOWER,
        };
        let unsure = SURE * speeds[usize::from(best)].deviation;
        let rested = cell.has_rested(seconds) || ahead > FAR_BETTER * cell.reluctance();
        let must = usual.is_some_and(|usual| usual > target) && best != chosen;
        if must || best != chosen && rested && ahead > margin.max(unsure) {
            cell.switch(best, now, seconds);
        }
        let tried = !must && self.try_another(beside_prompts, &speeds, target);
        let reason = if tried { Reason::Trial } else { self.reason(target) };
        self.cell().reason = reason;
    }

    /// Begins a trial of what might be better, if there is anything and it may be afforded.
    fn try_another(&mut self, beside_prompts: bool, speeds: &[Speed], target: f64) -> bool {
        let (now, budget) = (self.now, self.budget);
        let cell = self.cell();
        let chosen = usize::from(cell.chosen);
        let base = speeds[chosen].mean;
        let leaning = speeds.iter().any(|speed| speed.mean > base);
        let hope = |k: usize| speeds[k].mean + HOPE * speeds[k].deviation - base;
        let rest = if cell.eager > 0 || leaning { TRIAL_REST_EAGER } else { TRIAL_REST };
        let long = cell.since_trial >= TRIAL_REST_EAGER && now - cell.last_trial > TRIAL_REST_S;
        let rested = cell.has_base() && (long || cell.since_trial >= rest);
        let Some(usual) = cell.usual.filter(|_| rested) else { return false };
        let worth = |&k: &usize| {
            let one = &cell.relative[k];
            let micros = f64::from(TRIAL_CYCLES) * usual * one.log.exp();
            let loss = micros * (1.0 - (speeds[k].mean - base).exp());
            // A first measurement is free; whoever could not make it has paid for it.
            let free = one.guess && budget >= -LOSS_CREDIT * usual;
            let affordable = free || loss <= budget + LOSS_CREDIT * usual;
            let open = one.variance(now) >= WORTH_A_TRIAL && (!beside_prompts || !one.measured);
            let within = usual * (one.log - HOPE * one.variance(now).sqrt()).exp() <= target;
            // What nobody measured anywhere is measured once, whatever it promises.
            let promises = one.guess || hope(k) > PROMISE;
            k != chosen && open && affordable && within && promises
        };
        let all = (0..speeds.len()).filter(worth);
        let best = all.max_by(|&a, &b| hope(a).total_cmp(&hope(b)));
        let Some(depth) = best.and_then(|depth| u8::try_from(depth).ok()) else { return false };
        cell.begin(depth);
        true
    }

    /// Why the depth in use is in use.
    fn reason(&mut self, target: f64) -> Reason {
        let first = self.acceptance().first().copied().unwrap_or(0.0);
        let speeds = self.speeds();
        let cell = self.cell();
        let (chosen, usual) = (usize::from(cell.chosen), cell.usual);
        let beyond = |k: usize| usual.is_some_and(|us| us * cell.relative[k].log.exp() > target);
        let faster = |k: usize| speeds[k].mean > speeds[chosen].mean + ADVANTAGE;
        match () {
            () if !cell.relative.iter().all(|one| one.measured) && !cell.has_base() => cell.reason,
            () if (0..speeds.len()).any(|k| faster(k) && beyond(k)) => Reason::Target,
            () if chosen > 0 => Reason::Fastest,
            () if first < 0.5 => Reason::DraftsFall,
            () => Reason::DraftsDear,
        }
    }
}

fn context_of(tokens: usize) -> usize {
    CONTEXTS.iter().take_while(|&&most| tokens > most).count()
}

fn index_of(width: usize, context: usize) -> usize {
    width * CONTEXT_BANDS + context
}

//! One width of the batch at one length of texts: what cycles cost there at each depth, beside the
//! depth in use, which depth that is, and why.
//!
//! Costs are kept as logarithms of ratios to the cost at the depth in use, each measured within a
//! few cycles of the other: a machine that gets slower as a whole, by heat or by others who work on
//! it, changes none of them. Both sides are lower quartiles ([`Recent::usual`]), which pauses do
//! not move. A ratio has a variance that grows with time, so that what was not measured for long is
//! measured again once it might be the better choice, and never if it cannot be.

use crate::recent::Recent;

/// Cycles of a trial that count.
pub(super) const TRIAL_CYCLES: u32 = 8;
/// Cycles after which a trial that could not measure is given up.
pub(super) const TRIAL_PATIENCE: u32 = 60;
/// Measurements of the depth in use that count, and how many a trial is compared with at least.
const RECENT: usize = 12;
const RECENT_LEAST: usize = 6;
/// What each draft is taken to add to a cycle before that was measured, and how far that may be
/// off; logarithms.
const PRIOR: f64 = 0.1;
const PRIOR_DEVIATION: f64 = 0.15;
/// Deviation of a ratio that one trial measured.
const TRIAL_DEVIATION: f64 = 0.035;
/// What time adds to the variance of a ratio, a second: a deviation of 6 % within a minute.
const DRIFT: f64 = 6e-5;
/// Seconds for which a depth stays, unless another is far better; twice as long each time that it
/// comes back within so many seconds, up to a bound.
pub(super) const DWELL_S: f64 = 4.0;
const BACK_S: f64 = 480.0;
const DWELL_MAX_S: f64 = 240.0;
/// Most that going back and forth raises what is far better.
const RELUCTANCE_MAX: f64 = 3.0;
/// A ratio this far from what a neighbour said proves that one wrong.
const SURPRISE: f64 = 0.1;
/// What it adds to the variance of all others that one measured here is found to have changed.
const CHANGED_VARIANCE: f64 = 0.02;
/// A ratio is never less sure than this.
const VARIANCE_MAX: f64 = 0.25;

/// Why a depth is what it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reason {
    /// Nothing was measured yet.
    #[default]
    Start,
    /// Somebody set it.
    Fixed,
    /// The model has no MTP head, or drafts are not allowed.
    NoDrafts,
    /// By what was measured it gives most tokens a second.
    Fastest,
    /// Drafts fall so often that none is worth its cost.
    DraftsFall,
    /// Drafts stand, and cost more than they bring.
    DraftsDear,
    /// Deeper ones would make a cycle longer than the inter-token target.
    Target,
    /// It is being measured.
    Trial,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Start,
        Self::Fixed,
        Self::NoDrafts,
        Self::Fastest,
        Self::DraftsFall,
        Self::DraftsDear,
        Self::Target,
        Self::Trial,
    ];

    /// Its name for programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Fixed => "fixed",
            Self::NoDrafts => "no_drafts",
            Self::Fastest => "fastest",
            Self::DraftsFall => "drafts_fall",
            Self::DraftsDear => "drafts_dear",
            Self::Target => "target",
            Self::Trial => "trial",
        }
    }
}

/// The cost of a depth beside that of the one in use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Relative {
    pub(super) log: f64,
    variance: f64,
    /// The second it was known so well.
    at: f64,
    /// Whether it was measured here.
    pub(super) measured: bool,
    /// Whether nobody measured it, nor anything near.
    pub(super) guess: bool,
}

impl Relative {
    pub(super) fn variance(&self, now: f64) -> f64 {
        (self.variance + DRIFT * (now - self.at).max(0.0)).min(VARIANCE_MAX)
    }

    pub(super) fn new(log: f64, variance: f64, at: f64, measured: bool) -> Self {
        Self { log, variance, at, measured, guess: false }
    }

    fn guess(steps: f64, at: f64) -> Self {
        let variance = (PRIOR_DEVIATION * steps).powi(2);
        Self { log: PRIOR * steps, variance, at, measured: false, guess: true }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Trial {
    pub(super) depth: u8,
    costs: Recent<{ TRIAL_CYCLES as usize }>,
    /// Cycles after which it ends all the same: prompts or fixed depths may keep it from measuring.
    patience: u32,
    /// Microseconds of all its cycles, those that could not be measured, too.
    spent: f64,
}

/// What is known here.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    pub(super) chosen: u8,
    pub(super) reason: Reason,
    pub(super) relative: Vec<Relative>,
    pub(super) trial: Option<Trial>,
    pub(super) switches: u64,
    pub(super) trials: u64,
    /// The second of the last change of depth, what it was before, and how long it is to stay now.
    switched: f64,
    before: u8,
    dwell: f64,
    /// Cycles since the last trial.
    pub(super) since_trial: u32,
    /// And the second it ended.
    pub(super) last_trial: f64,
    /// Trials that need not wait for their turn.
    pub(super) eager: u32,
    /// Microseconds at the depth in use.
    recent: Recent<RECENT>,
    /// The last that was usual.
    pub(super) usual: Option<f64>,
}

/// What a cycle that was measured ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ended {
    pub(super) depth: u8,
    /// Microseconds that its cycles took in all.
    pub(super) micros: f64,
    /// Whether nothing was known of it before, and now it is measured.
    pub(super) first: bool,
}

impl Cell {
    pub(super) fn new(chosen: u8, depth_max: u8) -> Self {
        let beside = |depth: u8| Relative::guess(f64::from(depth) - f64::from(chosen), 0.0);
        Self {
            chosen,
            reason: Reason::Start,
            relative: (0..=depth_max).map(beside).collect(),
            trial: None,
            switches: 0,
            trials: 0,
            switched: f64::NEG_INFINITY,
            before: chosen,
            dwell: DWELL_S,
            since_trial: u32::MAX,
            last_trial: f64::NEG_INFINITY,
            eager: u32::from(depth_max) + 1,
            recent: Recent::default(),
            usual: None,
        }
    }

    /// What is to be believed some way off: the same, and less surely.
    pub(super) fn borrowed(&self, now: f64, distance: f64) -> Self {
        let depth_max = u8::try_from(self.relative.len() - 1).unwrap_or(u8::MAX);
        let mut cell = Self::new(self.chosen, depth_max);
        let farther = |(depth, one): (usize, &Relative)| {
            let steps = depth.abs_diff(usize::from(self.chosen)) as f64;
            let variance = one.variance(now) + (0.04 * distance * steps).powi(2);
            Relative { guess: one.guess, ..Relative::new(one.log, variance, now, false) }
        };
        cell.relative = self.relative.iter().enumerate().map(farther).collect();
        cell.reason = self.reason;
        cell
    }

    pub(super) fn depth(&self) -> u8 {
        self.trial.map_or(self.chosen, |trial| trial.depth)
    }

    /// All of it is less sure: something has changed that costs may depend on.
    pub(super) fn doubt(&mut self, now: f64, variance: f64) {
        for (depth, one) in self.relative.iter_mut().enumerate() {
            if depth != usize::from(self.chosen) {
                *one = Relative { variance: one.variance(now) + variance, at: now, ..*one };
            }
        }
    }

    /// Learns what one cycle cost; what ended with it. Caches are `cold` after a prompt's chunk:
    /// better than nothing, and not to be compared with what was warm.
    pub(super) fn learn(&mut self, cycle: (u8, f64), cold: bool, now: f64) -> Option<Ended> {
        let (depth, micros) = cycle;
        if depth == self.chosen && !(cold && self.has_base()) {
            self.recent.add(micros);
            self.usual = self.recent.usual();
        }
        let measured = self.relative.get(usize::from(depth))?.measured;
        let trial = self.trial.as_mut().filter(|trial| trial.depth == depth)?;
        if cold && measured {
            return None;
        }
        trial.costs.add(micros);
        if trial.costs.len() < TRIAL_CYCLES as usize { None } else { self.end(now) }
    }

    /// The trial is over, however many of its cycles could be measured.
    fn end(&mut self, now: f64) -> Option<Ended> {
        let Trial { depth, costs, spent, .. } = self.trial.take()?;
        (self.since_trial, self.last_trial) = (0, now);
        self.trials += 1;
        let one = &mut self.relative[usize::from(depth)];
        let Some((seen, base)) = costs.usual().zip(self.usual) else {
            // As if measured at no advantage, until it is old again.
            *one = Relative { variance: 0.0, at: now, ..*one };
            return Some(Ended { depth, micros: spent, first: false });
        };
        let share = costs.len() as f64 / f64::from(TRIAL_CYCLES);
        let (before, noise) = (one.variance(now), TRIAL_DEVIATION.powi(2) / share);
        // The first measurement owes nothing to what was guessed.
        let gain = if one.measured { before / (before + noise) } else { 1.0 };
        let log = one.log + gain * ((seen / base).ln() - one.log);
        let variance = if one.measured { before * (1.0 - gain) } else { noise };
        let first = one.guess;
        let off = ((seen / base).ln() - one.log).abs();
        let (known, expected) = (one.measured, 3.0 * (before + noise).sqrt());
        *one = Relative::new(log, variance, now, true);
        if !known && off > SURPRISE {
            self.forget_neighbours(now);
        } else if known && off > expected {
            // The machine has changed, and so may have the others' costs.
            *one = Relative::new((seen / base).ln(), noise, now, true);
            self.doubt(now, CHANGED_VARIANCE);
            self.eager += 2;
        }
        Some(Ended { depth, micros: spent, first })
    }

    /// What was not measured here is to be: its neighbours are no guide.
    fn forget_neighbours(&mut self, now: f64) {
        for (depth, one) in self.relative.iter_mut().enumerate().filter(|(_, r)| !r.measured) {
            *one = Relative::guess(depth as f64 - f64::from(self.chosen), now);
            self.eager += 1;
        }
    }

    /// Whether enough is known of the depth in use for another to be compared with it.
    pub(super) fn has_base(&self) -> bool {
        self.recent.len() >= RECENT_LEAST
    }

    /// A cycle of a trial costs what it costs, whether or not it can be measured; those of before
    /// it are still under way when it begins.
    pub(super) fn spend(&mut self, depth: u8, micros: f64, uniform: bool) {
        if let Some(trial) = self.trial.as_mut().filter(|trial| !uniform || trial.depth == depth) {
            trial.spent += micros;
        }
    }

    /// A trial that cannot measure must not hold the depth for ever.
    pub(super) fn lose_patience(&mut self, now: f64) -> Option<Ended> {
        let trial = self.trial.as_mut()?;
        trial.patience = trial.patience.saturating_sub(1);
        if trial.patience == 0 { self.end(now) } else { None }
    }

    /// The trial is given up, and nothing follows from it but its cost.
    pub(super) fn give_up(&mut self) -> Option<Ended> {
        let Trial { depth, spent, .. } = self.trial.take()?;
        Some(Ended { depth, micros: spent, first: false })
    }

    pub(super) fn begin(&mut self, depth: u8) {
        self.eager = self.eager.saturating_sub(1);
        let (costs, patience) = (Recent::default(), TRIAL_PATIENCE);
        self.trial = Some(Trial { depth, costs, patience, spent: 0.0 });
    }

    /// Whether the depth in use may be left for one that is not far better. In `seconds` as they
    /// were: how often depths change is seen from outside, however fast cycles are.
    pub(super) fn has_rested(&self, seconds: f64) -> bool {
        seconds - self.switched > self.dwell
    }

    /// What was learnt of going back and forth was of another text.
    pub(super) fn renew(&mut self, eager: u32) {
        self.eager = self.eager.max(eager);
        self.dwell = DWELL_S;
    }

    /// How much more is wanted of another depth than at first, after going back and forth.
    pub(super) fn reluctance(&self) -> f64 {
        (self.dwell / DWELL_S).min(RELUCTANCE_MAX)
    }

    /// From now on it is this depth that others are compared with; `seconds` as they were.
    pub(super) fn switch(&mut self, depth: u8, now: f64, seconds: f64) {
        let base = self.relative[usize::from(depth)];
        let own = base.variance(now);
        for one in &mut self.relative {
            let variance = (one.variance(now) + own).min(VARIANCE_MAX);
            *one = Relative { log: one.log - base.log, variance, at: now, ..*one };
        }
        self.relative[usize::from(depth)] = Relative::new(0.0, 0.0, now, true);
        self.relative[usize::from(self.chosen)].variance = own;
        for (other, one) in self.relative.iter_mut().enumerate().filter(|(_, r)| r.guess) {
            *one = Relative::guess(other as f64 - f64::from(depth), now);
        }
        self.usual = self.usual.map(|usual| usual * base.log.exp());
        self.recent = Recent::default();
        // Going back and forth between two that are about equal ends soon.
        let back = depth == self.before && seconds - self.switched < BACK_S;
        self.dwell = if back { (2.0 * self.dwell).min(DWELL_MAX_S) } else { DWELL_S };
        self.before = self.chosen;
        self.chosen = depth;
        self.switched = seconds;
        self.switches += 1;
    }
}

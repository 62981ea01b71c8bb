//! What the tuner believes, to be shown, and what of it is worth keeping for the next process.

use super::acceptance::Rate;
use super::cell::{Cell, Reason, Relative};
use super::{CONTEXT_BANDS, CONTEXTS, Tuner, index_of};
use crate::knobs::{WIDTHS, rows_of, width_of};
use crate::sample::TEMPERATURES;

/// What was learnt counts for so many judged drafts, …
const JUDGED_MAX: f64 = 24.0;
/// … and ratios are off by so much more, as a variance of logarithms.
const VARIANCE: f64 = 0.001;
/// A ratio beyond this, or below its inverse, is none.
const RATIO_MAX: f64 = 100.0;

/// Everything that is believed.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// Seconds of cycles heard of.
    pub seconds: f64,
    /// Where cycles ran: widths by lengths of texts.
    pub choices: Vec<Choice>,
    /// By band of temperature and position.
    pub acceptance: [Vec<Belief>; TEMPERATURES],
    /// Shares of rows in these bands.
    pub mix: [f64; TEMPERATURES],
    /// Times the text was found to be another.
    pub changes: u64,
    /// Seconds that trials may still lose; below 0 they wait.
    pub budget_s: f64,
    /// Lengths of chunks while nobody decodes.
    pub chunks: Vec<Chunk>,
}

/// One width at one length of texts.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The most rows of the width.
    pub rows: usize,
    /// The most tokens of texts; `None` for any.
    pub context_max: Option<usize>,
    /// The depth now, that of a trial if there is one.
    pub depth: u8,
    /// The one that is in use beside trials.
    pub chosen: u8,
    /// Why.
    pub reason: Reason,
    /// Microseconds of a cycle at the depth in use.
    pub cycle_us: Option<f64>,
    /// What each depth promises.
    pub promises: Vec<Promise>,
    /// Trials that ended.
    pub trials: u64,
    /// Changes of the depth in use.
    pub switches: u64,
}

/// What a depth promises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Promise {
    /// The cost of a cycle beside that at the depth in use.
    pub ratio: f64,
    /// How far that may be off, as a share of it: one standard deviation.
    pub deviation: f64,
    /// Whether it was measured here.
    pub measured: bool,
    /// Tokens of a row and cycle.
    pub tokens: f64,
    /// Speed beside that of the depth in use.
    pub speed: f64,
}

/// What is believed of a draft position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Belief {
    /// How often it stands, where all before it stood.
    pub mean: f64,
    /// One standard deviation.
    pub deviation: f64,
    /// Judged drafts that it rests on, older ones counting less.
    pub judged: f64,
}

/// A length of chunks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chunk {
    /// Tokens.
    pub tokens: usize,
    /// The cost of a token beside that in the longest.
    pub ratio: f64,
    /// Times it was measured.
    pub measured: u32,
}

/// What the next process may begin with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Learnt {
    /// Judged drafts and how many stood, by band of temperature and position.
    pub acceptance: [Vec<(f64, f64)>; TEMPERATURES],
    /// Costs, where any were measured.
    pub costs: Vec<LearntCost>,
}

/// What cycles cost at one width and length of texts.
#[derive(Clone, Debug, PartialEq)]
pub struct LearntCost {
    /// Rows of the width.
    pub rows: usize,
    /// Most tokens of texts; `None` for any.
    pub context_max: Option<usize>,
    /// The depth that others are compared with.
    pub depth: u8,
    /// Cost of each depth beside it; `None` where it was not measured.
    pub ratios: Vec<Option<f64>>,
}

impl Tuner {
    /// All that is believed.
    #[must_use]
    pub fn view(&self) -> View {
        let known = self.cells.iter().enumerate();
        let known = known.filter_map(|(i, cell)| cell.as_ref().map(|cell| (i, cell)));
        let acceptance = std::array::from_fn(|band| {
            let judged = self.acceptance.bands()[band].iter().map(|rate| rate.judged);
            let believed = self.acceptance.believed(band).into_iter().zip(judged);
            believed.map(|((mean, deviation), judged)| Belief { mean, deviation, judged }).collect()
        });
        let chunk = |(tokens, ratio, measured)| Chunk { tokens, ratio, measured };
        View {
            seconds: self.seconds,
            choices: known.map(|(index, cell)| self.choice(index, cell)).collect(),
            acceptance,
            mix: self.mix,
            changes: self.changes,
            budget_s: self.budget / 1e6,
            chunks: self.chunks.view().map(chunk).collect(),
        }
    }

    /// Where the last cycle ran.
    #[must_use]
    pub fn here(&self) -> Option<Choice> {
        let index = index_of(self.width, self.context);
        self.cells[index].as_ref().map(|cell| self.choice(index, cell))
    }

    /// Trials and changes of depth so far, anywhere; changes of the text.
    #[must_use]
    pub fn counts(&self) -> (u64, u64, u64) {
        let cells = || self.cells.iter().flatten();
        let trials = cells().map(|cell| cell.trials).sum();
        (trials, cells().map(|cell| cell.switches).sum(), self.changes)
    }

    fn choice(&self, index: usize, cell: &Cell) -> Choice {
        let tokens = self.acceptance.tokens(&self.mix, 0);
        let base = tokens[usize::from(cell.chosen)].0;
        let promise = |(one, (tokens, _)): (&Relative, (f64, f64))| Promise {
            ratio: one.log.exp(),
            deviation: one.variance(self.now).sqrt(),
            measured: one.measured,
            tokens,
            speed: tokens / base / one.log.exp(),
        };
        Choice {
            rows: rows_of(index / CONTEXT_BANDS),
            context_max: CONTEXTS.get(index % CONTEXT_BANDS).copied(),
            depth: cell.depth(),
            chosen: cell.chosen,
            reason: cell.reason,
            cycle_us: cell.usual,
            promises: cell.relative.iter().zip(tokens).map(promise).collect(),
            trials: cell.trials,
            switches: cell.switches,
        }
    }

    /// What is worth keeping.
    #[must_use]
    pub fn learnt(&self) -> Learnt {
        let bands = self.acceptance.bands();
        let of = |rates: &Vec<Rate>| rates.iter().map(|r| (r.judged, r.stood)).collect();
        let mut costs = Vec::new();
        for (index, cell) in self.cells.iter().enumerate() {
            // What was recalled and did not run since is worth as much as before.
            let known =
                |cell: &&Cell| cell.usual.is_some() || cell.relative.iter().any(|one| one.measured);
            let Some(cell) = cell.as_ref().filter(known) else { continue };
            let ratio = |one: &Relative| one.measured.then(|| one.log.exp());
            costs.push(LearntCost {
                rows: rows_of(index / CONTEXT_BANDS),
                context_max: CONTEXTS.get(index % CONTEXT_BANDS).copied(),
                depth: cell.chosen,
                ratios: cell.relative.iter().map(ratio).collect(),
            });
        }
        Learnt { acceptance: std::array::from_fn(|band| of(&bands[band])), costs }
    }

    /// Begins with what another process learnt, as a guess to be proved. What is out of bounds is
    /// passed over.
    pub fn recall(&mut self, learnt: &Learnt) {
        for (band, rates) in self.acceptance.bands_mut().iter_mut().zip(&learnt.acceptance) {
            for (rate, &(judged, stood)) in band.iter_mut().zip(rates) {
                let share = JUDGED_MAX / judged.max(JUDGED_MAX);
                if judged >= 0.0 && (0.0..=judged).contains(&stood) && judged.is_finite() {
                    *rate = Rate::of(judged * share, stood * share);
                }
            }
        }
        if !self.limits.auto_depth {
            return;
        }
        for cost in &learnt.costs {
            let context = match cost.context_max {
                None => Some(CONTEXTS.len()),
                Some(most) => CONTEXTS.iter().position(|&band| band == most),
            };
            let depths = usize::from(self.limits.depth_max) + 1;
            let width = width_of(cost.rows);
            let Some(context) = context.filter(|_| cost.rows > 0 && width < WIDTHS) else {
                continue;
            };
            if cost.ratios.len() != depths || usize::from(cost.depth) >= depths {
                continue;
            }
            let mut cell = Cell::new(cost.depth, self.limits.depth_max);
            for (depth, ratio) in cost.ratios.iter().enumerate() {
                let plausible = |ratio: &f64| (1.0 / RATIO_MAX..RATIO_MAX).contains(ratio);
                let other = depth != usize::from(cost.depth);
                if let Some(ratio) = ratio.filter(plausible).filter(|_| other) {
                    cell.relative[depth] = Relative::new(ratio.ln(), VARIANCE, self.now, true);
                }
            }
            cell.eager = 1;
            self.cells[index_of(width, context)] = Some(cell);
        }
    }
}

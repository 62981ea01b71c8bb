//! What the tuner believes, as it is shown at `/admin/tuner`.

use mtplx_core::sample::TEMPERATURE_NAMES;
use mtplx_core::tune::{Choice, Promise, View};
use serde::Serialize;
use utoipa::ToSchema;

/// Everything the tuner believes, and what it does for it.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Shown {
    /// Seconds of cycles heard of.
    pub seconds: f64,
    /// Cycles heard of.
    pub reports: u64,
    /// Most milliseconds of a cycle, if there is a target.
    pub itl_ms: Option<f64>,
    /// Whether the depth follows the measurements.
    pub depth_auto: bool,
    /// Times the text was found to be another.
    pub changes: u64,
    /// Seconds that trials may still lose; below 0 they wait.
    pub budget_s: f64,
    /// By width of the batch and length of texts.
    pub widths: Vec<Width>,
    /// By band of temperature.
    pub acceptance: Vec<Band>,
    /// Lengths of chunks while nobody decodes.
    pub chunks: Vec<Chunk>,
}

/// A width of the batch at a length of texts.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Width {
    /// Its most rows.
    pub rows: usize,
    /// The most tokens of texts; null for any.
    pub context_max: Option<usize>,
    /// The depth now, that of a trial if there is one.
    pub depth: u8,
    /// The depth in use beside trials.
    pub chosen: u8,
    /// Why: `start`, `fixed`, `no_drafts`, `fastest`, `drafts_fall`, `drafts_dear`, `target` or
    /// `trial`.
    pub reason: &'static str,
    /// Milliseconds of a cycle at the depth in use.
    pub cycle_ms: Option<f64>,
    /// What each depth promises, from 0.
    pub depths: Vec<Depth>,
    /// Trials that ended.
    pub trials: u64,
    /// Changes of the depth in use.
    pub switches: u64,
}

/// What a depth promises.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ToSchema)]
pub struct Depth {
    /// The cost of a cycle beside that at the depth in use.
    pub cost_ratio: f64,
    /// How far that may be off, as a share: one standard deviation.
    pub cost_deviation: f64,
    /// Whether it was measured here.
    pub measured: bool,
    /// Tokens of a row and cycle.
    pub tokens: f64,
    /// Speed beside that of the depth in use.
    pub speed_ratio: f64,
}

/// A band of temperature.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Band {
    /// `greedy`, `medium` (up to 0.8) or `high`.
    pub temperature: &'static str,
    /// Share of the rows that decode.
    pub rows_ratio: f64,
    /// By position.
    pub positions: Vec<Position>,
}

/// A draft position.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ToSchema)]
pub struct Position {
    /// How often it stands, where all before it stood.
    pub acceptance: f64,
    /// How far that may be off: one standard deviation.
    pub deviation: f64,
    /// Judged drafts that it rests on, older ones counting less.
    pub judged: f64,
}

/// A length of chunks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ToSchema)]
pub struct Chunk {
    /// Tokens.
    pub tokens: usize,
    /// The cost of a token beside that in the longest.
    pub cost_ratio: f64,
    /// Times it was measured.
    pub measured: u32,
}

impl Shown {
    pub(super) fn new(view: View, reports: u64, itl_ms: Option<f64>, depth_auto: bool) -> Self {
        let bands = TEMPERATURE_NAMES.iter().zip(view.mix).zip(view.acceptance);
        let band = |((&temperature, rows_ratio), beliefs): ((&&'static str, f64), Vec<_>)| Band {
            temperature,
            rows_ratio,
            positions: beliefs.iter().map(position).collect(),
        };
        let chunk = |c: mtplx_core::tune::Chunk| Chunk {
            tokens: c.tokens,
            cost_ratio: c.ratio,
            measured: c.measured,
        };
        Self {
            seconds: view.seconds,
            reports,
            itl_ms,
            depth_auto,
            changes: view.changes,
            budget_s: view.budget_s,
            widths: view.choices.into_iter().map(width).collect(),
            acceptance: bands.map(band).collect(),
            chunks: view.chunks.into_iter().map(chunk).collect(),
        }
    }
}

fn position(belief: &mtplx_core::tune::Belief) -> Position {
    let mtplx_core::tune::Belief { mean, deviation, judged } = *belief;
    Position { acceptance: mean, deviation, judged }
}

fn width(choice: Choice) -> Width {
    let depth = |p: Promise| Depth {
        cost_ratio: p.ratio,
        cost_deviation: p.deviation,
        measured: p.measured,
        tokens: p.tokens,
        speed_ratio: p.speed,
    };
    Width {
        rows: choice.rows,
        context_max: choice.context_max,
        depth: choice.depth,
        chosen: choice.chosen,
        reason: choice.reason.name(),
        cycle_ms: choice.cycle_us.map(|us| us / 1e3),
        depths: choice.promises.into_iter().map(depth).collect(),
        trials: choice.trials,
        switches: choice.switches,
    }
}

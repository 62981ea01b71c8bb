//! Simulated machines and texts for the tuner to prove itself on: tables of costs, texts that
//! change, noise, and an oracle that knows all of it.

use crate::batch::{Report, Tried};
use crate::knobs::Knobs;
use crate::random::{Purpose, gumbel, uniform};
use crate::sample::TEMPERATURES;
use crate::thermal::Ceiling;

use super::{TuneLimits, Tuner};

/// What cycles cost on a machine, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// What it is.
    pub name: &'static str,
    /// Where the figures are from.
    pub source: &'static str,
    /// At these numbers of rows, by depth from 0 to 4.
    pub table: &'static [(usize, [f64; 5])],
}

impl Machine {
    /// Milliseconds of a cycle of so many rows, between the widths of the table on a line.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "rows of one cycle")]
    pub fn cost(&self, rows: usize, depth: usize) -> f64 {
        let at = |&(rows, costs): &(usize, [f64; 5])| (rows as f64, costs[depth]);
        let above = self.table.iter().position(|entry| entry.0 >= rows);
        let above = above.unwrap_or(self.table.len() - 1);
        let (x1, y1) = at(&self.table[above]);
        let (x0, y0) = at(&self.table[above.saturating_sub(1)]);
        if x1 > x0 { y0 + (y1 - y0) * (rows as f64 - x0) / (x1 - x0) } else { y1 }
    }
}

/// One table that was measured, and others around the figures of notes on peers: each of those has
/// but a few of a table's numbers, or tokens a second and an acceptance; what lies between and
/// beyond is made up, so they are synthetic tables of about the right shape and no recordings.
pub const MACHINES: [Machine; 5] = [
    Machine {
        name: "H100, 27B at 4 bits",
        source: "measured: mtplx bench shape, one H100 80GB HBM3, random weights, MLX 0.32.2",
        table: &[
            (1, [9.2, 10.0, 10.6, 12.3, 12.2]),
            (2, [9.3, 10.4, 11.1, 11.9, 13.0]),
            (4, [10.0, 11.3, 12.3, 13.5, 15.9]),
            (8, [10.6, 12.5, 15.6, 17.0, 25.6]),
        ],
    },
    Machine {
        name: "M3 Ultra, 27B at 4 bits",
        source: "oMLX #3695: 33.7 plain, 73.9 with MTP alone; 53.9, 84.1 at 2; 71.0, 85.9 at 3",
        table: &[
            (1, [29.7, 34.0, 38.5, 43.5, 52.0]),
            (2, [37.1, 47.0, 58.0, 70.0, 84.0]),
            (3, [42.3, 60.0, 79.0, 99.0, 121.0]),
            (8, [72.0, 126.0, 182.0, 240.0, 300.0]),
        ],
    },
    Machine {
        name: "mixture of experts, 26B-A4B",
        source: "mlx-vlm #1166: 212 plain and 194 with MTP at 4 streams (0.91)",
        table: &[
            (1, [11.0, 13.6, 16.0, 18.6, 21.4]),
            (2, [13.5, 19.0, 24.2, 29.8, 35.5]),
            (4, [18.9, 30.0, 41.0, 52.0, 63.0]),
            (8, [27.0, 46.0, 65.0, 84.0, 104.0]),
        ],
    },
    Machine {
        name: "tile bands, 27B on a Mac",
        source: "MTPLX #338: 80 tokens/s at 1 and at 2, 166.6 at 8; a step where tiles are full",
        table: &[
            (1, [31.0, 33.0, 35.5, 47.0, 49.0]),
            (2, [34.0, 38.0, 58.0, 62.0, 66.0]),
            (4, [40.0, 64.0, 72.0, 84.0, 118.0]),
            (8, [60.0, 76.0, 118.0, 130.0, 190.0]),
        ],
    },
    Machine {
        name: "2 CPU cores, small model",
        source: "`mtplx-loadtests tuner`, mean ms of a cycle with the embedded model, prose",
        table: &[
            (1, [1.29, 1.62, 1.93, 2.29, 2.67]),
            (2, [1.99, 2.23, 3.22, 3.67, 4.27]),
            (4, [2.01, 3.28, 4.51, 5.83, 6.79]),
            (8, [2.93, 5.45, 7.69, 9.73, 11.44]),
        ],
    },
];

/// Texts by how often their drafts stand, place by place.
pub const PROSE: [f64; 4] = [0.62, 0.5, 0.42, 0.36];
/// Source code.
pub const CODE: [f64; 4] = [0.88, 0.82, 0.76, 0.7];
/// Calls of tools: much of them is markup.
pub const CALLS: [f64; 4] = [0.95, 0.93, 0.91, 0.89];
/// What the head knows nothing of.
pub const STRANGE: [f64; 4] = [0.22, 0.15, 0.1, 0.1];

/// A while of one kind of text.
#[derive(Clone, Copy, Debug)]
pub struct Phase {
    /// Its length.
    pub seconds: f64,
    /// Rows that decode.
    pub rows: usize,
    /// How often drafts stand.
    pub rates: [f64; 4],
    /// All cycles take so many times what the table says, as on a hot machine.
    pub pace: f64,
}

impl Phase {
    /// At the table's pace.
    #[must_use]
    pub fn new(seconds: f64, rows: usize, rates: [f64; 4]) -> Self {
        Self { seconds, rows, rates, pace: 1.0 }
    }
}

/// What became of a second of the simulation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Second {
    /// Its end, from the start.
    pub at: f64,
    /// Tokens that the tuner's depths gave, as expected of them: luck with drafts is left out.
    pub tokens: f64,
    /// Tokens that the best depth would have given in the same time.
    pub oracle: f64,
    /// Tokens without drafts.
    pub plain: f64,
    /// The depth at its end.
    pub depth: u8,
}

/// A tuner on a machine.
#[derive(Debug)]
pub struct Simulation {
    machine: Machine,
    seed: u64,
    cycle: u64,
    target_us: f64,
    /// The tuner.
    pub tuner: Tuner,
    /// Knobs that are under way: decode has begun another cycle before it hears of them.
    next: Knobs,
    time: f64,
}

impl Simulation {
    /// One that knows nothing yet; with an inter-token target, if it is finite.
    #[must_use]
    pub fn new(machine: Machine, seed: u64, target_us: f64) -> Self {
        let start = Knobs::fixed(2, 8, (64, 512));
        let limits = TuneLimits {
            start,
            auto_depth: true,
            depth_max: 4,
            cycle_us_max: target_us,
            auto_chunk: true,
        };
        let tuner = Tuner::new(limits);
        let next = tuner.knobs();
        Self { machine, seed, cycle: 0, target_us, tuner, next, time: 0.0 }
    }

    fn draw(&self, what: u64) -> f64 {
        uniform(self.seed, self.cycle * 64 + what, Purpose::Accept)
    }

    /// A cycle's noise: some per cent around the table, upwards more than down, and milliseconds of
    /// the pauses of a machine that others work on.
    fn noise(&self) -> (f64, f64) {
        let spread = (0.03 * gumbel(self.seed, self.cycle, 0)).clamp(-0.06, 0.3);
        let pause = if self.draw(1) < 0.02 { 3.0 + 7.0 * self.draw(2) } else { 0.0 };
        (1.0 + spread, pause)
    }

    /// Runs one phase; what became of each second.
    pub fn run(&mut self, phase: &Phase) -> Vec<Second> {
        let mut seconds = Vec::new();
        let mut second = Second::default();
        let end = self.time + phase.seconds;
        let best = self.best(phase);
        while self.time < end {
            self.cycle += 1;
            let depth = self.next.depths.at(phase.rows);
            self.next = self.tuner.knobs();
            let (spread, pause) = self.noise();
            let micros = 1e3 * (self.cost(phase, depth) * spread + pause);
            self.time += micros / 1e6;
            self.tuner.hear(&self.report(phase, depth, micros));
            // What another depth would have given in the same time, noise and pauses aside.
            let usual = self.cost(phase, depth);
            let share = |depth: u8| phase_tokens(phase, depth) / self.cost(phase, depth);
            second.tokens += phase_tokens(phase, depth);
            second.oracle += share(best) * usual;
            second.plain += share(0) * usual;
            (second.at, second.depth) = (self.time, depth);
            if self.time >= (seconds.len() + 1) as f64 + (end - phase.seconds) {
                seconds.push(std::mem::take(&mut second));
            }
        }
        seconds
    }

    fn cost(&self, phase: &Phase, depth: u8) -> f64 {
        self.machine.cost(phase.rows, usize::from(depth)) * phase.pace
    }

    /// The depth that an oracle would take.
    #[must_use]
    pub fn best(&self, phase: &Phase) -> u8 {
        let speed = |depth: u8| phase_tokens(phase, depth) / self.cost(phase, depth);
        let fits = |depth: &u8| *depth == 0 || self.cost(phase, *depth) * 1e3 <= self.target_us;
        let all = (0..=4).filter(fits);
        all.max_by(|&a, &b| speed(a).total_cmp(&speed(b))).unwrap_or(0)
    }

    #[expect(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "microseconds")]
    fn report(&self, phase: &Phase, depth: u8, micros: f64) -> Report {
        let mut positions: Vec<Tried> = Vec::new();
        for row in 0..phase.rows {
            for place in 0..usize::from(depth) {
                if positions.len() <= place {
                    positions.push(Tried::default());
                }
                let stands = self.draw(8 + 4 * row as u64 + place as u64) < phase.rates[place];
                positions[place].tried += 1;
                positions[place].accepted += u32::from(stands);
                if !stands {
                    break;
                }
            }
        }
        let mut temperatures = [0; TEMPERATURES];
        temperatures[1] = phase.rows;
        let judged = [Vec::new(), positions.clone(), Vec::new()];
        Report {
            rows: phase.rows,
            depth,
            uniform: true,
            context: 500,
            temperatures,
            positions,
            judged,
            wall_us: micros as u64,
            ..Report::default()
        }
    }

    /// The machine gets hot, or cool again.
    pub fn heat(&mut self, ceiling: Ceiling) {
        self.tuner.set_ceiling(ceiling);
    }
}

/// Tokens of a cycle, of all rows.
#[expect(clippy::cast_precision_loss, reason = "rows of one cycle")]
fn phase_tokens(phase: &Phase, depth: u8) -> f64 {
    let mut stands = 1.0;
    let drafts: f64 = phase.rates[..usize::from(depth)]
        .iter()
        .map(|rate| {
            stands *= rate;
            stands
        })
        .sum();
    phase.rows as f64 * (1.0 + drafts)
}

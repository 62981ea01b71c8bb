//! How often drafts stand, by position and temperature, and how sure that is: discounted counts
//! with a Beta posterior each, and a test for texts that have changed.

use crate::batch::Tried;
use crate::sample::TEMPERATURES;

/// Rows by band of temperature, as shares that make up 1.
pub(super) type Mix = [f64; TEMPERATURES];

/// What a first draft is taken to be worth before any was judged: optimistic, so that depth is
/// tried before it is judged.
const PRIOR: f64 = 0.7;
/// A draft that was never judged stands as often as the one before, times this.
const PRIOR_LATER: f64 = 0.95;
/// Judged drafts that the prior counts for.
const PRIOR_WEIGHT: f64 = 4.0;
/// Judged drafts over which the long run goes, and how many are the least of it. What is not judged
/// for a while is believed to be again what it was in the long run.
const LONG: f64 = 400.0;
const LONG_LEAST: f64 = 24.0;
/// Seconds in which what was judged loses most of its weight, …
const MEMORY_S: f64 = 12.0;
/// … but for the last so many, on machines that judge few a second.
const FEW: f64 = 200.0;
/// The same where nothing is judged any more: soon nothing is known of it.
const MEMORY_UNSEEN_S: f64 = 15.0;
/// Judged drafts that are what was seen of late, …
const LATE: f64 = 32.0;
/// … how many of them are wanted to speak of a change, beside how many of before, …
const LATE_LEAST: f64 = 20.0;
const BEFORE_LEAST: f64 = 60.0;
/// … and by how many standard deviations they differ.
const CHANGE: f64 = 4.0;
/// What counts for the past of a text that has changed, in judged drafts.
const AFTER_CHANGE: f64 = 4.0;

/// Beliefs for every band of temperature.
#[derive(Clone, Debug)]
pub(super) struct Acceptance {
    bands: [Vec<Rate>; TEMPERATURES],
}

/// What is known of one position.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rate {
    pub(super) judged: f64,
    pub(super) stood: f64,
    late_judged: f64,
    late_stood: f64,
    /// How often it stood in the long run, if it was judged for long.
    long: Option<f64>,
}

impl Rate {
    /// As it was written down.
    pub(super) fn of(judged: f64, stood: f64) -> Self {
        Self { judged, stood, ..Self::default() }
    }

    fn scale(&mut self, most: f64) {
        let share = (most / self.judged).min(1.0);
        if share.is_finite() {
            (self.judged, self.stood) = (self.judged * share, self.stood * share);
        }
    }

    fn hear(&mut self, tried: Tried, seconds: f64) {
        let fade = (-seconds / MEMORY_S).exp();
        self.scale((self.judged * fade).max(FEW));
        let (judged, stood) = (f64::from(tried.tried), f64::from(tried.accepted));
        self.judged += judged;
        self.stood += stood;
        let mean = self.stood / self.judged;
        match &mut self.long {
            Some(long) => *long += (judged / LONG).min(1.0) * (mean - *long),
            None if self.judged >= LONG_LEAST => self.long = Some(mean),
            None => {}
        }
        let keep = (LATE / (self.late_judged + judged)).min(1.0);
        self.late_judged = self.late_judged * keep + judged;
        self.late_stood = self.late_stood * keep + stood;
    }

    /// Whether what was seen of late is not what was seen before.
    fn has_changed(&self) -> bool {
        let (late, before) = (self.late_judged, self.judged - self.late_judged);
        if late < LATE_LEAST || before < BEFORE_LEAST {
            return false;
        }
        let stood = (self.stood - self.late_stood).clamp(0.0, before);
        let all = (stood + self.late_stood + 1.0) / (before + late + 2.0);
        let deviation = (all * (1.0 - all) * (1.0 / late + 1.0 / before)).sqrt();
        (self.late_stood / late - stood / before).abs() > CHANGE * deviation
    }
}

impl Acceptance {
    pub(super) fn new(depth_max: u8) -> Self {
        let unknown = vec![Rate::default(); usize::from(depth_max)];
        Self { bands: std::array::from_fn(|_| unknown.clone()) }
    }

    pub(super) fn bands(&self) -> &[Vec<Rate>; TEMPERATURES] {
        &self.bands
    }

    pub(super) fn bands_mut(&mut self) -> &mut [Vec<Rate>; TEMPERATURES] {
        &mut self.bands
    }

    /// Learns from a cycle that took so many seconds, and counts for so many where nothing was
    /// judged; true if the text is another one now.
    pub(super) fn hear(
        &mut self,
        judged: &[Vec<Tried>; TEMPERATURES],
        seconds: f64,
        counted: f64,
    ) -> bool {
        let mut changed = false;
        let unseen = (-counted / MEMORY_UNSEEN_S).exp();
        for (band, judged) in self.bands.iter_mut().zip(judged) {
            let mut tell = None;
            for (i, rate) in band.iter_mut().enumerate() {
                match judged.get(i).filter(|tried| tried.tried > 0) {
                    Some(tried) => rate.hear(*tried, seconds),
                    None => rate.scale(rate.judged.min(FEW) * unseen),
                }
                if tell.is_none() && rate.has_changed() {
                    tell = Some(i);
                }
            }
            let Some(from) = tell else { continue };
            changed = true;
            for (i, rate) in band.iter_mut().enumerate() {
                if i == from {
                    *rate = Rate::of(rate.late_judged, rate.late_stood);
                } else {
                    rate.scale(AFTER_CHANGE);
                    *rate = Rate::of(rate.judged, rate.stood);
                }
            }
        }
        changed
    }

    /// How often each position is believed to stand, and how far that may be off.
    pub(super) fn believed(&self, band: usize) -> Vec<(f64, f64)> {
        let mut prior = PRIOR;
        let one = |rate: &Rate| {
            let weight = rate.judged + PRIOR_WEIGHT;
            let mean = (rate.stood + PRIOR_WEIGHT * rate.long.unwrap_or(prior)) / weight;
            prior = mean * PRIOR_LATER;
            (mean, (mean * (1.0 - mean) / (weight + 1.0)).sqrt())
        };
        self.bands[band].iter().map(one).collect()
    }

    /// Tokens of a cycle by depth, as believed, and by how much each may be off beside those of
    /// `sure` drafts: one standard deviation.
    pub(super) fn tokens(&self, mix: &Mix, sure: u8) -> Vec<(f64, f64)> {
        let depths = self.bands[0].len() + 1;
        let mut tokens = vec![(1.0, 0.0); depths];
        for (band, &share) in mix.iter().enumerate().filter(|(_, share)| **share > 0.0) {
            let believed = self.believed(band);
            let mut stands = 1.0;
            let standing: Vec<f64> = believed
                .iter()
                .map(|(mean, _)| {
                    stands *= mean;
                    stands
                })
                .collect();
            for (depth, (sum, variance)) in tokens.iter_mut().enumerate() {
                *sum += share * standing[..depth].iter().sum::<f64>();
                let (from, to) = (depth.min(usize::from(sure)), depth.max(usize::from(sure)));
                for (i, (mean, deviation)) in believed.iter().enumerate().take(to).skip(from) {
                    // What a draft that stands more often adds itself and by those behind it.
                    let slope = standing[i..to].iter().sum::<f64>() / mean.max(1e-3);
                    *variance += (share * slope * deviation).powi(2);
                }
            }
        }
        tokens.iter_mut().for_each(|(_, variance)| *variance = variance.sqrt());
        tokens
    }
}

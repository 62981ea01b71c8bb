//! Percentiles of durations, by nearest rank: a figure that was really seen.

use std::time::Duration;

use serde_json::{Value, json};

use crate::prompts::Random;

/// Durations in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Spread(Vec<Duration>);

impl FromIterator<Duration> for Spread {
    fn from_iter<I: IntoIterator<Item = Duration>>(durations: I) -> Self {
        let mut sorted: Vec<Duration> = durations.into_iter().collect();
        sorted.sort_unstable();
        Self(sorted)
    }
}

impl Spread {
    /// Nearest rank; zero if there is nothing.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).copied().unwrap_or_default()
    }

    pub(crate) fn median(&self) -> Duration {
        self.percentile(50)
    }

    pub(crate) fn max(&self) -> Duration {
        self.percentile(100)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// How many are longer than `bound`.
    pub(crate) fn above(&self, bound: Duration) -> usize {
        self.0.len() - self.0.partition_point(|&one| one <= bound)
    }

    /// What a reader of JSON wants to know of it.
    pub(crate) fn json(&self) -> Value {
        json!({
            "count": self.len(),
            "p50_ms": ms(self.median()),
            "p95_ms": ms(self.percentile(95)),
            "p99_ms": ms(self.percentile(99)),
            "max_ms": ms(self.max()),
        })
    }
}

/// The middle of some figures, the upper one of two; not a number if there are none.
pub(crate) fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = figures.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Samples drawn for an interval.
const SAMPLES: usize = 2000;

/// Where the median lies, 95 times of 100: the bootstrap's percentiles, from a fixed seed.
pub(crate) fn median_interval(figures: &[f64]) -> (f64, f64) {
    let mut random = Random::new(1, 1);
    let mut sample = || median(figures.iter().map(|_| random.pick(figures)));
    let mut medians: Vec<f64> = (0..SAMPLES).map(|_| sample()).collect();
    medians.sort_by(f64::total_cmp);
    (medians[SAMPLES / 40], medians[SAMPLES - 1 - SAMPLES / 40])
}

pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(millis: &[u64]) -> Spread {
        millis.iter().copied().map(Duration::from_millis).collect()
    }

    #[test]
    fn a_percentile_is_a_figure_that_was_seen() {
        let twenty = spread(&(1..=20).rev().collect::<Vec<_>>());
        let at = |p| twenty.percentile(p).as_millis();
        assert_eq!(
            (at(0), at(5), at(6), at(50), at(95), at(99), at(100)),
            (1, 1, 2, 10, 19, 20, 20)
        );
        assert_eq!(spread(&[7]).percentile(95).as_millis(), 7);
        assert_eq!(twenty.above(Duration::from_millis(18)), 2);
    }

    #[test]
    fn nothing_has_a_median_of_zero_and_no_length() {
        assert_eq!((Spread::default().median(), Spread::default().len()), (Duration::ZERO, 0));
        assert!(median([]).is_nan());
    }

    #[test]
    fn an_interval_of_a_median_narrows_with_figures_and_holds_it() {
        let noisy = |n: u32| -> Vec<f64> { (0..n).map(|i| f64::from(i * 7 % 13)).collect() };
        let (few, many) = (median_interval(&noisy(5)), median_interval(&noisy(130)));
        assert!(many.1 - many.0 < few.1 - few.0 && many.0 <= 6.0 && 6.0 <= many.1, "{many:?}");
        assert!(median_interval(&[]).0.is_nan());
    }

    #[test]
    fn a_median_ignores_the_order() {
        assert!((median([3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
    }
}

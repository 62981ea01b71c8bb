//! Durations by the thousand, as a histogram of three digits.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Longest duration that is told apart from longer ones: an hour.
const LONGEST_US: u64 = 3_600_000_000;

/// Durations.
#[derive(Clone, Debug)]
pub(super) struct Times(Histogram<u64>);

impl Times {
    pub(super) fn new() -> Self {
        Self(Histogram::new_with_bounds(1, LONGEST_US, 3).expect("these bounds are sound"))
    }

    pub(super) fn record(&mut self, duration: Duration) {
        self.0.saturating_record(u64::try_from(duration.as_micros()).unwrap_or(LONGEST_US));
    }

    pub(super) fn len(&self) -> u64 {
        self.0.len()
    }

    /// In milliseconds; zero if there is nothing.
    pub(super) fn quantile(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }

    /// What a reader of JSON wants to know of it.
    pub(super) fn json(&self) -> Value {
        json!({
            "count": self.len(),
            "p50_ms": self.quantile(0.5),
            "p95_ms": self.quantile(0.95),
            "p99_ms": self.quantile(0.99),
            "max_ms": self.quantile(1.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_to_three_digits_and_nothing_is_too_long() {
        let mut times = Times::new();
        assert!((times.quantile(0.5), times.len()) == (0.0, 0));
        (1..=1000).for_each(|ms| times.record(Duration::from_millis(ms)));
        let near = |quantile, ms: f64| (times.quantile(quantile) / ms - 1.0).abs() < 0.001;
        assert!(near(0.5, 500.0) && near(0.95, 950.0) && near(1.0, 1000.0));
        times.record(Duration::from_secs(86_400));
        assert!(times.quantile(1.0) >= 3_600_000.0);
    }
}

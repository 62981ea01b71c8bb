//! Ratios of paired rounds, and how sure their mean is.

use mtplx_core::random::{Purpose, bits};
use schemars::JsonSchema;
use serde::Serialize;

/// Samples drawn of the rounds.
const SAMPLES: u64 = 2000;

/// A speed-up and the interval in which it lies, 95 times of 100.
#[derive(Clone, Copy, Debug, JsonSchema, PartialEq, Serialize)]
pub struct SpeedUp {
    /// Geometric mean over rounds.
    pub mean: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl SpeedUp {
    /// The bootstrap's percentile interval of paired ratios, from a seed. `None` without rounds.
    #[must_use]
    pub fn of(ratios: &[f64], seed: u64) -> Option<Self> {
        if ratios.is_empty() || ratios.iter().any(|ratio| !ratio.is_finite() || *ratio <= 0.0) {
            return None;
        }
        let logs: Vec<f64> = ratios.iter().map(|ratio| ratio.ln()).collect();
        let n = logs.len() as u64;
        let mut means: Vec<f64> = (0..SAMPLES)
            .map(|sample| {
                let pick = |i| (bits(seed, sample * n + i, Purpose::Draw) % n) as usize;
                (0..n).map(|i| logs[pick(i)]).sum::<f64>() / n as f64
            })
            .collect();
        means.sort_by(f64::total_cmp);
        let at = |share: f64| means[((means.len() - 1) as f64 * share).round() as usize].exp();
        let mean = (logs.iter().sum::<f64>() / n as f64).exp();
        Some(Self { mean, low: at(0.025), high: at(0.975) })
    }

    /// Whether it is one beyond doubt.
    #[must_use]
    pub fn is_sure(&self) -> bool {
        self.low > 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_holds_the_mean_and_narrows_with_rounds() {
        let noisy = |n: u32| -> Vec<f64> {
            (0..n).map(|i| 1.2 + 0.2 * (f64::from(i * 7919 % 13) / 12.0 - 0.5)).collect()
        };
        let few = SpeedUp::of(&noisy(6), 1).unwrap();
        let many = SpeedUp::of(&noisy(60), 1).unwrap();
        assert!(few.low < few.mean && few.mean < few.high && few.is_sure());
        assert!(many.high - many.low < few.high - few.low);
        assert_eq!(SpeedUp::of(&noisy(6), 1), Some(few), "a seed gives the same again");
    }

    #[test]
    fn what_may_be_slower_is_not_sure() {
        assert!(!SpeedUp::of(&[0.9, 1.1, 1.0, 1.05, 0.97], 1).unwrap().is_sure());
        assert!(!SpeedUp::of(&[1.0; 5], 1).unwrap().is_sure());
        assert_eq!(SpeedUp::of(&[], 1), None);
        assert_eq!(SpeedUp::of(&[1.0, f64::NAN], 1), None);
    }
}

//! The server's memory over time, and whether it drifts.

use crate::statistics::median;

/// Looks within this part of the time after the warm-up, at its start and at its end, are compared.
const PART: f64 = 0.1;

/// Memory of the server's process, by seconds since the start.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory(Vec<(f64, u64)>);

impl Memory {
    pub(super) fn look(&mut self, at_s: f64, bytes: Option<u64>) {
        self.0.extend(bytes.map(|bytes| (at_s, bytes)));
    }

    /// In MiB, for plots.
    pub(super) fn mib(&self) -> Vec<(f64, f64)> {
        self.0.iter().map(|&(at, bytes)| (at, bytes as f64 / f64::from(1 << 20))).collect()
    }

    /// From the first tenth of this time to its last, in medians, as a share; none without looks.
    pub(super) fn drift(&self, from_s: f64, until_s: f64) -> Option<f64> {
        let part = (until_s - from_s) * PART;
        let within = |from: f64, until: f64| {
            let looks = self.0.iter().filter(|(at, _)| (from..=until).contains(at));
            median(looks.map(|&(_, bytes)| bytes as f64))
        };
        let drift = within(until_s - part, until_s) / within(from_s, from_s + part) - 1.0;
        drift.is_finite().then_some(drift)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_leaves_the_warm_up_out_and_a_peak_does_not_make_it() {
        let mut memory = Memory::default();
        assert_eq!(memory.drift(0.0, 100.0), None);
        for second in 0..=100 {
            let bytes = match second {
                0..20 => 100,
                20..60 => 1000,
                60 => 5000,
                _ => 1010,
            };
            memory.look(f64::from(second), Some(bytes));
        }
        let drift = memory.drift(20.0, 100.0).unwrap();
        assert!((drift - 0.01).abs() < 1e-9, "{drift}");
    }
}

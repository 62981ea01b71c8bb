//! Settings of the root, and the product of all settings it hands out.

use serde::{Deserialize, Serialize};

use crate::{bank, decode, thermal, tuner};

/// When to try again and when to give up.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Failures within `window_s` at which the root gives up; 1 is the first.
    pub failures_max: usize,
    /// Seconds for which a failure is remembered.
    pub window_s: f64,
    /// Seconds before a new attempt; doubled with each failure remembered.
    pub backoff_s: f64,
    /// Most seconds before a new attempt.
    pub backoff_max_s: f64,
    /// Seconds that running requests are given to finish at the end.
    pub drain_s: f64,
    /// Seconds after which a decode that does not answer is taken for stuck; longer than any cycle.
    pub stuck_s: f64,
    /// Seconds that a device's thread is given to end.
    pub bury_s: f64,
}

/// Settings of every part.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Configs {
    /// When to try again and when to give up.
    pub root: Config,
    /// Bounds of the scheduler.
    pub decode: decode::Config,
    /// Bounds of the bank.
    pub bank: bank::Config,
    /// Where the knobs start.
    pub tuner: tuner::Config,
    /// What is hot.
    pub thermal: thermal::Config,
}

impl Configs {
    /// Proves what each number and their relations must be.
    ///
    /// # Errors
    /// What is wrong, in words that name the setting.
    pub fn check(&self) -> Result<(), String> {
        let Self { root, decode, bank, tuner, thermal } = self;
        let times = [
            ("root.window_s", root.window_s),
            ("root.backoff_s", root.backoff_s),
            ("root.backoff_max_s", root.backoff_max_s),
            ("root.drain_s", root.drain_s),
            ("root.stuck_s", root.stuck_s),
            ("root.bury_s", root.bury_s),
            ("thermal.sample_s", thermal.sample_s),
            ("thermal.timeout_s", thermal.timeout_s),
        ];
        for (name, seconds) in times {
            // A year: far beyond use, far below where durations overflow.
            if !(0.0..=31_536_000.0).contains(&seconds) {
                return Err(format!("{name} must be a number of seconds, got {seconds}"));
            }
        }
        thermal.check()?;
        let rules = [
            (root.stuck_s > 0.0, "root.stuck_s must be above 0"),
            (decode.chunk_grain_tokens > 0, "decode.chunk_grain_tokens must be at least 1"),
            (
                // One more, or a full bank leaves no finished state a place to be evicted for.
                (bank.entries_max as usize) < decode.snapshots_max,
                "decode.snapshots_max must be above bank.entries_max",
            ),
            ((0.0..=1.0).contains(&bank.roots_share), "bank.roots_share must be between 0 and 1"),
            (
                (0.0..=1e6).contains(&tuner.itl_ms),
                "tuner.itl_ms must be a number of milliseconds from 0, which is none",
            ),
            (tuner.rows_max > 0, "tuner.rows_max must be at least 1"),
            (
                tuner.prefill_stretch > 1.0 && tuner.prefill_stretch.is_finite(),
                "tuner.prefill_stretch must be a number above 1",
            ),
        ];
        let broken = rules.into_iter().find(|(holds, _)| !holds);
        broken.map_or(Ok(()), |(_, rule)| Err(rule.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use crate::root::tests::configs;

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        let mut wrong = configs();
        wrong.bank.entries_max = 100;
        assert!(wrong.check().unwrap_err().contains("snapshots_max"));
        let mut wrong = configs();
        wrong.root.backoff_s = f64::NAN;
        assert!(wrong.check().unwrap_err().contains("root.backoff_s"));
    }
}

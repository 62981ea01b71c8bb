//! How often failure is borne: fewer than so many within a window, each after a longer pause.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::Config;

#[derive(Debug)]
pub(super) struct Patience {
    config: Config,
    failures: VecDeque<Instant>,
}

impl Patience {
    pub(super) fn new(config: Config) -> Self {
        Self { config, failures: VecDeque::new() }
    }

    /// From now on so many are borne; what failed before is not forgotten.
    pub(super) fn configure(&mut self, config: Config) {
        self.config = config;
    }

    /// Notes a failure. How long to wait before the next attempt; `None` to make none.
    pub(super) fn fail(&mut self, now: Instant) -> Option<Duration> {
        let window = Duration::from_secs_f64(self.config.window_s);
        self.failures.retain(|&at| now.duration_since(at) <= window);
        self.failures.push_back(now);
        if self.failures.len() >= self.config.failures_max {
            return None;
        }
        let doublings = i32::try_from(self.failures.len() - 1).unwrap_or(i32::MAX);
        let pause = self.config.backoff_s * 2_f64.powi(doublings);
        Some(Duration::from_secs_f64(pause.min(self.config.backoff_max_s)))
    }

    /// Failures remembered.
    pub(super) fn failures(&self) -> usize {
        self.failures.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patience() -> Patience {
        Patience::new(Config {
            failures_max: 4,
            window_s: 60.0,
            backoff_s: 1.0,
            backoff_max_s: 3.0,
            drain_s: 1.0,
            stuck_s: 1.0,
            bury_s: 1.0,
        })
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_then_it_is_enough() {
        let (mut patience, now) = (patience(), Instant::now());
        let pauses: Vec<_> = (0..4).map(|_| patience.fail(now).map(|p| p.as_secs())).collect();
        assert_eq!(pauses, [Some(1), Some(2), Some(3), None]);
    }

    #[test]
    fn old_failures_are_forgotten() {
        let (mut patience, now) = (patience(), Instant::now());
        for minutes in 0..20 {
            let pause = patience.fail(now + Duration::from_secs(minutes * 61));
            assert_eq!(pause, Some(Duration::from_secs(1)));
        }
        assert_eq!(patience.failures(), 1);
    }
}

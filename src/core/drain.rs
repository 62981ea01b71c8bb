//! How fast requests leave the house, and so when another attempt is sensible.

use std::collections::VecDeque;

/// Ends that are remembered.
const ENDS: usize = 64;
/// Ends before which there is no rate worth the name.
const ENDS_MIN: usize = 4;
/// Seconds to say while nothing is known.
const UNKNOWN_S: u32 = 5;
/// Longest time to send anybody away for.
const RETRY_MAX_S: u32 = 120;

/// The last ends, in seconds of a clock that never goes back.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    ends: VecDeque<f64>,
}

impl Drain {
    /// A request has left.
    pub fn ended(&mut self, now_s: f64) {
        if self.ends.len() == ENDS {
            self.ends.pop_front();
        }
        self.ends.push_back(now_s);
    }

    /// Nobody is left: what comes next says nothing of how fast they went.
    pub fn rest(&mut self) {
        self.ends.clear();
    }

    /// Seconds until `ahead` more requests have left, if they go on leaving as of late: at least 1,
    /// at most [`RETRY_MAX_S`]. The longer none has left, the slower the rate.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "requests")]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    pub fn retry_after_s(&self, ahead: usize, now_s: f64) -> u32 {
        let Some(&first) = self.ends.front().filter(|_| self.ends.len() >= ENDS_MIN) else {
            return UNKNOWN_S;
        };
        let each = (now_s - first).max(0.0) / (self.ends.len() - 1) as f64;
        (ahead.max(1) as f64 * each).ceil().clamp(1.0, f64::from(RETRY_MAX_S)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drained(every_s: f64, ends: usize) -> (Drain, f64) {
        let mut drain = Drain::default();
        (0..ends).for_each(|i| drain.ended(i as f64 * every_s));
        (drain, (ends - 1) as f64 * every_s)
    }

    #[test]
    fn the_time_to_wait_follows_the_rate_and_what_is_ahead() {
        for ends in [4, 40, 400] {
            let (drain, now) = drained(0.5, ends);
            assert_eq!(drain.retry_after_s(1, now), 1);
            assert_eq!(drain.retry_after_s(20, now), 10);
            assert_eq!(drain.retry_after_s(10_000, now), RETRY_MAX_S);
        }
    }

    #[test]
    fn when_nobody_leaves_any_more_the_time_grows() {
        let (drain, now) = drained(1.0, 11);
        assert_eq!(drain.retry_after_s(4, now), 4);
        assert_eq!(drain.retry_after_s(4, now + 90.0), 40);
        assert_eq!(drain.retry_after_s(4, now + 1e9), RETRY_MAX_S);
    }

    #[test]
    fn an_empty_house_is_not_a_slow_one() {
        let (mut drain, now) = drained(1.0, 40);
        drain.rest();
        assert_eq!(drain.retry_after_s(1, now + 3600.0), UNKNOWN_S);
    }

    #[test]
    fn without_a_measure_something_sensible_is_said() {
        assert_eq!(Drain::default().retry_after_s(100, 0.0), UNKNOWN_S);
    }
}

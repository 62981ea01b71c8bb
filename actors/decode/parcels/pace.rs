//! How many bytes to carry between two cycles: as many as a quarter of a cycle takes to copy, so
//! that whoever reads along sees gaps a quarter longer at most, and a large state comes as fast as
//! that allows, whatever machine it is. A fixed count would be a pause on one and a trickle on
//! another, where a state is waited for longer than computing it would take.

use std::time::Duration;

/// Of a cycle's time, one in so many parts is for carrying.
const SHARE: u32 = 4;
/// The same while nothing runs: whoever comes meanwhile waits for so long at most.
const IDLE: Duration = Duration::from_millis(5);
/// What is assumed before anything was carried, in bytes a second: less than any machine that runs
/// such a model copies.
const FIRST: f64 = (1 << 30) as f64;
/// A stretch is never less: below it the calls cost more than the bytes.
const LEAST: usize = 64 << 10;
/// And never more, whatever was measured.
const MOST: usize = 256 << 20;
/// A rate rises so many times at once at most: a short stretch says little about a long one.
const RISE: f64 = 2.0;
/// And falls to such a part at most: machines pause, and caches grow now and then.
const FALL: f64 = 0.25;
/// What was measured counts for so much less with every step.
const FADE: f64 = 0.9;

/// A measured rate, which follows what is new.
#[derive(Clone, Copy, Debug)]
struct Rate(f64);

impl Rate {
    #[expect(clippy::cast_precision_loss, reason = "bytes of a stretch")]
    fn learn(&mut self, bytes: usize, took: Duration) {
        let found = bytes as f64 / took.as_secs_f64().max(1e-9);
        self.0 = found.clamp(self.0 * FALL, self.0 * RISE);
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "is bounded next")]
    fn within(self, time: Duration) -> usize {
        ((self.0 * time.as_secs_f64()) as usize).clamp(LEAST, MOST)
    }
}

/// Which way a state goes: copying out of a device and into it take different times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    In,
    Out,
}

/// What was measured of late.
#[derive(Clone, Copy, Debug)]
pub(in crate::decode) struct Pace {
    ways: [Rate; 2],
    /// What the last cycle took.
    cycle: Duration,
    /// Prompt tokens fed of late, and the seconds of their steps.
    fed: (f64, f64),
}

impl Default for Pace {
    fn default() -> Self {
        Self { ways: [Rate(FIRST); 2], cycle: IDLE, fed: (0.0, 0.0) }
    }
}

impl Pace {
    /// A cycle took so long and fed so many prompt tokens.
    #[expect(clippy::cast_precision_loss, reason = "tokens of one step")]
    pub(in crate::decode) fn cycled(&mut self, took: Duration, fed: usize) {
        self.cycle = took;
        if fed > 0 {
            let (tokens, seconds) = self.fed;
            self.fed = (FADE * tokens + fed as f64, FADE * seconds + took.as_secs_f64());
        }
    }

    /// Prompt tokens that are computed in a second, as of late; `None` before the first.
    pub(in crate::decode) fn tokens_per_s(&self) -> Option<f64> {
        let (tokens, seconds) = self.fed;
        (seconds > 0.0).then(|| tokens / seconds)
    }

    /// Bytes to carry now.
    pub(super) fn stretch(&self, way: Way, idle: bool) -> usize {
        let time = if idle { IDLE } else { self.cycle / SHARE };
        self.ways[way as usize].within(time)
    }

    /// So many bytes were carried.
    pub(super) fn carried(&mut self, way: Way, bytes: usize, took: Duration) {
        if bytes > 0 {
            self.ways[way as usize].learn(bytes, took);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Carries on a machine that copies so many bytes a second; what a stretch takes at last.
    fn settled(bytes_per_s: f64, cycle: Duration) -> Duration {
        let mut pace = Pace::default();
        let took = |bytes: usize| Duration::from_secs_f64(bytes as f64 / bytes_per_s);
        for _ in 0..30 {
            pace.cycled(cycle, 0);
            let bytes = pace.stretch(Way::In, false);
            pace.carried(Way::In, bytes, took(bytes));
        }
        took(pace.stretch(Way::In, false))
    }

    #[test]
    fn a_stretch_takes_a_quarter_of_a_cycle_on_any_machine() {
        for bytes_per_s in [3e7, 3e8, 2e9, 4e10] {
            for ms in [10, 40, 100] {
                let (cycle, took) =
                    (Duration::from_millis(ms), settled(bytes_per_s, Duration::from_millis(ms)));
                let least = took.as_secs_f64() * bytes_per_s <= 1.01 * LEAST as f64;
                let most = took.as_secs_f64() * bytes_per_s >= 0.99 * MOST as f64;
                let quarter = took.as_secs_f64() / (cycle / SHARE).as_secs_f64();
                assert!(least || most || (0.99..1.01).contains(&quarter), "{quarter}");
                assert!(!most || quarter < 1.0, "the upper bound only makes it shorter");
            }
        }
    }

    #[test]
    fn what_a_prompt_token_takes_is_told_by_the_steps_that_fed_some() {
        let mut pace = Pace::default();
        pace.cycled(Duration::from_secs(9), 0);
        assert_eq!(pace.tokens_per_s(), None);
        (0..40).for_each(|_| pace.cycled(Duration::from_millis(100), 50));
        assert!((pace.tokens_per_s().unwrap() - 500.0).abs() < 1e-6);
    }

    #[test]
    fn a_quick_stretch_does_not_make_the_next_one_long() {
        let mut pace = Pace::default();
        pace.cycled(Duration::from_millis(8), 0);
        let before = pace.stretch(Way::Out, false);
        pace.carried(Way::Out, before, Duration::from_nanos(1));
        assert!(pace.stretch(Way::Out, false) <= 2 * before + 1);
        // A slow one makes it short at once, and says nothing of the other way.
        pace.carried(Way::Out, before, Duration::from_secs(1));
        assert!(pace.stretch(Way::Out, false) <= before / 2 + 1);
        assert_eq!(pace.stretch(Way::In, false), before);
    }
}

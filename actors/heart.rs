//! The engine's heartbeat: when its thread was last seen at work.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// One generation's heart, held by decode, which beats it, and by whoever wants to know.
#[derive(Clone, Debug)]
pub struct Heart {
    born: Instant,
    /// Milliseconds from there to the last beat.
    last: Arc<AtomicU64>,
}

impl Default for Heart {
    fn default() -> Self {
        Self { born: Instant::now(), last: Arc::default() }
    }
}

impl Heart {
    /// It lives now.
    pub fn beat(&self) {
        let now = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// Time since the last beat. An idle engine beats whenever the root asks it how it goes, once a
    /// second; a busy one with every cycle.
    #[must_use]
    pub fn age(&self) -> Duration {
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        self.born.elapsed().saturating_sub(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beat_is_heard_by_all_who_hold_the_heart() {
        let heart = Heart::default();
        let other = heart.clone();
        std::thread::sleep(Duration::from_millis(30));
        assert!(other.age() >= Duration::from_millis(30));
        heart.beat();
        assert!(other.age() < Duration::from_millis(30));
    }
}

//! How much a client may use: tokens by the minute and by the day, requests at once. Beyond the
//! soft bound its requests step back; beyond the hard one they are refused, with the time after
//! which another attempt is sensible.
//!
//! Use is paid for afterwards, as nobody knows before how long a reply will be: whoever is below
//! the bound may begin, and what has begun may go beyond it. What was used drains evenly over the
//! window (a leaky bucket), so that after a pause up to twice the bound may pass in one. Time comes
//! from outside, as seconds of a clock that never goes back.

use crate::fairness::Class;

/// Bounds of one kind; `None` is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Tokens, prompt tokens that were not warm and generated ones, that may stand in the bucket
    /// of a minute.
    pub minute_tokens: Option<u64>,
    /// The same of a day.
    pub day_tokens: Option<u64>,
    /// Requests at once, waiting ones included.
    pub requests: Option<u32>,
}

/// What a client may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Beyond these its requests are served when nobody else wants to be.
    pub soft: Bounds,
    /// Beyond these they are refused.
    pub hard: Bounds,
}

/// Why a request is refused, and for how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Exceeded {
    /// So many tokens in a minute are all.
    Minute {
        /// The bound.
        tokens: u64,
        /// Seconds until it is met again.
        retry_after_s: f64,
    },
    /// So many tokens in a day are all.
    Day {
        /// The bound.
        tokens: u64,
        /// Seconds until it is met again.
        retry_after_s: f64,
    },
    /// So many requests at once are all: when one ends, another may come.
    Requests {
        /// The bound.
        requests: u32,
    },
    /// The client holds so many of the places that there are, and the rest is for others.
    Places {
        /// Places it holds.
        held: usize,
    },
}

/// Whether a client that holds `held` places may take `more` of the `free` ones: it may hold no
/// more than it leaves, which is half of all where it is alone, and less the more there are like
/// it (the dynamic thresholds of Choudhury and Hahne). Who holds none may have all it finds.
#[must_use]
pub fn may_take(held: usize, more: usize, free: usize) -> bool {
    let left = free.checked_sub(more);
    left.is_some_and(|left| held == 0 || held + more <= left)
}

/// What a client has used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meter {
    soft: Used,
    hard: Used,
    requests: u32,
}

/// Use against bounds of one kind.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    minute: Level,
    day: Level,
}

const MINUTE_S: f64 = 60.0;
const DAY_S: f64 = 86_400.0;

/// Tokens used of late: those of a window drain evenly over the window that follows, so that no
/// stroke of a clock gives everything back at once.
#[derive(Clone, Copy, Debug, Default)]
struct Level {
    tokens: f64,
    /// When it was so.
    at_s: f64,
}

impl Level {
    fn after(self, now_s: f64, bound: u64, window_s: f64) -> f64 {
        let drained = bound as f64 * (now_s - self.at_s).max(0.0) / window_s;
        (self.tokens - drained).max(0.0)
    }

    /// Seconds until it is below the bound.
    fn over(self, now_s: f64, bound: Option<u64>, window_s: f64) -> Option<(u64, f64)> {
        let bound = bound?;
        if bound == 0 {
            return Some((0, window_s));
        }
        let excess = self.after(now_s, bound, window_s) - bound as f64;
        (excess >= 0.0).then(|| (bound, ((excess + 1.0) * window_s / bound as f64).max(1.0)))
    }

    fn add(&mut self, tokens: u64, now_s: f64, bound: Option<u64>, window_s: f64) {
        let Some(bound) = bound else { return };
        self.tokens = self.after(now_s, bound, window_s) + tokens as f64;
        self.at_s = now_s.max(self.at_s);
    }
}

impl Used {
    fn add(&mut self, bounds: &Bounds, tokens: u64, now_s: f64) {
        self.minute.add(tokens, now_s, bounds.minute_tokens, MINUTE_S);
        self.day.add(tokens, now_s, bounds.day_tokens, DAY_S);
    }

    fn exceeded(&self, bounds: &Bounds, requests: u32, now_s: f64) -> Option<Exceeded> {
        let day = self.day.over(now_s, bounds.day_tokens, DAY_S);
        let minute = self.minute.over(now_s, bounds.minute_tokens, MINUTE_S);
        let full = bounds.requests.filter(|&most| requests >= most);
        day.map(|(tokens, retry_after_s)| Exceeded::Day { tokens, retry_after_s })
            .or(minute.map(|(tokens, retry_after_s)| Exceeded::Minute { tokens, retry_after_s }))
            .or(full.map(|requests| Exceeded::Requests { requests }))
    }
}

impl Meter {
    /// A request wants to begin: the class it gets if `class` is what it asks for, or why not.
    ///
    /// # Errors
    /// [`Exceeded`], the hard bound that is longest in the way.
    pub fn begin(&mut self, quota: &Quota, class: Class, now_s: f64) -> Result<Class, Exceeded> {
        self.look(quota, now_s)?;
        let behind = self.soft.exceeded(&quota.soft, self.requests, now_s).is_some();
        self.requests += 1;
        Ok(if behind { Class::Background } else { class })
    }

    /// Whether a request would be refused now.
    ///
    /// # Errors
    /// As [`Meter::begin`].
    pub fn look(&self, quota: &Quota, now_s: f64) -> Result<(), Exceeded> {
        self.hard.exceeded(&quota.hard, self.requests, now_s).map_or(Ok(()), Err)
    }

    /// A request that began has ended.
    pub fn end(&mut self) {
        self.requests = self.requests.saturating_sub(1);
    }

    /// Tokens were used.
    pub fn add(&mut self, quota: &Quota, tokens: u64, now_s: f64) {
        self.soft.add(&quota.soft, tokens, now_s);
        self.hard.add(&quota.hard, tokens, now_s);
    }

    /// Requests that began and have not ended.
    #[must_use]
    pub fn requests(&self) -> u32 {
        self.requests
    }
}

#[cfg(test)]
mod tests;

//! Threads of rayon's pool that help the caller of a kernel.
//!
//! A kernel takes some ten microseconds, and waking a thread takes longer than that. So helpers
//! stay awake for a moment after their work, as in a forward pass one kernel follows the other.
//! They find work on a board. The caller works as well, and when nothing is left to begin it
//! closes the gate: helpers who come late are turned away, and it waits only for those inside.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long a helper without work stays awake.
const LINGER: Duration = Duration::from_micros(200);
/// Looks at the board between two looks at the clock.
const LOOKS: usize = 64;
/// Looks at the helpers inside before the caller goes to sleep: some ten microseconds.
const SPINS: usize = 300;

/// Whether a helper is likely to come at once.
pub(super) fn are_awake() -> bool {
    BOARD.idle.load(Ordering::Relaxed) > 0
}

/// Runs `work` here and, if they come in time, on up to `helpers` threads of the pool; those
/// asleep are woken only if `wake` is set.
pub(super) fn work_with(helpers: usize, wake: bool, work: &(dyn Fn() + Sync)) {
    // SAFETY: only the lifetime changes. The guard outlives every use of `work` by helpers.
    let work: &'static (dyn Fn() + Sync) = unsafe { std::mem::transmute(work) };
    let gate = Arc::new(Gate::new());
    let guard = Guard(&gate);
    BOARD.post(helpers, &gate, work);
    if wake {
        BOARD.call(helpers);
    }
    work();
    drop(guard);
    assert!(!gate.failed.load(Ordering::Relaxed), "a kernel panicked on another thread");
}

// === Board ===

static BOARD: Board = Board {
    asks: Mutex::new(Vec::new()),
    posted: AtomicUsize::new(0),
    idle: AtomicUsize::new(0),
    called: AtomicUsize::new(0),
};

/// Where callers ask and helpers look.
struct Board {
    asks: Mutex<Vec<Ask>>,
    /// How many asks there are, to be read without the lock.
    posted: AtomicUsize,
    /// Helpers looking.
    idle: AtomicUsize,
    /// Helpers called from the pool who have not come yet.
    called: AtomicUsize,
}

/// A wish for one helper.
struct Ask {
    gate: Arc<Gate>,
    work: &'static (dyn Fn() + Sync),
}

impl Board {
    fn post(&self, helpers: usize, gate: &Arc<Gate>, work: &'static (dyn Fn() + Sync)) {
        self.change(|asks| asks.extend((0..helpers).map(|_| Ask { gate: gate.clone(), work })));
    }

    /// Takes back the asks that nobody heard.
    fn clear(&self, gate: &Arc<Gate>) {
        self.change(|asks| asks.retain(|ask| !Arc::ptr_eq(&ask.gate, gate)));
    }

    fn take(&self) -> Option<Ask> {
        if self.posted.load(Ordering::Relaxed) == 0 { None } else { self.change(Vec::pop) }
    }

    fn change<R>(&self, change: impl FnOnce(&mut Vec<Ask>) -> R) -> R {
        // No code that panics runs under the lock.
        let mut asks = self.asks.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut asks);
        self.posted.store(asks.len(), Ordering::Relaxed);
        result
    }

    /// Makes sure that `helpers` are awake or have been called.
    fn call(&'static self, helpers: usize) {
        let coming = self.idle.load(Ordering::Relaxed) + self.called.load(Ordering::Relaxed);
        for _ in coming..helpers {
            self.called.fetch_add(1, Ordering::Relaxed);
            rayon::spawn(|| {
                self.called.fetch_sub(1, Ordering::Relaxed);
                self.linger();
            });
        }
    }

    /// A helper's stay: work after work, until there was none for a while.
    fn linger(&self) {
        self.idle.fetch_add(1, Ordering::Relaxed);
        let mut since = Instant::now();
        while since.elapsed() < LINGER {
            for _ in 0..LOOKS {
                if let Some(ask) = self.take() {
                    self.idle.fetch_sub(1, Ordering::Relaxed);
                    ask.gate.help(ask.work);
                    self.idle.fetch_add(1, Ordering::Relaxed);
                    since = Instant::now();
                }
                std::hint::spin_loop();
            }
            // On a busy machine the caller may be waiting for this very core.
            thread::yield_now();
        }
        self.idle.fetch_sub(1, Ordering::Relaxed);
    }
}

// === Gate ===

/// Lets helpers in until it is closed.
struct Gate {
    /// Twice the helpers inside, plus one when closed.
    state: AtomicUsize,
    failed: AtomicBool,
    /// Who waits for the helpers inside.
    caller: Thread,
}

impl Gate {
    const CLOSED: usize = 1;
    const HELPER: usize = 2;

    fn new() -> Self {
        let (state, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        Self { state, failed, caller: thread::current() }
    }

    /// Does `work`, unless the gate is closed: then it may be gone.
    fn help(&self, work: &(dyn Fn() + Sync)) {
        if self.state.fetch_add(Self::HELPER, Ordering::Acquire) & Self::CLOSED == 0
            && catch_unwind(AssertUnwindSafe(work)).is_err()
        {
            self.failed.store(true, Ordering::Relaxed);
        }
        if self.state.fetch_sub(Self::HELPER, Ordering::Release) == Self::HELPER | Self::CLOSED {
            self.caller.unpark();
        }
    }

    /// Lets nobody in any more, and waits for those inside: they are at their last piece.
    fn close(&self) {
        self.state.fetch_or(Self::CLOSED, Ordering::Acquire);
        for _ in 0..SPINS {
            if self.state.load(Ordering::Acquire) == Self::CLOSED {
                return;
            }
            std::hint::spin_loop();
        }
        // A helper that lost its core to somebody may want this one.
        while self.state.load(Ordering::Acquire) != Self::CLOSED {
            thread::park();
        }
    }
}

/// Ends the helpers' use of the work on every way out, unwinding included.
struct Guard<'a>(&'a Arc<Gate>);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        BOARD.clear(self.0);
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_over_when_the_call_returns() {
        for _ in 0..2000 {
            let (begun, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
            work_with(3, true, &|| {
                begun.fetch_add(1, Ordering::Relaxed);
                std::hint::spin_loop();
                done.fetch_add(1, Ordering::Relaxed);
            });
            let (begun, done) = (begun.into_inner(), done.into_inner());
            assert!((1..=4).contains(&done) && begun == done, "{begun} {done}");
        }
    }

    #[test]
    fn many_callers_share_the_board() {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let done = AtomicUsize::new(0);
                        work_with(2, true, &|| {
                            done.fetch_add(1, Ordering::Relaxed);
                        });
                        assert!((1..=3).contains(&done.into_inner()));
                    }
                });
            }
        });
    }

    /// Whether a panic on the caller's thread, or else on a helper's, reaches the caller. It
    /// waits for a helper, who may have gone to sleep just then.
    fn passes_on(here: bool) -> bool {
        let caller = thread::current().id();
        let come = AtomicBool::new(false);
        let work = || {
            if (thread::current().id() == caller) == here {
                come.store(true, Ordering::Relaxed);
                panic!("as it should");
            }
            let begin = Instant::now();
            while !here && !come.load(Ordering::Relaxed) && begin.elapsed().as_millis() < 100 {
                thread::yield_now();
            }
        };
        catch_unwind(AssertUnwindSafe(|| work_with(1, true, &work))).is_err()
    }

    #[test]
    fn a_panic_is_passed_on() {
        assert!(passes_on(true));
        assert!((0..100).any(|_| passes_on(false)));
    }
}

//! A state's way from its file into the engine: how far it has come, whether it is still wanted,
//! and whether waiting for it is worth while.
//!
//! Who waits for it does so as long as it comes nearer, and sooner than by computing it; so large
//! states are waited for longer than small ones, and a disk that hangs is not waited for at all.
//! What computing takes is known with the first prompt after a start; before, a short wait is
//! risked.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use mtplx_core::batch::RowEvent;
use tokio::time::Instant;

use crate::admission::Admission;

/// How often it is seen how far it has come.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// Nothing moved for so long: it is not going to come.
const STALL: Duration = Duration::from_secs(5);

/// What computing is taken for before anybody knows.
const UNKNOWN: Duration = Duration::from_secs(5);

/// Prompt tokens that are computed in a second, which decode tells and the bank reads.
#[derive(Clone, Debug, Default)]
pub struct PromptPace(Arc<AtomicU64>);

impl PromptPace {
    /// It is so many now.
    pub fn tell(&self, tokens_per_s: f64) {
        self.0.store(tokens_per_s.to_bits(), Ordering::Relaxed);
    }

    /// What was told last, if anything was.
    pub(super) fn tokens_per_s(&self) -> Option<f64> {
        let told = f64::from_bits(self.0.load(Ordering::Relaxed));
        (told > 0.0).then_some(told)
    }
}

/// How far a state has come; whoever carries it notes it.
#[derive(Debug, Default)]
pub struct Passage {
    /// Bytes that were read, and that the engine took.
    bytes: AtomicU64,
    /// Signs of life: its own, and of what goes before it.
    beats: AtomicU64,
    dropped: AtomicBool,
}

impl Passage {
    /// So many bytes more; none for a sign of life.
    pub fn moved(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// Somebody wants it gone: whoever finds it so does not let it in.
    pub(crate) fn drop_it(&self) {
        self.dropped.store(true, Ordering::SeqCst);
    }

    /// Whether nobody dropped it.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        !self.dropped.load(Ordering::SeqCst)
    }
}

/// Why those who wait for a state should go on without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It comes, and sooner than by computing.
    Wait,
    /// Nothing moves.
    Stalled,
    /// Computing is quicker.
    Slower,
}

/// A file that is being read, or whose state is on its way into the engine.
#[derive(Debug)]
pub(super) struct Reading {
    waiting: Vec<Admission>,
    pub(super) passage: Arc<Passage>,
    /// Bytes to be moved in all: each is read, and taken.
    bytes: u64,
    /// Tokens that need not be computed.
    tokens: usize,
    since: Instant,
    beats: u64,
    moved: Instant,
}

impl Reading {
    /// Of a file of so many bytes that saves computing so many tokens.
    pub(super) fn new(bytes: u64, tokens: usize) -> Self {
        let now = Instant::now();
        let (waiting, passage) = (Vec::new(), Arc::default());
        let bytes = bytes.saturating_mul(2);
        Self { waiting, passage, bytes, tokens, since: now, beats: 0, moved: now }
    }

    /// One more waits for it.
    pub(super) fn join(&mut self, admission: Admission) {
        self.waiting.push(admission);
    }

    pub(super) fn waiting(&self) -> impl Iterator<Item = &Admission> {
        self.waiting.iter()
    }

    /// Nobody waits for it any more.
    pub(super) fn take_waiting(&mut self) -> Vec<Admission> {
        std::mem::take(&mut self.waiting)
    }

    /// Lets go of those who have left, and of those who have waited as long as anybody is to, who
    /// are told.
    pub(super) fn forget_gone(&mut self, queue_max: Option<Duration>) {
        self.waiting.retain(|admission| {
            let late = queue_max.is_some_and(|most| admission.since.elapsed() >= most);
            if late {
                // Its stream is empty yet.
                let _ = admission.events.try_send(RowEvent::Late);
            }
            !late && !admission.events.is_closed()
        });
    }

    /// Whether to wait on, where so many prompt tokens are computed in a second, if that is known.
    #[expect(clippy::cast_precision_loss, reason = "bytes and tokens of one state")]
    pub(super) fn look(&mut self, tokens_per_s: Option<f64>) -> Verdict {
        let now = Instant::now();
        let beats = self.passage.beats.load(Ordering::Relaxed);
        if beats != self.beats {
            (self.beats, self.moved) = (beats, now);
        }
        if now - self.moved >= STALL {
            return Verdict::Stalled;
        }
        let done = self.passage.bytes.load(Ordering::Relaxed);
        let left = self.bytes.saturating_sub(done) as f64;
        let rest = (now - self.since).as_secs_f64() * left / done.max(1) as f64;
        let unknown = UNKNOWN.as_secs_f64();
        let computing = tokens_per_s.map_or(unknown, |pace| self.tokens as f64 / pace);
        // What it began with says nothing of its pace.
        if done > 0 && rest > computing { Verdict::Slower } else { Verdict::Wait }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A file of 1 GiB and 1000 tokens, of which so many MiB are moved in each second.
    async fn after(seconds: u64, mib: u64, tokens_per_s: Option<f64>) -> Vec<Verdict> {
        let mut reading = Reading::new(1024 * MIB, 1000);
        let mut seen = Vec::new();
        for _ in 0..seconds {
            tokio::time::sleep(LOOK).await;
            if mib > 0 {
                reading.passage.moved(mib * MIB);
            }
            seen.push(reading.look(tokens_per_s));
        }
        seen
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_state_is_waited_for_as_long_as_it_comes_sooner_than_by_computing() {
        // 2 GiB are moved at 64 MiB a second: 32 s, where computing takes 40.
        assert_eq!(after(31, 64, Some(25.0)).await, [Verdict::Wait; 31]);
        // Computing takes 10 s: it is seen at once.
        assert_eq!(after(1, 64, Some(100.0)).await, [Verdict::Slower]);
        // Near the end computing would have to begin at the beginning.
        assert_eq!(after(24, 64, Some(100.0)).await[22..], [Verdict::Wait; 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn before_anybody_knows_what_computing_takes_few_seconds_are_risked() {
        // 2 GiB at 10 MiB a second, as over a network: minutes.
        assert_eq!(after(1, 10, None).await, [Verdict::Slower]);
        // At 400 it is there in six seconds.
        assert_eq!(after(5, 400, None).await, [Verdict::Wait; 5]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_state_that_does_not_move_is_not_waited_for() {
        let seen = after(5, 0, Some(1.0)).await;
        assert_eq!(seen, [[Verdict::Wait; 4].as_slice(), &[Verdict::Stalled]].concat());
    }

    #[tokio::test(start_paused = true)]
    async fn who_stands_in_a_queue_that_moves_is_waited_for() {
        let mut reading = Reading::new(MIB, 1000);
        for _ in 0..20 {
            tokio::time::sleep(LOOK).await;
            reading.passage.moved(0);
            assert_eq!(reading.look(None), Verdict::Wait);
        }
    }
}

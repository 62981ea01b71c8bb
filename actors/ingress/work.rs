//! Work on texts: parsing, rendering, tokenizing, compiling. What may take long leaves the threads
//! that every connection waits for, and takes turns: a crowd of long prompts gets the processors
//! one after the other instead of a thread each.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Work on more bytes than this leaves the connection's thread.
const LONG_BYTES: usize = 4 * 1024;

/// Turns at the processors.
#[derive(Clone, Debug)]
pub(super) struct Turns(Arc<Semaphore>);

impl Turns {
    /// One for each processor.
    pub(super) fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self(Arc::new(Semaphore::new(processors)))
    }

    /// Runs `work` on `bytes` of input, off this thread and in its turn if that may take long.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        if bytes < LONG_BYTES {
            return work();
        }
        // Nobody closes it; if somebody did, there would be no turns to wait for.
        let turn = Arc::clone(&self.0).acquire_owned().await.ok();
        off_thread(turn, work).await
    }
}

/// Runs `work` off this thread. The turn is over when the work is, also where nobody waits for it
/// any more.
pub(super) async fn off_thread<T: Send + 'static>(
    turn: Option<OwnedSemaphorePermit>,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let work = move || {
        let _turn = turn;
        work()
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        // Only a runtime that is shutting down cancels; then nobody waits for this either.
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => std::future::pending().await,
        },
    }
}

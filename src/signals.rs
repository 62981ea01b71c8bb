//! Signals, by which people and services ask the server for something.

use anyhow::{Context, Result};
use mtplx::reload::Reloader;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT and SIGTERM, from the first on; and SIGHUP, by which services ask for settings to be read
/// anew, once there is somebody to do that.
pub(crate) struct Signals {
    pub(crate) reloader: Option<Reloader>,
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    pub(crate) fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        let interrupt = listen(SignalKind::interrupt())?;
        let hangup = listen(SignalKind::hangup())?;
        let terminate = listen(SignalKind::terminate())?;
        Ok(Self { reloader: None, interrupt, terminate, hangup })
    }

    /// Waits for one of them; the exit code by which a shell knows a process that it ended.
    pub(crate) async fn next(&mut self) -> i32 {
        let kind = loop {
            tokio::select! {
                _ = self.interrupt.recv() => break SignalKind::interrupt(),
                _ = self.terminate.recv() => break SignalKind::terminate(),
                _ = self.hangup.recv() => {
                    if let Some(reloader) = self.reloader.clone() {
                        // What came of it is in the log.
                        tokio::spawn(async move { reloader.reload("SIGHUP").await.map(drop) });
                    }
                }
            }
        };
        128 + kind.as_raw_value()
    }
}

/// Who asks twice does not want to wait.
pub(crate) async fn leave_at_the_next(mut signals: Signals) {
    let code = signals.next().await;
    tracing::warn!("asked twice: leaving at once, running requests are cut off");
    std::process::exit(code)
}

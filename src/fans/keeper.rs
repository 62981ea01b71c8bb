//! The keeper: a thread of the server that pins the fans when requests come, sees that they are
//! heard, gives them back when nobody asks any more, and sees that its watchdog lives.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use mtplx_actors::ingress::Handle;
use mtplx_actors::{metrics, thermal};

use super::pin::{Hold, Place, Restored};
use super::program::{Fan, Program, have_risen};
use super::watchdog::Watchdog;
use super::{Config, Mode, undo_stale};

/// Between two looks at the watchdog, the mark and the clock.
const LOOK_TIME: Duration = Duration::from_millis(250);
/// Between two looks whether anybody is served.
const ASK_TIME: Duration = Duration::from_millis(500);
/// After a failure it is not tried again at once.
const FAILURE_PAUSE: Duration = Duration::from_secs(60);
/// Fans that could not be given back are tried again so soon.
const LEFT_PAUSE: Duration = Duration::from_secs(5);

/// The keeper, as the server knows it.
#[derive(Debug)]
pub struct Keeper(Option<(Sender<Word>, JoinHandle<()>)>);

#[derive(Debug)]
enum Word {
    /// Somebody is served.
    Busy,
    /// The server ends.
    Stop,
}

/// Undoes what was left pinned; then, if that is the mode, keeps the fans from now on.
pub async fn keep(config: &Config, door: Handle) -> Keeper {
    let own = config.clone();
    let undone = tokio::task::spawn_blocking(move || undo_stale(&own)).await;
    if undone.is_err() {
        tracing::error!("looking for fans left pinned failed");
    }
    if config.mode == Mode::Auto {
        return Keeper(None);
    }
    let (tell, told) = channel();
    let own = config.clone();
    let spawned = std::thread::Builder::new().name("fans".into()).spawn(move || {
        Fans::new(&own).live(&told);
    });
    let thread = match spawned {
        Ok(thread) => thread,
        Err(error) => {
            tracing::error!(%error, "the fans have no keeper");
            return Keeper(None);
        }
    };
    let busy = tell.clone();
    tokio::spawn(async move {
        loop {
            let seen = door.observe().await;
            if seen.is_some_and(|seen| seen.requests > 0) && busy.send(Word::Busy).is_err() {
                break;
            }
            tokio::time::sleep(ASK_TIME).await;
        }
    });
    Keeper(Some((tell, thread)))
}

impl Keeper {
    /// Gives the fans back. If this is never called, the watchdog does.
    pub async fn stop(self) {
        let Some((tell, thread)) = self.0 else { return };
        // A keeper that is gone has its watchdog.
        let _ = tell.send(Word::Stop);
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    }
}

/// What the fans do by our doing.
#[derive(Debug)]
enum Phase {
    /// Nothing, until somebody asks.
    Idle,
    /// They were told, and are not heard yet.
    Ramping { hold: Hold, since: Instant, before: Vec<Fan> },
    /// They are.
    Pinned { _hold: Hold },
    /// It did not work.
    Failed(Instant),
    /// A person took them off; the next server may.
    Off,
}

struct Fans {
    place: Place,
    program: Program,
    idle: Duration,
    ramp: Duration,
    watchdog: Option<Watchdog>,
    phase: Phase,
    /// When somebody was last served.
    busy: Instant,
    /// When the fans could not be given back, if they are still pinned for that.
    left: Option<Instant>,
}

impl Fans {
    fn new(config: &Config) -> Self {
        Self {
            place: config.place(),
            program: config.program(),
            idle: config.idle(),
            ramp: config.ramp(),
            watchdog: None,
            phase: Phase::Idle,
            busy: Instant::now(),
            left: None,
        }
    }

    fn live(mut self, told: &Receiver<Word>) {
        // Whoever starts a server is about to ask it something.
        self.pin();
        loop {
            match told.recv_timeout(LOOK_TIME) {
                Ok(Word::Busy) => self.busy = Instant::now(),
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Word::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            }
            self.look();
        }
        self.let_go("auto");
        self.give_back("auto");
        self.watchdog.take().into_iter().for_each(Watchdog::dismiss);
    }

    fn look(&mut self) {
        let pinned = matches!(self.phase, Phase::Ramping { .. } | Phase::Pinned { .. });
        if pinned && let Err(error) = self.watched() {
            return self.fail(&error);
        }
        if pinned && !self.place.is_marked() {
            tracing::info!("the fans were taken off the pin by hand: they stay so");
            self.show("off", false);
            self.phase = Phase::Off;
            return;
        }
        let active = self.busy.elapsed() < self.idle;
        match &self.phase {
            Phase::Idle if active => self.pin(),
            Phase::Failed(at) if active && at.elapsed() > FAILURE_PAUSE => self.pin(),
            Phase::Ramping { .. } | Phase::Pinned { .. } if !active => {
                tracing::info!("nobody was served for a while: the fans are given back");
                self.let_go("idle");
            }
            Phase::Ramping { .. } => self.listen(),
            Phase::Idle if self.is_left_long() => self.give_back("idle"),
            Phase::Failed(_) if self.is_left_long() => self.give_back("failed"),
            Phase::Idle | Phase::Failed(_) | Phase::Pinned { .. } | Phase::Off => {}
        }
    }

    /// No pin without a watchdog.
    fn watched(&mut self) -> Result<()> {
        if self.watchdog.as_mut().is_some_and(Watchdog::is_alive) {
            return Ok(());
        }
        if self.watchdog.take().is_some() {
            tracing::warn!("the watchdog of the fans is gone: another is started");
        }
        self.watchdog = Some(Watchdog::start(&self.place, &self.program)?);
        Ok(())
    }

    fn pin(&mut self) {
        match self.try_pin() {
            Ok(phase) => self.phase = phase,
            Err(error) => self.fail(&error),
        }
    }

    fn try_pin(&mut self) -> Result<Phase> {
        self.watched()?;
        let before = self.program.fans()?;
        if before.is_empty() {
            bail!("this machine has no fans");
        }
        let hold = self.place.hold()?;
        self.left = None;
        let told = self.program.max(&hold);
        // Told or not: from here on there is a mark, and so it is let go of in order.
        let phase = Phase::Ramping { hold, since: Instant::now(), before };
        if told.is_err() {
            self.phase = phase;
            told?;
            return Ok(Phase::Idle);
        }
        Ok(phase)
    }

    /// Whether they are heard; not before then is it said that they are at their most.
    fn listen(&mut self) {
        let Phase::Ramping { since, before, .. } = &self.phase else { return };
        let heard = self.program.fans().is_ok_and(|now| have_risen(before, &now));
        if !heard {
            if since.elapsed() > self.ramp {
                let seconds = self.ramp.as_secs_f64();
                self.fail(&anyhow::anyhow!("the fans did not rise within {seconds} s"));
            }
            return;
        }
        if let Phase::Ramping { hold, .. } = std::mem::replace(&mut self.phase, Phase::Idle) {
            self.phase = Phase::Pinned { _hold: hold };
            self.show("max", true);
            tracing::info!("the fans are at their most");
        }
    }

    fn fail(&mut self, error: &anyhow::Error) {
        tracing::error!(error = %format!("{error:#}"), "the fans cannot be held at their most");
        self.let_go("failed");
        self.phase = Phase::Failed(Instant::now());
    }

    /// Gives our part of the pin up, and the fans back if nobody else holds them.
    fn let_go(&mut self, shown: &'static str) {
        let last = std::mem::replace(&mut self.phase, Phase::Idle);
        if matches!(last, Phase::Ramping { .. } | Phase::Pinned { .. }) {
            drop(last);
            self.left = Some(Instant::now());
            return self.give_back(shown);
        }
        self.show(shown, self.left.is_some());
    }

    fn is_left_long(&self) -> bool {
        self.left.is_some_and(|at| at.elapsed() > LEFT_PAUSE)
    }

    /// Gives back what is pinned and not held by us any more, if anything is.
    fn give_back(&mut self, shown: &'static str) {
        if self.left.take().is_none() {
            return;
        }
        match self.place.restore(&self.program) {
            Ok(Restored::Given | Restored::NotPinned) => {}
            Ok(Restored::Held) => tracing::info!("another server goes on holding the fans"),
            // The mark stays: it is tried again here, and by the watchdog at the end.
            Err(error) => {
                tracing::error!(error = %format!("{error:#}"), "the fans stay pinned");
                self.left = Some(Instant::now());
                return self.show("failed", true);
            }
        }
        self.show(shown, false);
    }

    fn show(&self, fans: &'static str, pinned: bool) {
        thermal::show_fans(fans);
        metrics::fans_pinned(pinned);
    }
}

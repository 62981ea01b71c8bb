//! The owner of the device: plan, run, settle, publish, and again.
//!
//! * **Owns** its OS thread, the engine with all tensors, the batch and the running streams.
//! * **Hears** `Admit`, `Cycle` (from itself), `Tune`, `Release`, `Reclaimed`, `Drain`, `Describe`,
//!   `Observe`.
//! * **Says** events to streams, `bank::Deposit`, `bank::Reclaim`, `tuner::Report`.
//! * **Dies** on any fault of the engine, taking the generation with it; streams learn of it by
//!   their dropped senders. After `Drain` it ends by itself with its last row.
//!
//! All that arrives during a cycle is handled before the next: that is the batching. Idle, it waits
//! for a message; the one timer is of the pauses that heat asks for between two cycles.

use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mtplx_core::SnapshotId;
use mtplx_core::batch::{Batch, BatchLimits, Knobs, Report, Settled, Warm};
use mtplx_core::engine::{Engine, EngineInfo, Fault, Plan, Prefill};
use mtplx_core::thermal::Pauses;
use ractor::thread_local::ThreadLocalActor;
use ractor::{ActorProcessingErr, ActorRef, RpcReplyPort};
use serde::{Deserialize, Serialize};
use tracing::Span;

use crate::admission::Admission;
use crate::bank::PromptPace;
use crate::flight::Recorder;
use crate::heart::Heart;
use crate::{bank, metrics, tuner};

mod parcels;
mod room;
mod stall;
mod streams;
#[cfg(test)]
mod tests;

use parcels::Parcels;
pub use parcels::{Arrival, Outlet};
use stall::Stall;
use streams::Streams;

/// What decode hears.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "an admission is moved once and never kept here")]
pub enum Message {
    /// Serve this request.
    Admit {
        /// The request, its stream and its permit.
        admission: Admission,
        /// What it may start from.
        warm: Option<Warm>,
        /// Where states worth keeping go.
        home: ActorRef<bank::Message>,
    },
    /// Take one step.
    Cycle,
    /// From the next cycle on, go by these knobs and report there.
    Tune(Knobs, ActorRef<tuner::Message>),
    /// From now on who has found no slot for so many seconds is sent away; 0 for never.
    QueueMax(u32),
    /// The bank lets go of a snapshot.
    Release(SnapshotId),
    /// The answer to `bank::Reclaim`: whether there was a prefix to let go.
    Reclaimed(bool),
    /// Carry this state out.
    Export(SnapshotId, Outlet),
    /// Carry this state in.
    Import(Arrival),
    /// When all is finished, tell the bank with `Part` and go on until it says `Leave`.
    Stay,
    /// Nothing is wanted any more.
    Leave,
    /// Finish what is here, then end.
    Drain,
    /// Say what the engine is.
    Describe(RpcReplyPort<EngineInfo>),
    /// Say how it goes.
    Observe(RpcReplyPort<Snapshot>),
}

impl ractor::Message for Message {}

/// Bounds of the scheduler.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Most parked states alive at once, in the bank, on their way to it or held by waiting rows.
    pub snapshots_max: usize,
    /// Chunks of a prompt end at multiples of this many tokens.
    pub chunk_grain_tokens: usize,
    /// Seconds after which whoever has found no slot is sent away; 0 for never. It stands among the
    /// door's settings.
    #[serde(skip)]
    pub queue_s: u32,
}

/// Decode in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Cycles so far.
    pub cycles: u64,
    /// Rows that hold a slot.
    pub running: usize,
    /// Rows that wait for one, or for pages.
    pub waiting: usize,
    /// Slots without a row.
    pub slots_free: usize,
    /// Pages nobody has and nobody was promised.
    pub pages_free: usize,
    /// Parked states alive.
    pub snapshots: usize,
    /// Whether it ends with its last row.
    pub draining: bool,
}

/// The reason of an end that was asked for.
pub(crate) const DRAINED: &str = "drained";

/// Opens the engine on the thread that will own it, once for each generation.
pub type Open<E> = Arc<dyn Fn() -> Result<E, Fault> + Send + Sync>;

/// The actor.
pub struct Decode<E>(PhantomData<fn() -> E>);

impl<E> Default for Decode<E> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

/// What it begins with.
pub struct Arguments<E> {
    /// Opens the engine; a fault fails the spawn.
    pub open: Open<E>,
    /// Its bounds.
    pub config: Config,
    /// What it beats while it lives.
    pub heart: Heart,
    /// Where it tells what prompt tokens take.
    pub prompt_pace: PromptPace,
    /// Where it notes what it is about to run.
    pub flight: Recorder,
}

impl<E> fmt::Debug for Arguments<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arguments").field("config", &self.config).finish_non_exhaustive()
    }
}

/// What it remembers.
#[derive(Debug)]
pub struct State<E> {
    engine: E,
    batch: Batch,
    streams: Streams,
    /// Longest wait for a slot.
    queue_max: Option<Duration>,
    /// The tuner's last word; nothing runs before its first.
    tuning: Option<(Knobs, ActorRef<tuner::Message>)>,
    /// Where deposits go; there are none before the first admission.
    home: Option<ActorRef<bank::Message>>,
    /// Whether the bank was asked for pages and has not answered yet.
    reclaiming: bool,
    /// Whether a `Cycle` is on its way.
    cycling: bool,
    /// What is owed to heat.
    pauses: Pauses,
    /// The end of the last step.
    worked_until: Option<Instant>,
    /// How long to wait with the next one.
    pause: Duration,
    /// Whether the books were checked since the last work was done.
    resting: bool,
    draining: bool,
    /// Whether the bank wants to be told before the end, and whether it was.
    stay: Option<bool>,
    /// States on their way out and in.
    parcels: Parcels,
    cycles: u64,
    heart: Heart,
    prompt_pace: PromptPace,
    stall: Stall,
    flight: Recorder,
    /// Messages carry their sender's span, and a `Cycle` is sent from all sorts of handlers: in its
    /// own span the loop does not run in, and keep open, that of some request.
    span: Span,
}

/// However it ends, by a fault, a panic or its killing: what was seated has its end in the books,
/// before its streams close and anybody looks.
impl<E> Drop for State<E> {
    fn drop(&mut self) {
        // What panicked may have left the batch half changed; a second panic would end the process.
        let booked = catch_unwind(AssertUnwindSafe(|| {
            self.batch.abandon();
            metrics::books(&mut self.batch);
        }));
        if booked.is_err() {
            tracing::error!("the books could not be closed");
        }
    }
}

impl<E: Engine + 'static> ThreadLocalActor for Decode<E> {
    type Msg = Message;
    type State = State<E>;
    type Arguments = Arguments<E>;

    async fn pre_start(
        &self,
        _myself: ActorRef<Message>,
        Arguments { open, config, heart, prompt_pace, flight }: Arguments<E>,
    ) -> Result<State<E>, ActorProcessingErr> {
        let engine = open()?;
        let Config { snapshots_max, chunk_grain_tokens, queue_s } = config;
        let limits = BatchLimits { snapshots_max, chunk_grain: chunk_grain_tokens };
        let mut batch = Batch::new(engine.info().clone(), limits);
        metrics::books(&mut batch);
        Ok(State {
            engine,
            batch,
            streams: Streams::default(),
            queue_max: (queue_s > 0).then(|| Duration::from_secs(queue_s.into())),
            tuning: None,
            home: None,
            reclaiming: false,
            cycling: false,
            pauses: Pauses::default(),
            worked_until: None,
            pause: Duration::ZERO,
            resting: false,
            draining: false,
            stay: None,
            parcels: Parcels::default(),
            cycles: 0,
            heart,
            prompt_pace,
            stall: Stall::default(),
            flight,
            // Of the highest level, so that no filter takes it away.
            span: tracing::error_span!(parent: None, "decode"),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State<E>,
    ) -> Result<(), ActorProcessingErr> {
        let mut moving = true;
        state.heart.beat();
        metrics::heartbeat();
        match message {
            Message::Admit { admission, warm, home } => state.admit(admission, warm, home),
            Message::Cycle => moving = state.cycle()?,
            Message::Tune(knobs, reports) => state.tuning = Some((knobs, reports)),
            Message::QueueMax(s) => {
                state.queue_max = (s > 0).then(|| Duration::from_secs(s.into()));
            }
            Message::Release(snapshot) => state.batch.release(snapshot),
            Message::Reclaimed(found) => state.reclaimed(found),
            Message::Export(snapshot, outlet) => state.export(snapshot, outlet),
            Message::Import(arrival) => state.import(arrival),
            Message::Stay => state.stay = Some(false),
            Message::Leave => state.stay = None,
            Message::Drain => state.draining = true,
            // Whoever asked may have gone.
            Message::Describe(reply) => drop(reply.send(state.engine.info().clone())),
            Message::Observe(reply) => drop(reply.send(state.observe())),
        }
        state.go_on(&myself, moving)
    }
}

impl<E: Engine> State<E> {
    fn admit(&mut self, admission: Admission, warm: Option<Warm>, home: ActorRef<bank::Message>) {
        // Until the first plan that it is in has been made.
        admission.work.set(true);
        let request = self.streams.open(admission);
        self.batch.admit(request, warm);
        self.home = Some(home);
    }

    /// One step, and a stretch of what is carried out or in. False if there was nothing to do:
    /// those who wait, if any, wait for a message.
    fn cycle(&mut self) -> Result<bool, ActorProcessingErr> {
        self.cycling = false;
        let moved = self.step()?;
        Ok(self.carry()? || moved)
    }

    fn step(&mut self) -> Result<bool, ActorProcessingErr> {
        let Some((knobs, reports)) = self.tuning.clone() else { return Ok(false) };
        let began = Instant::now();
        let late = self.queue_max.map_or(Vec::new(), |most| self.streams.take_late(most));
        for id in self.streams.take_closed().into_iter().chain(late) {
            self.batch.cancel(id);
        }
        self.measure();
        let plan = self.batch.plan(knobs);
        self.streams.seat(self.batch.rows().values().map(|row| row.request().id));
        let idle = plan.moves.is_empty() && plan.prefill.is_empty() && plan.verify.is_empty();
        self.make_room(knobs.rows_max)?;
        if idle {
            metrics::books(&mut self.batch);
            return Ok(false);
        }
        self.flight.begins(&plan, self.batch.rows());
        let running = Instant::now();
        let rested = self.worked_until.map_or(Duration::ZERO, |at| began - at);
        let chunks = self.chunks(&plan);
        let outcome = self.engine.run(&plan, self.batch.rows())?;
        drop(chunks);
        let ran = running.elapsed();
        let made = outcome.rows.iter().filter_map(|row| row.result.as_ref().ok());
        metrics::drafted(made.map(|emitted| emitted.drafted).sum());
        let settled = self.batch.settle(&plan, outcome);
        let wall_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let report = Report { wall_us, ..settled.report.clone() };
        self.flight.ran(&report, ran);
        self.parcels.pace.cycled(ran, report.prefilled);
        self.parcels.pace.tokens_per_s().iter().for_each(|&pace| self.prompt_pace.tell(pace));
        self.cycles += 1;
        // Before anybody hears of it: whoever has seen its end and looks at the metrics finds it.
        let wall = began.elapsed();
        metrics::cycle(&report, wall, ran);
        self.stall.cycled(&report, wall);
        metrics::books(&mut self.batch);
        tracing::trace!(step = plan.step, moves = ?plan.moves, ?report, ?ran, "step");
        self.publish(settled)?;
        reports.cast(tuner::Message::Report(Box::new(report)))?;
        let pause = self.pauses.after(ran.as_secs_f64(), rested.as_secs_f64(), knobs.pause);
        self.pause = Duration::from_secs_f64(pause);
        self.worked_until = Some(Instant::now());
        Ok(true)
    }

    /// Spans of the prompts' chunks that are about to run.
    fn chunks(&self, plan: &Plan) -> Vec<Span> {
        let span = |chunk: &Prefill| {
            let row = self.batch.rows().get(&chunk.slot)?;
            Some(self.streams.chunk(row.request().id, chunk.start, chunk.end))
        };
        plan.prefill.iter().filter_map(span).collect()
    }

    /// Hands on what was settled; never waits. Deposits go first: a client that has seen its end
    /// and asks again finds them.
    fn publish(&mut self, settled: Settled) -> Result<(), ActorProcessingErr> {
        for deposit in settled.deposits {
            let home = self.home.as_ref().ok_or("a deposit without an admission")?;
            home.cast(bank::Message::Deposit(deposit))?;
        }
        if !settled.used.is_empty() {
            let home = self.home.as_ref().ok_or("a use without an admission")?;
            home.cast(bank::Message::Used(settled.used))?;
        }
        for (id, event) in settled.events {
            if self.streams.publish(id, event).is_err() {
                tracing::error!(request = id.0, "a stream had no room for its events");
                self.batch.cancel(id);
            }
        }
        Ok(())
    }

    /// Cycles while there is work; comes to rest, or to its end, when there is none.
    fn go_on(
        &mut self,
        myself: &ActorRef<Message>,
        moving: bool,
    ) -> Result<(), ActorProcessingErr> {
        if self.cycling {
            return Ok(());
        }
        if self.batch.is_busy() || !self.parcels.is_empty() {
            self.resting = false;
            if moving && (self.tuning.is_some() || !self.parcels.is_empty()) {
                self.cycling = true;
                let _own = self.span.enter();
                // What passed since has paid for it: who comes later does not wait.
                let rested = self.worked_until.map_or(Duration::ZERO, |at| at.elapsed());
                let pause = std::mem::take(&mut self.pause).saturating_sub(rested);
                if pause.is_zero() {
                    myself.cast(Message::Cycle)?;
                } else {
                    metrics::paused();
                    myself.send_after(pause, || Message::Cycle);
                }
            }
            return Ok(());
        }
        if !self.resting {
            self.resting = true;
            self.check();
        }
        match (&mut self.stay, &self.home) {
            _ if !self.draining => {}
            (Some(true), _) => {}
            (Some(told), Some(home)) => {
                *told = true;
                home.cast(bank::Message::Part)?;
            }
            // Without an admission there is nothing to carry out.
            _ => myself.stop(Some(DRAINED.into())),
        }
        Ok(())
    }

    fn check(&self) {
        if let Err(contradiction) = self.batch.check_integrity() {
            tracing::error!(%contradiction, "the ledger contradicts itself");
            metrics::integrity_failed();
        }
    }

    fn observe(&self) -> Snapshot {
        let (slots_free, pages_free) = self.batch.ledger().free();
        Snapshot {
            cycles: self.cycles,
            running: self.batch.rows().len(),
            waiting: self.batch.waiting(),
            slots_free,
            pages_free,
            snapshots: self.batch.ledger().snapshots(),
            draining: self.draining,
        }
    }
}

//! The supervisor: one generation of bank, decode and tuner after another, until it gives up.
//!
//! * **Owns** the number of the generation, its actors and its thread, the memory of failures.
//! * **Hears** supervision events, `Configure`, `Drain`, `Observe`; from itself `Open`, `Opened`,
//!   `Buried`, `Heat`, `Watch`, `Deadline`.
//! * **Says** to the door who serves; `bank::Drain`; `thermal::Advise`; new settings to whom they
//!   concern.
//! * **Dies** last: drained, or after too many failures.
//!
//! Nobody repairs half a generation: whichever part fails, the others are killed and, once the
//! device's thread has ended, the next is spawned backwards: decode, tuner, bank, door.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mtplx_core::engine::Engine;
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::admission::{Door, Served, Way};
use crate::flight::Failure;
use crate::metrics::{self, Part};
use crate::{bank, decode, flight, thermal};

mod config;
mod generation;
mod heat;
mod house;
mod patience;
#[cfg(test)]
mod tests;

pub use config::{Config, Configs};
use generation::Generation;
pub use house::{House, Overview, start};
use patience::Patience;

/// Longest time between two looks whether decode answers.
const LOOK_TIME: Duration = Duration::from_secs(1);

/// What the root hears.
#[derive(Debug)]
pub enum Message {
    /// Open the next generation.
    Open,
    /// It is open, or is not.
    Opened(Opened),
    /// The last generation's thread has ended; false if it did not in time.
    Buried(bool),
    /// Start the thermal actor, or tell it of the new tuner.
    Heat,
    /// See whether decode still answers.
    Watch,
    /// From now on go by these settings.
    Configure(Box<Configs>),
    /// Admit nobody, let everybody finish for so long, end.
    Drain(Duration),
    /// Do not wait for them any longer.
    Deadline,
    /// Say how it goes with everybody.
    Observe(RpcReplyPort<Overview>),
}

impl ractor::Message for Message {}

/// How opening a generation went.
#[derive(Debug)]
pub struct Opened(Result<Box<Generation>, String>);

/// All that a house is built from.
pub struct Blueprint<E> {
    /// Every part's settings.
    pub configs: Configs,
    /// Opens the engine on its thread.
    pub open: decode::Open<E>,
    /// Makes the sensor.
    pub sensor: thermal::MakeSensor,
    /// Where the bank's states go that leave memory, if they go anywhere.
    pub store: Option<Arc<bank::Store>>,
    /// Where the last cycles of an engine go that failed.
    pub flight: flight::Config,
    /// The folder in which the tuner keeps what it learnt, if it does.
    pub notes: Option<PathBuf>,
    /// Who lets requests in.
    pub door: Arc<dyn Door>,
}

impl<E> fmt::Debug for Blueprint<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blueprint").field("configs", &self.configs).finish_non_exhaustive()
    }
}

/// How the house ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Drained: everybody had finished.
    Drained,
    /// Drained, but some had to be cut off.
    CutOff,
    /// Too many failures, or one beyond repair; the process should exit with an error.
    GaveUp(String),
}

/// The root in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Which generation it is; 1 is the first.
    pub generation: u64,
    /// `opening`, `serving`, `draining`, `burying` or `resting`.
    pub phase: &'static str,
    /// Failures remembered.
    pub failures: usize,
    /// Times the thermal actor was started anew.
    pub thermal_restarts: u64,
}

/// The actor.
struct Root<E>(Blueprint<E>);

/// What it remembers.
struct State {
    myself: ActorRef<Message>,
    /// What holds now; the blueprint's at first.
    configs: Configs,
    number: u64,
    /// Whether any generation ever served.
    served: bool,
    phase: Phase,
    patience: Patience,
    thermal: Option<ActorRef<thermal::Message>>,
    thermal_restarts: u64,
    /// The last look at how long everybody takes to answer.
    sounding: Option<JoinHandle<()>>,
    end: Option<oneshot::Sender<End>>,
}

enum Phase {
    /// A generation is being opened.
    Opening,
    /// One serves.
    Serving(Generation),
    /// One finishes what it has.
    Draining(Generation),
    /// The last one is ending; then what?
    Burying(Next),
    /// There is none until the backoff is over.
    Resting,
}

enum Next {
    OpenAfter(Duration),
    End(End),
}

impl<E: Engine + 'static> Actor for Root<E> {
    type Msg = Message;
    type State = State;
    type Arguments = oneshot::Sender<End>;

    async fn pre_start(
        &self,
        myself: ActorRef<Message>,
        end: oneshot::Sender<End>,
    ) -> Result<State, ActorProcessingErr> {
        let config = self.0.configs.root;
        metrics::not_serving();
        myself.cast(Message::Open)?;
        // Who is stuck is found out at most a quarter of the bound late; and an idle engine beats
        // when it is asked.
        let look = Duration::from_secs_f64(config.stuck_s / 4.0).min(LOOK_TIME);
        myself.send_interval(look, || Message::Watch);
        Ok(State {
            myself,
            configs: self.0.configs,
            number: 0,
            served: false,
            phase: Phase::Resting,
            patience: Patience::new(config),
            thermal: None,
            thermal_restarts: 0,
            sounding: None,
            end: Some(end),
        })
    }

    async fn handle(
        &self,
        _myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Open => self.open(state),
            Message::Opened(Opened(result)) => self.opened(state, result.map(|g| *g)),
            Message::Buried(in_time) => self.buried(state, in_time),
            Message::Heat => self.heat(state).await,
            Message::Watch => self.watch(state),
            Message::Configure(configs) => state.configure(*configs),
            Message::Drain(patience) => self.drain(state, patience),
            Message::Deadline => self.deadline(state),
            Message::Observe(reply) => house::observe(state, reply),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<Message>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(who, error) => {
                self.lost(state, who.get_id(), &error.to_string());
            }
            SupervisionEvent::ActorTerminated(who, _, reason) => {
                self.lost(state, who.get_id(), reason.as_deref().unwrap_or("it stopped"));
            }
            SupervisionEvent::ActorStarted(_)
            | SupervisionEvent::ProcessGroupChanged(_)
            | SupervisionEvent::PidLifecycleEvent(_) => {}
        }
        Ok(())
    }
}

// === from the first to the last ===

impl<E: Engine + 'static> Root<E> {
    /// Opens the next generation beside the root, which goes on listening: models load slowly.
    fn open(&self, state: &mut State) {
        let Phase::Resting = state.phase else { return };
        state.number += 1;
        state.phase = Phase::Opening;
        let how = if state.served { "is restarting after a fault" } else { "is starting" };
        self.0.door.between(format!("the engine {how}"));
        tracing::info!(generation = state.number, "opening the engine");
        let opening = generation::open(&self.0, state.configs, state.myself.get_cell());
        let root = state.myself.clone();
        tokio::spawn(async move {
            // A root that is gone takes what was opened with it: all is linked to it.
            let _ = root.cast(Message::Opened(Opened(opening.await.map(Box::new))));
        });
    }

    fn opened(&self, state: &mut State, result: Result<Generation, String>) {
        let leaving = !matches!(state.phase, Phase::Opening);
        match result {
            Ok(generation) if leaving => generation.bury(state.myself.clone(), state.bury_time()),
            Err(_) if leaving => state.tell(Message::Buried(true)),
            Ok(mut generation) => {
                // They may be others than when it began to open.
                generation.configure(state.configs);
                let (bank, info) = (generation.bank.clone(), Arc::clone(&generation.info));
                let (heart, tuner) = (generation.heart.clone(), Some(generation.tuner.clone()));
                let engine = Served { way: Way::One(bank), tuner, info: info.clone(), heart };
                let alive = generation.is_alive();
                state.phase = Phase::Serving(generation);
                if !alive {
                    return self.fail(state, Part::Start, "a part ended at once");
                }
                tracing::info!(generation = state.number, device = info.device, "serving");
                if let Some(reason) = &info.mtp_absent {
                    // It answers as well as any other, only slower: nobody would notice.
                    tracing::warn!(reason, "no MTP head: this model is served without drafts");
                }
                metrics::serving(state.number, &info);
                state.served = true;
                self.0.door.serve(engine);
                state.tell(Message::Heat);
            }
            Err(reason) => {
                state.phase = Phase::Resting;
                self.fail(state, Part::Start, &reason);
            }
        }
    }

    /// One of ours is gone: of this generation, the thermal actor, or of those already given up.
    fn lost(&self, state: &mut State, who: ActorId, reason: &str) {
        if state.thermal.as_ref().is_some_and(|thermal| thermal.get_id() == who) {
            return self.heat_lost(state, reason);
        }
        let (part, draining) = match &state.phase {
            Phase::Serving(generation) => (generation.part(who), false),
            Phase::Draining(generation) => (generation.part(who), true),
            Phase::Opening | Phase::Burying(_) | Phase::Resting => return,
        };
        match part {
            Some(Part::Decode) if draining && reason == decode::DRAINED => {
                self.end(state, Next::End(End::Drained));
            }
            Some(part) => self.fail(state, part, reason),
            None => {}
        }
    }

    /// The generation is lost: try again, or give up?
    fn fail(&self, state: &mut State, part: Part, reason: &str) {
        tracing::error!(generation = state.number, ?part, reason, "the generation failed");
        metrics::generation_ended(part);
        if let Phase::Serving(generation) | Phase::Draining(generation) = &state.phase {
            let (generation_number, device) = (state.number, generation.info.device.as_str());
            let failure =
                Failure { generation: generation_number, part: part.name(), reason, device };
            generation.flight.write(&self.0.flight, failure);
        }
        let pause = state.patience.fail(Instant::now());
        let next = match (&state.phase, pause) {
            (Phase::Draining(_), _) => Next::End(End::CutOff),
            // What never served is not tried twice: the model or the config is wrong.
            (_, Some(pause)) if state.served => Next::OpenAfter(pause),
            (_, _) => Next::End(End::GaveUp(reason.to_owned())),
        };
        // What went wrong is for the log; clients need to know what to expect.
        match next {
            Next::OpenAfter(_) => {
                self.0.door.between("the engine is restarting after a fault".into());
            }
            Next::End(_) => self.0.door.over("the engine has failed".into()),
        }
        self.end(state, next);
    }

    /// Ends whatever runs, then does what is next.
    fn end(&self, state: &mut State, next: Next) {
        match std::mem::replace(&mut state.phase, Phase::Burying(next)) {
            Phase::Serving(generation) | Phase::Draining(generation) => {
                generation.bury(state.myself.clone(), state.bury_time());
            }
            Phase::Resting => state.tell(Message::Buried(true)),
            // `Opened` or `Buried` is on its way.
            Phase::Opening | Phase::Burying(_) => {}
        }
    }

    fn buried(&self, state: &mut State, in_time: bool) {
        let Phase::Burying(_) = state.phase else { return };
        match std::mem::replace(&mut state.phase, Phase::Resting) {
            Phase::Burying(Next::OpenAfter(_)) if !in_time => {
                // A second engine beside a hung one would have no memory and no device.
                state.conclude(End::GaveUp("the device's thread does not end".into()));
            }
            Phase::Burying(Next::OpenAfter(pause)) => {
                drop(state.myself.send_after(pause, || Message::Open));
            }
            Phase::Burying(Next::End(end)) => state.conclude(end),
            Phase::Opening | Phase::Serving(_) | Phase::Draining(_) | Phase::Resting => {}
        }
    }

    fn drain(&self, state: &mut State, patience: Duration) {
        self.0.door.over("the server is shutting down".into());
        metrics::not_serving();
        match std::mem::replace(&mut state.phase, Phase::Resting) {
            Phase::Serving(generation) => {
                // A bank that is gone is heard of as lost.
                let _ = generation.bank.cast(bank::Message::Drain);
                state.phase = Phase::Draining(generation);
            }
            phase @ (Phase::Draining(_) | Phase::Burying(Next::End(_))) => state.phase = phase,
            phase @ (Phase::Opening | Phase::Resting | Phase::Burying(Next::OpenAfter(_))) => {
                state.phase = phase;
                self.end(state, Next::End(End::Drained));
            }
        }
        state.myself.send_after(patience, || Message::Deadline);
    }

    fn deadline(&self, state: &mut State) {
        match std::mem::replace(&mut state.phase, Phase::Resting) {
            // Whatever is still being opened or buried ends with the process.
            Phase::Burying(Next::End(end)) => state.conclude(end),
            phase @ (Phase::Opening
            | Phase::Serving(_)
            | Phase::Draining(_)
            | Phase::Burying(Next::OpenAfter(_))
            | Phase::Resting) => {
                state.phase = phase;
                self.end(state, Next::End(End::CutOff));
            }
        }
    }

    fn watch(&self, state: &mut State) {
        let stuck = Duration::from_secs_f64(state.configs.root.stuck_s);
        let (Phase::Serving(generation) | Phase::Draining(generation)) = &mut state.phase else {
            return;
        };
        if generation.is_stuck(stuck) {
            return self.fail(state, Part::Decode, "decode does not answer");
        }
        house::sound(state);
    }
}

impl State {
    fn bury_time(&self) -> Duration {
        Duration::from_secs_f64(self.configs.root.bury_s)
    }

    /// Whoever is gone hears of it with its successor.
    fn configure(&mut self, configs: Configs) {
        self.patience.configure(configs.root);
        if let Some(thermal) = &self.thermal {
            let _ = thermal.cast(thermal::Message::Configure(configs.thermal));
        }
        self.configs = configs;
        if let Phase::Serving(generation) | Phase::Draining(generation) = &mut self.phase
            && generation.configure(configs)
            && let Some(thermal) = &self.thermal
        {
            // What the tuner begins with anew knows nothing of heat.
            let _ = thermal
                .cast(thermal::Message::Advise(generation.tuner.clone(), generation.bank.clone()));
        }
    }

    /// To itself; a mailbox that is closed is the root's own, which is ending then.
    fn tell(&self, message: Message) {
        let _ = self.myself.cast(message);
    }

    fn conclude(&mut self, end: End) {
        if let Some(tell) = self.end.take() {
            // Nobody may be waiting for it.
            let _ = tell.send(end);
        }
        self.myself.stop(None);
    }
}

//! One generation: decode, tuner and bank, and the thread that decode lives on.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use mtplx_core::engine::{Engine, EngineInfo};
use ractor::rpc::CallResult;
use ractor::thread_local::{ThreadLocalActor, ThreadLocalActorSpawner};
use ractor::{Actor, ActorCell, ActorId, ActorRef, ActorStatus, RpcReplyPort};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{Blueprint, Configs, Message};
use crate::flight::Recorder;
use crate::heart::Heart;
use crate::metrics::Part;
use crate::{bank, decode, tuner};

/// An engine that is open answers at once; this is for one that is not.
const ANSWER_TIME: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Generation {
    /// What its parts were told.
    configs: Configs,
    pub(super) info: Arc<EngineInfo>,
    pub(super) heart: Heart,
    pub(super) bank: ActorRef<bank::Message>,
    pub(super) tuner: ActorRef<tuner::Message>,
    pub(super) decode: ActorRef<decode::Message>,
    /// What decode ran last.
    pub(super) flight: Recorder,
    /// Ends when decode's state is dropped: not before then is the device's memory free again.
    thread: JoinHandle<()>,
    /// The last question whether decode answers, and when it was asked.
    pulse: Option<(oneshot::Receiver<decode::Snapshot>, Instant)>,
}

/// Spawns a generation, downstream first.
pub(super) fn open<E: Engine + 'static>(
    blueprint: &Blueprint<E>,
    configs: Configs,
    root: ActorCell,
) -> impl Future<Output = Result<Generation, String>> + Send + use<E> {
    let open = blueprint.open.clone();
    let (store, notes) = (blueprint.store.clone(), blueprint.notes.clone());
    let flight = Recorder::new(blueprint.flight.cycles);
    async move {
        let heart = Heart::default();
        let prompt_pace = bank::PromptPace::default();
        let arguments = decode::Arguments {
            open,
            config: configs.decode,
            heart: heart.clone(),
            prompt_pace: prompt_pace.clone(),
            flight: flight.clone(),
        };
        // The thread lives as long as its spawner and its one actor.
        let spawner = ThreadLocalActorSpawner::new();
        let spawned =
            decode::Decode::<E>::spawn_linked(None, arguments, root.clone(), spawner).await;
        let (decode, thread) = spawned.map_err(|error| cause(&error))?;
        let rest = async {
            let info = describe(&decode).await?;
            let shelf = notes.map(|folder| configs.tuner.shelf(&folder, &info));
            let (config, engine) = (configs.tuner, info.clone());
            let arguments =
                tuner::Arguments { config, info: engine, shelf, decode: decode.clone() };
            let tuner = Actor::spawn_linked(None, tuner::Tuner, arguments, root.clone()).await;
            let (tuner, _) = tuner.map_err(|error| cause(&error))?;
            let (config, identity) = (configs.bank, info.identity.clone());
            let (decode, queue_s) = (decode.clone(), configs.decode.queue_s);
            let arguments =
                bank::Arguments { config, decode, identity, store, prompt_pace, queue_s };
            let bank = Actor::spawn_linked(None, bank::Bank, arguments, root).await;
            let (bank, _) = bank.map_err(|error| cause(&error))?;
            Ok((info, tuner, bank))
        };
        match rest.await {
            Ok((info, tuner, bank)) => {
                let info = Arc::new(info);
                Ok(Generation {
                    configs,
                    info,
                    heart,
                    bank,
                    tuner,
                    decode,
                    flight,
                    thread,
                    pulse: None,
                })
            }
            Err(reason) => {
                decode.kill();
                // Its end is all that matters.
                let _ = tokio::time::timeout(ANSWER_TIME, thread).await;
                Err(reason)
            }
        }
    }
}

async fn describe(decode: &ActorRef<decode::Message>) -> Result<EngineInfo, String> {
    let answer = decode.call(decode::Message::Describe, Some(ANSWER_TIME)).await;
    match answer.map_err(|error| error.to_string())? {
        CallResult::Success(info) => Ok(info),
        CallResult::Timeout | CallResult::SenderError => Err("the engine does not answer".into()),
    }
}

/// The innermost error: what ractor wraps around it says nothing to people.
fn cause(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(inner) = error.source() {
        error = inner;
    }
    error.to_string()
}

impl Generation {
    /// Which part of it this is.
    pub(super) fn part(&self, who: ActorId) -> Option<Part> {
        let parts = self.parts().into_iter();
        parts.zip([Part::Decode, Part::Tuner, Part::Bank]).find_map(|(cell, part)| {
            let found = cell.get_id() == who;
            found.then_some(part)
        })
    }

    /// Tells its parts what is new to them; whether the tuner was. Whoever is gone is heard of
    /// otherwise.
    pub(super) fn configure(&mut self, configs: Configs) -> bool {
        let old = std::mem::replace(&mut self.configs, configs);
        let queue_s = configs.decode.queue_s;
        if configs.bank != old.bank || queue_s != old.decode.queue_s {
            let _ = self.bank.cast(bank::Message::Configure(configs.bank, queue_s));
            let _ = self.decode.cast(decode::Message::QueueMax(queue_s));
        }
        let tuned = configs.tuner != old.tuner;
        if tuned {
            let _ = self.tuner.cast(tuner::Message::Configure(configs.tuner));
        }
        tuned
    }

    /// Whether none has ended; such an end may have been told before the generation was known.
    pub(super) fn is_alive(&self) -> bool {
        self.parts().iter().all(|cell| cell.get_status() < ActorStatus::Stopping)
    }

    /// Whether the last question has not been answered for `limit`; once it was, asks the next. A
    /// thread within a device call that does not return answers nothing.
    pub(super) fn is_stuck(&mut self, limit: Duration) -> bool {
        if let Some((pulse, asked)) = &mut self.pulse {
            match pulse.try_recv() {
                Err(TryRecvError::Empty) => return asked.elapsed() >= limit,
                // Closed: decode is gone, which is heard of otherwise.
                Ok(_) | Err(TryRecvError::Closed) => {}
            }
        }
        let (port, pulse) = oneshot::channel();
        let asked = self.decode.cast(decode::Message::Observe(RpcReplyPort::from(port)));
        self.pulse = asked.ok().map(|()| (pulse, Instant::now()));
        false
    }

    /// Kills all parts, then tells the root whether the device's thread ended in time.
    pub(super) fn bury(self, root: ActorRef<Message>, time: Duration) {
        self.parts().iter().for_each(|cell| cell.kill());
        tokio::spawn(async move {
            let in_time = tokio::time::timeout(time, self.thread).await.is_ok();
            // A root that is gone does not need to know.
            let _ = root.cast(Message::Buried(in_time));
        });
    }

    fn parts(&self) -> [ActorCell; 3] {
        [self.decode.get_cell(), self.tuner.get_cell(), self.bank.get_cell()]
    }
}

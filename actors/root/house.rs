//! The house from outside: start it, watch it, drain it, learn how it ended.

use std::time::Duration;

use mtplx_core::engine::Engine;
use ractor::rpc::CallResult;
use ractor::{Actor, ActorRef, RpcReplyPort, SpawnErr};
use serde::Serialize;
use tokio::sync::oneshot;

use super::{Blueprint, End, Message, Phase, Root, Snapshot, State};
use crate::{bank, decode, thermal, tuner};

/// Nobody waits longer for an answer about how it goes.
const ANSWER_TIME: Duration = Duration::from_secs(1);

/// A running house.
#[derive(Debug)]
pub struct House {
    root: ActorRef<Message>,
    end: oneshot::Receiver<End>,
}

/// How it goes with everybody; who is not there or does not answer is missing.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Overview {
    /// The root.
    pub root: Snapshot,
    /// Decode.
    pub decode: Option<decode::Snapshot>,
    /// The bank.
    pub bank: Option<bank::Snapshot>,
    /// The tuner.
    pub tuner: Option<tuner::Snapshot>,
    /// The heat.
    pub thermal: Option<thermal::Snapshot>,
}

/// Starts a house. It returns at once; the door hears when the first generation serves.
///
/// # Errors
/// If the root itself could not be spawned.
pub async fn start<E: Engine + 'static>(blueprint: Blueprint<E>) -> Result<House, SpawnErr> {
    let (told, end) = oneshot::channel();
    let (root, _) = Actor::spawn(None, Root(blueprint), told).await?;
    Ok(House { root, end })
}

impl House {
    /// Asks everybody to finish; who has not after `patience` is cut off. The end follows.
    pub fn drain(&self, patience: Duration) {
        // A root that is gone has ended already.
        let _ = self.root.cast(Message::Drain(patience));
    }

    /// Where the root is told what holds from now on.
    #[must_use]
    pub fn root(&self) -> ActorRef<Message> {
        self.root.clone()
    }

    /// Waits for the end, once.
    pub async fn end(&mut self) -> End {
        let end = (&mut self.end).await;
        end.unwrap_or_else(|_| End::GaveUp("the root ended without a word".into()))
    }

    /// How it goes with everybody; `None` if it goes no more.
    pub async fn observe(&self) -> Option<Overview> {
        // The root answers after the slowest of those it asks.
        ask(Some(self.root.clone()), Message::Observe, 3 * ANSWER_TIME).await
    }
}

/// Asks everybody, beside the root: a decode within a cycle answers after it.
pub(super) fn observe(state: &State, reply: RpcReplyPort<Overview>) {
    let (phase, generation) = match &state.phase {
        Phase::Opening => ("opening", None),
        Phase::Serving(generation) => ("serving", Some(generation)),
        Phase::Draining(generation) => ("draining", Some(generation)),
        Phase::Burying(_) => ("burying", None),
        Phase::Resting => ("resting", None),
    };
    let root = Snapshot {
        generation: state.number,
        phase,
        failures: state.patience.failures(),
        thermal_restarts: state.thermal_restarts,
    };
    let decode = generation.map(|g| g.decode.clone());
    let bank = generation.map(|g| g.bank.clone());
    let tuner = generation.map(|g| g.tuner.clone());
    let thermal = state.thermal.clone();
    tokio::spawn(async move {
        let (decode, bank, tuner, thermal) = tokio::join!(
            ask(decode, decode::Message::Observe, ANSWER_TIME),
            ask(bank, bank::Message::Observe, ANSWER_TIME),
            ask(tuner, tuner::Message::Observe, ANSWER_TIME),
            ask(thermal, thermal::Message::Observe, ANSWER_TIME),
        );
        // Whoever asked may have gone.
        let _ = reply.send(Overview { root, decode, bank, tuner, thermal });
    });
}

async fn ask<M: ractor::Message, T: Send + 'static>(
    who: Option<ActorRef<M>>,
    question: impl FnOnce(RpcReplyPort<T>) -> M,
    time: Duration,
) -> Option<T> {
    match who?.call(question, Some(time)).await.ok()? {
        CallResult::Success(answer) => Some(answer),
        CallResult::Timeout | CallResult::SenderError => None,
    }
}

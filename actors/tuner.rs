//! The author of the knobs.
//!
//! * **Owns** the knobs and what was learnt of cycles.
//! * **Hears** `Report`, `Ceiling`, `Pause`, `Limits`, `Observe`.
//! * **Says** `decode::Tune`: at once at birth, then whenever the knobs change.
//! * **Dies** with its generation; the next begins again from the config.

use mtplx_core::batch::{Depths, Knobs, Report};
use mtplx_core::engine::EngineInfo;
use mtplx_core::thermal::Ceiling;
use mtplx_core::tune::{TuneLimits, Tuner as Learner};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use serde::{Deserialize, Serialize};

use crate::{decode, metrics};

/// What the tuner hears.
#[derive(Debug)]
pub enum Message {
    /// A cycle went like this.
    Report(Report),
    /// Heat allows this much.
    Ceiling(Ceiling),
    /// Heat wants such a share of the time for pauses.
    Pause(f32),
    /// Move within these bounds from now on; what was learnt within others begins anew.
    Limits(TuneLimits),
    /// Say what is believed.
    Observe(RpcReplyPort<Snapshot>),
}

/// Where the knobs start and how far they go.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Tokens to draft at start, and always when `depth_auto` is off.
    pub depth: u8,
    /// Whether the depth follows the measurements.
    pub depth_auto: bool,
    /// Deepest draft allowed.
    pub depth_max: u8,
    /// Most rows that run at once.
    pub rows_max: usize,
    /// Prompt tokens a cycle may feed while other rows decode, until their cost is known.
    pub prefill_busy_tokens: usize,
    /// Tokens a cycle may feed in all; prompts have the room that rows leave which decode.
    pub prefill_idle_tokens: usize,
    /// How many times as long as without it a cycle may take because it also feeds prompts while
    /// other rows decode.
    pub prefill_stretch: f64,
}

impl Config {
    /// The bounds on this engine.
    #[must_use]
    pub fn limits(&self, info: &EngineInfo) -> TuneLimits {
        let depth_max = self.depth_max.min(info.depth_max);
        let start = Knobs {
            depths: Depths::all(self.depth.min(depth_max)),
            rows_max: self.rows_max.min(info.slots),
            prefill_busy: self.prefill_busy_tokens,
            prefill_idle: self.prefill_idle_tokens,
            stretch: Some(self.prefill_stretch),
            pause: 0.0,
        };
        TuneLimits { start, auto_depth: self.depth_auto, depth_max }
    }
}

/// The tuner in numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Snapshot {
    /// Tokens to draft at the width that ran last.
    pub depth: u8,
    /// Rows that may run at once.
    pub rows_max: usize,
    /// Acceptance by draft position as now believed.
    pub acceptance: Vec<f64>,
    /// Reports heard.
    pub reports: u64,
}

/// The actor.
#[derive(Debug)]
pub struct Tuner;

/// What it begins with.
#[derive(Debug)]
pub struct Arguments {
    /// Bounds of the knobs.
    pub limits: TuneLimits,
    /// Who goes by them.
    pub decode: ActorRef<decode::Message>,
}

/// What it remembers.
#[derive(Debug)]
pub struct State {
    learner: Learner,
    /// What decode was told last.
    told: Knobs,
    /// What heat wants; whatever is learnt, it stays in the knobs.
    pause: f32,
    reports: u64,
    decode: ActorRef<decode::Message>,
}

impl Actor for Tuner {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Message>,
        Arguments { limits, decode }: Arguments,
    ) -> Result<State, ActorProcessingErr> {
        let learner = Learner::new(limits);
        let state = State { told: learner.knobs(), learner, pause: 0.0, reports: 0, decode };
        state.tell(myself)?;
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Report(report) => {
                state.reports += 1;
                state.learner.hear(&report);
                metrics::acceptance(state.learner.acceptance());
            }
            Message::Ceiling(ceiling) => state.learner.set_ceiling(ceiling),
            Message::Pause(share) => state.pause = share,
            Message::Limits(limits) => state.learner = Learner::new(limits),
            // Whoever asked may have gone.
            Message::Observe(reply) => drop(reply.send(state.observe())),
        }
        let knobs = Knobs { pause: state.pause, ..state.learner.knobs() };
        if knobs != state.told {
            state.told = knobs;
            state.tell(myself)?;
        }
        Ok(())
    }
}

impl State {
    fn tell(&self, myself: ActorRef<Message>) -> Result<(), ActorProcessingErr> {
        metrics::tuned(&self.told, self.learner.depth());
        self.decode.cast(decode::Message::Tune(self.told, myself))?;
        Ok(())
    }

    fn observe(&self) -> Snapshot {
        Snapshot {
            depth: self.learner.depth(),
            rows_max: self.told.rows_max,
            acceptance: self.learner.acceptance().to_vec(),
            reports: self.reports,
        }
    }
}

#[cfg(test)]
mod tests {
    use mtplx_core::scripted::{Script, Scripted};
    use tokio::sync::mpsc::UnboundedReceiver;

    use super::*;
    use crate::probe::probe;
    use mtplx_core::engine::Engine;

    async fn knobs(heard: &mut UnboundedReceiver<decode::Message>) -> Knobs {
        match heard.recv().await {
            Some(decode::Message::Tune(knobs, _)) => knobs,
            other => panic!("expected knobs, heard {other:?}"),
        }
    }

    #[tokio::test]
    async fn knobs_are_told_at_once_and_then_when_they_change() {
        let config = Config {
            depth: 9,
            depth_auto: true,
            depth_max: 9,
            rows_max: 100,
            prefill_busy_tokens: 16,
            prefill_idle_tokens: 64,
            prefill_stretch: 2.0,
        };
        let limits = config.limits(Scripted::small(Script::default()).info());
        let (decode, mut heard) = probe().await;
        let (tuner, _) = Actor::spawn(None, Tuner, Arguments { limits, decode }).await.unwrap();
        let first = knobs(&mut heard).await;
        assert_eq!((first.depths.at(1), first.rows_max), (4, 8), "no more than the engine can");
        // Nothing follows from a cycle without rows, nor from a ceiling that stands.
        tuner.cast(Message::Report(Report::default())).unwrap();
        tuner.cast(Message::Ceiling(Ceiling::Full)).unwrap();
        tuner.cast(Message::Ceiling(Ceiling::Low)).unwrap();
        assert_eq!(knobs(&mut heard).await.rows_max, 2);
        tuner.cast(Message::Pause(0.25)).unwrap();
        assert_eq!(knobs(&mut heard).await.pause, 0.25);
        // A depth that is not known yet is tried.
        tuner.cast(Message::Report(Report { rows: 1, depth: 4, ..Report::default() })).unwrap();
        assert_eq!(knobs(&mut heard).await.depths.at(1), 0);
        let seen = ractor::call!(tuner, Message::Observe).unwrap();
        assert_eq!((seen.reports, seen.depth, seen.rows_max), (2, 0, 2));
    }
}

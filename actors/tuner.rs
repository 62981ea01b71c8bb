//! The author of the knobs.
//!
//! * **Owns** the knobs and what was learnt of cycles.
//! * **Hears** `Report`, `Ceiling`, `Pause`, `Configure`, `Observe`, `Show`; from itself `Keep`.
//! * **Says** `decode::Tune`: at once at birth, then whenever the knobs change.
//! * **Dies** with its generation; the next begins from what was learnt, where there is a folder
//!   for that, else from the config.

use std::path::Path;
use std::time::Duration;

use mtplx_core::batch::{Depths, Knobs, Report};
use mtplx_core::engine::EngineInfo;
use mtplx_core::thermal::Ceiling;
use mtplx_core::tune::{Learnt, Reason, TuneLimits, Tuner as Learner};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use serde::{Deserialize, Serialize};

use crate::{decode, metrics};

mod file;
mod shown;

pub use file::Shelf;
pub use shown::{Band, Chunk, Depth, Position, Shown, Width};

/// Between two times that what was learnt is written down.
const KEEP_TIME: Duration = Duration::from_secs(20);

/// What the tuner hears.
#[derive(Debug)]
pub enum Message {
    /// A cycle went like this.
    Report(Box<Report>),
    /// Heat allows this much.
    Ceiling(Ceiling),
    /// Heat wants such a share of the time for pauses.
    Pause(f32),
    /// Move within these bounds from now on; what was learnt within others is put down.
    Configure(Config),
    /// Say what is believed.
    Observe(RpcReplyPort<Snapshot>),
    /// The same in full.
    Show(RpcReplyPort<Box<Shown>>),
    /// Write down what was learnt.
    Keep,
}

impl ractor::Message for Message {}

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
    /// Most milliseconds of a cycle, and so between what a stream gets and what it gets next; 0 for
    /// any.
    pub itl_ms: f64,
    /// Whether the length of chunks follows the measurements while nobody decodes.
    pub chunk_auto: bool,
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
        TuneLimits {
            start,
            auto_depth: self.depth_auto,
            depth_max,
            cycle_us_max: self.itl_ms().map_or(f64::INFINITY, |ms| 1e3 * ms),
            auto_chunk: self.chunk_auto,
        }
    }

    fn itl_ms(&self) -> Option<f64> {
        (self.itl_ms > 0.0).then_some(self.itl_ms)
    }

    /// Where this engine's file is below a folder: costs are of a model, its kernels and MLX, the
    /// machine, and what is set.
    #[must_use]
    pub fn shelf(&self, folder: &Path, info: &EngineInfo) -> Shelf {
        let processors = std::thread::available_parallelism().map_or(0, usize::from);
        let machine = format!("{} {processors} processors", std::env::consts::ARCH);
        let EngineInfo { identity, device, depth_max, .. } = info;
        Shelf::new(folder, format!("{identity}; {device}; {machine}; {depth_max} drafts; {self:?}"))
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
    pub config: Config,
    /// The engine they are for.
    pub info: EngineInfo,
    /// Where what was learnt is kept, if it is.
    pub shelf: Option<Shelf>,
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
    /// As they were told to the metrics last.
    counts: (u64, u64, u64),
    config: Config,
    info: EngineInfo,
    /// Whether what was learnt is kept, and where.
    shelf: Option<Shelf>,
    kept: Learnt,
    decode: ActorRef<decode::Message>,
}

impl Actor for Tuner {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Message>,
        Arguments { config, info, shelf, decode }: Arguments,
    ) -> Result<State, ActorProcessingErr> {
        let mut learner = Learner::new(config.limits(&info));
        let kept = shelf.as_ref().and_then(Shelf::read).unwrap_or_default();
        learner.recall(&kept);
        if shelf.is_some() {
            myself.send_interval(KEEP_TIME, || Message::Keep);
        }
        let state = State {
            told: learner.knobs(),
            learner,
            pause: 0.0,
            reports: 0,
            counts: (0, 0, 0),
            config,
            info,
            shelf,
            kept,
            decode,
        };
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
                state.count();
            }
            Message::Ceiling(ceiling) => state.learner.set_ceiling(ceiling),
            Message::Pause(share) => state.pause = share,
            Message::Configure(config) => state.configure(config),
            // Whoever asked may have gone.
            Message::Observe(reply) => drop(reply.send(state.observe())),
            Message::Show(reply) => drop(reply.send(Box::new(state.show()))),
            Message::Keep => state.keep(),
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

    /// For the metrics.
    fn count(&mut self) {
        metrics::acceptance(&self.learner.acceptance());
        let counts = self.learner.counts();
        let here = self.learner.here();
        let here = here.map(|choice| (choice.rows, choice.chosen, self.reason(choice.reason)));
        metrics::tuner(here, self.counts, counts);
        self.counts = counts;
    }

    /// Goes by other settings. What was learnt under the old ones is kept under their name, and
    /// what was learnt under the new ones before is where it begins.
    fn configure(&mut self, config: Config) {
        self.keep();
        let ceiling = self.learner.ceiling();
        self.config = config;
        self.learner = Learner::new(config.limits(&self.info));
        self.learner.set_ceiling(ceiling);
        self.shelf = self.shelf.as_ref().map(|shelf| config.shelf(shelf.folder(), &self.info));
        self.kept = self.shelf.as_ref().and_then(Shelf::read).unwrap_or_default();
        self.learner.recall(&self.kept);
        self.counts = (0, 0, 0);
    }

    fn reason(&self, learnt: Reason) -> Reason {
        let has_drafts = self.config.limits(&self.info).depth_max > 0;
        match (has_drafts, self.config.depth_auto) {
            (false, _) => Reason::NoDrafts,
            (true, false) => Reason::Fixed,
            (true, true) => learnt,
        }
    }

    fn show(&self) -> Shown {
        let (itl_ms, auto) = (self.config.itl_ms(), self.config.depth_auto);
        Shown::new(self.learner.view(), self.reports, itl_ms, auto)
    }

    /// Beside the actor: a disk may be slow.
    fn keep(&mut self) {
        let (Some(shelf), learnt) = (self.shelf.clone(), self.learner.learnt()) else { return };
        if learnt.costs.is_empty() || learnt == self.kept {
            return;
        }
        self.kept = learnt.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = shelf.write(&learnt) {
                tracing::warn!(%error, "what the tuner learnt could not be written");
            }
        });
    }

    fn observe(&self) -> Snapshot {
        Snapshot {
            depth: self.learner.depth(),
            rows_max: self.told.rows_max,
            acceptance: self.learner.acceptance(),
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

    fn config() -> Config {
        Config {
            depth: 9,
            depth_auto: true,
            depth_max: 9,
            rows_max: 100,
            itl_ms: 0.0,
            chunk_auto: true,
            prefill_busy_tokens: 16,
            prefill_idle_tokens: 64,
            prefill_stretch: 2.0,
        }
    }

    fn info() -> EngineInfo {
        Scripted::small(Script::default()).info().clone()
    }

    fn cycle(depth: u8) -> Message {
        let (wall_us, uniform) = (1000 + 900 * u64::from(depth), true);
        Message::Report(Box::new(Report { rows: 1, depth, uniform, wall_us, ..Report::default() }))
    }

    #[tokio::test]
    async fn knobs_are_told_at_once_and_then_when_they_change() {
        let (decode, mut heard) = probe().await;
        let arguments = Arguments { config: config(), info: info(), shelf: None, decode };
        let (tuner, _) = Actor::spawn(None, Tuner, arguments).await.unwrap();
        let first = knobs(&mut heard).await;
        assert_eq!((first.depths.at(1), first.rows_max), (4, 8), "no more than the engine can");
        // Nothing follows from a cycle without rows, nor from a ceiling that stands.
        tuner.cast(Message::Report(Box::default())).unwrap();
        tuner.cast(Message::Ceiling(Ceiling::Full)).unwrap();
        tuner.cast(Message::Ceiling(Ceiling::Low)).unwrap();
        assert_eq!(knobs(&mut heard).await.rows_max, 2);
        tuner.cast(Message::Pause(0.25)).unwrap();
        assert_eq!(knobs(&mut heard).await.pause, 0.25);
        // A depth that is not known yet is tried once there is something to compare it with.
        (0..8).for_each(|_| tuner.cast(cycle(4)).unwrap());
        assert_ne!(knobs(&mut heard).await.depths.at(1), 4);
        let seen = ractor::call!(tuner, Message::Observe).unwrap();
        assert_eq!((seen.reports, seen.rows_max), (9, 2));
        let shown = ractor::call!(tuner, Message::Show).unwrap();
        assert_eq!((shown.widths[0].rows, shown.widths[0].reason), (1, "trial"));
        assert_eq!(shown.widths[0].depths.len(), 5);
    }

    /// Cycles in which drafts cost far too much, until the depth says so.
    async fn learn(tuner: &ActorRef<Message>, heard: &mut UnboundedReceiver<decode::Message>) {
        let mut depth = knobs(heard).await.depths.at(1);
        for _ in 0..400 {
            tuner.cast(cycle(depth)).unwrap();
            ractor::call!(tuner, Message::Observe).unwrap();
            while let Ok(decode::Message::Tune(knobs, _)) = heard.try_recv() {
                depth = knobs.depths.at(1);
            }
        }
    }

    #[tokio::test]
    async fn what_was_learnt_under_other_settings_is_put_down_and_taken_up_again() {
        let dir = tempfile::tempdir().unwrap();
        let (decode, mut heard) = probe().await;
        let shelf = Some(config().shelf(dir.path(), &info()));
        let arguments = Arguments { config: config(), info: info(), shelf, decode };
        let (tuner, _) = Actor::spawn(None, Tuner, arguments).await.unwrap();
        learn(&tuner, &mut heard).await;
        tuner.cast(Message::Ceiling(Ceiling::Low)).unwrap();
        assert_eq!(knobs(&mut heard).await.rows_max, 2);
        let other = Config { itl_ms: 50.0, depth: 2, ..config() };
        tuner.cast(Message::Configure(other)).unwrap();
        let now = knobs(&mut heard).await;
        assert_eq!((now.depths.at(1), now.rows_max), (2, 2), "anew, and as hot as before");
        let shown = ractor::call!(tuner, Message::Show).unwrap();
        assert_eq!((shown.itl_ms, shown.widths.len()), (Some(50.0), 0));
        // The old settings' file is written beside the actor.
        let written = config().shelf(dir.path(), &info());
        while written.read().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tuner.cast(Message::Configure(config())).unwrap();
        assert_eq!(knobs(&mut heard).await.depths.at(1), 0, "as it was learnt under these");
    }

    #[tokio::test]
    async fn what_one_learnt_the_next_begins_with() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Some(config().shelf(dir.path(), &info()));
        for life in 0..2 {
            let (decode, mut heard) = probe().await;
            let (info, shelf) = (info(), shelf.clone());
            let arguments = Arguments { config: config(), info, shelf, decode };
            let (tuner, _) = Actor::spawn(None, Tuner, arguments).await.unwrap();
            if life == 1 {
                let depth = knobs(&mut heard).await.depths.at(1);
                assert_eq!(depth, 0, "drafts cost far too much here");
                continue;
            }
            learn(&tuner, &mut heard).await;
            tuner.cast(Message::Keep).unwrap();
            while std::fs::read_dir(dir.path()).unwrap().all(|file| {
                file.unwrap().path().extension().is_none_or(|extension| extension != "json")
            }) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

//! The watcher of the machine's heat.
//!
//! * **Owns** the sensor and the memory of the last ceiling.
//! * **Hears** `Sample` (own timer), `Advise`, `Configure`, `Observe`.
//! * **Says** `tuner::Ceiling` when it changes, and once to each new tuner; never speaks to decode.
//! * **Dies** alone; the root starts it anew. It outlives generations: heat does.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mtplx_core::thermal::{Ceiling, ThermalLimits, Thermostat};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use serde::{Deserialize, Serialize};

use crate::{metrics, tuner};

mod sensor;
#[cfg(test)]
mod tests;

pub use sensor::{Components, Sensor};

/// What thermal hears.
#[derive(Debug)]
pub enum Message {
    /// Ask the sensor.
    Sample,
    /// Speak to this tuner from now on.
    Advise(ActorRef<tuner::Message>),
    /// Go by these bounds from the next reading on. How often to look stays.
    Configure(Config),
    /// Say how hot it is.
    Observe(RpcReplyPort<Snapshot>),
}

impl ractor::Message for Message {}

/// When to look and what is hot.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Seconds between readings.
    pub sample_s: f64,
    /// At this many degrees the rows are halved.
    pub warm_celsius: f32,
    /// At this many they are quartered.
    pub hot_celsius: f32,
    /// They return only this many degrees below.
    pub hysteresis_celsius: f32,
    /// Readings missed in a row after which a sensor that once spoke is taken for dead.
    pub silent_readings_max: u32,
}

impl Config {
    fn limits(&self) -> ThermalLimits {
        let Self { sample_s: _, warm_celsius, hot_celsius, hysteresis_celsius, .. } = *self;
        let silent_readings_max = self.silent_readings_max;
        ThermalLimits { warm_celsius, hot_celsius, hysteresis_celsius, silent_readings_max }
    }
}

/// The heat in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Snapshot {
    /// The last reading, if there was one.
    pub celsius: Option<f32>,
    /// What follows: `full`, `reduced` or `low`.
    pub ceiling: &'static str,
    /// Times the sensor was asked.
    pub samples: u64,
}

/// Makes the sensor, anew for each life of the actor.
pub type MakeSensor = Arc<dyn Fn() -> Box<dyn Sensor> + Send + Sync>;

/// The actor.
#[derive(Debug)]
pub struct Thermal;

/// What it begins with.
pub struct Arguments {
    /// When to look and what is hot.
    pub config: Config,
    /// What to look at.
    pub sensor: MakeSensor,
    /// Whom to tell.
    pub tuner: ActorRef<tuner::Message>,
}

impl fmt::Debug for Arguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arguments").field("config", &self.config).finish_non_exhaustive()
    }
}

/// What it remembers.
pub struct State {
    make: MakeSensor,
    /// Made with the first reading.
    sensor: Arc<Mutex<Option<Box<dyn Sensor>>>>,
    thermostat: Thermostat,
    ceiling: Ceiling,
    celsius: Option<f32>,
    samples: u64,
    tuner: ActorRef<tuner::Message>,
}

impl Actor for Thermal {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Message>,
        Arguments { config, sensor, tuner }: Arguments,
    ) -> Result<State, ActorProcessingErr> {
        myself.cast(Message::Sample)?;
        myself.send_interval(Duration::from_secs_f64(config.sample_s), || Message::Sample);
        // The root waits for this to return: nothing of the machine is asked before.
        Ok(State {
            make: sensor,
            sensor: Arc::default(),
            thermostat: Thermostat::new(config.limits()),
            ceiling: Ceiling::Full,
            celsius: None,
            samples: 0,
            tuner,
        })
    }

    async fn handle(
        &self,
        _myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Sample => state.sample().await?,
            Message::Advise(tuner) => {
                state.tuner = tuner;
                state.tell();
            }
            Message::Configure(config) => state.thermostat.set_limits(config.limits()),
            // Whoever asked may have gone.
            Message::Observe(reply) => drop(reply.send(state.observe())),
        }
        Ok(())
    }
}

impl State {
    async fn sample(&mut self) -> Result<(), ActorProcessingErr> {
        let (sensor, make) = (Arc::clone(&self.sensor), Arc::clone(&self.make));
        // Some sensors answer after tens of milliseconds; connections do not wait for them.
        let read = move || {
            let mut sensor = sensor.lock().unwrap_or_else(PoisonError::into_inner);
            sensor.get_or_insert_with(|| make()).hottest()
        };
        self.celsius = tokio::task::spawn_blocking(read).await?;
        self.samples += 1;
        let ceiling = self.thermostat.read(self.celsius);
        metrics::thermal(self.celsius, ceiling);
        if ceiling != self.ceiling {
            tracing::warn!(?ceiling, celsius = self.celsius, "the thermal ceiling changed");
            self.ceiling = ceiling;
            self.tell();
        }
        Ok(())
    }

    fn tell(&self) {
        // A tuner that is gone has ended with its generation; the next one is told by `Advise`.
        let _ = self.tuner.cast(tuner::Message::Ceiling(self.ceiling));
    }

    fn observe(&self) -> Snapshot {
        let ceiling = match self.ceiling {
            Ceiling::Low => "low",
            Ceiling::Reduced => "reduced",
            Ceiling::Full => "full",
        };
        Snapshot { celsius: self.celsius, ceiling, samples: self.samples }
    }
}

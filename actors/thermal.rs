//! The watcher of the machine's heat.
//!
//! * **Owns** the sensor and the memory of the last restraint.
//! * **Hears** `Sample` (own timer), `Advise`, `Configure`, `Observe`.
//! * **Says** `tuner::Ceiling`, `tuner::Pause` and `bank::Limit` when they change, and once to each
//!   new generation; never speaks to decode.
//! * **Dies** alone; the root starts it anew. It outlives generations: heat does.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mtplx_core::thermal::{Ceiling, Restraint, ThermalLimits, Thermostat};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use serde::{Deserialize, Serialize};

use crate::{bank, metrics, tuner};

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod mac;
#[cfg(target_os = "linux")]
mod nvml;
mod reading;
#[cfg(any(test, target_os = "linux"))]
mod roles;
mod sensor;
mod shown;
#[cfg(test)]
mod tests;

pub use reading::{Quantity, Reading, Value};
pub use sensor::{MakeSource, Sensor, Source, Sources};
pub use shown::{Shown, show_fans, shown};

/// Every source of this system, and its name.
#[must_use]
pub fn sources() -> Vec<(&'static str, MakeSource)> {
    #[cfg(target_os = "linux")]
    let sources: Vec<(&'static str, MakeSource)> =
        vec![(linux::NAME, linux::open), (nvml::NAME, nvml::open)];
    #[cfg(target_os = "macos")]
    let sources: Vec<(&'static str, MakeSource)> = vec![
        ("hid", mac::components),
        ("macmon", mac::macmon),
        ("thermalState", mac::state),
        ("powermetrics", mac::powermetrics),
    ];
    sources
}

/// What `powermetrics --samplers thermal` says of the pressure.
#[cfg(any(test, target_os = "macos"))]
fn powermetrics_pressure(said: &str) -> Option<mtplx_core::thermal::Pressure> {
    use mtplx_core::thermal::Pressure::{Critical, Fair, Nominal, Serious};
    let line = said.lines().find_map(|line| line.split_once("pressure level:"))?.1;
    Some(match line.trim() {
        "Nominal" => Nominal,
        "Moderate" => Fair,
        "Heavy" => Serious,
        "Trapping" | "Sleeping" => Critical,
        _ => return None,
    })
}

/// What thermal hears.
#[derive(Debug)]
pub enum Message {
    /// Ask the sensor.
    Sample,
    /// Speak to these from now on.
    Advise(ActorRef<tuner::Message>, ActorRef<bank::Message>),
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
    /// Seconds that a sensor is given to answer.
    pub timeout_s: f64,
    /// Pauses between cycles hold the hottest sensor here.
    pub target_celsius: f32,
    /// Most of the time that they may take; 0 for none.
    pub pause_max: f32,
    /// At this many degrees the rows are halved.
    pub warm_celsius: f32,
    /// At this many they are quartered.
    pub hot_celsius: f32,
    /// They return only this many degrees below.
    pub hysteresis_celsius: f32,
    /// Readings missed in a row after which a sensor that once spoke is taken for dead.
    pub silent_readings_max: u32,
    /// Share of its memory that the bank keeps while rows are quartered.
    pub bank_hot_share: f32,
}

impl Config {
    fn limits(&self) -> ThermalLimits {
        #[expect(clippy::cast_possible_truncation, reason = "seconds between readings")]
        let sample_s = self.sample_s as f32;
        let Self { target_celsius, pause_max, warm_celsius, hot_celsius, .. } = *self;
        let Self { hysteresis_celsius, silent_readings_max, bank_hot_share, .. } = *self;
        ThermalLimits {
            target_celsius,
            pause_max,
            warm_celsius,
            hot_celsius,
            hysteresis_celsius,
            silent_readings_max,
            bank_hot_share,
            sample_s,
        }
    }

    /// Longest wait for a sensor.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        Duration::from_secs_f64(self.timeout_s)
    }

    /// Proves what the numbers and their relations must be.
    ///
    /// # Errors
    /// What is wrong, in words that name the setting.
    pub fn check(&self) -> Result<(), String> {
        let Self { target_celsius: target, warm_celsius: warm, hot_celsius: hot, .. } = *self;
        let share = |share: f32| (0.0..=1.0).contains(&share);
        let rules = [
            (self.sample_s > 0.0, "thermal.sample_s must be above 0"),
            (self.timeout_s > 0.0, "thermal.timeout_s must be above 0"),
            (warm <= hot, "thermal.warm_celsius must not be above thermal.hot_celsius"),
            (
                // Pauses hold it at the target: rows that wait for less would never return.
                target <= warm - self.hysteresis_celsius,
                "thermal.target_celsius must not be above thermal.warm_celsius less \
                 thermal.hysteresis_celsius",
            ),
            ((0.0..=0.9).contains(&self.pause_max), "thermal.pause_max must be from 0 to 0.9"),
            (
                self.sample_s >= 0.1 && self.timeout_s < self.sample_s,
                "thermal.sample_s must be at least 0.1 and above thermal.timeout_s",
            ),
            (share(self.bank_hot_share), "thermal.bank_hot_share must be between 0 and 1"),
        ];
        let broken = rules.into_iter().find(|(holds, _)| !holds);
        broken.map_or(Ok(()), |(_, rule)| Err(rule.to_owned()))
    }
}

/// The heat in numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Snapshot {
    /// The last reading, if there was one.
    pub celsius: Option<f32>,
    /// What follows: `full`, `reduced` or `low`.
    pub ceiling: &'static str,
    /// Share of the time for pauses.
    pub pause: f32,
    /// Why.
    pub reasons: Vec<&'static str>,
    /// All that was read.
    pub reading: Reading,
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
    /// Whom to tell of rows and pauses.
    pub tuner: ActorRef<tuner::Message>,
    /// And of memory.
    pub bank: ActorRef<bank::Message>,
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
    restraint: Restraint,
    /// Whether those it speaks to were told all of it: another may have told them before.
    told: bool,
    /// Readings so far, and the last.
    samples: u64,
    reading: Reading,
    tuner: ActorRef<tuner::Message>,
    bank: ActorRef<bank::Message>,
}

impl Actor for Thermal {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Message>,
        Arguments { config, sensor, tuner, bank }: Arguments,
    ) -> Result<State, ActorProcessingErr> {
        myself.cast(Message::Sample)?;
        myself.send_interval(Duration::from_secs_f64(config.sample_s), || Message::Sample);
        // The root waits for this to return: nothing of the machine is asked before.
        Ok(State {
            make: sensor,
            sensor: Arc::default(),
            thermostat: Thermostat::new(config.limits()),
            restraint: Restraint { bank: 1.0, ..Restraint::default() },
            told: false,
            samples: 0,
            reading: Reading::default(),
            tuner,
            bank,
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
            Message::Advise(tuner, bank) => {
                (state.tuner, state.bank) = (tuner, bank);
                state.tell(None);
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
            sensor.get_or_insert_with(|| make()).read()
        };
        self.reading = tokio::task::spawn_blocking(read).await?;
        self.samples += 1;
        let heat = self.reading.heat();
        let restraint = self.thermostat.read(heat);
        metrics::thermal(&self.reading, restraint, self.thermostat.target());
        shown::show(Shown {
            ceiling: name(restraint.ceiling),
            pause: restraint.pause,
            reasons: restraint.reasons.names(),
            celsius: heat.celsius,
            pressure: heat.pressure.map(|pressure| pressure.name()),
            fans: "auto",
        });
        if restraint.ceiling != self.restraint.ceiling {
            let Restraint { ceiling, reasons, .. } = restraint;
            let (celsius, reasons) = (heat.celsius, reasons.names());
            tracing::warn!(?ceiling, celsius, ?reasons, "the thermal ceiling changed");
        }
        let last = std::mem::replace(&mut self.restraint, restraint);
        if self.told {
            self.tell(Some(last));
        } else if self.reading.is_of_heat() {
            self.tell(None);
            self.told = true;
        }
        Ok(())
    }

    /// What is other than what was told last; all of it to whoever was told nothing. Who is gone
    /// has ended with its generation; the next one is told by `Advise`.
    fn tell(&self, last: Option<Restraint>) {
        let now = self.restraint;
        if last.is_none_or(|last| last.ceiling != now.ceiling) {
            let _ = self.tuner.cast(tuner::Message::Ceiling(now.ceiling));
        }
        if last.is_none_or(|last| last.pause != now.pause) {
            let _ = self.tuner.cast(tuner::Message::Pause(now.pause));
        }
        if last.is_none_or(|last| last.bank != now.bank) {
            let _ = self.bank.cast(bank::Message::Limit(now.bank.into()));
        }
    }

    fn observe(&self) -> Snapshot {
        Snapshot {
            celsius: self.reading.heat().celsius,
            ceiling: name(self.restraint.ceiling),
            pause: self.restraint.pause,
            reasons: self.restraint.reasons.names(),
            reading: self.reading.clone(),
            samples: self.samples,
        }
    }
}

fn name(ceiling: Ceiling) -> &'static str {
    match ceiling {
        Ceiling::Low => "low",
        Ceiling::Reduced => "reduced",
        Ceiling::Full => "full",
    }
}

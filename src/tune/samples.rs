//! What the machine did meanwhile: looks at its sensors, each put down to the candidate within
//! whose measuring it fell, from the look before it on.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mtplx_actors::thermal::{Reading, Sensor, Sources, Value};
use schemars::JsonSchema;
use serde::Serialize;

/// One look, and when the one before it ended: power and work are of the time between.
#[derive(Clone, Debug)]
struct Look {
    from: Instant,
    at: Instant,
    reading: Reading,
}

/// From when to when something was measured.
pub(super) type Window = (Instant, Instant);

/// Looks at the sensors until it is told to stop.
pub(super) struct Sampler {
    stop: Sender<()>,
    thread: JoinHandle<Vec<Look>>,
}

/// All looks of a run.
pub(super) struct Looks(Vec<Look>);

/// Whose samples a figure is made of.
#[derive(Clone, Copy, Debug, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Scope {
    /// Of the candidate alone.
    Candidate,
    /// None fell there: of the whole run.
    Run,
    /// There are none.
    None,
}

/// One sensor over a scope.
#[derive(Clone, Debug, JsonSchema, PartialEq, Serialize)]
pub(super) struct Figure {
    source: &'static str,
    name: String,
    samples: usize,
    pub(super) mean: f32,
    pub(super) max: f32,
}

/// All sensors of a quantity; `null` where none spoke.
#[derive(Clone, Debug, JsonSchema, PartialEq, Serialize)]
pub(super) struct Scoped<T> {
    pub(super) scope: Scope,
    /// Looks at which any of them spoke.
    samples: usize,
    pub(super) sensors: Option<T>,
}

/// What the machine did while a candidate was measured.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub(super) struct Machine {
    pub(super) watts: Scoped<Vec<Figure>>,
    pub(super) megahertz: Scoped<Vec<Figure>>,
    pub(super) celsius: Scoped<Vec<Figure>>,
    celsius_beside: Scoped<Vec<Figure>>,
    pub(super) busy: Scoped<Vec<Figure>>,
    rpm: Scoped<Vec<Figure>>,
    fan_share: Scoped<Vec<Figure>>,
    /// The worst that the system said.
    pressure: Scoped<&'static str>,
}

impl Sampler {
    /// Looks every so often; no sensor has to answer later than after `limit`.
    pub(super) fn start(limit: Duration, every: Duration) -> Result<Self> {
        let (stop, stopped) = channel();
        let look = move || {
            let mut sensor = Sources::of_this_machine(limit);
            let (mut looks, mut from) = (Vec::new(), Instant::now());
            loop {
                let reading = sensor.read();
                let at = Instant::now();
                looks.push(Look { from, at, reading });
                from = at;
                if stopped.recv_timeout(every) != Err(RecvTimeoutError::Timeout) {
                    return looks;
                }
            }
        };
        let thread = std::thread::Builder::new().name("samples".into()).spawn(look);
        Ok(Self { stop, thread: thread.context("nobody looks at the sensors")? })
    }

    /// Everything it saw.
    pub(super) fn finish(self) -> Looks {
        // It may have ended by itself: then there is nothing.
        let _ = self.stop.send(());
        Looks(self.thread.join().unwrap_or_default())
    }
}

impl Looks {
    /// What the machine did within these windows.
    pub(super) fn within(&self, windows: &[Window]) -> Machine {
        let of = |values: fn(&Reading) -> &Vec<Value>| {
            let (scope, looks) = self.scope(windows, |reading| !values(reading).is_empty());
            let sensors = (!looks.is_empty()).then(|| figures(&looks, values));
            Scoped { scope, samples: looks.len(), sensors }
        };
        let (scope, looks) = self.scope(windows, |reading| reading.pressure.is_some());
        let said = looks.iter().filter_map(|look| Some(look.reading.pressure?.0));
        let (samples, sensors) = (looks.len(), said.max().map(|worst| worst.name()));
        Machine {
            watts: of(|reading| &reading.watts),
            megahertz: of(|reading| &reading.megahertz),
            celsius: of(|reading| &reading.celsius),
            celsius_beside: of(|reading| &reading.celsius_beside),
            busy: of(|reading| &reading.busy),
            rpm: of(|reading| &reading.rpm),
            fan_share: of(|reading| &reading.fan_share),
            pressure: Scoped { scope, samples, sensors },
        }
    }

    fn scope(&self, windows: &[Window], speaks: impl Fn(&Reading) -> bool) -> (Scope, Vec<&Look>) {
        let all: Vec<&Look> = self.0.iter().filter(|look| speaks(&look.reading)).collect();
        let inside =
            |look: &&Look| windows.iter().any(|&(from, to)| from <= look.from && look.at <= to);
        let own: Vec<&Look> = all.iter().copied().filter(|look| inside(look)).collect();
        match (own.is_empty(), all.is_empty()) {
            (false, _) => (Scope::Candidate, own),
            (true, false) => (Scope::Run, all),
            (true, true) => (Scope::None, all),
        }
    }
}

/// Every sensor of a list, in the order in which they first spoke.
fn figures(looks: &[&Look], values: fn(&Reading) -> &Vec<Value>) -> Vec<Figure> {
    let mut figures: Vec<Figure> = Vec::new();
    for value in looks.iter().flat_map(|look| values(&look.reading)) {
        let same =
            |figure: &&mut Figure| figure.source == value.source && figure.name == value.name;
        if let Some(figure) = figures.iter_mut().find(same) {
            figure.samples += 1;
            figure.mean += (value.value - figure.mean) / figure.samples as f32;
            figure.max = figure.max.max(value.value);
        } else {
            let (source, name) = (value.source, value.name.clone());
            figures.push(Figure { source, name, samples: 1, mean: value.value, max: value.value });
        }
    }
    figures
}

#[cfg(test)]
mod tests {
    use mtplx_actors::thermal::Quantity;

    use super::*;

    #[test]
    fn samples_count_where_they_fell_and_what_nobody_measured_is_null() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let look = |second: u64, watts: f32| {
            let mut reading = Reading::default();
            reading.add(Quantity::Watts, "test", "board", watts);
            if second == 9 {
                reading.add(Quantity::Celsius, "test", "die", 70.0);
            }
            Look { from: at(second - 1), at: at(second), reading }
        };
        let looks = Looks(vec![look(2, 10.0), look(3, 20.0), look(5, 40.0), look(9, 80.0)]);
        let own = looks.within(&[(at(1), at(3))]);
        assert_eq!((own.watts.scope, own.watts.samples), (Scope::Candidate, 2));
        let figure = &own.watts.sensors.as_ref().unwrap()[0];
        assert_eq!((figure.mean, figure.max), (15.0, 20.0));
        assert_eq!((own.celsius.scope, own.celsius.samples), (Scope::Run, 1));
        // The look at 5 s began before the window did.
        let late = looks.within(&[(at(5) - Duration::from_millis(500), at(6))]);
        assert_eq!((late.watts.scope, late.watts.samples), (Scope::Run, 4));
        let json = serde_json::to_value(&own).unwrap();
        assert_eq!(json["rpm"]["scope"], "none");
        assert!(json["rpm"]["sensors"].is_null() && json["pressure"]["sensors"].is_null());
    }
}

//! What is recorded of heat, and of what is done against it.

use mtplx_core::thermal::{Ceiling, Restraint};

use super::*;
use crate::thermal::Reading;

/// The sensors were asked, and what follows from what they said; where pauses hold it.
pub fn thermal(reading: &Reading, restraint: Restraint, target: f32) {
    let heat = reading.heat();
    match heat.celsius {
        Some(celsius) => TEMPERATURE.set(celsius.into(), []),
        None => SILENCES.add(1, []),
    }
    let share = match restraint.ceiling {
        Ceiling::Low => 0.25,
        Ceiling::Reduced => 0.5,
        Ceiling::Full => 1.0,
    };
    CEILING.set(share, []);
    PAUSE.set(restraint.pause.into(), []);
    TARGET.set(target.into(), []);
    if let Some(pressure) = heat.pressure {
        PRESSURE.set(f64::from(pressure as u8) / 3.0, []);
    }
    let lists = [
        (&SENSOR_CELSIUS, &reading.celsius),
        (&SENSOR_CELSIUS, &reading.celsius_beside),
        (&SENSOR_WATTS, &reading.watts),
        (&SENSOR_CLOCK, &reading.megahertz),
        (&SENSOR_BUSY, &reading.busy),
        (&SENSOR_RPM, &reading.rpm),
        (&SENSOR_FAN, &reading.fan_share),
    ];
    for (metric, values) in lists {
        for value in values {
            metric.set(value.value.into(), [value.source.into(), value.name.clone().into()]);
        }
    }
}

/// Decode pauses for heat.
pub(crate) fn paused() {
    PAUSES.add(1, []);
}

/// Whether this server holds the fans at their most.
pub fn fans_pinned(pinned: bool) {
    FANS_PINNED.set(f64::from(u8::from(pinned)), []);
}

/// A watchdog of the fans was started.
pub fn watchdog_started() {
    WATCHDOGS.add(1, []);
}

/// The thermal actor was started anew.
pub fn thermal_restarted() {
    THERMAL_RESTARTS.add(1, []);
}

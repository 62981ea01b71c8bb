//! What sensors say: every value with its name and where it comes from, all of them optional.

use mtplx_core::thermal::{Heat, Pressure};
use serde::Serialize;

/// One value of one sensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Value {
    /// Where it comes from: `hwmon`, `nvml`, `macmon`, …
    pub source: &'static str,
    /// What it is of.
    pub name: String,
    /// In the unit of its list.
    pub value: f32,
}

/// What can be measured, each in its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// Degrees of a processor that computes: what restraint goes by.
    Celsius,
    /// Degrees of what is to be shown and judged by nobody: memory and hot spots, which may be far
    /// hotter, cards that are not ours, sensors of boards that guess.
    Beside,
    /// Power.
    Watts,
    /// Clocks.
    Megahertz,
    /// Share of the time that something works, from 0 to 1.
    Busy,
    /// Turns of a fan in a minute.
    Rpm,
    /// A fan's share of its most, where no turns are told.
    FanShare,
}

/// One look at the machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Reading {
    /// Degrees Celsius of processors.
    pub celsius: Vec<Value>,
    /// Degrees Celsius that nothing follows from.
    pub celsius_beside: Vec<Value>,
    /// Watts.
    pub watts: Vec<Value>,
    /// Megahertz.
    pub megahertz: Vec<Value>,
    /// Shares of the time.
    pub busy: Vec<Value>,
    /// Turns a minute.
    pub rpm: Vec<Value>,
    /// Shares of a fan's most.
    pub fan_share: Vec<Value>,
    /// What the system says of its heat, and who says so.
    #[serde(skip)]
    pub pressure: Option<(Pressure, &'static str)>,
    /// Sources that used to tell temperatures or pressure and do not answer.
    pub silent: Vec<&'static str>,
}

impl Reading {
    /// Adds a value, unless it is none.
    pub fn add(
        &mut self,
        quantity: Quantity,
        source: &'static str,
        name: impl Into<String>,
        value: f32,
    ) {
        // Dead sensors say 0, -273 or 255.
        let plausible = match quantity {
            Quantity::Celsius | Quantity::Beside => (1.0..130.0).contains(&value),
            Quantity::Watts => (0.0..20_000.0).contains(&value),
            Quantity::Megahertz => (0.0..20_000.0).contains(&value),
            Quantity::Busy | Quantity::FanShare => (0.0..=1.0).contains(&value),
            Quantity::Rpm => (0.0..60_000.0).contains(&value),
        };
        let list = match quantity {
            Quantity::Celsius => &mut self.celsius,
            Quantity::Beside => &mut self.celsius_beside,
            Quantity::Watts => &mut self.watts,
            Quantity::Megahertz => &mut self.megahertz,
            Quantity::Busy => &mut self.busy,
            Quantity::Rpm => &mut self.rpm,
            Quantity::FanShare => &mut self.fan_share,
        };
        if plausible {
            list.push(Value { source, name: name.into(), value });
        }
    }

    /// Notes what a source says of heat; the worst of all counts.
    pub fn press(&mut self, pressure: Pressure, source: &'static str) {
        if self.pressure.is_none_or(|(known, _)| known < pressure) {
            self.pressure = Some((pressure, source));
        }
    }

    /// All of another source, too.
    pub fn join(&mut self, other: Self) {
        let Self {
            celsius,
            celsius_beside,
            watts,
            megahertz,
            busy,
            rpm,
            fan_share,
            pressure,
            silent,
        } = other;
        self.celsius.extend(celsius);
        self.celsius_beside.extend(celsius_beside);
        self.watts.extend(watts);
        self.megahertz.extend(megahertz);
        self.busy.extend(busy);
        self.rpm.extend(rpm);
        self.fan_share.extend(fan_share);
        if let Some((pressure, source)) = pressure {
            self.press(pressure, source);
        }
        self.silent.extend(silent);
    }

    /// What matters of it for restraint.
    #[must_use]
    pub fn heat(&self) -> Heat {
        Heat {
            celsius: self.celsius.iter().map(|v| v.value).max_by(f32::total_cmp),
            pressure: self.pressure.map(|(pressure, _)| pressure),
            silent: !self.silent.is_empty(),
        }
    }

    /// Whether it says anything about heat.
    #[must_use]
    pub fn is_of_heat(&self) -> bool {
        !self.celsius.is_empty() || self.pressure.is_some()
    }
}

//! Temperature readings in, a ceiling out, with hysteresis so that it does not flap.

/// How much of the machine may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ceiling {
    /// A quarter of the rows.
    Low,
    /// Half of the rows.
    Reduced,
    /// All of them.
    #[default]
    Full,
}

/// Where the steps are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ThermalLimits {
    /// At this many degrees Celsius the ceiling is reduced.
    pub warm_celsius: f32,
    /// At this many it is low.
    pub hot_celsius: f32,
    /// It rises again only this many degrees below the step it fell at.
    pub hysteresis_celsius: f32,
    /// Readings missed in a row after which a sensor that once spoke is taken for dead.
    pub silent_readings_max: u32,
}

/// Remembers the last ceiling.
#[derive(Clone, Debug)]
pub struct Thermostat {
    limits: ThermalLimits,
    ceiling: Ceiling,
    /// Readings missed since the last one; `None` while there never was one.
    silent: Option<u32>,
}

impl Thermostat {
    /// Full until told otherwise: a machine without a sensor is not held back.
    #[must_use]
    pub fn new(limits: ThermalLimits) -> Self {
        Self { limits, ceiling: Ceiling::Full, silent: None }
    }

    /// Goes by other steps from the next reading on.
    pub fn set_limits(&mut self, limits: ThermalLimits) {
        self.limits = limits;
    }

    /// Heeds the hottest sensor, or its silence. A sensor that falls silent means the low ceiling.
    pub fn read(&mut self, celsius: Option<f32>) -> Ceiling {
        match (celsius.filter(|c| c.is_finite()), &mut self.silent) {
            (Some(celsius), silent) => {
                *silent = Some(0);
                self.ceiling = self.step(celsius);
            }
            (None, Some(missed)) => {
                *missed = missed.saturating_add(1);
                if *missed >= self.limits.silent_readings_max {
                    self.ceiling = Ceiling::Low;
                }
            }
            (None, None) => {}
        }
        self.ceiling
    }

    fn step(&self, celsius: f32) -> Ceiling {
        let l = &self.limits;
        // The step that was crossed counts as crossed until it is left by the hysteresis.
        let hot = l.hot_celsius - f32::from(self.ceiling == Ceiling::Low) * l.hysteresis_celsius;
        let fallen = self.ceiling != Ceiling::Full;
        let warm = l.warm_celsius - f32::from(fallen) * l.hysteresis_celsius;
        if celsius >= hot {
            Ceiling::Low
        } else if celsius >= warm {
            Ceiling::Reduced
        } else {
            Ceiling::Full
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thermostat() -> Thermostat {
        Thermostat::new(ThermalLimits {
            warm_celsius: 85.0,
            hot_celsius: 95.0,
            hysteresis_celsius: 5.0,
            silent_readings_max: 3,
        })
    }

    #[test]
    fn the_ceiling_falls_with_heat_and_rises_only_below_the_step() {
        let mut t = thermostat();
        let seen: Vec<Ceiling> = [60.0, 86.0, 82.0, 79.0, 96.0, 91.0, 89.0, 70.0]
            .into_iter()
            .map(|c| t.read(Some(c)))
            .collect();
        use Ceiling::{Full, Low, Reduced};
        assert_eq!(seen, [Full, Reduced, Reduced, Full, Low, Low, Reduced, Full]);
    }

    #[test]
    fn a_machine_without_a_sensor_runs_free() {
        let mut t = thermostat();
        assert!((0..10).all(|_| t.read(None) == Ceiling::Full));
    }

    #[test]
    fn a_sensor_that_falls_silent_means_the_low_ceiling() {
        let mut t = thermostat();
        t.read(Some(50.0));
        assert_eq!(t.read(None), Ceiling::Full);
        t.read(Some(f32::NAN));
        assert_eq!(t.read(None), Ceiling::Low);
        assert_eq!(t.read(Some(50.0)), Ceiling::Full);
    }
}

//! macOS without root: the many temperatures of its HID sensors, macmon's power, clocks and fans,
//! and the system's own word on its heat; beside them `powermetrics`, where sudo permits it without
//! a password.
//!
//! Compiled for macOS by the compiler alone: nothing of this has run on a Mac yet.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use macmon::Sampler;
use mtplx_core::thermal::Pressure;
use objc2_foundation::{NSProcessInfo, NSProcessInfoThermalState};

use super::reading::{Quantity, Reading};
use super::sensor::Source;

/// Milliseconds over which macmon measures power and clocks.
const WINDOW_MS: u32 = 200;

struct Components(sysinfo::Components);

/// The HID sensors.
pub(super) fn components() -> Option<Box<dyn Source>> {
    let components = sysinfo::Components::new_with_refreshed_list().ok()?;
    Some(Box::new(Components(components)))
}

impl Source for Components {
    fn read(&mut self) -> Reading {
        let mut reading = Reading::default();
        self.0.refresh(false);
        for component in &self.0 {
            if let Some(celsius) = component.temperature()
                && is_processor(component.label())
            {
                reading.add(Quantity::Celsius, "hid", component.label(), celsius);
            }
        }
        reading
    }
}

/// Apple's dies and clusters; batteries, disks, radios and calibration constants are none.
fn is_processor(label: &str) -> bool {
    let label = label.to_lowercase();
    ["tdie", "acc mtr", "soc mtr", "gpu", "cpu"].iter().any(|name| label.contains(name))
}

struct Macmon(Sampler);

/// Power, clocks, fans.
pub(super) fn macmon() -> Option<Box<dyn Source>> {
    match Sampler::new() {
        Ok(sampler) => Some(Box::new(Macmon(sampler))),
        Err(reason) => {
            tracing::debug!(%reason, "macmon cannot be used");
            None
        }
    }
}

impl Source for Macmon {
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    fn read(&mut self) -> Reading {
        const NAME: &str = "macmon";
        let mut reading = Reading::default();
        let Ok(seen) = self.0.get_metrics(WINDOW_MS) else { return reading };
        let dies = [("processors", seen.temp.cpu_temp_avg), ("gpu", seen.temp.gpu_temp_avg)];
        for (name, celsius) in dies {
            if let Some(celsius) = celsius {
                reading.add(Quantity::Celsius, NAME, name, celsius);
            }
        }
        reading.add(Quantity::Watts, NAME, "processors", seen.cpu_power);
        reading.add(Quantity::Watts, NAME, "gpu", seen.gpu_power);
        reading.add(Quantity::Watts, NAME, "system", seen.sys_power);
        reading.add(Quantity::Megahertz, NAME, "gpu", seen.gpu_freq_mhz as f32);
        reading.add(Quantity::Busy, NAME, "gpu", seen.gpu_active_ratio);
        reading.add(Quantity::Busy, NAME, "processors", seen.cpu_active_ratio);
        for fan in seen.fans {
            reading.add(Quantity::Rpm, NAME, fan.name, fan.rpm as f32);
        }
        reading
    }
}

struct State;

/// The system's own word.
pub(super) fn state() -> Option<Box<dyn Source>> {
    Some(Box::new(State))
}

impl Source for State {
    fn read(&mut self) -> Reading {
        let mut reading = Reading::default();
        let pressure = match NSProcessInfo::processInfo().thermalState() {
            NSProcessInfoThermalState::Nominal => Pressure::Nominal,
            NSProcessInfoThermalState::Fair => Pressure::Fair,
            NSProcessInfoThermalState::Serious => Pressure::Serious,
            NSProcessInfoThermalState::Critical => Pressure::Critical,
            _ => return reading,
        };
        reading.press(pressure, "thermalState");
        reading
    }
}

/// It takes its time and a line in sudo's log: not at every look.
const POWERMETRICS_TIME: Duration = Duration::from_secs(30);

struct Powermetrics {
    asked: Option<Instant>,
    said: Option<Pressure>,
}

/// Apple's own tool, which wants root: only where sudo gives it without asking.
pub(super) fn powermetrics() -> Option<Box<dyn Source>> {
    let mut sudo = Command::new("/usr/bin/sudo");
    sudo.args(["-n", "-l", "/usr/bin/powermetrics"]).stdin(Stdio::null());
    let permitted = sudo.stdout(Stdio::null()).stderr(Stdio::null()).status();
    let permitted = permitted.is_ok_and(|status| status.success());
    permitted.then(|| Box::new(Powermetrics { asked: None, said: None }) as _)
}

impl Source for Powermetrics {
    fn read(&mut self) -> Reading {
        if self.asked.is_none_or(|at| at.elapsed() > POWERMETRICS_TIME) {
            self.asked = Some(Instant::now());
            self.said = ask();
        }
        let mut reading = Reading::default();
        if let Some(pressure) = self.said {
            reading.press(pressure, "powermetrics");
        }
        reading
    }
}

fn ask() -> Option<Pressure> {
    let mut sudo = Command::new("/usr/bin/sudo");
    sudo.args(["-n", "/usr/bin/powermetrics", "--samplers", "thermal", "-n", "1", "-i", "100"]);
    let said = sudo.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    super::powermetrics_pressure(&String::from_utf8_lossy(&said.stdout))
}

//! Linux's own files: hwmon, thermal zones, throttle counters, clocks, the energy counters of RAPL
//! and the time that processors worked. Nothing here needs root, though RAPL's files often do.

use std::collections::BTreeMap;
use std::fs::{read_dir, read_to_string};
use std::path::{Path, PathBuf};
use std::time::Instant;

use mtplx_core::thermal::Pressure;

use super::reading::{Quantity, Reading};
use super::roles::{self, Role};
use super::sensor::Source;

/// The name of its values.
pub(super) const NAME: &str = "linux";

/// The system's files, below `/` or, in a test, elsewhere.
pub(super) struct Files {
    root: PathBuf,
    /// Times that processors were throttled, at the last look.
    throttled: Option<u64>,
    /// Microjoules by counter, at the last look.
    energy: BTreeMap<PathBuf, (u64, Instant)>,
    /// Ticks of work and in all, at the last look.
    ticks: Option<(u64, u64)>,
}

/// Looks below `/`.
pub(super) fn open() -> Option<Box<dyn Source>> {
    Some(Box::new(Files::below("/")))
}

impl Files {
    pub(super) fn below(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), throttled: None, energy: BTreeMap::new(), ticks: None }
    }

    fn hwmon(&self, reading: &mut Reading) {
        for chip in entries(&self.root.join("sys/class/hwmon")) {
            let name = text(&chip.join("name")).unwrap_or_default();
            let mut offset = None;
            let mut has_die = false;
            for file in entries(&chip) {
                let Some(stem) = file.file_name().and_then(|f| f.to_str()) else { continue };
                let Some((stem, "input" | "average")) = stem.rsplit_once('_') else { continue };
                let Some(value) = number(&file) else { continue };
                let label = text(&chip.join(format!("{stem}_label")));
                let full = format!("{name} {}", label.as_deref().unwrap_or(stem));
                if stem.starts_with("temp") {
                    let celsius = value / 1000.0;
                    has_die |= label.as_deref() == Some("Tdie");
                    match roles::of(&name, label.as_deref().unwrap_or_default()) {
                        Role::Counts => reading.add(Quantity::Celsius, NAME, full, celsius),
                        Role::Beside => reading.add(Quantity::Beside, NAME, full, celsius),
                        Role::Offset => offset = Some((full, celsius)),
                        Role::Other => {}
                    }
                } else if stem.starts_with("fan") {
                    reading.add(Quantity::Rpm, NAME, full, value);
                } else if stem.starts_with("power") {
                    reading.add(Quantity::Watts, NAME, full, value / 1e6);
                }
            }
            if let Some((full, celsius)) = offset {
                let quantity = if has_die { Quantity::Beside } else { Quantity::Celsius };
                reading.add(quantity, NAME, full, celsius);
            }
        }
    }

    fn zones(&self, reading: &mut Reading) {
        for zone in entries(&self.root.join("sys/class/thermal")) {
            let Some(name) = text(&zone.join("type")) else { continue };
            let quantity = match roles::of(&name, "") {
                Role::Counts | Role::Offset => Quantity::Celsius,
                Role::Beside => Quantity::Beside,
                Role::Other => continue,
            };
            if let Some(value) = number(&zone.join("temp")) {
                reading.add(quantity, NAME, name, value / 1000.0);
            }
        }
    }

    /// Processors' clocks, the fastest of them, and whether any was throttled since the last look.
    fn processors(&mut self, reading: &mut Reading) {
        let (mut throttled, mut fastest) = (None, None);
        for cpu in entries(&self.root.join("sys/devices/system/cpu")) {
            for counter in ["core_throttle_count", "package_throttle_count"] {
                if let Some(times) = text(&cpu.join("thermal_throttle").join(counter))
                    && let Ok(times) = times.parse::<u64>()
                {
                    *throttled.get_or_insert(0) += times;
                }
            }
            if let Some(khz) = number(&cpu.join("cpufreq/scaling_cur_freq")) {
                fastest = Some(fastest.map_or(khz, |most: f32| most.max(khz)));
            }
        }
        if let Some(khz) = fastest {
            reading.add(Quantity::Megahertz, NAME, "fastest processor", khz / 1000.0);
        }
        if let (Some(now), Some(before)) = (throttled, self.throttled) {
            let pressure = if now > before { Pressure::Serious } else { Pressure::Nominal };
            reading.press(pressure, NAME);
        }
        self.throttled = throttled;
    }

    #[expect(clippy::cast_precision_loss, reason = "microjoules of a few seconds")]
    fn energy(&mut self, reading: &mut Reading) {
        let now = Instant::now();
        for zone in entries(&self.root.join("sys/class/powercap")) {
            let Some(joules) = text(&zone.join("energy_uj")).and_then(|t| t.parse::<u64>().ok())
            else {
                continue;
            };
            let name = text(&zone.join("name")).unwrap_or_default();
            if let Some((before, then)) = self.energy.insert(zone, (joules, now)) {
                let seconds = (now - then).as_secs_f32();
                // The counter begins anew now and then.
                if joules > before && seconds > 0.0 {
                    let watts = (joules - before) as f32 / 1e6 / seconds;
                    reading.add(Quantity::Watts, NAME, name, watts);
                }
            }
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "ticks of a few seconds")]
    fn busy(&mut self, reading: &mut Reading) {
        let stat = text(&self.root.join("proc/stat")).unwrap_or_default();
        let Some(line) = stat.lines().find_map(|line| line.strip_prefix("cpu ")) else { return };
        let ticks: Vec<u64> = line.split_whitespace().filter_map(|t| t.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal; guests are within user.
        let Some(all) = ticks.get(..8.min(ticks.len())).filter(|ticks| ticks.len() > 4) else {
            return;
        };
        let total: u64 = all.iter().sum();
        let work = total - all[3] - all[4];
        if let Some((worked, before)) = self.ticks.replace((work, total))
            && total > before
        {
            let share = work.saturating_sub(worked) as f32 / (total - before) as f32;
            reading.add(Quantity::Busy, NAME, "processors", share.min(1.0));
        }
    }
}

impl Source for Files {
    fn read(&mut self) -> Reading {
        let mut reading = Reading::default();
        self.hwmon(&mut reading);
        self.zones(&mut reading);
        self.processors(&mut reading);
        self.energy(&mut reading);
        self.busy(&mut reading);
        reading
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn text(path: &Path) -> Option<String> {
    Some(read_to_string(path).ok()?.trim_end().to_owned())
}

fn number(path: &Path) -> Option<f32> {
    text(path)?.parse().ok()
}

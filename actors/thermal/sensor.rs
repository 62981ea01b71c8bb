//! Where temperatures come from.

/// Something that knows how hot it is.
pub trait Sensor: Send {
    /// Degrees Celsius of the hottest processor; `None` if none can be read.
    fn hottest(&mut self) -> Option<f32>;
}

/// The machine's own sensors: hwmon on Linux, the HID event system and SMC on macOS; neither asks
/// for root. NVIDIA cards are not among them.
#[derive(Debug)]
pub struct Components(Option<sysinfo::Components>);

impl Components {
    /// Finds the sensors, if the system lets itself be asked.
    #[must_use]
    pub fn new() -> Self {
        Self(sysinfo::Components::new_with_refreshed_list().ok())
    }
}

impl Default for Components {
    fn default() -> Self {
        Self::new()
    }
}

impl Sensor for Components {
    fn hottest(&mut self) -> Option<f32> {
        let components = self.0.as_mut()?;
        components.refresh(false);
        let processors = components.iter().filter(|component| is_processor(component.label()));
        let readings = processors.filter_map(sysinfo::Component::temperature);
        readings.filter(|&celsius| is_plausible(celsius)).max_by(f32::total_cmp)
    }
}

/// What processors' sensors are called: Apple's dies and clusters, Intel, AMD, ARM boards, GPUs.
/// Batteries, disks, radios and calibration constants are none.
pub(super) fn is_processor(label: &str) -> bool {
    const NAMES: [&str; 14] = [
        "tdie",
        "acc mtr",
        "soc mtr",
        "gpu",
        "cpu",
        "coretemp",
        "package id",
        "core ",
        "k10temp",
        "zenpower",
        "tctl",
        "nouveau",
        "soc_thermal",
        "x86_pkg_temp",
    ];
    let label = label.to_lowercase();
    NAMES.iter().any(|name| label.contains(name))
}

/// Dead sensors say 0, -273 or 255.
pub(super) fn is_plausible(celsius: f32) -> bool {
    (1.0..130.0).contains(&celsius)
}

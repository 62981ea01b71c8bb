//! Which temperature of Linux counts as what. Restraint goes by processors that compute, as their
//! own drivers tell it, and by the place of each for which clocks are held back near 100 °C.
//!
//! * `coretemp`, `x86_pkg_temp`, and `cpu…`, `gpu…`, `soc…`, `bigcore…` of ARM boards: all count.
//! * `k10temp`, `zenpower`: `Tdie` and `Tccd…` count, and `Tctl` where there is no `Tdie`: some
//!   models add up to 27 degrees to it.
//! * `amdgpu`, `radeon`, `nouveau`, `xe`, `i915`: `edge`, `pkg` and what has no label count;
//!   `junction`, `mem` and `vram` are made to be 10 to 20 degrees hotter, and are shown beside.
//! * Anything else that speaks of a CPU or GPU is shown beside: Super-I/O chips (`CPUTIN`), boards,
//!   laptops.
//!
//! Disks, batteries, radios and the rest are not read.

/// What a temperature is to restraint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It counts.
    Counts,
    /// It counts if no `Tdie` of the same chip is there.
    Offset,
    /// It is shown.
    Beside,
    /// It is of something else.
    Other,
}

/// Drivers of processors that tell their own temperature.
const PROCESSORS: [&str; 2] = ["coretemp", "x86_pkg_temp"];
const ZEN: [&str; 2] = ["k10temp", "zenpower"];
const GPUS: [&str; 5] = ["amdgpu", "radeon", "nouveau", "xe", "i915"];
/// How those of ARM boards begin.
const BOARDS: [&str; 6] = ["cpu", "gpu", "soc", "bigcore", "littlecore", "ap-thermal"];

/// What the temperature of this label is, of a chip, or a zone, of this name.
pub(super) fn of(chip: &str, label: &str) -> Role {
    let (chip, label) = (chip.to_lowercase(), label.to_lowercase());
    let chip = chip.as_str();
    if PROCESSORS.contains(&chip) || BOARDS.iter().any(|begin| chip.starts_with(begin)) {
        return Role::Counts;
    }
    if ZEN.contains(&chip) {
        return if label == "tctl" { Role::Offset } else { Role::Counts };
    }
    if GPUS.contains(&chip) {
        let hot = ["junction", "mem", "vram", "hotspot"].iter().any(|name| label.contains(name));
        return if hot { Role::Beside } else { Role::Counts };
    }
    let speaks = ["cpu", "gpu", "soc"].iter().any(|name| label.contains(name));
    if speaks || chip.contains("cpu") || chip.contains("gpu") { Role::Beside } else { Role::Other }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_is_what_a_processor_says_of_itself() {
        use Role::{Beside, Counts, Offset, Other};
        for (chip, label, role) in [
            ("coretemp", "Package id 0", Counts),
            ("coretemp", "Core 3", Counts),
            ("x86_pkg_temp", "", Counts),
            ("k10temp", "Tctl", Offset),
            ("k10temp", "Tdie", Counts),
            ("k10temp", "Tccd1", Counts),
            ("amdgpu", "edge", Counts),
            ("amdgpu", "", Counts),
            ("amdgpu", "junction", Beside),
            ("amdgpu", "mem", Beside),
            ("xe", "pkg", Counts),
            ("xe", "vram", Beside),
            ("nct6775", "CPUTIN", Beside),
            ("nct6798", "PECI Agent 0 Calibration", Other),
            ("asus_wmi_sensors", "CPU Socket Temperature", Beside),
            ("dell_smm", "CPU", Beside),
            ("acpitz", "", Other),
            ("nvme", "Composite", Other),
            ("cpu_thermal", "", Counts),
            ("bigcore0-thermal", "", Counts),
            ("gpu-thermal", "", Counts),
            ("iwlwifi_1", "", Other),
        ] {
            assert_eq!(of(chip, label), role, "{chip} {label}");
        }
    }
}

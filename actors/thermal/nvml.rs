//! NVIDIA's cards, by their management library, which is looked for at run time: a machine without
//! it has no such cards.
//!
//! Where one of them names this process among those that compute on it, it is the one that counts,
//! and others are shown beside it. Where none does, as within containers, which number processes in
//! their own way, or before anything was loaded, all count: rather too cool than too hot.

use mtplx_core::thermal::Pressure;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::{Device, Nvml};

use super::reading::{Quantity, Reading};
use super::sensor::Source;

/// The name of its values.
pub(super) const NAME: &str = "nvml";

struct Cards(Nvml);

/// The library, if it is here and finds a driver.
pub(super) fn open() -> Option<Box<dyn Source>> {
    match Nvml::init() {
        Ok(nvml) => Some(Box::new(Cards(nvml))),
        Err(reason) => {
            tracing::debug!(%reason, "no NVIDIA cards are watched");
            None
        }
    }
}

impl Source for Cards {
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    fn read(&mut self) -> Reading {
        let mut reading = Reading::default();
        let cards = 0..self.0.device_count().unwrap_or(0);
        let cards: Vec<_> =
            cards.filter_map(|i| Some((i, self.0.device_by_index(i).ok()?))).collect();
        let ours: Vec<bool> = cards.iter().map(|(_, card)| is_ours(card)).collect();
        let known = ours.contains(&true);
        for ((index, card), ours) in cards.into_iter().zip(ours) {
            let counts = ours || !known;
            // What a card cannot tell is missing.
            let mut add = |quantity, of: &str, value: Option<f32>| {
                if let Some(value) = value {
                    reading.add(quantity, NAME, format!("card {index}{of}"), value);
                }
            };
            let celsius = card.temperature(TemperatureSensor::Gpu).ok();
            let degrees = if counts { Quantity::Celsius } else { Quantity::Beside };
            add(degrees, "", celsius.map(|c| c as f32));
            add(Quantity::Watts, "", card.power_usage().ok().map(|mw| mw as f32 / 1000.0));
            add(Quantity::Megahertz, "", card.clock_info(Clock::SM).ok().map(|mhz| mhz as f32));
            let busy = card.utilization_rates().ok().map(|rates| rates.gpu as f32 / 100.0);
            add(Quantity::Busy, "", busy);
            for fan in 0..card.num_fans().unwrap_or(0) {
                let name = format!(" fan {fan}");
                add(Quantity::Rpm, &name, card.fan_speed_rpm(fan).ok().map(|rpm| rpm as f32));
                let share = card.fan_speed(fan).ok().map(|percent| percent as f32 / 100.0);
                add(Quantity::FanShare, &name, share);
            }
            if counts && let Ok(reasons) = card.current_throttle_reasons() {
                let heat =
                    ThrottleReasons::HW_THERMAL_SLOWDOWN | ThrottleReasons::SW_THERMAL_SLOWDOWN;
                let held = reasons.intersects(heat);
                reading.press(if held { Pressure::Serious } else { Pressure::Nominal }, NAME);
            }
        }
        reading
    }
}

/// Whether this process computes on it.
fn is_ours(card: &Device<'_>) -> bool {
    let own = std::process::id();
    card.running_compute_processes().is_ok_and(|all| all.iter().any(|one| one.pid == own))
}

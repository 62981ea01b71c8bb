//! On tokio's paused clock: minutes pass in no time.

use std::collections::VecDeque;

use super::sensor::{is_plausible, is_processor};
use super::*;
use crate::probe::probe;

/// Says what is written, then stays silent.
struct Written(VecDeque<Option<f32>>);

impl Sensor for Written {
    fn hottest(&mut self) -> Option<f32> {
        self.0.pop_front().flatten()
    }
}

fn config() -> Config {
    Config {
        sample_s: 10.0,
        warm_celsius: 85.0,
        hot_celsius: 95.0,
        hysteresis_celsius: 5.0,
        silent_readings_max: 2,
    }
}

fn written(readings: &[f32]) -> MakeSensor {
    let readings: VecDeque<_> = readings.iter().map(|&celsius| Some(celsius)).collect();
    Arc::new(move || Box::new(Written(readings.clone())))
}

fn ceiling(message: Option<tuner::Message>) -> Ceiling {
    match message {
        Some(tuner::Message::Ceiling(ceiling)) => ceiling,
        other => panic!("expected a ceiling, heard {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn only_changes_are_told_and_silence_is_the_low_ceiling() {
    let (tuner, mut heard) = probe().await;
    let began = tokio::time::Instant::now();
    let sensor = written(&[60.0, 70.0, 90.0, 91.0, 60.0]);
    let arguments = Arguments { config: config(), sensor, tuner };
    let (thermal, _) = Actor::spawn(None, Thermal, arguments).await.unwrap();
    assert_eq!(ceiling(heard.recv().await), Ceiling::Reduced);
    assert_eq!(began.elapsed().as_secs(), 20);
    assert_eq!(ceiling(heard.recv().await), Ceiling::Full);
    assert_eq!(began.elapsed().as_secs(), 40);
    assert_eq!(ceiling(heard.recv().await), Ceiling::Low);
    assert_eq!(began.elapsed().as_secs(), 60);
    let seen = ractor::call!(thermal, Message::Observe).unwrap();
    assert_eq!((seen.celsius, seen.ceiling), (None, "low"));
}

#[tokio::test(start_paused = true)]
async fn new_bounds_hold_from_the_next_reading_on() {
    let (tuner, mut heard) = probe().await;
    let arguments = Arguments { config: config(), sensor: written(&[90.0; 9]), tuner };
    let (thermal, _) = Actor::spawn(None, Thermal, arguments).await.unwrap();
    assert_eq!(ceiling(heard.recv().await), Ceiling::Reduced);
    let cooler = Config { warm_celsius: 97.0, hot_celsius: 99.0, ..config() };
    thermal.cast(Message::Configure(cooler)).unwrap();
    assert_eq!(ceiling(heard.recv().await), Ceiling::Full);
}

#[tokio::test(start_paused = true)]
async fn a_new_tuner_hears_the_ceiling_at_once() {
    let (first, mut heard) = probe().await;
    let arguments = Arguments { config: config(), sensor: written(&[99.0]), tuner: first };
    let (thermal, _) = Actor::spawn(None, Thermal, arguments).await.unwrap();
    assert_eq!(ceiling(heard.recv().await), Ceiling::Low);
    let (second, mut heard) = probe().await;
    thermal.cast(Message::Advise(second)).unwrap();
    assert_eq!(ceiling(heard.recv().await), Ceiling::Low);
}

#[tokio::test]
async fn a_sensor_that_hangs_does_not_hold_up_the_start() {
    let (tuner, _heard) = probe().await;
    let (release, hung) = std::sync::mpsc::channel::<()>();
    let hung = Mutex::new(hung);
    let sensor: MakeSensor = Arc::new(move || {
        let _ = hung.lock().unwrap().recv();
        Box::new(Written(VecDeque::new()))
    });
    let arguments = Arguments { config: config(), sensor, tuner };
    Actor::spawn(None, Thermal, arguments).await.unwrap();
    drop(release);
}

#[test]
fn processors_are_told_from_batteries_and_disks() {
    for label in ["PMU tdie1", "pACC MTR Temp Sensor2", "coretemp Package id 0", "k10temp Tctl"] {
        assert!(is_processor(label), "{label}");
    }
    for label in ["gas gauge battery", "NAND CH0 temp", "PMU tcal", "nvme Composite", "iwlwifi_1"] {
        assert!(!is_processor(label), "{label}");
    }
    assert!(!is_plausible(0.0) && !is_plausible(255.0) && is_plausible(104.0));
}

#[test]
fn the_machine_can_be_asked_without_root() {
    if let Some(celsius) = Components::new().hottest() {
        assert!(is_plausible(celsius));
    }
}

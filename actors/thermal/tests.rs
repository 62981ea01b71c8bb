//! On tokio's paused clock: minutes pass in no time.

use std::collections::VecDeque;

use tokio::sync::mpsc::UnboundedReceiver;

use super::*;
use crate::probe::probe;

/// Says what is written, then stays silent.
struct Written(VecDeque<f32>);

impl Sensor for Written {
    fn read(&mut self) -> Reading {
        let mut reading = Reading::default();
        if let Some(celsius) = self.0.pop_front() {
            reading.add(Quantity::Celsius, "test", "die", celsius);
        }
        reading
    }
}

fn config() -> Config {
    Config {
        sample_s: 10.0,
        timeout_s: 1.0,
        target_celsius: 80.0,
        pause_max: 0.5,
        warm_celsius: 85.0,
        hot_celsius: 95.0,
        hysteresis_celsius: 5.0,
        silent_readings_max: 2,
        bank_hot_share: 0.5,
    }
}

fn written(readings: &[f32]) -> MakeSensor {
    let readings: VecDeque<_> = readings.iter().copied().collect();
    Arc::new(move || Box::new(Written(readings.clone())))
}

fn ceiling(message: Option<tuner::Message>) -> Ceiling {
    match message {
        Some(tuner::Message::Ceiling(ceiling)) => ceiling,
        other => panic!("expected a ceiling, heard {other:?}"),
    }
}

fn pause(message: Option<tuner::Message>) -> f32 {
    match message {
        Some(tuner::Message::Pause(share)) => share,
        other => panic!("expected a pause, heard {other:?}"),
    }
}

fn limit(message: Option<bank::Message>) -> f64 {
    match message {
        Some(bank::Message::Limit(share)) => share,
        other => panic!("expected a limit, heard {other:?}"),
    }
}

/// The first reading, of one that may follow another, says all, and holds nothing back.
async fn free(heard: &mut UnboundedReceiver<tuner::Message>) {
    assert_eq!(ceiling(heard.recv().await), Ceiling::Full);
    assert_eq!(pause(heard.recv().await), 0.0);
}

#[tokio::test(start_paused = true)]
async fn only_changes_are_told_and_silence_is_the_low_ceiling() {
    let ((tuner, mut heard), (bank, mut bank_heard)) = (probe().await, probe().await);
    let began = tokio::time::Instant::now();
    let config = Config { pause_max: 0.0, ..config() };
    let sensor = written(&[60.0, 70.0, 90.0, 91.0, 60.0, 60.0]);
    let arguments = Arguments { config, sensor, tuner, bank };
    let (thermal, _) = Actor::spawn(None, Thermal, arguments).await.unwrap();
    free(&mut heard).await;
    assert_eq!(ceiling(heard.recv().await), Ceiling::Reduced);
    assert_eq!(began.elapsed().as_secs(), 30);
    assert_eq!(ceiling(heard.recv().await), Ceiling::Full);
    assert_eq!(began.elapsed().as_secs(), 50);
    assert_eq!(ceiling(heard.recv().await), Ceiling::Low);
    assert_eq!(began.elapsed().as_secs(), 70);
    assert_eq!(limit(bank_heard.recv().await), 1.0);
    assert_eq!(limit(bank_heard.recv().await), 0.5);
    let seen = ractor::call!(thermal, Message::Observe).unwrap();
    assert_eq!((seen.celsius, seen.ceiling, &seen.reasons[..]), (None, "low", &["silence"][..]));
}

#[tokio::test(start_paused = true)]
async fn new_bounds_hold_from_the_next_reading_on() {
    let ((tuner, mut heard), (bank, _bank)) = (probe().await, probe().await);
    let config = Config { pause_max: 0.0, ..config() };
    let arguments = Arguments { config, sensor: written(&[90.0; 9]), tuner, bank };
    let (thermal, _) = Actor::spawn(None, Thermal, arguments).await.unwrap();
    free(&mut heard).await;
    assert_eq!(ceiling(heard.recv().await), Ceiling::Reduced);
    let cooler = Config { warm_celsius: 97.0, hot_celsius: 99.0, ..config };
    thermal.cast(Message::Configure(cooler)).unwrap();
    assert_eq!(ceiling(heard.recv().await), Ceiling::Full);
}

#[tokio::test(start_paused = true)]
async fn pauses_are_told_before_rows_are_cut() {
    let ((tuner, mut heard), (bank, _bank)) = (probe().await, probe().await);
    let sensor = written(&[82.0; 20]);
    let (_, _) = Actor::spawn(None, Thermal, Arguments { config: config(), sensor, tuner, bank })
        .await
        .unwrap();
    assert_eq!(ceiling(heard.recv().await), Ceiling::Full);
    let (first, second) = (pause(heard.recv().await), pause(heard.recv().await));
    assert!(0.0 < first && first < second, "{first}, {second}");
}

#[tokio::test(start_paused = true)]
async fn a_new_generation_hears_all_at_once() {
    let ((tuner, mut heard), (bank, _bank)) = (probe().await, probe().await);
    let config = Config { pause_max: 0.0, ..config() };
    let arguments = Arguments { config, sensor: written(&[99.0; 2]), tuner, bank };
    let (thermal, _) = Actor::spawn(None, Thermal, arguments).await.unwrap();
    free(&mut heard).await;
    assert_eq!(ceiling(heard.recv().await), Ceiling::Low);
    let ((tuner, mut heard), (bank, mut bank_heard)) = (probe().await, probe().await);
    thermal.cast(Message::Advise(tuner, bank)).unwrap();
    assert_eq!(ceiling(heard.recv().await), Ceiling::Low);
    assert_eq!(pause(heard.recv().await), 0.0);
    assert_eq!(limit(bank_heard.recv().await), 0.5);
}

#[tokio::test(start_paused = true)]
async fn who_sees_nothing_takes_back_nothing_that_was_wanted_before() {
    let ((tuner, mut heard), (bank, mut bank_heard)) = (probe().await, probe().await);
    let arguments = Arguments { config: config(), sensor: written(&[]), tuner, bank };
    let (thermal, _) = Actor::spawn(None, Thermal, arguments).await.unwrap();
    tokio::time::sleep(Duration::from_secs(65)).await;
    let seen = ractor::call!(thermal, Message::Observe).unwrap();
    assert!(seen.samples >= 6 && heard.try_recv().is_err() && bank_heard.try_recv().is_err());
}

#[tokio::test]
async fn a_sensor_that_hangs_does_not_hold_up_the_start() {
    let ((tuner, _heard), (bank, _bank)) = (probe().await, probe().await);
    let (release, hung) = std::sync::mpsc::channel::<()>();
    let hung = Mutex::new(hung);
    let sensor: MakeSensor = Arc::new(move || {
        let _ = hung.lock().unwrap().recv();
        Box::new(Written(VecDeque::new()))
    });
    let arguments = Arguments { config: config(), sensor, tuner, bank };
    Actor::spawn(None, Thermal, arguments).await.unwrap();
    drop(release);
}

struct Fine;

impl Source for Fine {
    fn read(&mut self) -> Reading {
        let mut reading = Reading::default();
        reading.add(Quantity::Celsius, "fine", "die", 50.0);
        reading
    }
}

/// Answers once, then never again.
struct Hangs(bool);

impl Source for Hangs {
    fn read(&mut self) -> Reading {
        if std::mem::replace(&mut self.0, true) {
            std::thread::park();
        }
        let mut reading = Reading::default();
        reading.add(Quantity::Celsius, "hangs", "die", 60.0);
        reading
    }
}

struct Panics;

impl Source for Panics {
    fn read(&mut self) -> Reading {
        panic!("a source of a test");
    }
}

#[test]
fn a_source_that_panicked_is_made_anew() {
    use std::sync::atomic::{AtomicU32, Ordering};
    static MADE: AtomicU32 = AtomicU32::new(0);
    let make: MakeSource = || match MADE.fetch_add(1, Ordering::Relaxed) {
        0 => Some(Box::new(Panics)),
        _ => Some(Box::new(Fine)),
    };
    let mut sources = Sources::new(vec![("frail", make)], Duration::from_secs(5));
    assert_eq!(sources.read(), Reading::default());
    assert_eq!(sources.read().heat().celsius, Some(50.0));
}

#[test]
fn a_source_that_hangs_or_panics_costs_its_time_out_and_is_named_if_it_ever_spoke() {
    let limit = Duration::from_millis(300);
    let mut sources = Sources::new(
        vec![
            ("fine", || Some(Box::new(Fine))),
            ("hangs", || Some(Box::new(Hangs(false)))),
            ("panics", || Some(Box::new(Panics))),
            ("absent", || None),
        ],
        limit,
    );
    let first = sources.read();
    assert_eq!((first.heat().celsius, first.silent.len()), (Some(60.0), 0));
    for _ in 0..2 {
        let began = std::time::Instant::now();
        let reading = sources.read();
        assert!(began.elapsed() < 3 * limit);
        assert_eq!((reading.heat().celsius, &reading.silent[..]), (Some(50.0), &["hangs"][..]));
        assert!(reading.heat().silent);
    }
}

#[test]
fn what_powermetrics_says_is_understood() {
    use mtplx_core::thermal::Pressure;
    let said = "**** Thermal pressure ****\n\nCurrent pressure level: Heavy\n";
    assert_eq!(powermetrics_pressure(said), Some(Pressure::Serious));
    assert_eq!(powermetrics_pressure("powermetrics must be invoked as the superuser"), None);
}

#[test]
fn the_machine_can_be_asked_without_root() {
    let reading = Sources::of_this_machine(Duration::from_secs(2)).read();
    assert!(reading.celsius.iter().all(|v| (1.0..130.0).contains(&v.value)), "{reading:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn linux_tells_temperatures_fans_power_clocks_work_and_throttling_by_its_files() {
    use mtplx_core::thermal::Pressure;
    let dir = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("sys/class/hwmon/hwmon0/name", "coretemp\n");
    write("sys/class/hwmon/hwmon0/temp1_input", "61500\n");
    write("sys/class/hwmon/hwmon0/temp1_label", "Package id 0\n");
    write("sys/class/hwmon/hwmon0/temp2_input", "255000\n");
    write("sys/class/hwmon/hwmon1/name", "nvme\n");
    write("sys/class/hwmon/hwmon1/temp1_input", "80000\n");
    write("sys/class/hwmon/hwmon2/name", "board\n");
    write("sys/class/hwmon/hwmon2/fan1_input", "2100\n");
    write("sys/class/hwmon/hwmon2/power1_average", "45000000\n");
    write("sys/class/thermal/thermal_zone0/type", "x86_pkg_temp\n");
    write("sys/class/thermal/thermal_zone0/temp", "62000\n");
    write("sys/class/thermal/thermal_zone1/type", "iwlwifi_1\n");
    write("sys/class/thermal/thermal_zone1/temp", "90000\n");
    let cpu = "sys/devices/system/cpu/cpu0";
    write(&format!("{cpu}/thermal_throttle/core_throttle_count"), "7\n");
    write(&format!("{cpu}/cpufreq/scaling_cur_freq"), "3200000\n");
    write("sys/class/powercap/intel-rapl:0/name", "package-0\n");
    write("sys/class/powercap/intel-rapl:0/energy_uj", "1000000\n");
    write("proc/stat", "cpu  10 0 10 80 0 0 0 0 0 0\ncpu0 1 2 3\n");
    let mut files = linux::Files::below(dir.path());
    let first = files.read();
    assert_eq!(first.heat().celsius, Some(62.0), "{first:?}");
    assert_eq!((first.rpm[0].value, first.watts[0].value), (2100.0, 45.0));
    assert_eq!((first.megahertz[0].value, first.pressure), (3200.0, None));
    write(&format!("{cpu}/thermal_throttle/core_throttle_count"), "8\n");
    write("sys/class/powercap/intel-rapl:0/energy_uj", "1000900\n");
    write("proc/stat", "cpu  40 0 20 120 20 0 0 0 0 0\n");
    let second = files.read();
    assert_eq!(second.pressure, Some((Pressure::Serious, linux::NAME)));
    assert_eq!(second.busy[0].value, 0.4, "{second:?}");
    assert!(second.watts.iter().any(|v| v.name == "package-0"), "{second:?}");
    assert_eq!(files.read().pressure.unwrap().0, Pressure::Nominal, "nothing since");
    assert_eq!(linux::Files::below("/nonexistent").read(), Reading::default());
}

use super::*;

pub(super) const LIMITS: ThermalLimits = ThermalLimits {
    target_celsius: 80.0,
    pause_max: 0.5,
    warm_celsius: 85.0,
    hot_celsius: 95.0,
    hysteresis_celsius: 5.0,
    silent_readings_max: 3,
    bank_hot_share: 0.5,
    sample_s: 5.0,
};

fn at(celsius: f32) -> Heat {
    Heat { celsius: Some(celsius), ..Heat::default() }
}

const SILENCE: Heat = Heat { celsius: None, pressure: None, silent: false };

#[test]
fn the_ceiling_falls_with_heat_and_rises_only_below_the_step() {
    let mut t = Thermostat::new(LIMITS);
    let twice = |c: f32| [c, c].map(|c| t.read(at(c)).ceiling)[1];
    let seen: Vec<Ceiling> =
        [60.0, 86.0, 82.0, 79.0, 96.0, 91.0, 89.0, 70.0].into_iter().map(twice).collect();
    use Ceiling::{Full, Low, Reduced};
    assert_eq!(seen, [Full, Reduced, Reduced, Full, Low, Low, Reduced, Full]);
}

#[test]
fn one_reading_alone_cuts_no_rows_and_lets_go_of_nothing() {
    for before in 0..5 {
        let mut t = Thermostat::new(LIMITS);
        for _ in 0..before {
            t.read(at(60.0));
        }
        let slip = t.read(at(120.0));
        assert_eq!((slip.ceiling, slip.bank), (Ceiling::Full, 1.0), "after {before} readings");
        assert_eq!(t.read(at(60.0)).ceiling, Ceiling::Full);
        t.read(at(98.0));
        let sure = t.read(at(97.0));
        assert_eq!((sure.ceiling, sure.bank), (Ceiling::Low, 0.5));
        assert_eq!(t.read(at(20.0)).ceiling, Ceiling::Low, "nor does one return them");
    }
    // What is first heard after a silence is no reason for more rows than it allows.
    let mut t = Thermostat::new(LIMITS);
    t.read(at(60.0));
    for _ in 0..3 {
        t.read(SILENCE);
    }
    assert_eq!(t.read(at(99.0)).ceiling, Ceiling::Low);
}

#[test]
fn a_machine_without_a_sensor_runs_free() {
    let mut t = Thermostat::new(LIMITS);
    let free = Restraint { bank: 1.0, ..Restraint::default() };
    assert!((0..10).all(|_| t.read(SILENCE) == free));
}

#[test]
fn a_sensor_that_falls_silent_means_the_safe_ceiling() {
    let mut t = Thermostat::new(LIMITS);
    t.read(at(50.0));
    assert_eq!(t.read(SILENCE).ceiling, Ceiling::Full);
    t.read(at(f32::NAN));
    let safe = t.read(SILENCE);
    assert_eq!((safe.ceiling, safe.pause, safe.bank), (Ceiling::Low, 0.5, 0.5));
    assert_eq!(safe.reasons.names(), ["silence"]);
    assert_eq!(t.read(at(50.0)).ceiling, Ceiling::Full);
    // One of several is enough: what it would have said may be the worst.
    let half = Heat { silent: true, ..at(50.0) };
    t.read(half);
    t.read(half);
    assert_eq!(t.read(half).ceiling, Ceiling::Low);
}

#[test]
fn nothing_is_held_back_below_the_target() {
    let mut t = Thermostat::new(LIMITS);
    assert!((0..500).all(|i| t.read(at(70.0 + f32::from(i % 2_u16) * 8.0)).pause == 0.0));
}

#[test]
fn pauses_grow_above_the_target_stay_within_their_bound_and_go() {
    let mut t = Thermostat::new(LIMITS);
    t.read(at(75.0));
    let first = t.read(at(83.0));
    assert!(first.pause > 0.0 && first.pause < 0.2, "{first:?}");
    assert_eq!(first.reasons.names(), ["target"]);
    let most = (0..200).map(|_| t.read(at(84.0))).last().unwrap();
    assert_eq!((most.pause, most.ceiling), (0.5, Ceiling::Full));
    // Bounded, so that what was summed up is gone as soon as it is cool.
    let readings = (0..100).take_while(|_| t.read(at(60.0)).pause > 0.0).count();
    assert!(readings < 12, "{readings}");
}

#[test]
fn the_systems_own_word_counts_where_no_temperature_does() {
    let said = |pressure| Heat { pressure: Some(pressure), celsius: Some(50.0), silent: false };
    let mut t = Thermostat::new(LIMITS);
    assert_eq!(t.read(said(Pressure::Nominal)).pause, 0.0);
    let pressed = (0..60).map(|_| t.read(said(Pressure::Serious))).last().unwrap();
    assert!(pressed.pause > 0.1 && pressed.ceiling == Ceiling::Full, "{pressed:?}");
    assert_eq!(pressed.reasons.names(), ["target", "pressure"]);
    assert_eq!(t.read(said(Pressure::Critical)).ceiling, Ceiling::Low);
    let only = |pressure| Heat { celsius: None, ..said(pressure) };
    let mut t = Thermostat::new(LIMITS);
    assert_eq!(t.read(only(Pressure::Nominal)).ceiling, Ceiling::Full);
    assert!((0..60).map(|_| t.read(only(Pressure::Serious)).pause).last().unwrap() > 0.1);
    assert!((0..60).map(|_| t.read(only(Pressure::Nominal)).pause).last().unwrap() < 0.1);
}

#[test]
fn pauses_come_to_their_share_of_the_time_however_long_the_cycles() {
    for cycle_s in [0.0002, 0.02, 0.4, 1.7] {
        let mut pauses = Pauses::default();
        let (mut worked, mut paused, mut pause) = (0.0, 0.0, 0.0);
        while worked < 60.0 {
            pause = pauses.after(cycle_s, pause, 0.2);
            (worked, paused) = (worked + cycle_s, paused + pause);
        }
        let share = paused / (worked + paused);
        assert!((share - 0.2_f64).abs() < 0.01, "{cycle_s}: {share}");
    }
}

#[test]
fn idling_pays_for_pauses_and_nothing_is_owed_once_none_are_due() {
    let mut pauses = Pauses::default();
    assert_eq!(pauses.after(1.0, 0.0, 0.5), 1.0);
    assert!(pauses.after(0.01, 10.0, 0.5) < 0.011);
    assert_eq!(pauses.after(1.0, 0.0, 0.0), 0.0);
    assert!(pauses.after(0.01, 0.0, 0.5) < 0.011);
    assert_eq!(pauses.after(1000.0, 0.0, 0.5), OWED_S_MAX);
}

//! The closed loop on simulated machines: two thermal masses (die, body), a fan that follows its
//! curve, firmware that throttles, sensors that lag, err and drop out, a room that warms up.
//!
//! What the machines assume. Power has a part that work costs at any clock (memory, fabric) and one
//! that goes with the clock's 2.2th power; leakage grows with temperature. `Firmware::Deep` is what
//! NVIDIA documents of its slowdown and PROCHOT does: the clock is halved, or worse, until it has
//! cooled by several degrees. There pauses win, since a slow token costs more than a fast one and a
//! rest. `Firmware::Gentle` lowers the clock by small steps, which is the better way to use less
//! power than any pause: there the target costs throughput, and the test says how much at most.

#![expect(clippy::print_stdout, reason = "these are measurements")]

use super::tests::LIMITS;
use super::*;

#[derive(Clone, Copy, PartialEq)]
enum Firmware {
    Deep,
    Gentle,
}

#[derive(Clone, Copy)]
struct Machine {
    name: &'static str,
    idle_w: f32,
    /// Of work, at any clock.
    fixed_w: f32,
    /// Of work, at the full clock.
    clocked_w: f32,
    /// Kelvin per watt from die to body, and seconds to follow.
    die: (f32, f32),
    /// Kelvin per watt from body to room with the fan at rest and at its most, and seconds (at
    /// rest).
    body: (f32, f32, f32),
    throttles_at: f32,
    /// Of the full clock, at the worst.
    throttled: f32,
    firmware: Firmware,
    /// Whether it says that it throttles.
    tells: bool,
}

const LAPTOP: Machine = Machine {
    name: "laptop",
    idle_w: 5.0,
    fixed_w: 28.0,
    clocked_w: 34.0,
    die: (0.30, 3.0),
    body: (1.25, 0.60, 110.0),
    throttles_at: 100.0,
    throttled: 0.45,
    firmware: Firmware::Deep,
    tells: true,
};

const STUDIO: Machine = Machine {
    name: "studio",
    idle_w: 18.0,
    fixed_w: 95.0,
    clocked_w: 120.0,
    die: (0.12, 4.0),
    body: (0.37, 0.145, 260.0),
    throttles_at: 100.0,
    throttled: 0.45,
    firmware: Firmware::Deep,
    tells: true,
};

const PASSIVE: Machine = Machine {
    name: "passive",
    idle_w: 2.0,
    fixed_w: 9.0,
    clocked_w: 11.0,
    die: (0.8, 3.0),
    body: (3.3, 3.3, 380.0),
    throttles_at: 98.0,
    throttled: 0.40,
    firmware: Firmware::Deep,
    tells: true,
};

const GENTLE: Machine = Machine { name: "gentle", firmware: Firmware::Gentle, ..LAPTOP };

/// The defaults of config/mtplx.toml.
const DEFAULTS: ThermalLimits = ThermalLimits {
    target_celsius: 93.0,
    pause_max: 0.6,
    warm_celsius: 98.0,
    hot_celsius: 102.0,
    hysteresis_celsius: 3.0,
    sample_s: 2.0,
    ..LIMITS
};

const MINUTES: usize = 30;

/// The same numbers for a seed, from 0 to 1.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f32::from(u16::try_from(self.0 >> 48).unwrap()) / f32::from(u16::MAX)
    }
}

#[derive(Debug, Default)]
struct Run {
    /// Tokens, as seconds at full speed with all rows.
    tokens: f32,
    /// Seconds below the full clock.
    throttled_s: f32,
    hottest: f32,
    pauses: Vec<f32>,
    ceilings: Vec<Ceiling>,
}

/// How fast and for how much power a share of the rows decodes: a step's cost is mostly one's own.
fn of_rows(ceiling: Ceiling) -> (f32, f32) {
    match ceiling {
        Ceiling::Full => (1.0, 1.0),
        Ceiling::Reduced => (0.6, 0.85),
        Ceiling::Low => (0.33, 0.75),
    }
}

/// Half an hour of such a load, of what the machine can do at its best; a tenth of a second a step.
fn run(machine: Machine, control: Option<ThermalLimits>, load: f32, seed: u64) -> Run {
    const STEP_S: f32 = 0.1;
    let mut noise = Noise(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut room = 21.0 + 6.0 * noise.next();
    let mut thermostat = control.map(Thermostat::new);
    let mut restraint = Restraint { bank: 1.0, ..Restraint::default() };
    let (mut die, mut body, mut fan, mut clock, mut sensed) = (room, room, 0.0_f32, 1.0_f32, room);
    let (mut slow, mut waiting, mut missed) = (false, 0.0_f32, 0);
    let mut out = Run::default();
    for step in 0..MINUTES * 600 {
        if step == 15 * 600 {
            room += 6.0;
        }
        waiting = (waiting + load * STEP_S).min(20.0);
        let (speed, power_rows) = of_rows(restraint.ceiling);
        let most = clock * speed * (1.0 - restraint.pause) * STEP_S;
        let done = most.min(waiting);
        waiting -= done;
        out.tokens += done;
        let busy = (1.0 - restraint.pause) * done / most;
        let work = (machine.fixed_w + machine.clocked_w * clock.powf(2.2)) * power_rows * busy;
        let leak = 1.0 + 0.006 * (die - 60.0).max(0.0);
        let watts = machine.idle_w + work * leak;
        let (rest, full, body_s) = machine.body;
        let kelvin = rest - (rest - full) * fan;
        body += STEP_S / body_s * (room + watts * kelvin - body) * rest / kelvin;
        die += STEP_S / machine.die.1 * (body + watts * machine.die.0 - die);
        // The machine's own fan: late, and not all it could, as people want it quiet.
        fan += STEP_S / 8.0 * (((die - 65.0) / 45.0).clamp(0.0, 0.7) - fan);
        throttle(machine, die, &mut slow, &mut clock, STEP_S);
        out.throttled_s += if clock < 0.999 { STEP_S } else { 0.0 };
        out.hottest = out.hottest.max(die);
        sensed += STEP_S / 4.0 * (die - sensed);
        let Some(thermostat) = &mut thermostat else { continue };
        if step % 20 == 19 {
            let drop_out = missed < 2 && (noise.next() < 0.05 || (6000..6100).contains(&step));
            missed = if drop_out { missed + 1 } else { 0 };
            let celsius = sensed + 1.6 * (noise.next() - 0.5);
            let pressure = if clock < 0.999 { Pressure::Serious } else { Pressure::Nominal };
            let pressure = (machine.tells && !drop_out).then_some(pressure);
            let celsius = (!drop_out).then_some(celsius);
            restraint = thermostat.read(Heat { celsius, pressure, silent: false });
            out.pauses.push(restraint.pause);
            out.ceilings.push(restraint.ceiling);
        }
    }
    out
}

fn throttle(machine: Machine, die: f32, slow: &mut bool, clock: &mut f32, step_s: f32) {
    match machine.firmware {
        Firmware::Deep => {
            *slow = die >= machine.throttles_at || *slow && die > machine.throttles_at - 8.0;
            *clock = if *slow { machine.throttled } else { (*clock + 0.3 * step_s).min(1.0) };
        }
        Firmware::Gentle => {
            let down = die >= machine.throttles_at;
            let change = if down { -0.1 } else { 0.05 } * step_s;
            *clock = (*clock + change).clamp(machine.throttled, 1.0);
        }
    }
}

fn changes(values: &[Ceiling]) -> usize {
    values.windows(2).filter(|pair| pair[0] != pair[1]).count()
}

#[test]
fn the_loop_stays_out_of_throttling_and_makes_more_tokens_in_half_an_hour() {
    for machine in [LAPTOP, STUDIO, PASSIVE] {
        for seed in 0..12 {
            let free = run(machine, None, 1.0, seed);
            let held = run(machine, Some(DEFAULTS), 1.0, seed);
            let gain = held.tokens / free.tokens;
            println!(
                "{} {seed}: {gain:.3} x the tokens, before throttled {:.0} of {} s, hottest {:.1}",
                machine.name,
                free.throttled_s,
                MINUTES * 60,
                held.hottest
            );
            assert!(free.throttled_s > 60.0, "{}: there is nothing to win", machine.name);
            assert!(held.throttled_s == 0.0, "{} {seed}: {held:?}", machine.name);
            assert!(gain > 1.0, "{} {seed}: {gain}", machine.name);
        }
    }
}

#[test]
fn a_load_that_the_machine_bears_is_served_in_full() {
    for machine in [LAPTOP, STUDIO, PASSIVE] {
        for seed in 0..4 {
            let full = run(machine, Some(DEFAULTS), 1.0, seed);
            // At the worst, when the room is warm.
            let late = &full.pauses[810..];
            let load = 0.9 * (1.0 - late.iter().sum::<f32>() / 90.0);
            let free = run(machine, None, load, seed);
            let held = run(machine, Some(DEFAULTS), load, seed);
            println!("{} {seed}: load {load:.2}, {} of {}", machine.name, held.tokens, free.tokens);
            assert!(held.tokens >= 0.995 * free.tokens, "{} {seed}", machine.name);
            assert!(held.throttled_s == 0.0, "{} {seed}", machine.name);
        }
    }
}

#[test]
fn a_machine_that_throttles_early_and_says_so_is_soon_kept_out_of_it() {
    let early = Machine { name: "early", throttles_at: 86.0, tells: true, ..STUDIO };
    for seed in 0..12 {
        let free = run(early, None, 1.0, seed);
        let held = run(early, Some(DEFAULTS), 1.0, seed);
        let gain = held.tokens / free.tokens;
        println!(
            "early {seed}: {gain:.3} x, throttled {} and {}",
            held.throttled_s, free.throttled_s
        );
        assert!(held.throttled_s < 0.1 * free.throttled_s && gain > 1.0, "{seed}: {gain}");
    }
}

#[test]
fn pauses_settle_and_rows_do_not_flap() {
    for machine in [LAPTOP, STUDIO, PASSIVE, GENTLE] {
        for seed in 0..12 {
            let held = run(machine, Some(DEFAULTS), 1.0, seed);
            // From 12 to 15 minutes, before the room warms up, and over the last three.
            for window in [&held.pauses[360..450], &held.pauses[810..]] {
                let most = window.iter().copied().fold(0.0, f32::max);
                let least = window.iter().copied().fold(1.0, f32::min);
                assert!(most - least < 0.15, "{} {seed}: {least} to {most}", machine.name);
            }
            assert!(changes(&held.ceilings) <= 2, "{} {seed}: {:?}", machine.name, held.ceilings);
        }
    }
}

#[test]
fn on_firmware_that_lowers_clocks_gently_the_target_costs_less_than_a_fifth() {
    let free = run(GENTLE, None, 1.0, 1);
    let held = run(GENTLE, Some(DEFAULTS), 1.0, 1);
    println!("gentle: {:.3} x the tokens", held.tokens / free.tokens);
    assert!(held.throttled_s == 0.0);
    assert!(held.tokens > 0.8 * free.tokens, "{} of {}", held.tokens, free.tokens);
}

#[test]
fn the_loop_holds_on_machines_that_nobody_built() {
    let mut noise = Noise(7);
    for i in 0..200 {
        let mut vary = |value: f32, by: f32| value * (1.0 - by + 2.0 * by * noise.next());
        let one = [LAPTOP, STUDIO, PASSIVE][i % 3];
        let machine = Machine {
            fixed_w: vary(one.fixed_w, 0.2),
            clocked_w: vary(one.clocked_w, 0.2),
            die: (vary(one.die.0, 0.3), vary(one.die.1, 0.5)),
            body: (vary(one.body.0, 0.1), vary(one.body.1, 0.1), vary(one.body.2, 0.6)),
            ..one
        };
        let held = run(machine, Some(DEFAULTS), 1.0, i as u64);
        let late = &held.pauses[750..];
        let most = late.iter().copied().fold(0.0, f32::max);
        let least = late.iter().copied().fold(1.0, f32::min);
        assert!(most - least < 0.2, "{i}, {}: {least} to {most}", one.name);
        // The quickest overshoot while they warm up, and what they learn of it is forgotten slowly.
        assert!(held.throttled_s < 90.0, "{i}, {}: {} s", one.name, held.throttled_s);
    }
}

//! Heat in, restraint out: how many rows, how much rest between cycles, how much of the bank.
//!
//! Two loops, the finer below the coarser. Rest is proportional-integral upon the target: pauses
//! between cycles hold the hottest sensor there, and cost nothing below. Rows are cut in steps,
//! with hysteresis, only where that did not suffice. The system's own word on thermal pressure,
//! where it has one, counts as a temperature: at `Fair` rest no longer falls, from `Serious` on it
//! rises. And it teaches: clocks held back at some temperature mean that the target lies below that
//! one. So the target may be high, where a cool machine loses nothing, and is right after the first
//! throttling.
//!
//! Stable by construction: the integral is bounded by `pause_max` and so cannot wind up, what the
//! fast part of a machine answers to the proportional part is below one (`PROPORTIONAL` times its
//! degrees for a full load), and the integral is slower than any machine's body but those that take
//! minutes. `simulate` lets it run on such machines.

#[cfg(test)]
mod simulate;
#[cfg(test)]
mod tests;

/// How many rows may run.
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

/// What the system says of its own heat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// All is well.
    Nominal,
    /// Warm; fans may be heard.
    Fair,
    /// Clocks are held back.
    Serious,
    /// Much has to stop.
    Critical,
}

impl Pressure {
    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nominal => "nominal",
            Self::Fair => "fair",
            Self::Serious => "serious",
            Self::Critical => "critical",
        }
    }
}

/// One look at the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Heat {
    /// The hottest sensor.
    pub celsius: Option<f32>,
    /// What the system says.
    pub pressure: Option<Pressure>,
    /// Whether one that used to answer does not: what it would have said may be the worst.
    pub silent: bool,
}

/// Where the steps are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ThermalLimits {
    /// Pauses hold it here.
    pub target_celsius: f32,
    /// Most of the time that may be spent on pauses; 0 for none.
    pub pause_max: f32,
    /// At this many degrees Celsius the rows are halved.
    pub warm_celsius: f32,
    /// At this many they are quartered.
    pub hot_celsius: f32,
    /// They rise again only this many degrees below the step they fell at.
    pub hysteresis_celsius: f32,
    /// Readings missed in a row after which a sensor that once spoke is taken for dead.
    pub silent_readings_max: u32,
    /// Share of its memory that the bank keeps while rows are quartered.
    pub bank_hot_share: f32,
    /// Seconds between readings.
    pub sample_s: f32,
}

/// Why there is restraint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reasons {
    /// The target is exceeded, or would be without pauses.
    pub target: bool,
    /// The step of halved rows was crossed.
    pub warm: bool,
    /// The step of quartered rows was crossed.
    pub hot: bool,
    /// The system says so.
    pub pressure: bool,
    /// A sensor fell silent.
    pub silence: bool,
}

impl Reasons {
    /// As they are written.
    #[must_use]
    pub fn names(self) -> Vec<&'static str> {
        let Self { target, warm, hot, pressure, silence } = self;
        let all = [target, warm, hot, pressure, silence];
        let names = ["target", "warm", "hot", "pressure", "silence"];
        names.into_iter().zip(all).filter_map(|(name, is)| is.then_some(name)).collect()
    }
}

/// What follows from the heat.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Restraint {
    /// How many rows.
    pub ceiling: Ceiling,
    /// Share of the time for pauses.
    pub pause: f32,
    /// Share of its memory for the bank.
    pub bank: f32,
    /// Why.
    pub reasons: Reasons,
}

/// Share of the time per degree.
const PROPORTIONAL: f32 = 0.04;
/// Seconds in which the integral adds what the proportional part says at once.
const INTEGRAL_S: f32 = 120.0;
/// Seconds that are looked ahead, by the slope: sensors and their smoothing lag about so much.
const AHEAD_S: f32 = 5.0;
/// Rows and bank go by the median of so many readings: one of them may be a sensor's slip, and what
/// the bank lets go is gone.
const CONFIRM: usize = 3;
/// Most that the share changes with one reading: a sensor's slip shall not be felt.
const CHANGE_MAX: f32 = 0.1;
/// Weight of a new reading: half of the noise is left.
const NEWEST: f32 = 0.4;
/// Steps in which the share is told, so that noise is not.
const GRAIN: f32 = 1.0 / 64.0;
/// Degrees above the target that count while the system holds its clocks back, and degrees below
/// where it began that the target is put then.
const PRESSED_CELSIUS: f32 = 4.0;
/// Most that the target is lowered so: something else than this sensor may be what is hot.
const LEARNT_CELSIUS_MAX: f32 = 20.0;
/// Seconds in which a degree of it is forgotten: so may the reason be gone.
const FORGET_S: f32 = 300.0;

/// Remembers the last restraint.
#[derive(Clone, Debug)]
pub struct Thermostat {
    limits: ThermalLimits,
    ceiling: Ceiling,
    /// Share of the time for pauses, as exactly as it is reckoned.
    pause: f32,
    /// How far the target was lowered for what was learnt.
    learnt: f32,
    /// Whether clocks were held back at the last look.
    pressed: bool,
    /// The integral: the share that keeps it at the target.
    standing: f32,
    /// The smoothed temperature; `None` before the first and after a silence.
    smooth: Option<f32>,
    /// The last temperatures as they were read; none after a silence.
    last: [Option<f32>; CONFIRM],
    /// Readings missed since the last one; `None` while there never was one.
    silent: Option<u32>,
}

impl Thermostat {
    /// Free until told otherwise: a machine without a sensor is not held back.
    #[must_use]
    pub fn new(limits: ThermalLimits) -> Self {
        Self {
            limits,
            ceiling: Ceiling::Full,
            pause: 0.0,
            learnt: 0.0,
            pressed: false,
            standing: 0.0,
            smooth: None,
            last: [None; CONFIRM],
            silent: None,
        }
    }

    /// Goes by other steps from the next reading on.
    pub fn set_limits(&mut self, limits: ThermalLimits) {
        self.limits = limits;
    }

    /// Heeds one look, or the silence of a sensor. One that falls silent means the safe ceiling:
    /// few rows, and all the rest there may be.
    pub fn read(&mut self, heat: Heat) -> Restraint {
        let celsius = heat.celsius.filter(|c| c.is_finite());
        let seen = !heat.silent && (celsius.is_some() || heat.pressure.is_some());
        let mut reasons = Reasons::default();
        match (seen, &mut self.silent) {
            (true, silent) => {
                *silent = Some(0);
                reasons = self.heed(celsius, heat.pressure);
            }
            (false, Some(missed)) => {
                *missed = missed.saturating_add(1);
                if *missed >= self.limits.silent_readings_max {
                    self.ceiling = Ceiling::Low;
                    self.pause = self.limits.pause_max;
                    (self.smooth, self.last) = (None, [None; CONFIRM]);
                    reasons.silence = true;
                }
            }
            (false, None) => {}
        }
        self.restraint(reasons)
    }

    /// Where pauses hold it now.
    #[must_use]
    pub fn target(&self) -> f32 {
        self.limits.target_celsius - self.learnt
    }

    fn learn(&mut self, celsius: Option<f32>, pressure: Option<Pressure>) {
        self.learnt = (self.learnt - self.limits.sample_s / FORGET_S).max(0.0);
        let pressed = pressure.is_some_and(|p| p >= Pressure::Serious);
        // Only where it begins: by the next look it is cooler, and the clocks are still held.
        if pressed
            && !self.pressed
            && let Some(celsius) = celsius
        {
            // By the time it is seen a small die has cooled already.
            let celsius = self.smooth.map_or(celsius, |smooth| smooth.max(celsius));
            let lower = self.limits.target_celsius - celsius + PRESSED_CELSIUS;
            self.learnt = lower.clamp(self.learnt, LEARNT_CELSIUS_MAX.max(self.learnt));
        }
        self.pressed = pressed;
    }

    fn heed(&mut self, celsius: Option<f32>, pressure: Option<Pressure>) -> Reasons {
        self.learn(celsius, pressure);
        let (limits, target) = (self.limits, self.target());
        let pressed = match pressure {
            None | Some(Pressure::Nominal) => None,
            Some(Pressure::Fair) => Some(target),
            Some(Pressure::Serious) => Some(target + PRESSED_CELSIUS),
            Some(Pressure::Critical) => Some(limits.hot_celsius),
        };
        let Some(worst) = celsius.into_iter().chain(pressed).reduce(f32::max) else {
            // All is well, and that is all there is to know.
            self.ceiling = Ceiling::Full;
            self.rest(target - PRESSED_CELSIUS);
            return Reasons::default();
        };
        // What the system says was weighed before it said so.
        let read = celsius.map(|celsius| self.confirm(celsius));
        let said = pressed.map(|pressed| self.step(pressed));
        self.ceiling = read.into_iter().chain(said).min().unwrap_or_default();
        self.rest(worst);
        let ceiling = self.ceiling;
        Reasons {
            target: self.pause > 0.0,
            warm: ceiling == Ceiling::Reduced,
            hot: ceiling == Ceiling::Low,
            pressure: pressed.is_some(),
            silence: false,
        }
    }

    /// Rows by the median of the last readings, of two the lower; one alone cuts none.
    fn confirm(&mut self, celsius: f32) -> Ceiling {
        self.last.rotate_right(1);
        self.last[0] = Some(celsius);
        let mut known: Vec<f32> = self.last.into_iter().flatten().collect();
        if known.len() == 1 {
            return self.step(celsius).max(self.ceiling);
        }
        known.sort_by(f32::total_cmp);
        self.step(known[(known.len() - 1) / 2])
    }

    /// Rows: in steps.
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

    /// Pauses: proportional-integral. The integral has the bounds of the whole, so that it has
    /// nothing to unlearn, and none before the target is exceeded.
    fn rest(&mut self, celsius: f32) {
        let l = &self.limits;
        let last = self.smooth.unwrap_or(celsius);
        let smooth = last + NEWEST * (celsius - last);
        self.smooth = Some(smooth);
        let ahead = smooth + (smooth - last) / l.sample_s * AHEAD_S;
        let now = PROPORTIONAL * (ahead - l.target_celsius + self.learnt);
        self.standing = (self.standing + now * l.sample_s / INTEGRAL_S).clamp(0.0, l.pause_max);
        let change = (now + self.standing - self.pause).clamp(-CHANGE_MAX, CHANGE_MAX);
        self.pause = (self.pause + change).clamp(0.0, l.pause_max);
    }

    fn restraint(&self, reasons: Reasons) -> Restraint {
        let low = self.ceiling == Ceiling::Low;
        let bank = if low { self.limits.bank_hot_share } else { 1.0 };
        let pause = ((self.pause / GRAIN).round() * GRAIN).min(self.limits.pause_max);
        Restraint { ceiling: self.ceiling, pause, bank, reasons }
    }
}

/// What pauses are owed. Work makes debt; pauses, and idling that nobody asked for, pay it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pauses {
    owed_s: f64,
}

/// Nobody wakes from a shorter sleep in time: it waits until there is more to sleep for.
const PAUSE_S_MIN: f64 = 0.001;
/// Most that is owed: one cycle that took for ever is not paid for as long.
const OWED_S_MAX: f64 = 2.0;

impl Pauses {
    /// After `worked_s` of work with `rested_s` of no work before it, while such a share of the
    /// time is to be pauses: for how long to pause now.
    pub fn after(&mut self, worked_s: f64, rested_s: f64, share: f32) -> f64 {
        let share = f64::from(share.clamp(0.0, 0.95));
        if share <= 0.0 {
            self.owed_s = 0.0;
            return 0.0;
        }
        let owed = (self.owed_s - rested_s).max(0.0) + worked_s * share / (1.0 - share);
        self.owed_s = owed.min(OWED_S_MAX);
        if self.owed_s < PAUSE_S_MIN { 0.0 } else { self.owed_s }
    }
}

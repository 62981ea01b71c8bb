//! The typed ways to record, one for each thing that happens.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::SharedString;
use mtplx_core::batch::{Batch, Books, Knobs, Report};
use mtplx_core::engine::EngineInfo;
use mtplx_core::request::{Finish, Refusal, Usage};
use mtplx_core::thermal::{Ceiling, Restraint};

use super::*;
use crate::thermal::Reading;

// === the door ===

/// An HTTP answer left. `route` is the route's pattern, never the path a client sent.
pub fn http(route: impl Into<SharedString>, code: u16) {
    HTTP_REQUESTS.add(1, [route.into(), code.to_string().into()]);
}

/// All places for connections are taken.
pub(crate) fn places_waited() {
    PLACES_WAITED.add(1, []);
}

/// Makes the series of a route that generates exist before its first request.
pub fn prepare_route(route: &'static str) {
    for &finish in FINISH.values {
        REQUESTS.add(0, [route.into(), finish.into()]);
    }
    for histogram in [&TIME_TO_FIRST_TOKEN, &INTER_TOKEN, &REQUEST_DURATION] {
        histogram.observe(0.0, 0, [route.into()]);
    }
}

/// A generation ended. A stream whose sender vanished without an end counts as a fault.
pub fn request_finished(route: impl Into<SharedString>, finish: Finish) {
    let finish = match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Cancelled => "cancelled",
        Finish::Fault => "fault",
    };
    REQUESTS.add(1, [route.into(), finish.into()]);
}

/// An answer goes on with another engine.
pub fn resumed() {
    RESUMED.add(1, []);
}

/// A request was refused at the door.
pub fn refused(refusal: &Refusal) {
    let reason = match refusal {
        Refusal::Invalid { .. } => "invalid",
        Refusal::TooLong { .. } => "too_long",
        Refusal::Overloaded { .. } => "overloaded",
        Refusal::Late { .. } => "late",
        Refusal::NoMemory(_) => "memory",
        Refusal::Unavailable { .. } => "unavailable",
    };
    REFUSALS.add(1, [reason.into()]);
}

/// How full the house is.
pub fn permits(taken: usize, max: usize) {
    PERMITS_TAKEN.set(float(taken), []);
    PERMITS_MAX.set(float(max), []);
}

/// The first token came `waited` after the request.
pub fn first_token(route: impl Into<SharedString>, waited: Duration) {
    TIME_TO_FIRST_TOKEN.observe(waited.as_secs_f64(), 1, [route.into()]);
}

/// `tokens` more came together, `gap` after the ones before.
pub fn more_tokens(route: impl Into<SharedString>, gap: Duration, tokens: usize) {
    if tokens > 0 {
        INTER_TOKEN.observe(gap.as_secs_f64() / float(tokens), tokens, [route.into()]);
    }
}

/// A request took this long from arrival to its last token.
pub fn request_duration(route: impl Into<SharedString>, took: Duration) {
    REQUEST_DURATION.observe(took.as_secs_f64(), 1, [route.into()]);
}

/// A key's answer cost so many more tokens of this kind.
pub fn client_tokens(key: &str, kind: &'static str, tokens: usize) {
    CLIENT_TOKENS.add(tokens as u64, [key.to_owned().into(), kind.into()]);
}

/// A key's answer ended, or its request was refused.
pub fn client_request(key: &str, outcome: &'static str) {
    CLIENT_REQUESTS.add(1, [key.to_owned().into(), outcome.into()]);
}

/// Template and tokenizer took this long for one request.
pub fn tokenized(took: Duration) {
    TOKENIZE.observe(took.as_secs_f64(), 1, []);
}

// === decode ===

/// A request got its slot, `waited` after it was admitted.
pub fn seated(waited: Duration) {
    QUEUE.observe(waited.as_secs_f64(), 1, []);
}

/// A row left with an end of its own.
pub fn row_finished(usage: &Usage) {
    PROMPT_SIZE.observe(float(usage.prompt), 1, []);
    GENERATED_SIZE.observe(float(usage.generated), 1, []);
}

/// A cycle ended: `wall` from plan to publication, of it `engine` within the engine.
pub fn cycle(report: &Report, wall: Duration, engine: Duration) {
    let kind = match (report.rows, report.prefilled) {
        (0, 0) => "moves",
        (0, _) => "prefill",
        (_, 0) => "decode",
        (_, _) => "mixed",
    };
    CYCLES.add(1, [kind.into()]);
    CYCLE_DURATION.observe(wall.as_secs_f64(), 1, [kind.into()]);
    let phases = report.phases;
    let inner = [phases.draft_us, phases.verify_us, phases.accept_us, phases.device_us];
    for (&phase, micros) in PHASE.values.iter().zip(inner) {
        CYCLE_PHASE.observe(Duration::from_micros(micros).as_secs_f64(), 1, [phase.into()]);
    }
    CYCLE_PHASE.observe(wall.saturating_sub(engine).as_secs_f64(), 1, ["host".into()]);
    SYNCHRONISATIONS.add(report.synchronisations, []);
    COMPILATIONS.add(report.compilations, []);
    GENERATED_TOKENS.add(report.emitted as u64, []);
    BANK_DEPOSITS.add(report.dropped_deposits as u64, ["dropped".into()]);
    STEPPED_BACK.add(report.stepped_back as u64, []);
    UNACCOUNTED.add(report.unaccounted as u64, []);
    BANK_TAKEN_OVER.add(report.taken_over as u64, []);
    for (i, tried) in report.positions.iter().enumerate() {
        DRAFT_JUDGED.add(tried.tried.into(), [position(i)]);
        DRAFT_ACCEPTED.add(tried.accepted.into(), [position(i)]);
    }
}

/// The engine's thread is at work.
pub fn heartbeat() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    HEARTBEAT.set(now.as_secs_f64(), []);
}

/// What the batch holds now, and what became of prompts since the last time.
pub fn books(batch: &mut Batch) {
    let Books { seated, forwarded, restored, unfed } = batch.take_books();
    SEATED_TOKENS.add(seated, []);
    for (&source, tokens) in SOURCE.values.iter().zip([forwarded, restored, unfed]) {
        PROMPT_TOKENS.add(tokens, [source.into()]);
    }
    let (slots, pages) = batch.ledger().free();
    ROWS_RUNNING.set(float(batch.rows().len()), []);
    ROWS_WAITING.set(float(batch.waiting()), []);
    SLOTS_FREE.set(float(slots), []);
    PAGES_FREE.set(float(pages), []);
    SNAPSHOTS.set(float(batch.ledger().snapshots()), []);
}

/// Bytes in the engine's arrays, kept for arrays to come, and the most there ever were in arrays.
pub fn engine_memory(active: u64, cached: u64, peak: u64) {
    ENGINE_ACTIVE.set(wide(active), []);
    ENGINE_CACHED.set(wide(cached), []);
    ENGINE_PEAK.set(wide(peak), []);
}

/// What memory is in use and may be.
pub fn memory(used: u64, budget: u64) {
    MEMORY_USED.set(wide(used), []);
    MEMORY_BUDGET.set(wide(budget), []);
}

/// The books contradicted themselves.
pub fn integrity_failed() {
    INTEGRITY_FAILURES.add(1, []);
}

// === bank ===

/// A look-up ended.
pub fn bank_lookup(hit: bool) {
    BANK_LOOKUPS.add(1, [if hit { "hit" } else { "miss" }.into()]);
}

/// A request found a warm prefix.
pub fn bank_hit(on_disk: bool) {
    BANK_HITS.add(1, [if on_disk { "disk" } else { "memory" }.into()]);
}

/// More of a prompt might have been warm: `tokens` more.
pub fn bank_miss(reason: &'static str, tokens: usize) {
    BANK_MISSES.add(1, [reason.into()]);
    BANK_MISSED.add(tokens as u64, [reason.into()]);
}

/// What became of a state on disk.
pub fn bank_file(event: &'static str) {
    BANK_FILE_EVENTS.add(1, [event.into()]);
}

/// What is on disk.
pub fn bank_files(files: usize, bytes: u64) {
    BANK_FILES.set(float(files), []);
    BANK_FILE_BYTES.set(wide(bytes), []);
}

/// A stretch of a state was copied out of the engine or into it.
pub fn carried(took: Duration) {
    BANK_CARRIED.observe(took.as_secs_f64(), 1, []);
}

/// A state was offered; it is kept unless its prefix is here already.
pub fn bank_deposit(kept: bool) {
    BANK_DEPOSITS.add(1, [if kept { "kept" } else { "duplicate" }.into()]);
}

/// The bank let a state go.
pub fn bank_eviction(cause: moka::notification::RemovalCause) {
    use moka::notification::RemovalCause::{Expired, Explicit, Replaced, Size};
    let cause = match cause {
        Size => "size",
        Expired => "idle",
        Replaced => "replaced",
        Explicit => "explicit",
    };
    BANK_EVICTIONS.add(1, [cause.into()]);
}

/// What the bank holds now.
pub fn bank_holds(entries: u64, bytes: u64, bytes_max: u64) {
    BANK_ENTRIES.set(wide(entries), []);
    BANK_HELD.set(wide(bytes), []);
    BANK_CAPACITY.set(wide(bytes_max), []);
}

// === tuner and thermal ===

/// The knobs were set; `depth` is that of the width that ran last.
pub fn tuned(knobs: &Knobs, depth: u8) {
    DEPTH.set(depth.into(), []);
    ROWS_MAX.set(float(knobs.rows_max), []);
    RETUNED.add(1, []);
}

/// What the tuner believes of each draft position.
pub fn acceptance(rates: &[f64]) {
    for (i, &rate) in rates.iter().enumerate() {
        ACCEPTANCE.set(rate, [position(i)]);
    }
}

/// The sensors were asked, and what follows from what they said; where pauses hold it.
pub fn thermal(reading: &Reading, restraint: Restraint, target: f32) {
    let heat = reading.heat();
    match heat.celsius {
        Some(celsius) => TEMPERATURE.set(celsius.into(), []),
        None => SILENCES.add(1, []),
    }
    let share = match restraint.ceiling {
        Ceiling::Low => 0.25,
        Ceiling::Reduced => 0.5,
        Ceiling::Full => 1.0,
    };
    CEILING.set(share, []);
    PAUSE.set(restraint.pause.into(), []);
    TARGET.set(target.into(), []);
    if let Some(pressure) = heat.pressure {
        PRESSURE.set(f64::from(pressure as u8) / 3.0, []);
    }
    let lists = [
        (&SENSOR_CELSIUS, &reading.celsius),
        (&SENSOR_WATTS, &reading.watts),
        (&SENSOR_CLOCK, &reading.megahertz),
        (&SENSOR_BUSY, &reading.busy),
        (&SENSOR_RPM, &reading.rpm),
        (&SENSOR_FAN, &reading.fan_share),
    ];
    for (metric, values) in lists {
        for value in values {
            metric.set(value.value.into(), [value.source.into(), value.name.clone().into()]);
        }
    }
}

/// Decode pauses for heat.
pub(crate) fn paused() {
    PAUSES.add(1, []);
}

/// Whether this server holds the fans at their most.
pub fn fans_pinned(pinned: bool) {
    FANS_PINNED.set(f64::from(u8::from(pinned)), []);
}

/// A watchdog of the fans was started.
pub fn watchdog_started() {
    WATCHDOGS.add(1, []);
}

/// The thermal actor was started anew.
pub fn thermal_restarted() {
    THERMAL_RESTARTS.add(1, []);
}

// === the house ===

/// A part of a generation, as metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The decode actor.
    Decode,
    /// The bank.
    Bank,
    /// The tuner.
    Tuner,
    /// It never came up.
    Start,
}

/// Generation `number` serves.
pub fn serving(number: u64, info: &EngineInfo) {
    GENERATION.set(wide(number), []);
    SERVING.set(1.0, []);
    PAGES_MAX.set(float(info.pages_max), []);
    let mtp = if info.mtp_absent.is_none() { "yes" } else { "no" };
    ENGINE_INFO.set(1.0, [info.device.clone().into(), mtp.into(), info.vocab.to_string().into()]);
    for kernel in &info.kernels {
        KERNEL_ENABLED
            .set(f64::from(u8::from(kernel.fault.is_none())), [kernel.name.clone().into()]);
    }
}

/// No generation serves: none yet, or the house drains.
pub fn not_serving() {
    SERVING.set(0.0, []);
}

/// A generation ended by a fault of `part`.
pub fn generation_ended(part: Part) {
    let part = match part {
        Part::Decode => "decode",
        Part::Bank => "bank",
        Part::Tuner => "tuner",
        Part::Start => "start",
    };
    GENERATIONS_ENDED.add(1, [part.into()]);
    SERVING.set(0.0, []);
}

/// Which build this is.
pub fn build(version: &'static str) {
    BUILD_INFO.set(1.0, [version.into()]);
}

/// The settings were read anew, and hold or were refused.
pub fn config_reloaded(holds: bool) {
    CONFIG_RELOADS.add(1, [if holds { "applied" } else { "refused" }.into()]);
}

/// The settings that hold were read now.
pub fn config_loaded() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    CONFIG_LOADED.set(now.as_secs_f64(), []);
}

// === numbers ===

/// The label of the draft position with this index; people count from 1.
fn position(index: usize) -> SharedString {
    match POSITION.values.get(index) {
        Some(&known) => known.into(),
        None => (index + 1).to_string().into(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of this house stay far below 2^52")]
fn float(n: usize) -> f64 {
    n as f64
}

#[expect(clippy::cast_precision_loss, reason = "a byte in 2^52 does not matter")]
fn wide(n: u64) -> f64 {
    n as f64
}

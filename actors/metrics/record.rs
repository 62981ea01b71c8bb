//! The typed ways to record, one for each thing that happens.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::SharedString;
use mtplx_core::batch::{Batch, Books, Knobs, Report};
use mtplx_core::engine::EngineInfo;
use mtplx_core::fairness::Class;
use mtplx_core::request::{Finish, Refusal, Usage};
use mtplx_core::tune::Reason;

use super::*;

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
    for &class in CLASS.values {
        for &finish in FINISH.values {
            REQUESTS.add(0, [route.into(), class.into(), finish.into()]);
        }
    }
    for histogram in [&TIME_TO_FIRST_TOKEN, &INTER_TOKEN, &REQUEST_DURATION] {
        histogram.observe(0.0, 0, [route.into()]);
    }
}

/// A generation ended. A stream whose sender vanished without an end counts as a fault.
pub fn request_finished(route: impl Into<SharedString>, class: Class, finish: Finish) {
    let class = match class {
        Class::Interactive => "interactive",
        Class::Background => "background",
    };
    let finish = match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Cancelled => "cancelled",
        Finish::Fault => "fault",
    };
    REQUESTS.add(1, [route.into(), class.into(), finish.into()]);
}

/// An answer goes on with another engine.
pub fn resumed() {
    RESUMED.add(1, []);
}

/// A request was let go because its client sent it again.
pub fn superseded() {
    SUPERSEDED.add(1, []);
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

/// A request was refused because its key has used what it may.
pub(crate) fn over_quota() {
    REFUSALS.add(1, ["quota".into()]);
}

/// A request came without a key that is known.
pub(crate) fn no_key() {
    REFUSALS.add(1, ["key".into()]);
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

/// A key's answer got its slot, `waited` after it was admitted.
pub(crate) fn client_seated(key: &str, waited: Duration) {
    CLIENT_QUEUE.observe(waited.as_secs_f64(), 1, [key.to_owned().into()]);
}

/// A key's answer cost so much service; its key weighs so much.
pub(crate) fn client_served(key: &str, service: u64, weight: u32) {
    CLIENT_SERVICE.add(service, [key.to_owned().into()]);
    CLIENT_WEIGHT.set(weight.into(), [key.to_owned().into()]);
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

/// A row's first token came, `took` after it got its slot.
pub fn prefilled(took: Duration) {
    PREFILL.observe(took.as_secs_f64(), 1, []);
}

/// A row's last token came, `took` after its first.
pub fn decoded(took: Duration) {
    DECODE.observe(took.as_secs_f64(), 1, []);
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
    if report.rows > 0 {
        CYCLE_ROWS.observe(float(report.rows), 1, []);
        CYCLE_DEPTH.observe(report.depth.into(), 1, []);
    }
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

/// So many tokens were drafted.
pub fn drafted(tokens: usize) {
    DRAFTED.add(tokens as u64, []);
}

/// A cycle took so much longer because it fed prompts beside rows.
pub fn decode_stalled(by: Duration) {
    DECODE_STALL.observe(by.as_secs_f64(), 1, []);
}

/// The engine's thread is at work.
pub fn heartbeat() {
    HEARTBEAT.set(now_s(), []);
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
    let (clients, spread) = batch.fairness_spread();
    CLIENTS_PRESENT.set(float(clients), []);
    FAIRNESS_SPREAD.set(wide(spread), []);
}

/// Bytes in the engine's arrays, kept for arrays to come, the most there ever were in arrays, and
/// beyond which it waits for some to come back.
pub fn engine_memory([active, cached, peak, limit]: [u64; 4]) {
    ENGINE_ACTIVE.set(wide(active), []);
    ENGINE_CACHED.set(wide(cached), []);
    ENGINE_PEAK.set(wide(peak), []);
    ENGINE_LIMIT.set(wide(limit), []);
}

/// Bytes of the process alone, as the system counts them.
pub fn footprint(bytes: u64) {
    FOOTPRINT.set(wide(bytes), []);
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

/// Where the last cycle ran and what is in use there; trials, changes of depth and of the text
/// before and now.
pub fn tuner(here: Option<(usize, u8, Reason)>, before: (u64, u64, u64), now: (u64, u64, u64)) {
    if let Some((rows, depth, reason)) = here {
        TUNED_DEPTH.set(depth.into(), [rows.to_string().into()]);
        for other in Reason::ALL {
            TUNER_REASON.set(f64::from(u8::from(other == reason)), [other.name().into()]);
        }
    }
    TUNER_TRIALS.add(now.0.saturating_sub(before.0), []);
    TUNER_SWITCHES.add(now.1.saturating_sub(before.1), []);
    TUNER_CHANGES.add(now.2.saturating_sub(before.2), []);
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

impl Part {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Bank => "bank",
            Self::Tuner => "tuner",
            Self::Start => "start",
        }
    }
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
    GENERATIONS_ENDED.add(1, [part.name().into()]);
    SERVING.set(0.0, []);
}

/// An actor took so long to answer.
pub(crate) fn answered(actor: &'static str, after: Duration) {
    MAILBOX_DELAY.set(after.as_secs_f64(), [actor.into()]);
}

/// What the last cycles of a failed engine were stands in a file.
pub(crate) fn flight_written() {
    FLIGHT_FILES.add(1, []);
}

/// Which build this is; it starts now.
pub fn build(version: &'static str) {
    BUILD_INFO.set(1.0, [version.into()]);
    STARTED.set(now_s(), []);
}

// === several machines ===

/// How it stands with a node, by this label.
pub(crate) fn node(label: &str, rows: usize, state: &str, rtt_s: Option<f64>) {
    let name = || SharedString::from(label.to_owned());
    NODE_ROWS.set(float(rows), [name()]);
    for each in NODE_STATES {
        NODE_STATE.set(f64::from(u8::from(each == state)), [name(), each.into()]);
    }
    rtt_s.into_iter().for_each(|seconds| NODE_RTT.set(seconds, [name()]));
}

// === settings ===

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

fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

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

//! Every metric: its name, unit, help, labels and buckets. Nowhere else is one spelled.
//!
//! Names end in their base unit and, for counters, in `_total`. Histograms have explicit buckets,
//! so that they can be added up over time and machines. Series whose labels are known beforehand
//! exist from the start at zero, so that a rate over them is never empty.

use metrics::{Key, Label, Level, Metadata, Recorder, SharedString, Unit as PrometheusUnit};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

mod record;
pub use record::*;

/// A metric as it is known outside.
#[derive(Debug)]
pub struct Metric {
    /// Its name at `/metrics`.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// What it counts or measures.
    pub unit: Unit,
    /// One sentence for people.
    pub help: &'static str,
    /// By what it is split.
    pub axes: &'static [Axis],
}

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Only rises.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts values by these upper bounds.
    Histogram(&'static [f64]),
}

/// What a metric measures, always in the base unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Things: requests, rows, pages.
    Count,
    /// Tokens.
    Tokens,
    /// Seconds, also those since 1970.
    Seconds,
    /// Bytes.
    Bytes,
    /// Degrees Celsius.
    Celsius,
    /// A share from 0 to 1.
    Ratio,
    /// Always 1; what matters are the labels.
    Info,
}

/// A label and the values it can take; no values where they are known only at run time.
#[derive(Clone, Copy, Debug)]
pub struct Axis {
    /// The label.
    pub name: &'static str,
    /// Its values.
    pub values: &'static [&'static str],
}

const fn axis(name: &'static str, values: &'static [&'static str]) -> Axis {
    Axis { name, values }
}

const fn metric(kind: Kind, unit: Unit, name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind, unit, help, axes: &[] }
}

impl Metric {
    const fn by(self, axes: &'static [Axis]) -> Self {
        Self { axes, ..self }
    }
}

// === labels ===

const ROUTE: Axis = axis("route", &[]);
const CODE: Axis = axis("code", &[]);
/// Names of keys, the first 64 of the file; the rest is `other`.
const KEY: Axis = axis("key", &[]);
const KIND: Axis = axis("kind", &["prompt", "cached", "generated"]);
const OUTCOME: Axis = axis("outcome", &["finished", "cancelled", "failed", "refused"]);
const FINISH: Axis = axis("finish", &["stop", "length", "cancelled", "fault"]);
const REFUSAL: Axis = axis("reason", &REFUSED);
const REFUSED: [&str; 6] = ["invalid", "too_long", "overloaded", "late", "memory", "unavailable"];
const SENSOR: [Axis; 2] = [axis("source", &[]), axis("sensor", &[])];
const SOURCE: Axis = axis("source", &["forwarded", "restored", "unfed"]);
/// Draft positions; deeper ones appear when they are first tried.
const POSITION: Axis = axis("position", &["1", "2", "3", "4"]);
const CYCLE: Axis = axis("kind", &["decode", "prefill", "mixed", "moves"]);
const PHASE: Axis = axis("phase", &["draft", "verify", "accept", "device", "host"]);
const LOOKUP: Axis = axis("result", &["hit", "miss"]);
const DEPOSIT: Axis = axis("result", &["kept", "duplicate", "dropped"]);
const TIER: Axis = axis("tier", &["memory", "disk"]);
const MISS: Axis = axis("reason", &["never_seen", "diverged_at", "evicted", "identity"]);
const FILE: Axis =
    axis("event", &["written", "dropped", "failed", "refused", "restored", "evicted"]);
const EVICTION: Axis = axis("cause", &["size", "idle", "replaced", "explicit"]);
const PART: Axis = axis("part", &["decode", "bank", "tuner", "start"]);
const RELOAD: Axis = axis("outcome", &["applied", "refused"]);
const ENGINE: [Axis; 3] = [axis("device", &[]), axis("mtp", &[]), axis("vocab", &[])];

// === buckets ===

/// From half a millisecond to seconds: parts of a cycle, gaps between tokens.
#[rustfmt::skip]
const SHORT_S: &[f64] = &[
    0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.0125, 0.015, 0.0175,
    0.02, 0.025, 0.03, 0.035, 0.04, 0.05, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5,
    0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0,
];
/// From milliseconds to minutes: what a client waits for.
#[rustfmt::skip]
const LONG_S: &[f64] = &[
    0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6,
    0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0,
    120.0, 180.0, 300.0, 600.0, 1200.0,
];
/// Powers of two: lengths of prompts and answers.
#[rustfmt::skip]
const TOKENS: &[f64] = &[
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0,
    16384.0, 32768.0, 65536.0, 131_072.0, 262_144.0,
];

const SHORT: Kind = Kind::Histogram(SHORT_S);
const LONG: Kind = Kind::Histogram(LONG_S);
const SIZES: Kind = Kind::Histogram(TOKENS);

// === the inventory ===

/// Defines each metric and the list of all, so that none can be forgotten in it.
macro_rules! inventory {
    ($($id:ident = $metric:expr;)*) => {
        $(static $id: Metric = $metric;)*
        /// Every metric there is.
        pub static ALL: &[&Metric] = &[$(&$id),*];
    };
}

use Kind::{Counter, Gauge};
use Unit::{Bytes, Celsius, Count, Info, Ratio, Seconds, Tokens};

// The door.
#[rustfmt::skip]
inventory! {
    HTTP_REQUESTS = metric(Counter, Count, "mtplx_http_requests_total",
        "HTTP answers by route and status code.").by(&[ROUTE, CODE]);
    REQUESTS = metric(Counter, Count, "mtplx_requests_total",
        "Generations that ended, by route and by how they ended.").by(&[ROUTE, FINISH]);
    REFUSALS = metric(Counter, Count, "mtplx_refusals_total",
        "Requests refused before they reached the engine.").by(&[REFUSAL]);
    RESUMED = metric(Counter, Count, "mtplx_requests_resumed_total",
        "Answers that went on with another engine when they lost theirs in the middle.");
    PLACES_WAITED = metric(Counter, Count, "mtplx_places_waited_total",
        "Times that all places for connections were taken, so that who came next had to wait.");
    PERMITS_TAKEN = metric(Gauge, Count, "mtplx_permits_taken",
        "Requests in the house: running, waiting or on their way.");
    PERMITS_MAX = metric(Gauge, Count, "mtplx_permits_max",
        "Requests that may be in the house at once.");
    TIME_TO_FIRST_TOKEN = metric(LONG, Seconds, "mtplx_time_to_first_token_seconds",
        "From the request's arrival to its first token.").by(&[ROUTE]);
    INTER_TOKEN = metric(SHORT, Seconds, "mtplx_inter_token_seconds",
        "Time between tokens of one stream; a cycle's tokens share its time equally.").by(&[ROUTE]);
    REQUEST_DURATION = metric(LONG, Seconds, "mtplx_request_duration_seconds",
        "From the request's arrival to its last token.").by(&[ROUTE]);
    TOKENIZE = metric(SHORT, Seconds, "mtplx_tokenize_seconds",
        "Chat template and tokenizer for one request.");
    QUEUE = metric(LONG, Seconds, "mtplx_queue_seconds",
        "From admission by the engine's thread to a slot.");

    CLIENT_TOKENS = metric(Counter, Tokens, "mtplx_client_tokens_total",
        "Tokens by key: of prompts computed, of prompts that were warm, and generated.")
        .by(&[KEY, KIND]);
    CLIENT_REQUESTS = metric(Counter, Count, "mtplx_client_requests_total",
        "Answers by key and how they ended.").by(&[KEY, OUTCOME]);

    // Tokens.
    PROMPT_SIZE = metric(SIZES, Tokens, "mtplx_request_prompt_tokens",
        "Tokens of the prompts of requests that ended.");
    GENERATED_SIZE = metric(SIZES, Tokens, "mtplx_request_generated_tokens",
        "Tokens generated for requests that ended.");
    PROMPT_TOKENS = metric(Counter, Tokens, "mtplx_prompt_tokens_total",
        "Prompt tokens forwarded, restored from the bank, or neither because their row left \
         first.").by(&[SOURCE]);
    SEATED_TOKENS = metric(Counter, Tokens, "mtplx_prompt_seated_tokens_total",
        "Prompt tokens of requests that got a slot: those of all sources, once nothing runs.");
    GENERATED_TOKENS = metric(Counter, Tokens, "mtplx_generated_tokens_total",
        "Tokens generated.");
    DRAFT_JUDGED = metric(Counter, Tokens, "mtplx_draft_judged_tokens_total",
        "Drafted tokens that were judged, all before them having stood.").by(&[POSITION]);
    DRAFT_ACCEPTED = metric(Counter, Tokens, "mtplx_draft_accepted_tokens_total",
        "Drafted tokens that stood.").by(&[POSITION]);

    // Cycles.
    CYCLES = metric(Counter, Count, "mtplx_cycles_total",
        "Cycles of the engine by what they fed.").by(&[CYCLE]);
    CYCLE_DURATION = metric(SHORT, Seconds, "mtplx_cycle_seconds",
        "Wall time of a cycle from plan to publication.").by(&[CYCLE]);
    CYCLE_PHASE = metric(SHORT, Seconds, "mtplx_cycle_phase_seconds",
        "Parts of a cycle; device time is part of the others, host is all outside the engine.")
        .by(&[PHASE]);
    SYNCHRONISATIONS = metric(Counter, Count, "mtplx_synchronisations_total",
        "Times that a cycle's pass waited for the device: one each, unless a request's draws \
         depend on its drafts or a GPU feeds a prompt.");
    COMPILATIONS = metric(Counter, Count, "mtplx_kernel_compilations_total",
        "Kernels compiled within cycles; none once every type and width was met.");
    HEARTBEAT = metric(Gauge, Seconds, "mtplx_heartbeat_timestamp_seconds",
        "When the engine's thread was last seen at work, in seconds since 1970.");
    ROWS_RUNNING = metric(Gauge, Count, "mtplx_rows_running", "Sequences that hold a slot.");
    ROWS_WAITING = metric(Gauge, Count, "mtplx_rows_waiting",
        "Sequences that wait for a slot or for pages.");
    STEPPED_BACK = metric(Counter, Count, "mtplx_rows_stepped_back_total",
        "Times a sequence was parked so that a client without any got its slot.");
    SLOTS_FREE = metric(Gauge, Count, "mtplx_slots_free", "Slots without a sequence.");
    PAGES_FREE = metric(Gauge, Count, "mtplx_pages_free",
        "KV pages that nobody has and nobody was promised.");
    PAGES_MAX = metric(Gauge, Count, "mtplx_pages_max", "KV pages in all.");
    MEMORY_USED = metric(Gauge, Bytes, "mtplx_memory_used_bytes",
        "Memory in use, by the worst of the ways to count it.");
    MEMORY_BUDGET = metric(Gauge, Bytes, "mtplx_memory_budget_bytes",
        "Memory that may be used.");
    SNAPSHOTS = metric(Gauge, Count, "mtplx_snapshots_alive", "Parked states the engine holds.");
    ENGINE_ACTIVE = metric(Gauge, Bytes, "mtplx_engine_active_bytes",
        "Memory in the engine's live arrays: weights, states, pages, what is being computed.");
    ENGINE_CACHED = metric(Gauge, Bytes, "mtplx_engine_cached_bytes",
        "Memory that the engine's allocator keeps for arrays to come.");
    ENGINE_PEAK = metric(Gauge, Bytes, "mtplx_engine_peak_bytes",
        "The most memory that the engine's arrays ever held at once.");
    INTEGRITY_FAILURES = metric(Counter, Count, "mtplx_integrity_failures_total",
        "Times the ledger of slots, pages and snapshots contradicted itself.");

    // The session bank.
    BANK_LOOKUPS = metric(Counter, Count, "mtplx_bank_lookups_total",
        "Requests that found a warm prefix and those that did not.").by(&[LOOKUP]);
    BANK_HITS = metric(Counter, Count, "mtplx_bank_hits_total",
        "Requests that found a warm prefix, by where it was.").by(&[TIER]);
    BANK_MISSES = metric(Counter, Count, "mtplx_bank_misses_total",
        "Requests for which more might have been warm, or nothing was, by why it was not.")
        .by(&[MISS]);
    BANK_MISSED = metric(Counter, Tokens, "mtplx_bank_missed_tokens_total",
        "Tokens up to the place of such a miss that had to be computed.").by(&[MISS]);
    BANK_TAKEN_OVER = metric(Counter, Tokens, "mtplx_bank_taken_over_tokens_total",
        "Prompt tokens that rows took over from states which became warm after they had asked.");
    UNACCOUNTED = metric(Counter, Count, "mtplx_prompt_unaccounted_total",
        "Rows whose forwarded and restored tokens did not make up their prompt: a bug.");
    BANK_FILES = metric(Gauge, Count, "mtplx_bank_files", "Parked states on disk.");
    BANK_FILE_BYTES = metric(Gauge, Bytes, "mtplx_bank_files_bytes",
        "Bytes of parked states on disk.");
    BANK_FILE_EVENTS = metric(Counter, Count, "mtplx_bank_file_events_total",
        "What became of parked states on disk.").by(&[FILE]);
    BANK_CARRIED = metric(SHORT, Seconds, "mtplx_bank_carried_seconds",
        "Stretches of copying parked states out of the engine and into it, between two cycles.");
    BANK_DEPOSITS = metric(Counter, Count, "mtplx_bank_deposits_total",
        "States offered to the bank; dropped ones found too many alive.").by(&[DEPOSIT]);
    BANK_EVICTIONS = metric(Counter, Count, "mtplx_bank_evictions_total",
        "States the bank let go of, by cause.").by(&[EVICTION]);
    BANK_ENTRIES = metric(Gauge, Count, "mtplx_bank_entries", "Warm prefixes with a name.");
    BANK_HELD = metric(Gauge, Bytes, "mtplx_bank_held_bytes",
        "Memory that warm prefixes keep alive.");
    BANK_CAPACITY = metric(Gauge, Bytes, "mtplx_bank_capacity_bytes",
        "Memory that warm prefixes may keep alive.");

    // Knobs and heat.
    DEPTH = metric(Gauge, Tokens, "mtplx_draft_depth_tokens",
        "Tokens to draft at the width that ran last.");
    ROWS_MAX = metric(Gauge, Count, "mtplx_rows_max", "Rows that may run at once, as now set.");
    ACCEPTANCE = metric(Gauge, Ratio, "mtplx_draft_acceptance_ratio",
        "Acceptance by draft position as the tuner believes it.").by(&[POSITION]);
    RETUNED = metric(Counter, Count, "mtplx_knob_settings_total", "Times the knobs were set.");
    TEMPERATURE = metric(Gauge, Celsius, "mtplx_temperature_celsius", "The hottest sensor.");
    CEILING = metric(Gauge, Ratio, "mtplx_thermal_ceiling_ratio",
        "Share of the rows that heat allows.");
    SILENCES = metric(Counter, Count, "mtplx_thermal_silences_total",
        "Times no sensor gave a reading.");
    PAUSE = metric(Gauge, Ratio, "mtplx_thermal_pause_ratio",
        "Share of the time that heat wants for pauses between cycles.");
    PAUSES = metric(Counter, Count, "mtplx_thermal_pauses_total", "Pauses made for heat.");
    TARGET = metric(Gauge, Celsius, "mtplx_thermal_target_celsius",
        "Where pauses hold the hottest sensor: the setting, or less where clocks were held back.");
    PRESSURE = metric(Gauge, Ratio, "mtplx_thermal_pressure_ratio",
        "What the system says of its heat: 0 nominal, 1/3 fair, 2/3 serious, 1 critical.");
    SENSOR_CELSIUS = metric(Gauge, Celsius, "mtplx_sensor_celsius",
        "Temperatures of processors.").by(&SENSOR);
    SENSOR_WATTS = metric(Gauge, Count, "mtplx_sensor_watts", "Power.").by(&SENSOR);
    SENSOR_CLOCK = metric(Gauge, Count, "mtplx_sensor_megahertz", "Clocks.").by(&SENSOR);
    SENSOR_BUSY = metric(Gauge, Ratio, "mtplx_sensor_busy_ratio",
        "Share of the time that a processor worked.").by(&SENSOR);
    SENSOR_RPM = metric(Gauge, Count, "mtplx_sensor_fan_rpm", "Turns of a fan in a minute.")
        .by(&SENSOR);
    SENSOR_FAN = metric(Gauge, Ratio, "mtplx_sensor_fan_ratio", "Share of a fan's most.")
        .by(&SENSOR);
    FANS_PINNED = metric(Gauge, Ratio, "mtplx_fans_pinned_ratio",
        "1 while this server holds the fans at their most, else 0.");
    WATCHDOGS = metric(Counter, Count, "mtplx_fan_watchdogs_total",
        "Watchdogs of the fans started; more than one were lost on the way.");

    // The house.
    GENERATION = metric(Gauge, Count, "mtplx_generation",
        "Which generation of the engine serves or last served; 1 is the first.");
    SERVING = metric(Gauge, Ratio, "mtplx_serving_ratio", "1 while a generation serves, else 0.");
    GENERATIONS_ENDED = metric(Counter, Count, "mtplx_generations_ended_total",
        "Generations that ended by a fault, by the part that failed.").by(&[PART]);
    THERMAL_RESTARTS = metric(Counter, Count, "mtplx_thermal_restarts_total",
        "Times the thermal actor was started anew.");
    CONFIG_RELOADS = metric(Counter, Count, "mtplx_config_reloads_total",
        "Times the settings were read anew, by what came of it.").by(&[RELOAD]);
    CONFIG_LOADED = metric(Gauge, Seconds, "mtplx_config_loaded_timestamp_seconds",
        "When the settings that hold were read, in seconds since 1970.");
    ENGINE_INFO = metric(Gauge, Info, "mtplx_engine_info", "What the engine is.").by(&ENGINE);
    KERNEL_ENABLED = metric(Gauge, Ratio, "mtplx_kernel_enabled_ratio",
        "1 for a kernel of the engine's own that passed its trial on this device, 0 for one \
         that is switched off.").by(&[axis("kernel", &[])]);
    BUILD_INFO = metric(Gauge, Info, "mtplx_build_info",
        "What was built.").by(&[axis("version", &[])]);
}

// === installation ===

/// Makes the recorder the process's own, described and with every known series at zero. Whoever
/// calls this calls the handle's `run_upkeep` every few seconds too.
///
/// # Errors
/// If a recorder was installed before.
pub fn install(builder: PrometheusBuilder) -> Result<PrometheusHandle, BuildError> {
    let handle = with_buckets(builder)?.install_recorder()?;
    metrics::with_recorder(prepare);
    Ok(handle)
}

/// Gives each histogram its buckets.
///
/// # Errors
/// Never with the buckets above: none is empty.
pub fn with_buckets(mut builder: PrometheusBuilder) -> Result<PrometheusBuilder, BuildError> {
    for metric in ALL {
        if let Kind::Histogram(bounds) = metric.kind {
            let name = Matcher::Full(metric.name.to_owned());
            builder = builder.set_buckets_for_metric(name, bounds)?;
        }
    }
    Ok(builder)
}

/// Describes every metric and registers each series that is known beforehand.
pub fn prepare(recorder: &dyn Recorder) {
    for metric in ALL {
        let (name, help) = (metric.name.into(), metric.help.into());
        match metric.kind {
            Kind::Counter => recorder.describe_counter(name, metric.unit.of_prometheus(), help),
            Kind::Gauge => recorder.describe_gauge(name, metric.unit.of_prometheus(), help),
            Kind::Histogram(_) => {
                recorder.describe_histogram(name, metric.unit.of_prometheus(), help);
            }
        }
        metric.register(recorder);
    }
}

impl Metric {
    fn register(&self, recorder: &dyn Recorder) {
        let mut series: Vec<Vec<Label>> = vec![Vec::new()];
        for axis in self.axes {
            let longer = |known: &Vec<Label>| {
                let known = known.clone();
                axis.values.iter().map(move |&value| {
                    let mut labels = known.clone();
                    labels.push(Label::new(axis.name, value));
                    labels
                })
            };
            series = series.iter().flat_map(longer).collect();
        }
        for labels in series {
            let key = Key::from_parts(self.name, labels);
            match self.kind {
                Kind::Counter => drop(recorder.register_counter(&key, &METADATA)),
                Kind::Histogram(_) => drop(recorder.register_histogram(&key, &METADATA)),
                // A gauge that nobody has set yet has no value, not the value zero.
                Kind::Gauge => {}
            }
        }
    }

    fn key<const N: usize>(&self, values: [SharedString; N]) -> Key {
        debug_assert_eq!(N, self.axes.len(), "{} has a value for each label", self.name);
        let labels = self.axes.iter().zip(values);
        Key::from_parts(self.name, labels.map(|(a, v)| Label::new(a.name, v)).collect::<Vec<_>>())
    }

    fn add<const N: usize>(&self, n: u64, labels: [SharedString; N]) {
        let key = self.key(labels);
        metrics::with_recorder(|r| r.register_counter(&key, &METADATA).increment(n));
    }

    fn set<const N: usize>(&self, value: f64, labels: [SharedString; N]) {
        let key = self.key(labels);
        metrics::with_recorder(|r| r.register_gauge(&key, &METADATA).set(value));
    }

    fn observe<const N: usize>(&self, value: f64, times: usize, labels: [SharedString; N]) {
        let key = self.key(labels);
        metrics::with_recorder(|r| {
            r.register_histogram(&key, &METADATA).record_many(value, times);
        });
    }
}

const METADATA: Metadata<'static> = Metadata::new("mtplx", Level::INFO, None);

impl Unit {
    fn of_prometheus(self) -> Option<PrometheusUnit> {
        match self {
            Self::Count | Self::Tokens => Some(PrometheusUnit::Count),
            Self::Seconds => Some(PrometheusUnit::Seconds),
            Self::Bytes => Some(PrometheusUnit::Bytes),
            Self::Celsius | Self::Ratio | Self::Info => None,
        }
    }
}

#[cfg(test)]
mod tests;

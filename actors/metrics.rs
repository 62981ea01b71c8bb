//! Every metric: its name, unit, help, labels and buckets. Nowhere else is one spelled.
//!
//! Names end in their base unit and, for counters, in `_total`. Histograms have explicit buckets,
//! so that they can be added up over time and machines. Series whose labels are known beforehand
//! exist from the start at zero, so that a rate over them is never empty.

mod heat;
mod install;
mod kind;
mod record;
pub mod vllm;

pub use heat::*;
pub use install::{install, prepare, with_buckets};
pub use kind::{Axis, Kind, Metric, Unit};
use kind::{axis, metric};
pub use record::*;

// === labels ===

const ROUTE: Axis = axis("route", &[]);
const CODE: Axis = axis("code", &[]);
/// Names of keys, the first 64 of the file; the rest is `other`.
const KEY: Axis = axis("key", &[]);
const KIND: Axis = axis("kind", &["prompt", "cached", "generated"]);
const OUTCOME: Axis = axis("outcome", &["finished", "cancelled", "failed", "refused"]);
const FINISH: Axis = axis("finish", &["stop", "length", "cancelled", "fault"]);
const REFUSAL: Axis = axis("reason", &REFUSED);
#[rustfmt::skip]
const REFUSED: [&str; 8] =
    ["invalid", "too_long", "overloaded", "late", "memory", "unavailable", "quota", "key"];
const CLASS: Axis = axis("class", &["interactive", "background"]);
const ACTOR: Axis = axis("actor", &["decode", "bank", "tuner", "thermal"]);
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
/// Names of nodes, of which there are 64 at most; those that have gone stay, as gone.
const NODE: Axis = axis("node", &[]);
const NODE_IN: Axis = axis("state", &NODE_STATES);
const NODE_STATES: [&str; 4] = ["ready", "silent", "draining", "gone"];
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

/// Rows of a cycle.
const ROWS: &[f64] = &[1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0, 128.0, 256.0];
/// Draft depths; `le="0"` are cycles without drafts.
const DEPTHS: &[f64] = &[0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0];
/// Few, because there is a series of them for each key.
const WAITS_S: &[f64] = &[0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0];

const SHORT: Kind = Kind::Histogram(SHORT_S);
const LONG: Kind = Kind::Histogram(LONG_S);
const SIZES: Kind = Kind::Histogram(TOKENS);
const WAITS: Kind = Kind::Histogram(WAITS_S);
const WIDTHS: Kind = Kind::Histogram(ROWS);
const DEEP: Kind = Kind::Histogram(DEPTHS);

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
        "Generations that ended, by route, by class and by how they ended.")
        .by(&[ROUTE, CLASS, FINISH]);
    REFUSALS = metric(Counter, Count, "mtplx_refusals_total",
        "Requests refused before they reached the engine.").by(&[REFUSAL]);
    RESUMED = metric(Counter, Count, "mtplx_requests_resumed_total",
        "Answers that went on with another engine when they lost theirs in the middle.");
    SUPERSEDED = metric(Counter, Count, "mtplx_requests_superseded_total",
        "Requests that were let go because their clients sent them again.");
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
    PREFILL = metric(LONG, Seconds, "mtplx_prefill_seconds",
        "From a request's slot to its first token.");
    DECODE = metric(LONG, Seconds, "mtplx_decode_seconds",
        "From a request's first token to its last.");

    CLIENT_TOKENS = metric(Counter, Tokens, "mtplx_client_tokens_total",
        "Tokens by key: of prompts computed, of prompts that were warm, and generated.")
        .by(&[KEY, KIND]);
    CLIENT_REQUESTS = metric(Counter, Count, "mtplx_client_requests_total",
        "Answers by key and how they ended.").by(&[KEY, OUTCOME]);
    CLIENT_QUEUE = metric(WAITS, Seconds, "mtplx_client_queue_seconds",
        "From the admission of a key's answer to its slot.").by(&[KEY]);
    CLIENT_SERVICE = metric(Counter, Count, "mtplx_client_service_total",
        "Service by key: 1 for a prompt token computed, 2 for a token generated.").by(&[KEY]);
    CLIENT_WEIGHT = metric(Gauge, Count, "mtplx_client_weight",
        "Shares of service of a key; by it fairness divides what it got.").by(&[KEY]);
    CLIENTS_PRESENT = metric(Gauge, Count, "mtplx_clients_present",
        "Clients with requests at the engine; people behind a trusted key count each.");
    FAIRNESS_SPREAD = metric(Gauge, Count, "mtplx_fairness_spread",
        "Highest less lowest virtual counter of clients present, in units of service by weight.");

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
    DRAFTED = metric(Counter, Tokens, "mtplx_drafted_tokens_total",
        "Tokens drafted, judged or not.");
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
    CYCLE_ROWS = metric(WIDTHS, Count, "mtplx_cycle_rows",
        "Rows that decoded in a cycle; cycles without any are not counted.");
    CYCLE_DEPTH = metric(DEEP, Tokens, "mtplx_cycle_depth_tokens",
        "Deepest draft of a cycle; cycles without rows are not counted.");
    DECODE_STALL = metric(SHORT, Seconds, "mtplx_decode_stall_seconds",
        "By how much a cycle that fed prompts beside rows took longer than the last ones without.");
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
    ENGINE_LIMIT = metric(Gauge, Bytes, "mtplx_engine_limit_bytes",
        "Memory beyond which the engine's allocator waits for some to come back.");
    FOOTPRINT = metric(Gauge, Bytes, "mtplx_process_footprint_bytes",
        "Memory of this process alone, as the system counts it.");
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
    TUNED_DEPTH = metric(Gauge, Tokens, "mtplx_tuner_depth_tokens",
        "Tokens to draft beside trials, by the most rows of the width of the batch.")
        .by(&[axis("rows", &[])]);
    TUNER_REASON = metric(Gauge, Info, "mtplx_tuner_reason_info",
        "1 for why the depth is what it is at the width that ran last, 0 for other reasons.")
        .by(&[axis("reason", &[])]);
    TUNER_TRIALS = metric(Counter, Count, "mtplx_tuner_trials_total",
        "Times that a depth beside the one in use was measured.");
    TUNER_SWITCHES = metric(Counter, Count, "mtplx_tuner_switches_total",
        "Times that another depth came into use at a width.");
    TUNER_CHANGES = metric(Counter, Count, "mtplx_tuner_changes_total",
        "Times that drafts stood so much more or less often that the text is another.");
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
    FLIGHT_FILES = metric(Counter, Count, "mtplx_flight_files_total",
        "Files about the last cycles of an engine that failed.");
    MAILBOX_DELAY = metric(Gauge, Seconds, "mtplx_actor_answer_seconds",
        "How long an actor took to answer when last asked: its mailbox, and what it was at.")
        .by(&[ACTOR]);
    STARTED = metric(Gauge, Seconds, "mtplx_start_timestamp_seconds",
        "When the process began to serve metrics, in seconds since 1970.");
    ENGINE_INFO = metric(Gauge, Info, "mtplx_engine_info", "What the engine is.").by(&ENGINE);
    KERNEL_ENABLED = metric(Gauge, Ratio, "mtplx_kernel_enabled_ratio",
        "1 for a kernel of the engine's own that passed its trial on this device, 0 for one \
         that is switched off.").by(&[axis("kernel", &[])]);
    NODE_ROWS = metric(Gauge, Count, "mtplx_node_rows",
        "Answers that a node makes or is to make, as its gateway counts them.").by(&[NODE]);
    NODE_STATE = metric(Gauge, Ratio, "mtplx_node_state_ratio",
        "1 for the state that a node is in, 0 for the others.").by(&[NODE, NODE_IN]);
    NODE_RTT = metric(Gauge, Seconds, "mtplx_node_rtt_seconds",
        "What the last sign of life took there and back.").by(&[NODE]);
    BUILD_INFO = metric(Gauge, Info, "mtplx_build_info",
        "What was built.").by(&[axis("version", &[])]);
}

#[cfg(test)]
mod tests;

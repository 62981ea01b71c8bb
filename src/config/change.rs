//! What becomes of settings that are read anew: some hold at once, the others with the next start.

use mtplx_actors::ingress::reload::Changed;
use toml::{Table, Value};

use super::{Config, ConfigError, Source, Written};

/// Settings that hold at once.
const LIVE: &[&str] = &[
    "server.requests_max",
    "server.tokens_max",
    "server.body_bytes_max",
    "server.bytes_max",
    "server.queue_s",
    // For connections that come after it.
    "server.reader_stall_s",
    "server.open",
    "server.hosts",
    "server.origins",
    "server.new_tokens_max",
    "server.keep_alive_s",
    "server.aliases",
    "server.unknown_fields",
    "server.responses_bytes_max",
    "server.responses_idle_s",
    "server.resume_s",
    "server.thinking_tokens_max",
    "tuner.depth",
    "tuner.depth_auto",
    "tuner.depth_max",
    "tuner.rows_max",
    "tuner.prefill_stretch",
    "tuner.prefill_busy_tokens",
    "tuner.itl_ms",
    "tuner.chunk_auto",
    // Up to what it was at the start: the engine has pages for no more.
    BANK_BYTES,
    "bank.roots_share",
    "bank.entries_max",
    "bank.idle_s",
    "bank.every_tokens",
    "bank.share_between_tenants",
    "disk.bytes_max",
    "disk.queue_bytes_max",
    "disk.tokens_min",
    "disk.idle_s",
    "keys.file",
    "admin.token",
    // What it sets is listed by itself.
    "mode",
    // For connections that come after it.
    "tls.cert",
    "tls.key",
    "thermal.target_celsius",
    "thermal.pause_max",
    "thermal.bank_hot_share",
    "thermal.warm_celsius",
    "thermal.hot_celsius",
    "thermal.hysteresis_celsius",
    "thermal.silent_readings_max",
    "root.failures_max",
    "root.window_s",
    "root.backoff_s",
    "root.backoff_max_s",
    "root.drain_s",
    "root.stuck_s",
    "root.bury_s",
    "log.filter",
];

/// Settings that are asked for once, at the start: all others. They are named so that none is here
/// because nobody thought of it.
#[cfg(test)]
const RESTART: &[&str] = &[
    "server.host",
    "server.port",
    "model.path",
    "model.name",
    "model.unverified",
    "model.generation",
    "model.text_bytes_max",
    "engine.slots",
    "engine.page_tokens",
    "engine.context_tokens_max",
    "engine.kv_bytes_max",
    "engine.memory_budget",
    "engine.draft_tokens_max",
    "engine.draft_vocab_share",
    "engine.draft_head_bits",
    "decode.chunk_grain_tokens",
    "decode.snapshots_max",
    // The engine has memory for steps of so many.
    "tuner.prefill_idle_tokens",
    "disk.path",
    // The timer runs, and so do the sensors' threads and whoever holds the fans.
    "thermal.sample_s",
    "thermal.timeout_s",
    "fans.mode",
    "fans.program",
    "fans.sudo",
    "fans.idle_s",
    "fans.ramp_s",
    "fans.folder",
    // Nodes are told when they join.
    "cluster.listen",
    "cluster.secret",
    "cluster.engine",
    "cluster.beat_s",
    "cluster.silence_s",
    "log.format",
    "metrics.vllm_names",
    "traces.endpoint",
    "traces.ratio",
    "flight.path",
    "flight.cycles",
    "flight.files_max",
];

/// Settings whose values nobody is shown.
const SECRET: &[&str] = &["admin.token"];

const BANK_BYTES: &str = "bank.bytes_max";

/// What follows from settings that were read anew.
#[derive(Debug)]
pub struct Next {
    /// What holds from now on: what was read, but for what needs a restart.
    pub config: Config,
    /// What holds otherwise than before.
    pub changed: Vec<Changed>,
    /// Files that are named as before and hold something else.
    pub read_anew: Vec<String>,
    /// What is written otherwise than it holds.
    pub restart_needed: Vec<Changed>,
}

impl Config {
    /// What follows if `read` was read while these settings hold.
    ///
    /// # Errors
    /// When it cannot be used as long as what needs a restart is as it is.
    pub fn next(&self, read: Self) -> Result<Next, ConfigError> {
        let (mut table, mut changed, mut restart_needed) = (self.table.clone(), vec![], vec![]);
        for (setting, to) in leaves(&read.table) {
            let from = get(&self.table, &setting);
            if from == Some(&to) {
                continue;
            }
            let grows = setting == BANK_BYTES && read.engine.bank_bytes > self.engine.bank_bytes;
            let told = told(&setting, from, &to);
            // One that nobody has classified is safe to leave as it is.
            if LIVE.contains(&setting.as_str()) && !grows {
                set(&mut table, &setting, to);
                changed.push(told);
            } else {
                restart_needed.push(told);
            }
        }
        let written: Written = super::read(table.clone(), "the settings")?;
        let mut config = written.check(table, self.source.clone()).map_err(|error| {
            let names: Vec<_> = restart_needed.iter().map(|c| c.setting.as_str()).collect();
            let beside = match names.is_empty() {
                true => String::new(),
                false => format!(" (as long as {} is as it is)", names.join(", ")),
            };
            ConfigError::Part(format!("{error}{beside}"))
        })?;
        // The engine is open, and files are read once: they may have changed meanwhile.
        config.engine = self.engine.clone();
        (config.keys, config.admin, config.tls) = (read.keys, read.admin, read.tls);
        config.check_door()?;
        self.check_bank(&config, &read.source)?;
        let mut read_anew = Vec::new();
        if config.keys_file == self.keys_file && config.keys != self.keys {
            read_anew.push("keys.file".to_owned());
        }
        if config.tls_files == self.tls_files && config.tls != self.tls {
            read_anew.extend(["tls.cert".to_owned(), "tls.key".to_owned()]);
        }
        Ok(Next { config, changed, read_anew, restart_needed })
    }
}

impl Config {
    /// The engine that runs has pages for no more than its bank had at the start. What is written
    /// may be more by the budget that holds than by the one that is written beside it.
    fn check_bank(&self, next: &Self, from: &Source) -> Result<(), ConfigError> {
        let (most, bytes) = (self.engine.bank_bytes, next.actors.bank.bytes_max);
        if bytes <= most {
            return Ok(());
        }
        let reason = format!(
            "{BANK_BYTES} comes to {bytes} as long as engine.memory_budget is as it was at the \
             start, and the engine has pages for {most}: write a number of at most {most}, or \
             restart"
        );
        Err(from.named(ConfigError::Part(reason)))
    }
}

fn told(setting: &str, from: Option<&Value>, to: &Value) -> Changed {
    let shown = |value: Option<&Value>| match value {
        None => "nothing".to_owned(),
        Some(Value::String(text)) if SECRET.contains(&setting) && text.is_empty() => "\"\"".into(),
        Some(_) if SECRET.contains(&setting) => "(secret)".to_owned(),
        Some(value) => value.to_string(),
    };
    Changed { setting: setting.to_owned(), from: shown(from), to: shown(Some(to)) }
}

/// All settings by their names.
fn leaves(table: &Table) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    for (key, value) in table {
        if let Value::Table(inner) = value {
            let below = leaves(inner).into_iter();
            all.extend(below.map(|(name, value)| (format!("{key}.{name}"), value)));
        } else {
            all.push((key.clone(), value.clone()));
        }
    }
    all
}

fn get<'a>(table: &'a Table, setting: &str) -> Option<&'a Value> {
    match setting.split_once('.') {
        Some((section, rest)) => get(table.get(section)?.as_table()?, rest),
        None => table.get(setting),
    }
}

fn set(table: &mut Table, setting: &str, to: Value) {
    match setting.split_once('.') {
        Some((section, rest)) => {
            let inner = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                set(inner, rest, to);
            }
        }
        None => drop(table.insert(setting.to_owned(), to)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_setting_holds_at_once_or_with_the_next_start() {
        let defaults: Table = super::super::DEFAULTS.parse().unwrap();
        let all: BTreeSet<String> = leaves(&defaults).into_iter().map(|(name, _)| name).collect();
        let classified: Vec<String> = LIVE.iter().chain(RESTART).map(|s| (*s).to_owned()).collect();
        let known: BTreeSet<String> = classified.iter().cloned().collect();
        assert_eq!(known.len(), classified.len(), "a setting is classified twice");
        let forgotten: Vec<_> = all.difference(&known).collect();
        assert!(forgotten.is_empty(), "say in change.rs what a reload does with {forgotten:?}");
        let gone: Vec<_> = known.difference(&all).collect();
        assert!(gone.is_empty(), "change.rs knows settings that are none: {gone:?}");
        assert!(SECRET.iter().all(|secret| known.contains(*secret)));
    }

    fn load(text: &str) -> Config {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("my.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(Some(&path), &[]).unwrap()
    }

    #[test]
    fn what_needs_a_restart_stays_and_is_said_until_it_is_as_before() {
        let first = load("[engine]\nslots = 3\n[bank]\nbytes_max = 1_000_000\n");
        let text = "[server]\nport = 1\nqueue_s = 5\n[admin]\ntoken = \"t0p\"\n[bank]\n";
        let next = first.next(load(&format!("{text}bytes_max = 900_000"))).unwrap();
        let names = |of: &[Changed]| of.iter().map(|c| c.setting.clone()).collect::<Vec<_>>();
        assert_eq!(names(&next.changed), ["admin.token", "bank.bytes_max", "server.queue_s"]);
        assert_eq!(names(&next.restart_needed), ["engine.slots", "server.port"]);
        assert!(!format!("{:?}", next.changed).contains("t0p"));
        let config = &next.config;
        assert_eq!((config.server.port, config.engine.slots), (8000, 3));
        assert_eq!((config.server.queue_s, config.actors.decode.queue_s), (5, 5));
        assert_eq!(config.actors.bank.bytes_max, 900_000);
        assert!(config.admin.token.opens(b"t0p"));
        // More than the engine has pages for waits for the next start.
        let more = config.next(load("[engine]\nslots = 3\n[bank]\nbytes_max = 1_000_001")).unwrap();
        assert_eq!(names(&more.restart_needed), ["bank.bytes_max"]);
        assert_eq!(more.config.actors.bank.bytes_max, 900_000);
        assert_eq!(names(&more.changed), ["admin.token", "server.queue_s"]);
    }

    #[test]
    fn a_bank_that_only_another_budget_would_bear_is_refused_by_its_line() {
        let first =
            load("[engine]\nmemory_budget = 16_000_000_000\n[bank]\nbytes_max = 1_000_000\n");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("next.toml");
        // An eighth of this budget is less than what the engine has pages for; of the one that
        // holds until the next start it is more.
        let text = "[engine]\nmemory_budget = 4_000_000\n[bank]\n\nbytes_max = 0\n";
        std::fs::write(&path, text).unwrap();
        let error = first.next(Config::load(Some(&path), &[]).unwrap()).unwrap_err().to_string();
        let place = format!("{}, line 5: bank.bytes_max", path.display());
        assert!(error.starts_with(&place) && error.contains("engine.memory_budget"), "{error}");
        let fine = first.next(load("[engine]\nmemory_budget = 4_000_000\n[bank]\nbytes_max = 5\n"));
        assert_eq!(fine.unwrap().config.actors.bank.bytes_max, 5);
    }

    #[test]
    fn what_contradicts_settings_that_stay_is_refused() {
        let first = load("[decode]\nsnapshots_max = 100\n[bank]\nentries_max = 50\n");
        let error = first.next(load("")).unwrap_err().to_string();
        assert!(error.contains("snapshots_max") && error.contains("as long as"), "{error}");
    }
}

//! Settings: `config/mtplx.toml` holds every default; a file and the command line lay differences
//! over it; the result is checked as a whole, at the start and whenever it is read anew.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use mtplx_actors::ingress::keys::Keys;
use mtplx_actors::ingress::tls::Tls;
use mtplx_actors::ingress::{Secret, UnknownFields};
use mtplx_actors::{bank, decode, flight, node, root, thermal, tuner};
use mtplx_kernels::memory;
use serde::{Deserialize, Deserializer};
use toml::{Table, Value};

use crate::telemetry::{self, Metrics, Traces};
use crate::tiers::gate::{Generation, Unverified};
use crate::{fans, keys, modes};

pub mod change;
mod error;
#[cfg(test)]
mod tests;

pub use self::error::ConfigError;

/// All defaults, with their reasons.
pub(crate) const DEFAULTS: &str = include_str!("../config/mtplx.toml");

/// Comes before `admin.token`: secrets rather stand in the environment than in files.
pub const ADMIN_TOKEN: &str = "MTPLX_ADMIN_TOKEN";

/// The bank's part of the process's memory, where nothing else is said.
const BANK_SHARE: u64 = 8;

/// Settings as written: one complete file.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Written {
    mode: String,
    server: Server,
    model: Model,
    engine: Engine,
    decode: decode::Config,
    bank: bank::Config,
    disk: bank::DiskConfig,
    keys: KeysFile,
    admin: Admin,
    tls: TlsFiles,
    tuner: tuner::Config,
    thermal: thermal::Config,
    fans: fans::Config,
    root: root::Config,
    cluster: node::Config,
    log: Log,
    metrics: Metrics,
    traces: Traces,
    flight: flight::Config,
}

/// Where and for how many the server answers.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Address to listen on.
    #[serde(deserialize_with = "host_of")]
    pub host: IpAddr,
    /// Port to listen on; 0 takes a free one.
    pub port: u16,
    /// Requests in the house at once.
    pub requests_max: NonZeroU16,
    /// Most tokens of all requests in the house; 0 for what their number comes to.
    pub tokens_max: usize,
    /// Largest body.
    pub body_bytes_max: usize,
    /// Most bytes of bodies on their way at once.
    pub bytes_max: usize,
    /// Seconds after which a request that has found no slot is sent away; 0 for never.
    pub queue_s: u32,
    /// Seconds after which a reader who takes nothing is let go; 0 for never.
    pub reader_stall_s: u16,
    /// Whether to listen beyond this machine without keys.
    pub open: bool,
    /// Names by which the server is reached, beside addresses and localhost.
    pub hosts: Vec<String>,
    /// Origins whose pages may ask.
    pub origins: Vec<String>,
    /// Most tokens of one answer; 0 for what the context holds.
    pub new_tokens_max: usize,
    /// Seconds of silence after which a stream says that it is alive.
    pub keep_alive_s: NonZeroU16,
    /// Further names of the model.
    pub aliases: Vec<String>,
    /// What becomes of fields that are not known.
    pub unknown_fields: UnknownFields,
    /// Most tokens of thought before an answer; 0 for any number.
    pub thinking_tokens_max: usize,
    /// Memory for answers that clients of the Responses API may go on from.
    pub responses_bytes_max: u64,
    /// Seconds after which an unused one is forgotten.
    pub responses_idle_s: u32,
    /// Seconds that an answer waits for the next engine when it lost its own in the middle.
    pub resume_s: u32,
}

/// What is served.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Folder of a checkpoint; empty for the embedded model.
    pub path: PathBuf,
    /// Its name for clients; empty for the folder's.
    pub name: String,
    /// What becomes of a model that nobody has verified.
    pub unverified: Unverified,
    /// Whether it drafts.
    pub generation: Generation,
    /// Memory for pieces of texts as tokens.
    pub text_bytes_max: u64,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Engine {
    slots: usize,
    page_tokens: usize,
    context_tokens_max: usize,
    kv_bytes_max: u64,
    memory_budget: u64,
    draft_tokens_max: u8,
    draft_vocab_share: f32,
    draft_head_bits: usize,
}

/// Where the keys of clients are.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct KeysFile {
    /// The file; empty for none.
    pub file: PathBuf,
}

/// What connections are encrypted with.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The certificate, as PEM; empty for no TLS.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Who may manage the server.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    /// What proves it; empty for nobody.
    pub token: Secret,
}

/// What is logged, and how.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// As RUST_LOG.
    pub filter: String,
    /// The shape of lines.
    pub format: LogFormat,
}

/// The shape of log lines.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// For collectors.
    Json,
}

/// Settings as checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The profile that was laid over the defaults.
    pub mode: String,
    /// Where and for how many.
    pub server: Server,
    /// What.
    pub model: Model,
    /// How large the engine is.
    pub engine: mtplx_kernels::EngineOptions,
    /// Every actor's own settings.
    pub actors: root::Configs,
    /// Where the bank's states go that leave memory.
    pub disk: bank::DiskConfig,
    /// Where the keys of clients are; empty for none.
    pub keys_file: PathBuf,
    /// And what stands there.
    pub keys: Keys,
    /// Who may manage the server.
    pub admin: Admin,
    /// Who turns the machine's fans.
    pub fans: fans::Config,
    /// Where other machines may join.
    pub cluster: node::Config,
    /// Where what connections are encrypted with is.
    pub tls_files: TlsFiles,
    /// And what stands there.
    pub tls: Option<Tls>,
    /// What is logged.
    pub log: Log,
    /// By which names metrics are shown.
    pub metrics: Metrics,
    /// Where traces go.
    pub traces: Traces,
    /// What is kept of the last cycles of an engine.
    pub flight: flight::Config,
    /// Where all that was read.
    pub source: Source,
    /// As it was written, all sections laid over each other.
    table: Table,
}

/// Where settings come from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Source {
    file: Option<PathBuf>,
    /// `(section, key, value)` of the command line.
    overrides: Vec<(String, String, Value)>,
}

impl Config {
    /// The defaults, the mode, `file` and `overrides` laid over each other and checked. Overrides
    /// are `(section, key, value)`; the mode's own has no section.
    ///
    /// # Errors
    /// [`ConfigError`] naming the file and key at fault.
    pub fn load(
        file: Option<&Path>,
        overrides: &[(&str, &str, Value)],
    ) -> Result<Self, ConfigError> {
        let own = |&(section, key, ref value): &(&str, &str, Value)| {
            (section.to_owned(), key.to_owned(), value.clone())
        };
        let overrides = overrides.iter().map(own).collect();
        Source { file: file.map(Path::to_owned), overrides }.read()
    }
}

impl Source {
    /// Reads and checks all that is written there now.
    ///
    /// # Errors
    /// [`ConfigError`] naming the file, its line and the key at fault.
    pub fn read(&self) -> Result<Config, ConfigError> {
        let mut table = parse(DEFAULTS, "defaults")?;
        let Some(path) = &self.file else {
            self.lay_mode(&mut table, None)?;
            return self.finish(table);
        };
        let text = std::fs::read_to_string(path)
            .map_err(|reason| ConfigError::Read { path: path.clone(), reason })?;
        let origin = path.display().to_string();
        let own = parse(&text, &origin)?;
        self.lay_mode(&mut table, Some(&own)).map_err(|error| error.at(path, &text))?;
        lay(&mut table, own);
        // Read here already, so that an error names where the value was written.
        let read = read(table.clone(), &origin).and_then(|_| self.finish(table));
        read.map_err(|error| error.at(path, &text))
    }

    /// The error with the line at which the setting stands that it names.
    fn named(&self, error: ConfigError) -> ConfigError {
        let Some(path) = &self.file else { return error };
        // Who cannot be read any more is named without its line.
        let text = std::fs::read_to_string(path).unwrap_or_default();
        error.at(path, &text)
    }

    /// Lays the mode's settings over the defaults: that of the command line, the file or the
    /// defaults.
    fn lay_mode(&self, table: &mut Table, own: Option<&Table>) -> Result<(), ConfigError> {
        let said = self.overrides.iter().rfind(|(section, _, _)| section.is_empty());
        let said = said.map(|(_, _, mode)| mode);
        let mode = said.or(own.and_then(|own| own.get("mode"))).or(table.get("mode"));
        // What is no text is named where types are.
        if let Some(Value::String(name)) = mode.cloned() {
            lay(table, modes::settings(&name).map_err(ConfigError::Part)?);
            table.insert("mode".into(), Value::String(name));
        }
        Ok(())
    }

    /// The command line's own has the last word.
    fn finish(&self, mut table: Table) -> Result<Config, ConfigError> {
        for (section, key, value) in &self.overrides {
            if section.is_empty() {
                table.insert(key.clone(), value.clone());
            }
            if let Some(Value::Table(section)) = table.get_mut(section) {
                section.insert(key.clone(), value.clone());
            }
        }
        read(table.clone(), "the command line")?.check(table, self.clone())
    }
}

/// An address to listen on, or the one name that needs no resolver.
///
/// # Errors
/// What is accepted.
pub fn host(text: &str) -> Result<IpAddr, String> {
    if text == "localhost" {
        return Ok(Ipv4Addr::LOCALHOST.into());
    }
    let expected = "is not an IP address; write for example 127.0.0.1, 0.0.0.0, ::1 or localhost";
    text.parse().map_err(|_| format!("{text:?} {expected}"))
}

fn host_of<'de, D: Deserializer<'de>>(from: D) -> Result<IpAddr, D::Error> {
    host(&String::deserialize(from)?).map_err(serde::de::Error::custom)
}

fn read(table: Table, origin: &str) -> Result<Written, ConfigError> {
    // Words about its type would show it.
    if table.get("admin").and_then(|a| a.get("token")).is_some_and(|token| !token.is_str()) {
        let reason = "admin.token: a string is wanted, between quotes".to_owned();
        return Err(ConfigError::Parse { origin: origin.to_owned(), reason });
    }
    table.try_into().map_err(|e: toml::de::Error| ConfigError::Parse {
        origin: origin.to_owned(),
        reason: e.to_string().trim_end().replace('\n', " "),
    })
}

fn parse(text: &str, origin: &str) -> Result<Table, ConfigError> {
    text.parse().map_err(|e: toml::de::Error| ConfigError::Parse {
        origin: origin.to_owned(),
        // Never the line itself: there may be a secret in it.
        reason: match e.span().and_then(|span| text.get(..span.start)) {
            Some(before) => format!("line {}: {}", before.matches('\n').count() + 1, e.message()),
            None => e.message().to_owned(),
        },
    })
}

/// Puts `over` onto `base`, section by section.
fn lay(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(base)), Value::Table(over)) => lay(base, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// Refuses `value` of `key` unless `fine`.
fn demand(
    fine: bool,
    key: &'static str,
    value: impl ToString,
    expected: &'static str,
) -> Result<(), ConfigError> {
    let value = value.to_string();
    if fine { Ok(()) } else { Err(ConfigError::Value { key, value, expected }) }
}

impl Config {
    /// Proves that only those are let in who should be: without keys nobody from elsewhere.
    ///
    /// # Errors
    /// How to mend it.
    pub fn check_door(&self) -> Result<(), ConfigError> {
        let Server { host, open, .. } = self.server;
        let expected = "whoever can reach this address could use the server, as there are no keys: \
                        make one with `mtplx keys add NAME` and name the file in keys.file, or \
                        listen on 127.0.0.1, or say server.open = true if that is what you want";
        demand(host.is_loopback() || open || !self.keys.is_empty(), "server.host", host, expected)
    }
}

impl Written {
    fn check(self, table: Table, source: Source) -> Result<Config, ConfigError> {
        let Self { server, model, engine, decode, bank, disk, mut admin, tuner, cluster, .. } =
            self;
        let Self { mode, thermal, fans, root, log, tls: tls_files, keys: keys_file, .. } = self;
        let keys_file = keys_file.file;
        cluster.check().map_err(ConfigError::Part)?;
        telemetry::filter(&log.filter)
            .map_err(|e| ConfigError::Part(format!("log.filter: {e:#}")))?;
        let Self { metrics, traces, flight, .. } = self;
        let key = "server.body_bytes_max";
        demand(server.body_bytes_max > 0, key, server.body_bytes_max, "must be at least 1")?;
        let expected = "must be at least server.body_bytes_max";
        let all = server.bytes_max;
        demand(all >= server.body_bytes_max, "server.bytes_max", all, expected)?;
        demand_engine(&engine)?;
        let keys = keys::read(&keys_file).map_err(ConfigError::Part)?;
        let tls = Tls::read(&tls_files.cert, &tls_files.key).map_err(ConfigError::Part)?;
        if let Ok(token) = std::env::var(ADMIN_TOKEN) {
            admin.token = Secret::new(&token);
        }
        let budget = match engine.memory_budget {
            0 => memory::budget_of(memory::machine()),
            set => set,
        };
        let bytes_max = if bank.bytes_max == 0 { budget / BANK_SHARE } else { bank.bytes_max };
        let bank = bank::Config { bytes_max, ..bank };
        let decode = decode::Config { queue_s: server.queue_s, ..decode };
        let actors = root::Configs { root, decode, bank, tuner, thermal };
        actors.check().and_then(|()| fans.check()).map_err(ConfigError::Part)?;
        let context = engine.context_tokens_max;
        let engine = mtplx_kernels::EngineOptions {
            slots: engine.slots,
            page_tokens: engine.page_tokens,
            depth_max: engine.draft_tokens_max,
            context_tokens_max: (context > 0).then_some(context),
            kv_bytes_max: (engine.kv_bytes_max > 0).then_some(engine.kv_bytes_max),
            bank_bytes: bank.bytes_max,
            draft_head: mtplx_kernels::DraftHeadOptions {
                bits: (engine.draft_head_bits > 0).then_some(engine.draft_head_bits),
                share: engine.draft_vocab_share,
            },
            memory_budget: (engine.memory_budget > 0).then_some(engine.memory_budget),
            step_tokens: tuner.prefill_idle_tokens,
            place: None,
        };
        traces.check().map_err(ConfigError::Part)?;
        let config = Config {
            mode,
            server,
            model,
            engine,
            actors,
            disk,
            keys_file,
            keys,
            admin,
            fans,
            tls_files,
            tls,
            cluster,
            log,
            metrics,
            traces,
            flight,
            source,
            table,
        };
        Ok(config)
    }
}

fn demand_engine(e: &Engine) -> Result<(), ConfigError> {
    demand((1..=256).contains(&e.slots), "engine.slots", e.slots, "must be from 1 to 256")?;
    let pages = e.page_tokens.is_power_of_two() && (8..=1024).contains(&e.page_tokens);
    let expected = "must be a power of two from 8 to 1024";
    demand(pages, "engine.page_tokens", e.page_tokens, expected)?;
    let key = "engine.draft_tokens_max";
    demand(e.draft_tokens_max <= 4, key, e.draft_tokens_max, "must be from 0 to 4")?;
    let (key, share) = ("engine.draft_vocab_share", e.draft_vocab_share);
    demand(share > 0.0 && share <= 1.0, key, share, "must be above 0, at most 1")?;
    let bits = matches!(e.draft_head_bits, 0 | 2..=6 | 8);
    demand(bits, "engine.draft_head_bits", e.draft_head_bits, "must be 0, 2 to 6, or 8")
}

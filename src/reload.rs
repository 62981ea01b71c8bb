//! Settings read anew while the server runs: by SIGHUP, by `POST /admin/reload`, and the keys
//! whenever their file changes. All of it is checked as at the start before anything of it holds.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mtplx_actors::bank::Store;
use mtplx_actors::ingress::reload::{Reload, Reloaded};
use mtplx_actors::ingress::{self, Handle};
use mtplx_actors::{metrics, root};
use ractor::ActorRef;
use tokio::sync::Mutex;

use crate::config::change::Next;
use crate::config::{Config, ConfigError};
use crate::tiers::Tier;
use crate::{keys, telemetry};

/// Between two looks whether the file of keys has changed.
const LOOK_TIME: Duration = Duration::from_secs(2);

/// Who holds what the settings are now, and whom to tell of others.
#[derive(Clone, Debug)]
pub struct Reloader(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Locked while settings are read anew: one after the other.
    now: Mutex<Now>,
    /// Its name, and how much is known of it.
    model: (String, Tier),
    door: Handle,
    /// Nobody's, where other machines have the engines.
    root: Option<ActorRef<root::Message>>,
    store: Option<Arc<Store>>,
}

#[derive(Debug)]
struct Now {
    config: Config,
    /// Names of settings that wait for the next start.
    restart_needed: Vec<String>,
}

impl Reloader {
    /// These hold now, for a model of this name and tier.
    pub(crate) fn new(
        (config, model): (Config, (String, Tier)),
        (door, root): (Handle, Option<ActorRef<root::Message>>),
        store: Option<Arc<Store>>,
    ) -> Self {
        metrics::config_loaded();
        let now = Mutex::new(Now { config, restart_needed: Vec::new() });
        Self(Arc::new(Inner { now, model, door, root, store }))
    }

    /// The same for the door's own route.
    pub(crate) fn by_route(&self) -> Reload {
        let own = self.clone();
        Arc::new(move || {
            let own = own.clone();
            // Whoever asked may go; what was begun is finished.
            let reload = tokio::spawn(async move { own.reload("a request").await });
            Box::pin(async move {
                let reloaded = reload.await.map_err(|error| error.to_string())?;
                reloaded.map_err(|error| error.to_string())
            })
        })
    }

    /// Reads all settings anew; `by` is who asked.
    ///
    /// # Errors
    /// Why none of them can be used. Nothing has changed then.
    pub async fn reload(&self, by: &str) -> Result<Reloaded, ConfigError> {
        let mut now = self.0.now.lock().await;
        let next = now.read().await;
        metrics::config_reloaded(next.is_ok());
        match next {
            Ok(next) => {
                let reloaded = self.go_by(&mut now, next).await;
                tell(by, &reloaded);
                Ok(reloaded)
            }
            Err(error) => {
                tracing::error!(by, %error, "the settings stay as they were, all of them");
                Err(error)
            }
        }
    }

    /// Nothing of this can fail.
    async fn go_by(&self, now: &mut Now, next: Next) -> Reloaded {
        let Inner { model, door, root, store, .. } = &*self.0;
        let Next { config, changed, read_anew, restart_needed } = next;
        now.restart_needed = restart_needed.iter().map(|c| c.setting.clone()).collect();
        let mut remarks = Vec::new();
        if config.log != now.config.log {
            match telemetry::refilter(&config.log) {
                Ok(()) if telemetry::by_environment().is_some() => {
                    remarks.push("RUST_LOG in the environment goes before log.filter".into());
                }
                Ok(()) => {}
                Err(error) => remarks.push(format!("log.filter: {error:#}")),
            }
        }
        if let Some(store) = store {
            store.configure(config.disk.clone());
        }
        if let (Some(root), true) = (root, config.actors != now.config.actors) {
            // A root that is gone has ended the house.
            let _ = root.cast(root::Message::Configure(Box::new(config.actors)));
        }
        door.go_by(door_of(&config, model), now.restart_needed.clone()).await;
        now.config = config;
        metrics::config_loaded();
        Reloaded { changed, read_anew, restart_needed, remarks }
    }

    /// How long running requests get at the end, by what is set now.
    pub(crate) async fn drain_time(&self) -> Duration {
        Duration::from_secs_f64(self.0.now.lock().await.config.actors.root.drain_s)
    }

    /// Reads the keys anew whenever their file changes, and nothing else: what somebody is writing
    /// into the settings is not to hold because a key was revoked. A file that cannot be read
    /// changes nothing: who was let in before still is, and the log says so.
    pub(crate) async fn watch_keys(self) {
        // It is read once more: it may have changed since it was read for the settings.
        let mut seen = None;
        loop {
            tokio::time::sleep(LOOK_TIME).await;
            let mut now = self.0.now.lock().await;
            let file = now.config.keys_file.clone();
            let looked = (file.clone(), stamp(&file));
            if file.as_os_str().is_empty() || Some(&looked) == seen.as_ref() {
                continue;
            }
            seen = Some(looked);
            let read = tokio::task::spawn_blocking(move || keys::read(&file)).await;
            match read.unwrap_or_else(|error| Err(error.to_string())) {
                Ok(keys) if keys == now.config.keys => {}
                Ok(keys) => {
                    tracing::info!("the keys were read anew");
                    now.config.keys = keys;
                    let door = door_of(&now.config, &self.0.model);
                    self.0.door.go_by(door, now.restart_needed.clone()).await;
                }
                Err(error) => tracing::error!(error, "the keys stay as they were"),
            }
        }
    }
}

impl Now {
    async fn read(&self) -> Result<Next, ConfigError> {
        let source = self.config.source.clone();
        let read = tokio::task::spawn_blocking(move || source.read()).await;
        let read = read.map_err(|error| ConfigError::Part(error.to_string()))??;
        // Also what needs a restart must be sound, or the next start would fail.
        read.check_door()?;
        self.config.next(read)
    }
}

fn tell(by: &str, reloaded: &Reloaded) {
    let list = |of: &[_]| of.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let (changed, read_anew) = (list(&reloaded.changed), reloaded.read_anew.join(", "));
    tracing::info!(by, changed, read_anew, "the settings were read anew");
    if !reloaded.restart_needed.is_empty() {
        let settings = list(&reloaded.restart_needed);
        tracing::warn!(settings, "these wait for the next start");
    }
    reloaded.remarks.iter().for_each(|remark| tracing::warn!(remark));
}

fn stamp(file: &PathBuf) -> Option<(SystemTime, u64)> {
    let about = std::fs::metadata(file).ok()?;
    Some((about.modified().ok()?, about.len()))
}

/// What the door is told of the settings.
pub(crate) fn door_of(config: &Config, (model, tier): &(String, Tier)) -> ingress::Config {
    let server = &config.server;
    ingress::Config {
        bind: SocketAddr::new(server.host, server.port),
        model: model.clone(),
        tier: tier.to_string(),
        requests_max: server.requests_max,
        body_bytes_max: server.body_bytes_max,
        new_tokens_max: NonZeroUsize::new(server.new_tokens_max),
        keep_alive_s: server.keep_alive_s,
        aliases: server.aliases.clone(),
        unknown_fields: server.unknown_fields,
        thinking_tokens_max: NonZeroUsize::new(server.thinking_tokens_max),
        responses_bytes_max: server.responses_bytes_max,
        responses_idle_s: server.responses_idle_s,
        resume_s: server.resume_s,
        strikes_max: strikes_max(config.actors.root.failures_max),
        tokens_max: NonZeroUsize::new(server.tokens_max),
        bytes_max: server.bytes_max,
        reader_stall_s: server.reader_stall_s,
        hosts: server.hosts.clone(),
        origins: server.origins.clone(),
        keys: config.keys.clone(),
        admin: config.admin.token.clone(),
        tls: config.tls.clone(),
        // The door keeps those that it has.
        nodes: None,
    }
}

/// One request may end fewer engines than the house bears.
fn strikes_max(failures_max: usize) -> u32 {
    u32::try_from(failures_max.saturating_sub(1)).unwrap_or(u32::MAX).max(1)
}

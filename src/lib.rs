#![doc = include_str!("../README.md")]

pub mod admin;
pub mod bank;
pub mod bench;
pub mod chat;
pub mod config;
pub mod connect;
mod consent;
pub mod convert;
pub mod doctor;
pub mod exit;
pub mod fans;
mod files;
#[cfg(test)]
mod fuzz;
pub mod init;
pub mod inspect;
pub mod keys;
pub mod model;
pub mod models;
pub mod modes;
pub mod node;
pub mod picker;
pub mod plan;
pub mod pull;
pub mod reload;
pub mod schema;
pub mod server;
pub mod service;
pub mod start;
pub mod state;
pub mod telemetry;
pub mod tiers;
mod tls;
pub mod tune;
pub mod verify;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mtplx_actors::admission::Door;
use mtplx_actors::bank::Store;
use mtplx_actors::decode::Open;
use mtplx_actors::ingress::{self, RenderMetrics};
use mtplx_actors::node::Nodes;
use mtplx_actors::root::{self, Blueprint, End, House};
use mtplx_actors::thermal;
use mtplx_core::engine::Engine;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::config::Config;
use crate::model::Model;
use crate::reload::Reloader;

/// An idle house gets this long to end, even if its guests took all of the time there was.
const LEAVE_TIME: Duration = Duration::from_secs(1);

/// Between two looks whether the first engine is open.
const LOOK_TIME: Duration = Duration::from_millis(20);

/// A running server.
#[derive(Debug)]
pub struct App {
    /// Nobody's, where other machines have the engines.
    house: Option<House>,
    ingress: ingress::Handle,
    /// Ends with the ingress.
    listening: JoinHandle<()>,
    reloader: Reloader,
    store: Option<Arc<Store>>,
}

impl App {
    /// Opens the door, then the engine behind it; requests before that are answered with 503.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn start(config: &Config, model: &Model, render: RenderMetrics) -> Result<Self> {
        let open = Arc::new(model.opener(config.engine.clone()));
        Self::start_on(open, config, model, render).await
    }

    /// The same on another engine than the model's own.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_on<E: Engine + 'static>(
        open: Open<E>,
        config: &Config,
        model: &Model,
        render: RenderMetrics,
    ) -> Result<Self> {
        config.check_door()?;
        mtplx_actors::metrics::build(env!("CARGO_PKG_VERSION"));
        mtplx_actors::metrics::fans_pinned(false);
        let nodes = config.cluster.is_on().then(Nodes::default);
        let door =
            ingress::Config { nodes: nodes.clone(), ..reload::door_of(config, &model.card()) };
        let (ingress, listening) = ingress::start(door, Arc::clone(&model.text), render).await?;
        let scheme = if config.tls.is_some() { "https" } else { "http" };
        tracing::info!(model = model.name, "listening on {scheme}://{}, loading", ingress.address);
        let door: Arc<dyn Door> = match nodes {
            Some(nodes) => Arc::new(node::gate(config, model, nodes, ingress.clone()).await?),
            None => Arc::new(ingress.clone()),
        };
        let settings = (config.clone(), model.card());
        if config.cluster.is_on() && !config.cluster.engine {
            let reloader = Reloader::new(settings, (ingress.clone(), None), None);
            let app = Self { house: None, ingress, listening, reloader, store: None };
            return Ok(app.watched());
        }
        let store = open_store(config);
        let blueprint = house_blueprint(config, open, store.clone(), door);
        let house = root::start(blueprint).await.context("cannot start the root actor")?;
        let root = Some(house.root());
        let reloader = Reloader::new(settings, (ingress.clone(), root), store.clone());
        Ok(Self { house: Some(house), ingress, listening, reloader, store }.watched())
    }

    /// Its settings are read anew when somebody asks for it.
    fn watched(self) -> Self {
        self.ingress.let_reload(self.reloader.by_route());
        tokio::spawn(self.reloader.clone().watch_keys());
        self
    }

    /// Its door, to ask whether anybody is served.
    #[must_use]
    pub fn door(&self) -> ingress::Handle {
        self.ingress.clone()
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.ingress.address
    }

    /// What reads its settings anew.
    #[must_use]
    pub fn reloader(&self) -> Reloader {
        self.reloader.clone()
    }

    /// Serves until `stop` comes about or the house gives up; running requests are let finish.
    /// `announce` is called once, when the first engine is open and the door knows it.
    ///
    /// # Errors
    /// When the house gave up or the door closed: the process should end with an error.
    pub async fn run(
        mut self,
        stop: impl Future<Output = ()>,
        announce: impl FnOnce(),
    ) -> Result<()> {
        let door = self.ingress.clone();
        let own = self.house.is_some();
        let opened = async move {
            // Who has no engine has nothing to wait for: nodes come and go.
            // The door is asked, not the root: once it knows who serves, nobody is refused.
            while own && door.observe().await.is_none_or(|seen| seen.between.is_some()) {
                tokio::time::sleep(LOOK_TIME).await;
            }
            announce();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            end = end_of(&mut self.house) => {
                // Whoever lost the engine hears so, and what is on its way to disk gets there.
                self.ingress.drain(LEAVE_TIME).await;
                self.store_rest().await;
                return ended(end);
            }
            _ = &mut self.listening => bail!("the HTTP listener ended by itself, see the log"),
            () = opened => {}
            () = stop => {}
        }
        self.leave().await
    }

    /// Closes the door, waits for those inside, then ends the house, all by one deadline. The
    /// house is told last: the door may be about to hand in a request that it admitted, and decode
    /// would end before.
    async fn leave(mut self) -> Result<()> {
        let limit = self.reloader.drain_time().await;
        let deadline = Instant::now() + limit;
        tracing::info!(seconds = limit.as_secs_f64(), "stopping: running requests may finish");
        let left = self.ingress.drain(limit).await;
        let least = if left == 0 { LEAVE_TIME } else { Duration::ZERO };
        let Some(house) = &mut self.house else { return Ok(()) };
        house.drain(deadline.saturating_duration_since(Instant::now()).max(least));
        let end = house.end().await;
        if end == End::CutOff {
            tracing::warn!(requests = left, "root.drain_s was over: what still ran was cut off");
        }
        self.store_rest().await;
        ended(end)
    }

    /// Waits for what is on its way to disk, as long as requests may take to finish.
    async fn store_rest(&self) {
        let (store, limit) = (self.store.clone(), self.reloader.drain_time().await);
        let flushed = tokio::task::spawn_blocking(move || store.is_none_or(|s| s.flush(limit)));
        if !flushed.await.unwrap_or(false) {
            tracing::warn!("not all warm prefixes were written to disk in time");
        }
    }
}

/// The end of a house that is there.
async fn end_of(house: &mut Option<House>) -> End {
    match house {
        Some(house) => house.end().await,
        None => std::future::pending().await,
    }
}

/// What the root builds a house of, for a server and for a node alike.
fn house_blueprint<E: Engine>(
    config: &Config,
    open: Open<E>,
    store: Option<Arc<Store>>,
    door: Arc<dyn Door>,
) -> Blueprint<E> {
    let limit = config.actors.thermal.timeout();
    Blueprint {
        configs: config.actors,
        open,
        sensor: Arc::new(move || Box::new(thermal::Sources::of_this_machine(limit))),
        notes: store.is_some().then(|| config.disk.path.clone()),
        store,
        flight: config.flight.clone(),
        door,
    }
}

/// The files of the bank, if there are to be any. A server without them serves too, only colder.
fn open_store(config: &Config) -> Option<Arc<Store>> {
    if config.disk.path.as_os_str().is_empty() {
        return None;
    }
    let path = config.disk.path.display().to_string();
    match Store::open(config.disk.clone()) {
        Ok(store) => Some(Arc::new(store)),
        Err(error) => {
            tracing::error!(path, %error, "disk.path cannot be used: nothing is kept on disk");
            None
        }
    }
}

fn ended(end: End) -> Result<()> {
    match end {
        End::Drained | End::CutOff => Ok(()),
        End::GaveUp(reason) => bail!("gave up: {reason}"),
    }
}

#![doc = include_str!("../README.md")]

pub mod bench;
pub mod config;
pub mod model;
pub mod telemetry;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mtplx_actors::ingress::{self, RenderMetrics};
use mtplx_actors::root::{self, Blueprint, End, House};
use mtplx_actors::thermal;

use crate::config::Config;
use crate::model::Model;

/// A running server.
#[derive(Debug)]
pub struct App {
    house: House,
    ingress: ingress::Handle,
    drain: Duration,
}

impl App {
    /// Opens the door, then the engine behind it; requests before that are answered with 503.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn start(config: &Config, model: &Model, render: RenderMetrics) -> Result<Self> {
        mtplx_actors::metrics::build(env!("CARGO_PKG_VERSION"));
        let server = &config.server;
        let door = ingress::Config {
            bind: SocketAddr::new(server.host, server.port),
            model: model.name.clone(),
            requests_max: server.requests_max,
            body_bytes_max: server.body_bytes_max,
            new_tokens_max: NonZeroUsize::new(server.new_tokens_max),
            keep_alive_s: server.keep_alive_s,
        };
        let (ingress, _) = ingress::start(door, Arc::clone(&model.text), render).await?;
        let blueprint = Blueprint {
            configs: config.actors,
            open: Arc::new(model.opener(config.engine.clone())),
            sensor: Arc::new(|| Box::new(thermal::Components::new())),
            door: Arc::new(ingress.clone()),
        };
        let house = root::start(blueprint).await.context("cannot start the root actor")?;
        let drain = Duration::from_secs_f64(config.actors.root.drain_s);
        Ok(Self { house, ingress, drain })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.ingress.address
    }

    /// Serves until `stop` comes about or the house gives up; running requests are let finish.
    ///
    /// # Errors
    /// When the house gave up: the process should end with an error.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<()> {
        tokio::select! {
            end = self.house.end() => return ended(end),
            () = stop => {}
        }
        tracing::info!("stopping: nobody new, running requests may finish");
        let cut = self.ingress.drain(self.drain).await;
        if cut > 0 {
            tracing::warn!(cut, "requests were cut off");
        }
        self.house.drain();
        ended(self.house.end().await)
    }
}

fn ended(end: End) -> Result<()> {
    match end {
        End::Drained | End::CutOff => Ok(()),
        End::GaveUp(reason) => bail!("gave up: {reason}"),
    }
}

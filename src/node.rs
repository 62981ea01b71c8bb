//! Several machines: the gateway's side of [`crate::App`], and `mtplx node`, which makes this
//! machine one of them.

#![expect(clippy::print_stdout, reason = "a command prints what it found")]

use std::future::Future;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use mtplx_actors::ingress::{self, RenderMetrics};
use mtplx_actors::node::secret::Secret;
use mtplx_actors::node::{Identity, Nodes, gate, porch, worker};
use mtplx_actors::root;
use tokio::time::Instant;
use ureq::http::Method;

use crate::admin::Admin;
use crate::config::Config;
use crate::model::Model;
use crate::{ended, house_blueprint, open_store};

/// An idle house gets this long to end.
const LEAVE_TIME: Duration = Duration::from_secs(1);

/// What to do as a node, or with nodes.
#[derive(Args, Debug)]
pub struct NodeArgs {
    /// The gateway to make rows for, as host:port of its cluster.listen.
    #[arg(long)]
    pub join: Option<String>,
    /// The file of the secret; cluster.secret without it.
    #[arg(long)]
    pub secret: Option<PathBuf>,
    /// What the gateway calls this machine; its host name without it.
    #[arg(long)]
    pub name: Option<String>,
    /// Port on this machine's loopback for /health and /metrics; 0 takes a free one.
    #[arg(long, default_value_t = 8001)]
    pub port: u16,
    /// Something else than joining.
    #[command(subcommand)]
    pub command: Option<NodeCommand>,
}

/// What to do with nodes.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Make a secret for the gateway and its nodes.
    Secret {
        /// The file; it must not exist.
        file: PathBuf,
    },
    /// Show the nodes of a gateway.
    List {
        /// The gateway.
        #[command(flatten)]
        gateway: Admin,
    },
    /// Send a node that was drained more again.
    Resume {
        /// Its name in the list.
        name: String,
        /// The gateway.
        #[command(flatten)]
        gateway: Admin,
    },
    /// Let a node finish what it has, and send it no more.
    Drain {
        /// Its name in the list.
        name: String,
        /// The gateway.
        #[command(flatten)]
        gateway: Admin,
    },
}

/// What all machines must have in common.
fn identity(model: &Model) -> Identity {
    Identity {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        model: model.checkpoint.identity.clone(),
        template: model.template.clone(),
    }
}

/// Lets nodes join.
pub(crate) async fn gate(
    config: &Config,
    model: &Model,
    nodes: Nodes,
    door: ingress::Handle,
) -> Result<gate::Handle> {
    let blueprint = gate::Blueprint {
        config: config.cluster.clone(),
        secret: Secret::read(&config.cluster.secret)?,
        identity: identity(model),
        nodes,
        drain: Duration::from_secs_f64(config.actors.root.drain_s),
        door: Arc::new(door),
    };
    let gate = gate::start(blueprint).await?;
    tracing::info!("nodes may join at {}", gate.address);
    Ok(gate)
}

/// Is a node until `stop` comes about, the gateway refuses it or the house gives up. `announce` is
/// called once, when health is answered.
///
/// # Errors
/// When it was refused, or the house gave up.
pub async fn run(
    args: &NodeArgs,
    config: &Config,
    model: &Model,
    render: RenderMetrics,
    (stop, announce): (impl Future<Output = ()>, impl FnOnce(SocketAddr)),
) -> Result<()> {
    let gateway = args.join.clone().context("say which gateway to join: --join HOST:PORT")?;
    mtplx_actors::metrics::build(env!("CARGO_PKG_VERSION"));
    let name = args.name.clone().unwrap_or_else(host_name);
    let blueprint = worker::Blueprint {
        gateway: gateway.clone(),
        name: name.clone(),
        secret: Secret::read(args.secret.as_deref().unwrap_or(&config.cluster.secret))?,
        identity: identity(model),
        text: Arc::clone(&model.text),
    };
    let (node, refused) = worker::start(blueprint).await?;
    let at = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), args.port);
    let opened = porch::open(at, node.clone(), render).await;
    let address = opened.with_context(|| format!("cannot listen on {at}"))?;
    tracing::info!(name, gateway, "a node; health on http://{address}");
    let store = open_store(config);
    let open = Arc::new(model.opener(config.engine.clone()));
    let blueprint = house_blueprint(config, open, store.clone(), Arc::new(node.clone()));
    let mut house = root::start(blueprint).await.context("cannot start the root actor")?;
    announce(address);
    let drain = Duration::from_secs_f64(config.actors.root.drain_s);
    let deadline = tokio::select! {
        end = house.end() => return ended(end),
        reason = refused => {
            house.drain(LEAVE_TIME);
            house.end().await;
            bail!("{gateway} refuses this node: {}", reason.unwrap_or_default());
        }
        () = stop => Instant::now() + drain,
    };
    tracing::info!(seconds = drain.as_secs_f64(), "leaving: running requests may finish");
    node.leave(drain).await;
    house.drain(deadline.saturating_duration_since(Instant::now()).max(LEAVE_TIME));
    let end = house.end().await;
    let flushed = tokio::task::spawn_blocking(move || store.is_none_or(|s| s.flush(drain)));
    if !flushed.await.unwrap_or(false) {
        tracing::warn!("not all warm prefixes were written to disk in time");
    }
    ended(end)
}

/// As the system calls this machine, in letters that a node's name may have.
fn host_name() -> String {
    let name = sysinfo::System::host_name().unwrap_or_default();
    let plain = |c: &char| c.is_ascii_alphanumeric() || "._-".contains(*c);
    let name: String = name.chars().filter(plain).take(64).collect();
    if name.is_empty() { "node".into() } else { name }
}

/// Does something with nodes.
///
/// # Errors
/// When it cannot be done; the message says why.
pub fn command(command: &NodeCommand) -> Result<()> {
    match command {
        NodeCommand::Secret { file } => make_secret(file),
        NodeCommand::List { gateway } => {
            let told = gateway.json(Method::GET, "/admin/nodes")?;
            println!(
                "{:<24} {:<9} {:>5} {:>6} {:>13} {:>8}",
                "node", "state", "rows", "slots", "queued tokens", "rtt ms"
            );
            for node in told["nodes"].as_array().into_iter().flatten() {
                let text = |key: &str| node[key].as_str().unwrap_or_default().to_owned();
                println!(
                    "{:<24} {:<9} {:>5} {:>6} {:>13} {:>8}",
                    text("name"),
                    text("state"),
                    node["rows"],
                    node["slots"],
                    node["queued_tokens"],
                    node["rtt_ms"],
                );
            }
            Ok(())
        }
        NodeCommand::Drain { name, gateway } => {
            gateway.ask(Method::PUT, &drain(name), Vec::new()).map(drop)
        }
        NodeCommand::Resume { name, gateway } => {
            gateway.ask(Method::DELETE, &drain(name), Vec::new()).map(drop)
        }
    }
}

/// Where a node is told to take no more.
fn drain(name: &str) -> String {
    format!("/admin/nodes/{name}/drain")
}

fn make_secret(file: &Path) -> Result<()> {
    let mut bits = [0; 32];
    getrandom::fill(&mut bits).context("the system gives no random bits")?;
    let text: String = bits.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut to = options.open(file).with_context(|| format!("cannot make {}", file.display()))?;
    writeln!(to, "{text}")?;
    println!("{}: copy it to every machine, readable by its owner only", file.display());
    Ok(())
}

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
use serde_json::{Value, json};
use tokio::time::Instant;
use ureq::http::Method;

use crate::admin::Admin;
use crate::config::Config;
use crate::model::Model;
use crate::{ended, house_blueprint, open_store};

/// An idle house gets this long to end.
const LEAVE_TIME: Duration = Duration::from_secs(1);

/// What `--help` ends with.
pub const EXAMPLES: &str = "Examples:\n  \
                            mtplx node --join 10.0.0.1:8100 --secret cluster.secret\n  \
                            mtplx node list --url http://10.0.0.1:8000";

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
    #[command(after_help = "Example:\n  mtplx node secret cluster.secret")]
    Secret {
        /// The file; it must not exist.
        file: PathBuf,
        /// What was done as JSON; `mtplx schema node` describes it.
        #[arg(long)]
        json: bool,
    },
    /// Show the nodes of a gateway.
    #[command(after_help = "Examples:\n  mtplx node list\n  mtplx node list --json")]
    List(Gateway),
    /// Send a node that was drained more again.
    #[command(after_help = "Example:\n  mtplx node resume studio-2")]
    Resume {
        /// Its name in the list.
        name: String,
        /// Of whom.
        #[command(flatten)]
        gateway: Gateway,
    },
    /// Let a node finish what it has, and send it no more.
    #[command(after_help = "Example:\n  mtplx node drain studio-2")]
    Drain {
        /// Its name in the list.
        name: String,
        /// Of whom.
        #[command(flatten)]
        gateway: Gateway,
    },
}

/// Whom to ask.
#[derive(Args, Debug)]
pub struct Gateway {
    /// The gateway.
    #[command(flatten)]
    pub server: Admin,
    /// What was found or done as JSON; `mtplx schema node` describes it.
    #[arg(long)]
    pub json: bool,
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
        NodeCommand::Secret { file, json } => make_secret(file, *json),
        NodeCommand::List(gateway) => {
            let told = gateway.server.json(Method::GET, "/admin/nodes")?;
            match gateway.json {
                true => println!("{told:#}"),
                false => print(&told),
            }
            Ok(())
        }
        NodeCommand::Drain { name, gateway } => set_drained(name, gateway, true),
        NodeCommand::Resume { name, gateway } => set_drained(name, gateway, false),
    }
}

fn set_drained(name: &str, gateway: &Gateway, drained: bool) -> Result<()> {
    let method = if drained { Method::PUT } else { Method::DELETE };
    gateway.server.ask(method, &format!("/admin/nodes/{name}/drain"), Vec::new())?;
    if gateway.json {
        println!("{:#}", json!({"name": name, "drained": drained}));
    }
    Ok(())
}

fn print(told: &Value) {
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
}

fn make_secret(file: &Path, as_json: bool) -> Result<()> {
    let mut bits = [0; 32];
    getrandom::fill(&mut bits).context("the system gives no random bits")?;
    let text: String = bits.iter().map(|byte| format!("{byte:02x}")).collect();
    writeln!(crate::files::make(file)?, "{text}")?;
    match as_json {
        true => println!("{:#}", json!({"file": file})),
        false => {
            println!("{}: copy it to every machine, readable by its owner only", file.display());
        }
    }
    Ok(())
}

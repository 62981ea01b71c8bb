//! The HTTP ingress: the door of the house.
//!
//! * **Owns** the listener, the permits that bound the house, readiness, who may ask and what they
//!   used, and the text side of the model.
//! * **Hears** `Serve` and `Between` from the root, `Keys`, `Reloader`, `Anew`, `Drain`, `Observe`.
//! * **Says** `bank::Open`, once for every choice of every request.
//! * **Dies** never with a generation: it keeps the door, and answers 503 while nobody serves.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroUsize};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::admission::{Door, Served};
use crate::node::Nodes;

mod admin;
mod admission;
mod anthropic;
mod body;
mod clients;
mod dashboard;
mod docs;
mod grammar;
mod guard;
pub mod keys;
mod listen;
mod number;
mod openai;
mod openapi;
pub mod reload;
mod reply;
mod resize;
mod responses;
mod retry;
mod routes;
mod stream;
mod text;
mod thinking;
pub mod tls;
mod tokenize;
mod trace;
mod ui;
mod unknown;
mod wire;
mod work;

pub use self::admin::Secret;
use self::admission::{House, Readiness};
pub(crate) use self::grammar::Bound;
pub(crate) use self::grammar::elsewhere::Grammarian;
pub(crate) use self::stream::channel;
pub use self::text::{Chat, Files, Must, Prompt, Text, TextError};
pub use self::unknown::UnknownFields;

/// What the ingress hears.
#[derive(Debug)]
pub enum Message {
    /// Requests go there from now on.
    Serve(Served),
    /// Nobody serves until further notice, for this reason.
    Between(String),
    /// Nobody will serve any more, for this reason.
    Over(String),
    /// From now on these may ask.
    Keys(keys::Keys),
    /// This reads the settings anew for who may ask for it.
    Reloader(reload::Reloader),
    /// From now on go by these settings.
    Anew(Box<reload::Anew>),
    /// Accept nothing more, let what runs come to its end, then stop.
    Drain(Drain),
    /// The last connection is closed.
    Closed,
    /// The time for draining is over.
    GiveUp,
    /// Say how things are.
    Observe(RpcReplyPort<Snapshot>),
}

impl ractor::Message for Message {}

/// An orderly end.
#[derive(Debug)]
pub struct Drain {
    /// Longest wait for what runs.
    pub limit: Duration,
    /// Told how many choices were still running at the end.
    pub reply: RpcReplyPort<usize>,
}

/// The door in numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Why nobody serves, if nobody does.
    pub between: Option<String>,
    /// Choices in the house.
    pub requests: usize,
}

/// Bounds and names of the door.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where to listen; port 0 lets the system choose.
    pub bind: SocketAddr,
    /// The model's name on the wire.
    pub model: String,
    /// How much is known of it: verified, unverified, no-mtp or damaged.
    pub tier: String,
    /// Most answers in the making at once, running or waiting; beyond it 503 at once.
    pub requests_max: NonZeroU16,
    /// Longest body of a request.
    pub body_bytes_max: usize,
    /// Most tokens of one answer; without it what the context holds, and pages are promised for
    /// all of them.
    pub new_tokens_max: Option<NonZeroUsize>,
    /// Seconds of silence after which a stream says that it is alive.
    pub keep_alive_s: NonZeroU16,
    /// Further names of the model; a `*` at the end of one stands for any rest.
    pub aliases: Vec<String>,
    /// What becomes of fields that are not known here.
    pub unknown_fields: UnknownFields,
    /// Most tokens of thought before an answer.
    pub thinking_tokens_max: Option<NonZeroUsize>,
    /// Memory for answers of the Responses API that clients may go on from.
    pub responses_bytes_max: u64,
    /// Seconds after which one that nobody asked for is forgotten.
    pub responses_idle_s: u32,
    /// Seconds that an answer waits for the next engine when it lost its own in the middle.
    pub resume_s: u32,
    /// Engines that may end with one request at one place of its text before it is given up: fewer
    /// than the house bears.
    pub strikes_max: u32,
    /// Most tokens of all requests in the house, prompts and what they asked for; `None` for what
    /// their number and the context come to.
    pub tokens_max: Option<NonZeroUsize>,
    /// Most bytes of bodies that have come and were not understood yet.
    pub bytes_max: usize,
    /// Seconds after which a reader who takes nothing is let go; 0 for never.
    pub reader_stall_s: u16,
    /// Names by which this server is reached, beside addresses and localhost.
    pub hosts: Vec<String>,
    /// Origins whose pages may ask; `*` stands for all.
    pub origins: Vec<String>,
    /// Who may ask; if there are none, everybody.
    #[serde(skip)]
    pub keys: keys::Keys,
    /// What opens the routes below /admin; if empty, nothing does.
    #[serde(skip_serializing)]
    pub admin: Secret,
    /// The machines that serve, if there may be several.
    #[serde(skip)]
    pub nodes: Option<Nodes>,
    /// What connections are encrypted with, if they are.
    #[serde(skip)]
    pub tls: Option<tls::Tls>,
}

impl Config {
    /// Whether a name on the wire means the model served here.
    fn serves(&self, asked: &str) -> bool {
        let is = |alias: &String| match alias.strip_suffix('*') {
            Some(beginning) => asked.starts_with(beginning),
            None => asked == alias,
        };
        asked == self.model || self.aliases.iter().any(is)
    }

    fn keep_alive(&self) -> Duration {
        Duration::from_secs(self.keep_alive_s.get().into())
    }
}

/// Renders all metrics for `/metrics`.
pub type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// Refers to a running ingress.
#[derive(Clone, Debug)]
pub struct Handle {
    /// The actor.
    pub actor: ActorRef<Message>,
    /// Where it listens, with the real port.
    pub address: SocketAddr,
}

impl Door for Handle {
    fn serve(&self, engine: Served) {
        // An ingress that is gone serves nobody, whatever it is told.
        let _ = self.actor.cast(Message::Serve(engine));
    }

    fn between(&self, reason: String) {
        let _ = self.actor.cast(Message::Between(reason));
    }

    fn over(&self, reason: String) {
        let _ = self.actor.cast(Message::Over(reason));
    }
}

impl Handle {
    /// From now on these may ask.
    pub fn replace_keys(&self, keys: keys::Keys) {
        let _ = self.actor.cast(Message::Keys(keys));
    }

    /// This reads the settings anew for who may ask for it.
    pub fn let_reload(&self, reload: reload::Reload) {
        let _ = self.actor.cast(Message::Reloader(reload::Reloader(reload)));
    }

    /// Goes by these settings for whoever comes after this; where to listen stays. With them, the
    /// names of those that wait for the next start.
    pub async fn go_by(&self, config: Config, restart_needed: Vec<String>) {
        let anew = |reply| Message::Anew(Box::new(reload::Anew { config, restart_needed, reply }));
        // One that is gone lets nobody in.
        let _ = self.actor.call(anew, None).await;
    }

    /// How things are; `None` if the ingress is gone.
    pub async fn observe(&self) -> Option<Snapshot> {
        self.actor.call(Message::Observe, None).await.ok()?.success_or(()).ok()
    }

    /// Ends the ingress in order. Returns how many choices were still running after `limit`.
    pub async fn drain(&self, limit: Duration) -> usize {
        let message = |reply| Message::Drain(Drain { limit, reply });
        let told = self.actor.call(message, None).await;
        // No answer: it was gone already.
        told.ok().and_then(|result| result.success_or(()).ok()).unwrap_or(0)
    }
}

/// Why the door cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is taken or not ours.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where it was tried.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The actor did not come up.
    #[error("cannot start the ingress")]
    Spawn(#[from] ractor::SpawnErr),
}

/// Opens the door; requests are answered with 503 until `Serve`. The join handle ends with the
/// actor.
///
/// # Errors
/// [`StartError`] if the address cannot be had.
pub async fn start(
    config: Config,
    text: Arc<Text>,
    render: RenderMetrics,
) -> Result<(Handle, JoinHandle<()>), StartError> {
    let listen = |source| StartError::Listen { address: config.bind, source };
    let listener = TcpListener::bind(config.bind).await.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    let arguments = Arguments { config, text, render, listener };
    let (actor, ended) = Actor::spawn(None, Ingress, arguments).await?;
    Ok((Handle { actor, address }, ended))
}

/// The actor.
struct Ingress;

struct Arguments {
    config: Config,
    text: Arc<Text>,
    render: RenderMetrics,
    listener: TcpListener,
}

struct State {
    house: Arc<House>,
    render: RenderMetrics,
    shown: watch::Sender<listen::Shown>,
    readiness: watch::Sender<Readiness>,
    /// Dropped or used, it makes the server close; gone while draining.
    stop: Option<oneshot::Sender<()>>,
    drains: Vec<RpcReplyPort<usize>>,
}

impl Actor for Ingress {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Message>,
        arguments: Arguments,
    ) -> Result<State, ActorProcessingErr> {
        let Arguments { config, text, render, listener } = arguments;
        let starting = Readiness::Between("it is starting".into());
        let (readiness, seen) = watch::channel(starting);
        let house = Arc::new(House::new(config, text, seen));
        let (shown, looked_at) = watch::channel(show(&house, &render));
        let (stop, stopped) = oneshot::channel::<()>();
        tokio::spawn(async move {
            listen::serve(listener, looked_at, stopped).await;
            let _ = myself.cast(Message::Closed);
        });
        Ok(State { house, render, shown, readiness, stop: Some(stop), drains: Vec::new() })
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Serve(engine) => state.say(|| Readiness::Serving(engine)),
            Message::Between(reason) => state.say(|| Readiness::Between(reason)),
            Message::Over(reason) => state.say(|| Readiness::Over(reason)),
            Message::Keys(keys) => state.house.clients.replace(keys),
            Message::Reloader(reloader) => {
                let mut house = House::clone(&state.house);
                house.reloader = Some(reloader);
                state.show(house);
            }
            Message::Anew(anew) => {
                let reload::Anew { config, restart_needed, reply } = *anew;
                state.show(state.house.anew(config, restart_needed));
                let _ = reply.send(());
            }
            Message::Drain(Drain { limit, reply }) => {
                state.say(|| Readiness::Over("it is shutting down".into()));
                state.drains.push(reply);
                drop(state.stop.take());
                myself.send_after(limit, || Message::GiveUp);
            }
            Message::Closed | Message::GiveUp => {
                for reply in state.drains.drain(..) {
                    let _ = reply.send(state.house.taken());
                }
                myself.stop(None);
            }
            Message::Observe(reply) => {
                let between = match state.house.readiness() {
                    Readiness::Between(reason) | Readiness::Over(reason) => Some(reason),
                    Readiness::Serving(_) => None,
                };
                let _ = reply.send(Snapshot { between, requests: state.house.taken() });
            }
        }
        Ok(())
    }
}

/// What is found at the door of this house.
fn show(house: &Arc<House>, render: &RenderMetrics) -> listen::Shown {
    let stall = Duration::from_secs(house.config.reader_stall_s.into());
    let tls = house.config.tls.clone();
    listen::Shown { app: routes::router(Arc::clone(house), Arc::clone(render)), stall, tls }
}

impl State {
    /// From now on requests find this house.
    fn show(&mut self, house: House) {
        self.house = Arc::new(house);
        self.shown.send_replace(show(&self.house, &self.render));
    }

    /// Nothing opens a door again that is being closed.
    fn say(&self, readiness: impl FnOnce() -> Readiness) {
        if self.stop.is_some() {
            self.readiness.send_replace(readiness());
        }
    }
}

/// A number nobody can guess, by the keys that the standard library draws for its hash maps.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A time in seconds since 1970, as people and files write it.
#[must_use]
pub fn date(unix_s: u64) -> String {
    text::iso_8601(unix_s)
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests;

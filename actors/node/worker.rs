//! A node's end: it belongs to one gateway after another membership, runs the rows that this sends,
//! and sends back what they make.
//!
//! To this machine's root it is the door: while no engine serves it is no member.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use mtplx_core::batch::RowEvent;
use ractor::message::{BoxedDowncastErr, SerializedMessage};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use super::secret::Secret;
use super::session::{self, SHAKE_TIME};
use super::wire::{self, Hello, Info, Letter, Word};
use super::{Identity, SCOPE, gate, random};
use crate::admission::{Admission, Door, Served};
use crate::ingress::{Bound, Grammarian, Text};

mod join;
mod rows;

use self::join::join;
use self::rows::{Made, Outbox};

/// Rows that are taken at once: far more than a door lets in.
const ROWS_MAX: usize = 4096;
/// Between two looks at the gateway.
const LOOK_TIME: Duration = Duration::from_millis(100);
/// Between two tries to join, at first and at most.
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What it hears.
#[derive(Debug)]
pub enum Message {
    /// The gateway says something.
    Letter(Vec<u8>),
    /// This machine's engine serves.
    Serve(Box<Served>),
    /// It does not.
    Between(String),
    /// Try to join.
    Join,
    /// How that went.
    Joined(Joined),
    /// A row is ready to run.
    Ready(Box<Ready>),
    /// Send what was gathered.
    Send,
    /// Look whether the gateway lives.
    Look,
    /// Nothing more is to come; told when nothing is left.
    Leave(RpcReplyPort<()>),
    /// Say how things are.
    Observe(RpcReplyPort<Snapshot>),
}

impl ractor::Message for Message {
    fn serializable() -> bool {
        true
    }

    fn serialize(self) -> Result<SerializedMessage, BoxedDowncastErr> {
        match self {
            Self::Letter(args) => {
                Ok(SerializedMessage::Cast { variant: String::new(), args, metadata: None })
            }
            Self::Serve(_)
            | Self::Between(_)
            | Self::Join
            | Self::Joined(_)
            | Self::Ready(_)
            | Self::Send
            | Self::Look
            | Self::Leave(_)
            | Self::Observe(_) => Err(BoxedDowncastErr),
        }
    }

    /// An error would end the actor: what is not understood is an empty letter instead.
    fn deserialize(message: SerializedMessage) -> Result<Self, BoxedDowncastErr> {
        Ok(match message {
            SerializedMessage::Cast { args, .. } => Self::Letter(args),
            SerializedMessage::Call { .. } | SerializedMessage::CallReply(..) => {
                Self::Letter(Vec::new())
            }
        })
    }
}

/// How a try to join went.
#[derive(Debug)]
pub struct Joined(Result<Membership, Refused>);

#[derive(Debug)]
struct Membership {
    gate: ActorRef<gate::Message>,
    epoch: u64,
    silence: Duration,
}

#[derive(Debug)]
struct Refused {
    reason: String,
    again: bool,
}

/// A row that is ready to run.
#[derive(Debug)]
pub struct Ready {
    epoch: u64,
    row: u64,
    admission: Option<Admission>,
    events: mpsc::Receiver<RowEvent>,
    bound: Option<Bound>,
    cancelled: oneshot::Receiver<()>,
}

/// A node in numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Whether it belongs to a gateway.
    pub joined: bool,
    /// Whether its engine serves.
    pub serving: bool,
    /// Whether it gets nothing more.
    pub draining: bool,
    /// Rows it makes.
    pub rows: usize,
}

/// What a node is made of.
pub struct Blueprint {
    /// The gateway, as `host:port`.
    pub gateway: String,
    /// What people call this node.
    pub name: String,
    /// What all nodes share.
    pub secret: Secret,
    /// What all nodes must be.
    pub identity: Identity,
    /// For grammars.
    pub text: Arc<Text>,
}

impl fmt::Debug for Blueprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blueprint").field("gateway", &self.gateway).finish_non_exhaustive()
    }
}

/// Refers to a running node.
#[derive(Clone, Debug)]
pub struct Handle(ActorRef<Message>);

impl Door for Handle {
    fn serve(&self, engine: Served) {
        // A worker that is gone runs nothing.
        let _ = self.0.cast(Message::Serve(Box::new(engine)));
    }

    fn between(&self, reason: String) {
        let _ = self.0.cast(Message::Between(reason));
    }

    fn over(&self, reason: String) {
        self.between(reason);
    }
}

impl Handle {
    /// Gets nothing more; returns when all is done or after `limit`.
    pub async fn leave(&self, limit: Duration) {
        // What is not done by then goes on elsewhere.
        let _ = self.0.call(Message::Leave, Some(limit)).await;
    }

    /// How things are.
    pub async fn observe(&self) -> Option<Snapshot> {
        self.0.call(Message::Observe, Some(SHAKE_TIME)).await.ok()?.success_or(()).ok()
    }
}

/// Starts a node. What it gives back is told why the gateway refuses it for good, if it does.
///
/// # Errors
/// If its sessions cannot be started.
pub async fn start(
    blueprint: Blueprint,
) -> Result<(Handle, oneshot::Receiver<String>), session::Failure> {
    let server = session::server(&blueprint.secret).await?;
    let (refused, hears) = oneshot::channel();
    let (actor, _) = Actor::spawn(None, Worker, (blueprint, server, refused)).await?;
    Ok((Handle(actor), hears))
}

/// The actor.
struct Worker;

struct State {
    of: Arc<Blueprint>,
    server: session::Server,
    refused: Option<oneshot::Sender<String>>,
    /// By which the gateway finds this actor.
    group: String,
    grammars: Arc<Grammarian>,
    permits: Arc<Semaphore>,
    last_id: Arc<AtomicU64>,
    engine: Option<Served>,
    link: Link,
    pause: Duration,
    leaving: Vec<RpcReplyPort<()>>,
    /// Whether the gateway said that nothing more comes.
    draining: bool,
}

enum Link {
    Apart,
    Joining,
    Member(Member),
}

struct Member {
    of: Membership,
    heard: Instant,
    /// By their names at the gateway. What is dropped is cancelled.
    rows: BTreeMap<u64, Made>,
    outbox: Outbox,
}

impl Actor for Worker {
    type Msg = Message;
    type State = State;
    type Arguments = (Blueprint, session::Server, oneshot::Sender<String>);

    async fn pre_start(
        &self,
        myself: ActorRef<Message>,
        (of, server, refused): Self::Arguments,
    ) -> Result<State, ActorProcessingErr> {
        let group = format!("node {:016x}", random());
        ractor::pg::join_scoped(SCOPE.into(), group.clone(), vec![myself.get_cell()]);
        myself.send_interval(LOOK_TIME, || Message::Look);
        let grammars = Arc::new(Grammarian::new(Arc::clone(&of.text)));
        Ok(State {
            of: Arc::new(of),
            server,
            refused: Some(refused),
            group,
            grammars,
            permits: Arc::new(Semaphore::new(ROWS_MAX)),
            last_id: Arc::default(),
            engine: None,
            link: Link::Apart,
            pause: PAUSE,
            leaving: Vec::new(),
            draining: false,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Letter(bytes) => state.hear(&myself, &bytes),
            Message::Serve(served) => {
                state.part("its engine is another");
                state.engine = Some(*served);
                state.join(&myself);
            }
            Message::Between(reason) => {
                state.engine = None;
                state.part(&reason);
            }
            Message::Join => state.join(&myself),
            Message::Joined(Joined(result)) => state.joined(&myself, result),
            Message::Ready(ready) => state.run(*ready),
            Message::Send => state.send(),
            Message::Look => state.look(&myself),
            Message::Leave(reply) => {
                state.leaving.push(reply);
                state.say(Word::Leaving);
                state.rest();
            }
            // Whoever asked may have gone.
            Message::Observe(reply) => drop(reply.send(state.observe())),
        }
        Ok(())
    }
}

// === belonging to somebody ===

impl State {
    /// Tries to, where there is anything to offer.
    fn join(&mut self, myself: &ActorRef<Message>) {
        let (Link::Apart, Some(engine), true) = (&self.link, &self.engine, self.leaving.is_empty())
        else {
            return;
        };
        let Identity { version, model, template } = self.of.identity.clone();
        let (group, name) = (self.group.clone(), self.of.name.clone());
        let info = Info::from(engine.info.as_ref());
        let hello = Hello { version, group, name, model, template, info };
        self.link = Link::Joining;
        self.draining = false;
        let (of, server, myself) = (Arc::clone(&self.of), self.server.clone(), myself.clone());
        tokio::spawn(async move {
            let result = join(&of, &server, &hello).await;
            // A worker that is gone joins nobody.
            let _ = myself.cast(Message::Joined(Joined(result)));
        });
    }

    fn joined(&mut self, myself: &ActorRef<Message>, result: Result<Membership, Refused>) {
        // Of a try that is over nobody wants to hear.
        let Link::Joining = self.link else { return };
        match result {
            Ok(of) => {
                tracing::info!(gateway = self.of.gateway, "joined");
                self.pause = PAUSE;
                let outbox = Outbox { news: Arc::default(), worker: myself.clone() };
                let (heard, rows) = (Instant::now(), BTreeMap::new());
                self.link = Link::Member(Member { of, heard, rows, outbox });
                if self.engine.is_none() {
                    self.part("its engine was lost meanwhile");
                }
            }
            Err(Refused { reason, again: false }) => {
                tracing::error!(gateway = self.of.gateway, reason, "refused");
                self.link = Link::Apart;
                // Once is enough.
                self.refused.take().map(|tell| tell.send(reason));
            }
            Err(Refused { reason, again: true }) => {
                tracing::warn!(gateway = self.of.gateway, reason, "cannot join yet");
                self.link = Link::Apart;
                myself.send_after(self.pause, || Message::Join);
                self.pause = (self.pause * 2).min(PAUSE_MAX);
            }
        }
    }

    /// Does not belong to anybody any more: rows end, whoever wanted them has them made elsewhere.
    fn part(&mut self, reason: &str) {
        if let Link::Member(_) = &self.link {
            // First what they made, and which of them the engine was at work on.
            self.send();
            self.leave();
            self.say(Word::Lost(reason.to_owned()));
            self.link = Link::Apart;
        }
        self.rest();
    }

    fn look(&mut self, myself: &ActorRef<Message>) {
        let Link::Member(member) = &self.link else { return };
        let cell = member.of.gate.get_cell();
        let gone = !session::is_there(&cell);
        if !gone && member.heard.elapsed() <= member.of.silence {
            return;
        }
        let (rows, what) = (member.rows.len(), if gone { "gone" } else { "silent" });
        tracing::warn!(gateway = self.of.gateway, rows, "the gateway is {what}: its rows end");
        if !gone {
            tokio::spawn(session::hang_up(self.server.clone(), cell));
        }
        self.link = Link::Apart;
        self.rest();
        myself.send_after(self.pause, || Message::Join);
    }

    fn say(&self, what: Word) {
        let Link::Member(Member { of: Membership { gate, epoch, .. }, .. }) = &self.link else {
            return;
        };
        let letter = wire::bytes(&Letter { epoch: *epoch, what });
        // One that is gone is found out by looking.
        let _ = gate.cast(gate::Message::Letter(letter));
    }

    fn observe(&self) -> Snapshot {
        let rows = match &self.link {
            Link::Member(member) => Some(member.rows.len()),
            Link::Apart | Link::Joining => None,
        };
        Snapshot {
            joined: rows.is_some(),
            serving: self.engine.is_some(),
            draining: self.draining || !self.leaving.is_empty(),
            rows: rows.unwrap_or(0),
        }
    }

    /// Tells who waits for the end that there is nothing left, if so: the gateway must know before
    /// that nothing is to come.
    fn rest(&mut self) {
        let done = match &self.link {
            Link::Member(member) => self.draining && member.rows.is_empty(),
            Link::Apart | Link::Joining => true,
        };
        if done {
            for reply in self.leaving.drain(..) {
                let _ = reply.send(());
            }
        }
    }
}

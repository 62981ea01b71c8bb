//! Who belongs to this gateway, and what its door is told about it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mtplx_core::engine::EngineInfo;
use mtplx_core::guard;
use mtplx_core::route::NodeId;
use ractor::message::{BoxedDowncastErr, SerializedMessage};
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use tokio::net::TcpListener;

use super::far::{self, Far, Heard, Times};
use super::nodes::To;
use super::secret::Secret;
use super::wire::{self, Answer, Hello, Letter, Word};
use super::{Config, GATE, Identity, Nodes, SCOPE, random, session};
use crate::admission::{Door, Served, Way};
use crate::heart::Heart;

/// What this machine's own engine is called among nodes.
const OWN: &str = "gateway";
/// Between two looks whether its own engine is at work.
const LOOK_TIME: Duration = Duration::from_secs(1);
/// An engine that was not seen for so long is not at work.
const AGE_MAX: Duration = Duration::from_secs(5);
/// Longest name of a node.
const NAME_MAX: usize = 64;
/// Most nodes: metrics have a series for each.
const NODES_MAX: usize = 64;

/// What it hears.
#[derive(Debug)]
pub enum Message {
    /// A node says something.
    Letter(Vec<u8>),
    /// A node asks to join.
    Hello(Vec<u8>, RpcReplyPort<Vec<u8>>),
    /// This machine's engine serves.
    Own(Box<Served>),
    /// It does not, for this reason; `true` if it never will again.
    OwnGone(String, bool),
    /// Somebody's state is another.
    Changed,
    /// Look whether the own engine is at work.
    Look,
}

impl ractor::Message for Message {
    fn serializable() -> bool {
        true
    }

    fn serialize(self) -> Result<SerializedMessage, BoxedDowncastErr> {
        let (variant, metadata) = (String::new(), None);
        match self {
            Self::Letter(args) => Ok(SerializedMessage::Cast { variant, args, metadata }),
            Self::Hello(args, reply) => {
                Ok(SerializedMessage::Call { variant, args, reply, metadata })
            }
            Self::Own(_) | Self::OwnGone(..) | Self::Changed | Self::Look => Err(BoxedDowncastErr),
        }
    }

    /// An error would end the actor: what is not understood is an empty letter instead.
    fn deserialize(message: SerializedMessage) -> Result<Self, BoxedDowncastErr> {
        Ok(match message {
            SerializedMessage::Cast { args, .. } => Self::Letter(args),
            SerializedMessage::Call { args, reply, .. } => Self::Hello(args, reply),
            SerializedMessage::CallReply(..) => Self::Letter(Vec::new()),
        })
    }
}

/// What a gateway is made of.
pub struct Blueprint {
    /// Times and places.
    pub config: Config,
    /// What all nodes share.
    pub secret: Secret,
    /// What all nodes must be.
    pub identity: Identity,
    /// Who is here; the door has it, too.
    pub nodes: Nodes,
    /// How long nodes may take to finish what they have.
    pub drain: Duration,
    /// Who lets requests in.
    pub door: Arc<dyn Door>,
}

impl fmt::Debug for Blueprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blueprint").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Why there is no gateway.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is taken, not ours, or none.
    #[error("cannot listen for nodes on {address}")]
    Listen {
        /// Where it was tried.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// There are no sessions.
    #[error(transparent)]
    Sessions(#[from] session::Failure),
    /// The actor did not come up.
    #[error("cannot start the gateway")]
    Spawn(#[from] ractor::SpawnErr),
}

/// Refers to a running gateway. To this machine's root it is the door.
#[derive(Clone, Debug)]
pub struct Handle {
    actor: ActorRef<Message>,
    /// Where nodes may join.
    pub address: SocketAddr,
}

impl Door for Handle {
    fn serve(&self, engine: Served) {
        // A gate that is gone serves nobody.
        let _ = self.actor.cast(Message::Own(Box::new(engine)));
    }

    fn between(&self, reason: String) {
        let _ = self.actor.cast(Message::OwnGone(reason, false));
    }

    fn over(&self, reason: String) {
        let _ = self.actor.cast(Message::OwnGone(reason, true));
    }
}

/// Starts a gateway: nodes may join from now on.
///
/// # Errors
/// [`StartError`] if the address cannot be had.
pub async fn start(blueprint: Blueprint) -> Result<Handle, StartError> {
    let address = blueprint.config.listen.clone();
    let listen = |source| StartError::Listen { address: address.clone(), source };
    let listener = TcpListener::bind(&address).await.map_err(listen)?;
    let at = listener.local_addr().map_err(listen)?;
    let server = session::server(&blueprint.secret).await?;
    let acceptor = blueprint.secret.acceptor().map_err(session::Failure::from)?;
    let (actor, _) = Actor::spawn(None, Gate, (blueprint, server.clone())).await?;
    // Who comes finds it.
    ractor::pg::join_scoped(SCOPE.into(), GATE.into(), vec![actor.get_cell()]);
    tokio::spawn(session::listen(listener, acceptor, server));
    Ok(Handle { actor, address: at })
}

/// The actor.
struct Gate;

struct State {
    of: Blueprint,
    server: session::Server,
    members: BTreeMap<u64, Member>,
    own: Option<(NodeId, Served)>,
    /// Why the own engine does not serve.
    waiting: String,
    over: bool,
    heart: Heart,
}

struct Member {
    far: ActorRef<far::Message>,
    info: EngineInfo,
    name: String,
}

impl Actor for Gate {
    type Msg = Message;
    type State = State;
    type Arguments = (Blueprint, session::Server);

    async fn pre_start(
        &self,
        myself: ActorRef<Message>,
        (of, server): Self::Arguments,
    ) -> Result<State, ActorProcessingErr> {
        myself.send_interval(LOOK_TIME, || Message::Look);
        of.nodes.kept_by(myself);
        let waiting = "no node has joined yet".to_owned();
        let state = State {
            of,
            server,
            members: BTreeMap::new(),
            own: None,
            waiting,
            over: false,
            heart: Heart::default(),
        };
        state.announce();
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Letter(bytes) => state.hear(&bytes),
            Message::Hello(bytes, reply) => {
                let answer = state.meet(&bytes, &myself).await;
                if let Answer::Refused { reason, .. } = &answer {
                    tracing::warn!(reason, "a node was refused");
                }
                // Who asked may have gone.
                let _ = reply.send(wire::bytes(&answer));
            }
            Message::Own(served) => state.own(*served),
            Message::OwnGone(reason, over) => state.own_gone(reason, over),
            Message::Changed => state.announce(),
            Message::Look => state.look(),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<Message>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(who, error) => state.lost(who.get_id(), &error),
            SupervisionEvent::ActorTerminated(who, _, reason) => {
                state.lost(who.get_id(), &reason.unwrap_or_default());
            }
            SupervisionEvent::ActorStarted(_)
            | SupervisionEvent::ProcessGroupChanged(_)
            | SupervisionEvent::PidLifecycleEvent(_) => {}
        }
        Ok(())
    }
}

impl State {
    fn hear(&self, bytes: &[u8]) {
        let Some(Letter::<Word> { epoch, what }) = wire::read(bytes) else {
            tracing::warn!(bytes = bytes.len(), "a node said what nobody understands");
            return;
        };
        // What a membership says that is over is of no interest.
        if let Some(member) = self.members.get(&epoch) {
            let _ = member.far.cast(far::Message::Heard(Heard(what)));
        }
    }

    async fn meet(&mut self, bytes: &[u8], myself: &ActorRef<Message>) -> Answer {
        let Some(hello) = wire::read::<Hello>(bytes) else {
            let reason = format!(
                "it speaks another language than this gateway's version {}",
                self.of.identity.version
            );
            return Answer::Refused { reason, again: false };
        };
        if let Err((reason, again)) = self.check(&hello) {
            return Answer::Refused { reason: format!("{}: {reason}", hello.name), again };
        }
        let Some(worker) = session::found(&hello.group) else {
            return Answer::Refused { reason: "its actor was not announced".into(), again: true };
        };
        let epoch = random();
        let info: EngineInfo = hello.info.into();
        let Config { beat_s, silence_s, .. } = self.of.config;
        let times = Times {
            beat: Duration::from_secs_f64(beat_s),
            silence: Duration::from_secs_f64(silence_s),
            drain: self.of.drain,
        };
        let arguments = far::Arguments {
            epoch,
            name: hello.name.clone(),
            nodes: self.of.nodes.clone(),
            worker: ActorRef::from(worker),
            gate: myself.clone(),
            server: self.server.clone(),
            heart: self.heart.clone(),
            slots: info.slots,
            times,
        };
        let Ok((far, _)) = Actor::spawn_linked(None, Far, arguments, myself.get_cell()).await
        else {
            return Answer::Refused { reason: "it is shutting down".into(), again: true };
        };
        tracing::info!(node = hello.name, device = info.device, "a node has joined");
        self.members.insert(epoch, Member { far, info, name: hello.name });
        self.heart.beat();
        self.announce();
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (beat_ms, silence_ms) = (millis(times.beat), millis(times.silence));
        Answer::Welcome { epoch, beat_ms, silence_ms }
    }

    /// Whether it may join; if not, why, and whether it may soon.
    fn check(&self, hello: &Hello) -> Result<(), (String, bool)> {
        fits(&self.of.identity, self.numerics(), hello).map_err(|reason| (reason, false))?;
        if hello.name == OWN || self.of.nodes.has(&hello.name) {
            return Err(("a node of this name is here already".into(), true));
        }
        if self.members.len() >= NODES_MAX {
            return Err((format!("there are {NODES_MAX} nodes already"), true));
        }
        Ok(())
    }

    /// Whose bits all must have.
    fn numerics(&self) -> Option<&String> {
        let own = self.own.as_ref().map(|(_, served)| &served.info.identity);
        own.or_else(|| self.members.values().next().map(|member| &member.info.identity))
    }

    fn own(&mut self, served: Served) {
        self.own_left();
        if let Some(bank) = served.bank() {
            let to = To::Here(bank.clone());
            let id = self.of.nodes.join(OWN.to_owned(), to, served.info.slots);
            // Who joined before it was open may be another.
            let other = |member: &&Member| member.info.identity != served.info.identity;
            for member in self.members.values().filter(other) {
                tracing::error!(node = member.name, "a node has other numerics than the gateway");
                member.far.stop(Some("it has other numerics than the gateway".into()));
            }
            self.own = Some((id, served));
        }
        self.look();
        self.announce();
    }

    fn own_gone(&mut self, reason: String, over: bool) {
        self.own_left();
        (self.waiting, self.over) = (reason, self.over || over);
        self.announce();
    }

    fn own_left(&mut self) {
        if let Some((id, _)) = self.own.take() {
            self.of.nodes.leave(id);
        }
    }

    fn lost(&mut self, who: ActorId, reason: &impl fmt::Display) {
        self.of.nodes.lost(who);
        let before = self.members.len();
        self.members.retain(|_, member| {
            let gone = member.far.get_id() == who;
            if gone {
                tracing::warn!(node = member.name, %reason, "a node is no member any more");
            }
            !gone
        });
        if self.members.len() < before {
            self.announce();
        }
    }

    /// Tells the door who serves. It passes that on to those who wait for a place.
    fn announce(&self) {
        let own = self.own.iter().map(|(_, served)| served.info.as_ref());
        let all = own.chain(self.members.values().map(|member| &member.info));
        // What the smallest can do, all can.
        let room = |info: &&EngineInfo| {
            let pages = info.pages_max.min(info.rows_pages_max).saturating_mul(info.page_tokens);
            info.context_tokens_max.min(pages).min(guard::tokens_max(info))
        };
        match all.min_by_key(room) {
            Some(info) if self.of.nodes.is_open() => self.of.door.serve(Served {
                way: Way::Several(self.of.nodes.clone()),
                tuner: self.own.as_ref().and_then(|(_, served)| served.tuner.clone()),
                info: Arc::new(info.clone()),
                heart: self.heart.clone(),
            }),
            Some(_) => self.of.door.between("all nodes are being drained".into()),
            None if self.over && self.of.config.engine => self.of.door.over(self.waiting.clone()),
            None => self.of.door.between(self.waiting.clone()),
        }
    }

    fn look(&self) {
        if self.own.as_ref().is_some_and(|(_, served)| served.heart.age() < AGE_MAX) {
            self.heart.beat();
        }
        self.of.nodes.tell();
    }
}

/// Whether it is what all must be, and has a name that can be said.
pub(super) fn fits(
    identity: &Identity,
    numerics: Option<&String>,
    hello: &Hello,
) -> Result<(), String> {
    let theirs = &hello.info.identity;
    let pairs = [
        ("version", &identity.version, &hello.version),
        ("model", &identity.model, &hello.model),
        ("chat template or tokenizer", &identity.template, &hello.template),
        ("quantisation, page size or numerics", numerics.unwrap_or(theirs), theirs),
    ];
    if let Some((what, ours, theirs)) = pairs.iter().find(|(_, ours, theirs)| ours != theirs) {
        return Err(format!("another {what}: it has {theirs}, and here it is {ours}"));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !(1..=NAME_MAX).contains(&hello.name.len()) || !hello.name.chars().all(plain) {
        let reason = "a node's name is of letters, digits, '.', '_' and '-', at most 64 of them";
        return Err(reason.into());
    }
    Ok(())
}

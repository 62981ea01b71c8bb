//! What travels from the door to the engine: a checked request, the permit that bounds the house
//! and the sender of its stream. And what travels back: whether the door is open.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mtplx_core::batch::RowEvent;
use mtplx_core::engine::EngineInfo;
use mtplx_core::request::Request;
use ractor::{ActorId, ActorRef};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;
use tracing::Span;

use crate::heart::Heart;
use crate::node::{Nodes, Seat};
use crate::{bank, tuner};

/// A request on its way in. Dropping it gives the permit back and closes the stream.
#[derive(Debug)]
pub struct Admission {
    /// What is wanted.
    pub request: Request,
    /// Where tokens and the end go. The channel has room for every event the request may cause, so
    /// that sending never waits; when the receiver is gone, so is the client.
    pub events: mpsc::Sender<RowEvent>,
    /// The place in the house, held until the row has left.
    pub permit: OwnedSemaphorePermit,
    /// Of the HTTP request, for what is told of it.
    pub span: Span,
    /// When it came. Whoever makes it wait counts from there, so that one who waits twice waits no
    /// longer than one who waits once.
    pub since: Instant,
    /// Whether an engine is at work on it.
    pub work: AtWork,
}

/// Whether an engine is at work on a request: it is being looked at for the first time, or its row
/// has a slot. If the engine ends meanwhile, this request may be to blame, and no other can be.
#[derive(Clone, Debug, Default)]
pub struct AtWork(Arc<AtomicBool>);

impl AtWork {
    /// From now on it is, or is not.
    pub fn set(&self, is: bool) {
        self.0.store(is, Ordering::Relaxed);
    }

    /// Whether it is, or was when the engine ended.
    #[must_use]
    pub fn is(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// An engine that serves, as the door knows it; or several.
#[derive(Clone, Debug)]
pub struct Served {
    /// Where requests go. A generation ago it was another.
    pub way: Way,
    /// Who sets the knobs of this process's engine, where it has one.
    pub tuner: Option<ActorRef<tuner::Message>>,
    /// What the engine is; of several, what all of them can do.
    pub info: Arc<EngineInfo>,
    /// Whether it lives.
    pub heart: Heart,
}

/// The way from the door to an engine.
#[derive(Clone, Debug)]
pub enum Way {
    /// There is one, of this process.
    One(ActorRef<bank::Message>),
    /// There are several, here and elsewhere, and one is chosen for each request.
    Several(Nodes),
}

impl Served {
    /// The bank, where there is one only.
    #[must_use]
    pub fn bank(&self) -> Option<&ActorRef<bank::Message>> {
        match &self.way {
            Way::One(bank) => Some(bank),
            Way::Several(_) => None,
        }
    }

    /// Where a request goes that lost its row on `last`, if it did; `None` if nobody can take it.
    #[must_use]
    pub fn entry(&self, request: &Request, last: Option<ActorId>) -> Option<Entry> {
        match &self.way {
            Way::One(bank) => (Some(bank.get_id()) != last).then(|| Entry::Here(bank.clone())),
            Way::Several(nodes) => nodes.entry(request, last).map(Entry::Node),
        }
    }
}

/// Where one request goes in.
#[derive(Clone, Debug)]
pub enum Entry {
    /// The only bank.
    Here(ActorRef<bank::Message>),
    /// One of several engines, which counts the request as long as this is held.
    Node(Arc<Seat>),
}

impl Entry {
    /// The name of the engine's generation.
    #[must_use]
    pub fn id(&self) -> ActorId {
        match self {
            Self::Here(bank) => bank.get_id(),
            Self::Node(seat) => seat.id(),
        }
    }

    /// Hands it in. One that is gone drops it, which is how one hears that it is gone.
    pub fn open(&self, admission: Admission) {
        match self {
            Self::Here(bank) => drop(bank.cast(bank::Message::Open(admission))),
            Self::Node(seat) => seat.open(admission),
        }
    }

    /// Its row has a slot.
    pub fn seated(&self) {
        if let Self::Node(seat) = self {
            seat.seated();
        }
    }
}

/// What the root tells whoever keeps the door: whether and by whom requests are served. Called from
/// the root actor; must not wait.
pub trait Door: Send + Sync {
    /// Requests go there from now on.
    fn serve(&self, engine: Served);

    /// Nobody serves until further notice. `reason` is for clients.
    fn between(&self, reason: String);

    /// Nobody will serve any more. `reason` is for clients.
    fn over(&self, reason: String);
}

//! All engines that the door can send requests to, and which of them each request was sent to. The
//! choice is the core's ([`Route`]); a lock holds it, so that whoever comes in is not sent through
//! one more mailbox, and it takes some microseconds.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mtplx_core::request::Request;
use mtplx_core::route::{Ask, Health, NodeId, Placed, Route};
use ractor::{ActorId, ActorRef};
use serde::Serialize;

use super::{far, gate};
use crate::admission::Admission;
use crate::{bank, metrics};

/// The engines; clones are the same.
#[derive(Clone, Default)]
pub struct Nodes(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    route: Route,
    nodes: BTreeMap<NodeId, Node>,
    last_id: u64,
    /// Whom to tell that somebody is drained, or is not any more.
    gate: Option<ActorRef<gate::Message>>,
    /// Names that metrics know: so many that those who come and go do not fill them.
    labels: BTreeSet<String>,
}

/// Names that metrics know; all others are one.
const LABELS_MAX: usize = 64;

struct Node {
    name: String,
    label: String,
    to: To,
    slots: usize,
    rtt: Option<Duration>,
    /// Whether its machine is to end.
    leaving: bool,
}

/// Where an engine is.
#[derive(Clone, Debug)]
pub(super) enum To {
    /// In this process.
    Here(ActorRef<bank::Message>),
    /// Behind this stand-in.
    There(ActorRef<far::Message>),
}

impl To {
    fn id(&self) -> ActorId {
        match self {
            Self::Here(bank) => bank.get_id(),
            Self::There(far) => far.get_id(),
        }
    }
}

/// Why somebody is sent no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stays {
    /// None has this name.
    Unknown,
    /// Its machine is to end.
    Leaving,
}

impl Table {
    fn named(&self, name: &str) -> Option<NodeId> {
        self.nodes.iter().find_map(|(&id, node)| (node.name == name).then_some(id))
    }

    /// Tells a stand-in, and the gate. Who is gone needs to know nothing.
    fn tell(&self, id: NodeId, what: far::Message) {
        if let Some(Node { to: To::There(far), .. }) = self.nodes.get(&id) {
            let _ = far.cast(what);
        }
        if let Some(gate) = &self.gate {
            let _ = gate.cast(gate::Message::Changed);
        }
    }
}

/// An engine in numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Its name.
    pub name: String,
    /// `ready`, `silent` or `draining`.
    pub state: &'static str,
    /// Answers that it is making, or is to make.
    pub rows: usize,
    /// Rows that it can run at once.
    pub slots: usize,
    /// Prompt tokens of those that have no slot there yet.
    pub queued_tokens: usize,
    /// Milliseconds that a message took there and back of late; nothing for this machine's own.
    pub rtt_ms: Option<f64>,
}

impl Nodes {
    /// One more.
    pub(super) fn join(&self, name: String, to: To, slots: usize) -> NodeId {
        let mut table = self.lock();
        table.last_id += 1;
        let id = NodeId(table.last_id);
        table.route.join(id, slots);
        if table.labels.len() < LABELS_MAX {
            table.labels.insert(name.clone());
        }
        let label = table.labels.get(&name).cloned().unwrap_or_else(|| "other".to_owned());
        table.nodes.insert(id, Node { name, label, to, slots, rtt: None, leaving: false });
        id
    }

    /// One is gone.
    pub(super) fn leave(&self, id: NodeId) {
        let mut table = self.lock();
        table.route.leave(id);
        if let Some(node) = table.nodes.remove(&id) {
            metrics::node(&node.label, 0, "gone", None);
        }
    }

    /// The one behind this actor is gone, if it did not say so itself.
    pub(super) fn lost(&self, who: ActorId) {
        let id = {
            let table = self.lock();
            let mut nodes = table.nodes.iter();
            nodes.find_map(|(&id, node)| (node.to.id() == who).then_some(id))
        };
        id.into_iter().for_each(|id| self.leave(id));
    }

    /// Whether it is sent more.
    pub(super) fn turn(&self, id: NodeId, health: Health) {
        self.lock().route.turn(id, health);
    }

    /// Its machine is to end: it is sent no more.
    pub(super) fn leaving(&self, id: NodeId) {
        self.lock().nodes.entry(id).and_modify(|node| node.leaving = true);
    }

    /// Who keeps the gate.
    pub(super) fn kept_by(&self, gate: ActorRef<gate::Message>) {
        self.lock().gate = Some(gate);
    }

    /// This machine's own bank, where its engine serves.
    pub(crate) fn own(&self) -> Option<ActorRef<bank::Message>> {
        let own = |node: &Node| match &node.to {
            To::Here(bank) => Some(bank.clone()),
            To::There(_) => None,
        };
        self.lock().nodes.values().find_map(own)
    }

    /// What a message took there and back.
    pub(super) fn timed(&self, id: NodeId, rtt: Duration) {
        self.lock().nodes.entry(id).and_modify(|node| node.rtt = Some(rtt));
    }

    /// Whether anybody takes requests.
    pub(super) fn is_open(&self) -> bool {
        self.lock().route.has_other(None)
    }

    /// Whether one has this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.lock().nodes.values().any(|node| node.name == name)
    }

    /// Where a request goes that lost its row on `last`, if it did.
    pub(crate) fn entry(&self, request: &Request, last: Option<ActorId>) -> Option<Arc<Seat>> {
        let ask = Ask {
            tenant: request.sharing.tenant,
            prompt: &request.prompt,
            leaves: !request.sharing.background,
        };
        let mut table = self.lock();
        let mut nodes = table.nodes.iter();
        let last = nodes.find_map(|(&id, node)| (Some(node.to.id()) == last).then_some(id));
        let placed = table.route.place(&ask, last)?;
        let to = table.nodes.get(&placed.node)?.to.clone();
        let seated = AtomicBool::new(false);
        Some(Arc::new(Seat { nodes: self.clone(), placed, to, seated }))
    }

    /// How it stands with all of them.
    #[must_use]
    pub fn reports(&self) -> Vec<Report> {
        let table = self.lock();
        let report = |(&id, node): (&NodeId, &Node)| {
            let load = table.route.load(id)?;
            let state = match load.health {
                Health::Ready => "ready",
                Health::Silent => "silent",
                Health::Draining => "draining",
            };
            Some(Report {
                name: node.name.clone(),
                state,
                rows: load.rows,
                slots: node.slots,
                queued_tokens: load.queued,
                rtt_ms: node.rtt.map(|rtt| (rtt.as_secs_f64() * 1e6).round() / 1e3),
            })
        };
        table.nodes.iter().filter_map(report).collect()
    }

    /// Tells metrics how it stands with all of them.
    pub(super) fn tell(&self) {
        let labels: BTreeMap<String, String> = {
            let table = self.lock();
            table.nodes.values().map(|node| (node.name.clone(), node.label.clone())).collect()
        };
        for Report { name, state, rows, rtt_ms, .. } in self.reports() {
            if let Some(label) = labels.get(&name) {
                metrics::node(label, rows, state, rtt_ms.map(|ms| ms / 1e3));
            }
        }
    }

    /// Lets one finish what it has, and sends it no more. False if none has this name.
    #[must_use]
    pub fn drain(&self, name: &str) -> bool {
        let mut table = self.lock();
        let Some(id) = table.named(name) else { return false };
        table.route.turn(id, Health::Draining);
        table.tell(id, far::Message::Drain);
        true
    }

    /// Takes that back.
    ///
    /// # Errors
    /// When there is nobody to be sent more.
    pub fn resume(&self, name: &str) -> Result<(), Stays> {
        let mut table = self.lock();
        let id = table.named(name).ok_or(Stays::Unknown)?;
        let Some(Node { to, leaving: false, .. }) = table.nodes.get(&id) else {
            return Err(Stays::Leaving);
        };
        // Who is elsewhere is told first, and sent more when its stand-in knows.
        if matches!(to, To::Here(_)) {
            table.route.turn(id, Health::Ready);
        }
        table.tell(id, far::Message::Resume);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Nothing can go wrong while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartialEq for Nodes {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.reports()).finish()
    }
}

/// A request's place at an engine. It counts there until this is dropped.
pub struct Seat {
    nodes: Nodes,
    placed: Placed,
    to: To,
    seated: AtomicBool,
}

impl Seat {
    pub(crate) fn id(&self) -> ActorId {
        self.to.id()
    }

    pub(crate) fn open(&self, admission: Admission) {
        match &self.to {
            To::Here(bank) => drop(bank.cast(bank::Message::Open(admission))),
            To::There(far) => drop(far.cast(far::Message::Open(Box::new(admission)))),
        }
    }

    pub(crate) fn seated(&self) {
        if !self.seated.swap(true, Ordering::Relaxed) {
            self.nodes.lock().route.seated(&self.placed);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let seated = self.seated.load(Ordering::Relaxed);
        self.nodes.lock().route.left(&self.placed, seated);
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").field("placed", &self.placed).finish_non_exhaustive()
    }
}

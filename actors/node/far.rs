//! A node's stand-in at the gateway, for one membership: it is what a bank is where there is one
//! machine. What is sent to it runs there; when it dies, all of it is lost, and goes on elsewhere.

use std::collections::BTreeMap;
use std::time::Duration;

use mtplx_core::batch::RowEvent;
use mtplx_core::grammar::Constraint;
use mtplx_core::request::{Finish, Usage};
use mtplx_core::route::{Health, NodeId};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;

use super::wire::{self, Asked, Letter, News, Order, Word};
use super::{Nodes, gate, session, worker};
use crate::admission::{Admission, AtWork};
use crate::heart::Heart;

/// Between two looks whether the connection stands.
const LOOK_TIME: Duration = Duration::from_millis(100);

/// What it hears.
#[derive(Debug)]
pub enum Message {
    /// A request is to run there.
    Open(Box<Admission>),
    /// The node said something.
    Heard(Heard),
    /// Look whether it lives, and say that we do.
    Look,
    /// Send it nothing more.
    Drain,
    /// Send it more again.
    Resume,
    /// What it still has goes on elsewhere, if this drain was not taken back.
    Deadline(u64),
}

impl ractor::Message for Message {}

/// What a node said.
#[derive(Debug)]
pub struct Heard(pub(super) Word);

/// The actor.
pub(super) struct Far;

/// What it is of.
pub(super) struct Arguments {
    pub(super) epoch: u64,
    pub(super) name: String,
    pub(super) nodes: Nodes,
    pub(super) worker: ActorRef<worker::Message>,
    pub(super) gate: ActorRef<gate::Message>,
    pub(super) server: session::Server,
    pub(super) heart: Heart,
    pub(super) slots: usize,
    pub(super) times: Times,
}

/// How long what may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) beat: Duration,
    pub(super) silence: Duration,
    pub(super) drain: Duration,
}

/// What it remembers.
pub(super) struct State {
    of: Arguments,
    id: NodeId,
    rows: BTreeMap<u64, Row>,
    born: Instant,
    heard: Instant,
    beaten: Instant,
    health: Health,
    /// Drains that there were.
    drains: u64,
    /// Whether the node is to end.
    leaving: bool,
}

struct Row {
    events: mpsc::Sender<RowEvent>,
    /// The place in the house, until the row has left there.
    _permit: OwnedSemaphorePermit,
    grammar: Option<Constraint>,
    work: AtWork,
    /// Whether the node was told that nobody waits for it.
    cancelled: bool,
}

impl Actor for Far {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Message>,
        of: Arguments,
    ) -> Result<State, ActorProcessingErr> {
        let to = super::nodes::To::There(myself.clone());
        let id = of.nodes.join(of.name.clone(), to, of.slots);
        myself.send_interval(LOOK_TIME.min(of.times.beat), || Message::Look);
        let now = Instant::now();
        let health = Health::Ready;
        let (rows, drains, leaving) = (BTreeMap::new(), 0, false);
        Ok(State { of, id, rows, born: now, heard: now, beaten: now, health, drains, leaving })
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Open(admission) => state.open(*admission),
            Message::Heard(Heard(word)) => state.hear(&myself, word),
            Message::Look => state.look(&myself),
            Message::Drain => state.drain(&myself),
            Message::Resume => state.resume(),
            Message::Deadline(drain) if drain == state.drains => state.move_on(),
            Message::Deadline(_) => {}
        }
        Ok(())
    }

    /// Nobody comes here any more before the streams close, so that none of them comes back.
    async fn post_stop(
        &self,
        _myself: ActorRef<Message>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        state.of.nodes.leave(state.id);
        state.say(Order::Part);
        Ok(())
    }
}

impl State {
    fn say(&self, what: Order) {
        let letter = wire::bytes(&Letter { epoch: self.of.epoch, what });
        // One that is gone is found out by looking.
        let _ = self.of.worker.cast(worker::Message::Letter(letter));
    }

    fn open(&mut self, Admission { request, events, permit, work, .. }: Admission) {
        if self.health == Health::Draining {
            // Who was on the way goes on to the next.
            return;
        }
        let row = request.id.0;
        let asked = Asked::new(&request).filter(|asked| wire::bytes(asked).len() < FITS);
        let Some(asked) = asked else {
            tracing::error!(request = row, "a request cannot be sent to a node");
            let _ = events.try_send(RowEvent::Finished(Finish::Fault, Usage::default()));
            return;
        };
        let grammar = request.sampling.grammar;
        self.rows.insert(row, Row { events, _permit: permit, grammar, work, cancelled: false });
        self.say(Order::Open { row, asked: Box::new(asked) });
    }

    fn hear(&mut self, myself: &ActorRef<Message>, word: Word) {
        self.heard = Instant::now();
        self.of.heart.beat();
        match word {
            Word::News(all) => {
                for (row, news) in all {
                    self.news(row, news);
                }
                self.cancel();
            }
            Word::Beat(stamp) => {
                let now = micros(self.born.elapsed());
                let rtt = Duration::from_micros(now.saturating_sub(stamp));
                self.of.nodes.timed(self.id, rtt);
            }
            Word::Leaving => {
                self.leaving = true;
                self.of.nodes.leaving(self.id);
                self.drain(myself);
            }
            Word::Lost(reason) => {
                tracing::warn!(node = self.of.name, reason, "a node lost its engine");
                myself.stop(Some(reason));
            }
        }
    }

    fn news(&mut self, row: u64, news: News) {
        // Of a row that is not here any more nobody wants to hear.
        let Some(known) = self.rows.get_mut(&row) else { return };
        match news {
            // Only the node knows. One that is killed or cut off says nothing, and no row of it is
            // blamed.
            News::Left(at_work) => {
                known.work.set(at_work);
                self.rows.remove(&row);
            }
            News::GaveUp(reason) => {
                known.grammar.iter().for_each(|grammar| grammar.gave_up(&reason));
            }
            News::Seated
            | News::Logprobs(_)
            | News::Tokens(..)
            | News::Finished(..)
            | News::Refused(_)
            | News::Late => {
                let Some(event) = news.event() else { return };
                if let Err(TrySendError::Full(_)) = known.events.try_send(event) {
                    tracing::error!(request = row, "a stream had no room for its events");
                    self.rows.remove(&row);
                    self.say(Order::Cancel(vec![row]));
                }
            }
        }
    }

    /// Tells the node of those whose clients have left.
    fn cancel(&mut self) {
        let closed = self.rows.iter_mut().filter(|(_, r)| !r.cancelled && r.events.is_closed());
        let closed: Vec<u64> = closed
            .map(|(&row, known)| {
                known.cancelled = true;
                row
            })
            .collect();
        if !closed.is_empty() {
            self.say(Order::Cancel(closed));
        }
    }

    fn look(&mut self, myself: &ActorRef<Message>) {
        let Times { beat, silence, .. } = self.of.times;
        if !session::is_there(&self.of.worker.get_cell()) {
            tracing::warn!(node = self.of.name, rows = self.rows.len(), "a node is gone");
            return myself.stop(Some("its connection ended".into()));
        }
        let quiet = self.heard.elapsed();
        if quiet > silence {
            tracing::warn!(node = self.of.name, rows = self.rows.len(), ?quiet, "a node is silent");
            let cell = self.of.worker.get_cell();
            tokio::spawn(session::hang_up(self.of.server.clone(), cell));
            return myself.stop(Some("it is silent".into()));
        }
        let health = if quiet > silence / 2 { Health::Silent } else { Health::Ready };
        if self.health != Health::Draining && self.health != health {
            self.turn(health);
        }
        self.cancel();
        if self.beaten.elapsed() >= beat {
            self.beaten = Instant::now();
            self.say(Order::Beat(micros(self.born.elapsed())));
        }
    }

    fn turn(&mut self, health: Health) {
        self.health = health;
        self.of.nodes.turn(self.id, health);
        let _ = self.of.gate.cast(gate::Message::Changed);
    }

    fn drain(&mut self, myself: &ActorRef<Message>) {
        self.say(Order::Drain);
        if self.health == Health::Draining {
            return;
        }
        tracing::info!(node = self.of.name, rows = self.rows.len(), "a node is drained");
        self.turn(Health::Draining);
        self.drains += 1;
        let drain = self.drains;
        myself.send_after(self.of.times.drain, move || Message::Deadline(drain));
    }

    fn resume(&mut self) {
        if self.health == Health::Draining && !self.leaving {
            tracing::info!(node = self.of.name, "a node is drained no more");
            // A deadline that is on its way finds another number.
            self.drains += 1;
            self.say(Order::Resume);
            self.turn(Health::Ready);
        }
    }

    fn move_on(&mut self) {
        let rows: Vec<u64> = std::mem::take(&mut self.rows).into_keys().collect();
        if !rows.is_empty() {
            tracing::info!(node = self.of.name, rows = rows.len(), "what it has goes on elsewhere");
            self.say(Order::Cancel(rows));
        }
    }
}

/// With what is put around it.
const FITS: usize = wire::FRAME_BYTES_MAX as usize - 4096;

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

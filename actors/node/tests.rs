use std::sync::Arc;
use std::time::Duration;

use mtplx_core::batch::RowEvent;
use mtplx_core::engine::Engine;
use mtplx_core::request::{Finish, Request, Usage};
use mtplx_core::scripted::Scripted;
use ractor::{Actor, ActorRef};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::Instant;
use tracing::Span;

use super::far::{self, Far, Heard, Times};
use super::nodes::To;
use super::secret::Secret;
use super::wire::{self, Hello, Info, Letter, News, Order, Word};
use super::{Config, Identity, Nodes, Stays, gate, session, worker};
use crate::admission::{Admission, AtWork};
use crate::bank;
use crate::heart::Heart;
use crate::oracle::{request, script};
use crate::probe::probe;

pub(crate) mod town;

fn identity() -> Identity {
    Identity { version: "1".into(), model: "m".into(), template: "t".into() }
}

fn hello() -> Hello {
    let Identity { version, model, template } = identity();
    let info = Info::from(Scripted::small(script()).info());
    Hello { version, group: "g".into(), name: "one".into(), model, template, info }
}

#[test]
fn who_is_another_is_told_what_is() {
    let numerics = hello().info.identity;
    let fits = |hello: &Hello| gate::fits(&identity(), Some(&numerics), hello);
    assert_eq!(fits(&hello()), Ok(()));
    let other = |change: fn(&mut Hello)| {
        let mut other = hello();
        change(&mut other);
        fits(&other).unwrap_err()
    };
    for (reason, what) in [
        (other(|hello| hello.version = "2".into()), "another version: it has 2, and here it is 1"),
        (other(|hello| hello.model = "n".into()), "another model"),
        (other(|hello| hello.template = "u".into()), "another chat template"),
        (other(|hello| hello.info.identity = "gpu".into()), "another quantisation"),
        (other(|hello| hello.name = "a b".into()), "a node's name"),
        (other(|hello| hello.name = String::new()), "a node's name"),
    ] {
        assert!(reason.contains(what), "{reason}");
    }
    assert_eq!(gate::fits(&identity(), None, &hello()), Ok(()), "the first says what it is");
}

#[test]
fn settings_that_cannot_work_are_refused_by_name() {
    let fine = Config { beat_s: 0.5, silence_s: 3.0, ..Config::default() };
    assert_eq!(fine.check(), Ok(()));
    let named = |config: Config| config.check().unwrap_err();
    assert!(named(Config { beat_s: 0.0, ..fine.clone() }).contains("cluster.beat_s"));
    assert!(named(Config { silence_s: 1.0, ..fine.clone() }).contains("cluster.silence_s"));
    assert!(named(Config { listen: "a:1".into(), ..fine }).contains("cluster.secret"));
}

#[tokio::test]
async fn a_request_counts_where_it_was_sent_until_nobody_holds_its_seat() {
    let nodes = Nodes::default();
    let (bank, mut heard) = probe::<bank::Message>().await;
    let id = nodes.join("one".into(), To::Here(bank.clone()), 4);
    let asked = request(1, &[1; 100], 5);
    let seat = nodes.entry(&asked, None).unwrap();
    let told = || nodes.reports().remove(0);
    assert_eq!((told().rows, told().queued_tokens), (1, 100));
    let (admission, _guest) = crate::oracle::admit(&Arc::new(Semaphore::new(1)), asked).await;
    seat.open(admission);
    assert!(matches!(heard.recv().await, Some(bank::Message::Open(_))));
    seat.seated();
    assert_eq!((told().rows, told().queued_tokens), (1, 0));
    assert!(nodes.entry(&request(2, &[1; 9], 5), Some(bank.get_id())).is_none(), "it was there");
    drop(seat);
    assert_eq!((told().rows, told().queued_tokens), (0, 0));
    assert!(nodes.drain("one") && !nodes.drain("two"));
    assert!(!nodes.is_open());
    nodes.leave(id);
    assert!(nodes.reports().is_empty());
}

/// A stand-in for a node, with what the node hears and whom it tells.
struct Stage {
    nodes: Nodes,
    far: ActorRef<far::Message>,
    orders: UnboundedReceiver<worker::Message>,
}

impl Stage {
    async fn new(silence: Duration) -> Self {
        let nodes = Nodes::default();
        let (worker, orders) = probe::<worker::Message>().await;
        let (gate, _) = probe::<gate::Message>().await;
        let server = session::server(&Secret::new(&"5".repeat(64)).unwrap()).await.unwrap();
        let drain = Duration::from_secs(3);
        let arguments = far::Arguments {
            epoch: 7,
            name: "one".into(),
            nodes: nodes.clone(),
            worker,
            gate,
            server,
            heart: Heart::default(),
            slots: 4,
            times: Times { beat: Duration::from_millis(50), silence, drain },
        };
        let (far, _) = Actor::spawn(None, Far, arguments).await.unwrap();
        Self { nodes, far, orders }
    }

    async fn open(&self, request: Request, house: &Arc<Semaphore>) -> mpsc::Receiver<RowEvent> {
        self.open_for(request, house, AtWork::default()).await
    }

    async fn open_for(
        &self,
        request: Request,
        house: &Arc<Semaphore>,
        work: AtWork,
    ) -> mpsc::Receiver<RowEvent> {
        let permit = Arc::clone(house).acquire_owned().await.unwrap();
        let (events, receiver) = mpsc::channel(64);
        let (since, span) = (Instant::now(), Span::none());
        let admission = Box::new(Admission { request, events, permit, since, work, span });
        self.far.cast(far::Message::Open(admission)).unwrap();
        receiver
    }

    fn say(&self, word: Word) {
        self.far.cast(far::Message::Heard(Heard(word))).unwrap();
    }

    /// The next order that is no sign of life.
    async fn order(&mut self) -> Order {
        loop {
            let Some(worker::Message::Letter(bytes)) = self.orders.recv().await else {
                panic!("the stand-in is gone")
            };
            let Letter { epoch: 7, what } = wire::read::<Letter<Order>>(&bytes).unwrap() else {
                panic!("another membership")
            };
            if !matches!(what, Order::Beat(_)) {
                return what;
            }
        }
    }
}

#[tokio::test]
async fn rows_of_a_node_are_made_there_cancelled_there_and_hold_their_places_until_they_left() {
    let mut stage = Stage::new(Duration::from_secs(9)).await;
    let house = Arc::new(Semaphore::new(2));
    let mut events = stage.open(request(3, &[1, 2], 9), &house).await;
    let Order::Open { row: 3, asked } = stage.order().await else { panic!() };
    assert_eq!(asked.prompt, [1, 2]);
    let usage = Usage { generated: 1, ..Usage::default() };
    let end = RowEvent::Finished(Finish::Stop, usage);
    let told = [RowEvent::Seated, RowEvent::Tokens(vec![5], usage), end];
    let mut news: Vec<_> = told.iter().map(|event| (3, News::from(event.clone()))).collect();
    // Of a row of another time nobody hears.
    news.insert(1, (2, News::Tokens(vec![99], usage.into())));
    stage.say(Word::News(news));
    for event in told {
        assert_eq!(events.recv().await, Some(event));
    }
    assert_eq!(house.available_permits(), 1);
    stage.say(Word::News(vec![(3, News::Left(false))]));
    assert_eq!(events.recv().await, None);
    assert_eq!(house.available_permits(), 2);
    drop(stage.open(request(4, &[1, 2], 9), &house).await);
    assert!(matches!(stage.order().await, Order::Open { row: 4, .. }));
    assert_eq!(stage.order().await, Order::Cancel(vec![4]));
}

#[tokio::test]
async fn who_is_silent_is_lost_with_all_that_was_there() {
    let mut stage = Stage::new(Duration::from_millis(400)).await;
    let house = Arc::new(Semaphore::new(2));
    let mut events = stage.open(request(3, &[1, 2], 9), &house).await;
    stage.say(Word::Beat(0));
    assert_eq!(events.recv().await, None, "it closes without an end");
    assert!(stage.nodes.reports().is_empty());
    assert_eq!(house.available_permits(), 2);
    assert!(matches!(stage.order().await, Order::Open { row: 3, .. }));
    assert_eq!(stage.order().await, Order::Part);
}

#[tokio::test]
async fn only_the_node_says_who_its_engine_was_at_work_on() {
    let mut stage = Stage::new(Duration::from_secs(60)).await;
    let house = Arc::new(Semaphore::new(9));
    let works: Vec<AtWork> = (0..3).map(|_| AtWork::default()).collect();
    let mut all = Vec::new();
    for (row, work) in (1..).zip(&works) {
        all.push(stage.open_for(request(row, &[1, 2], 9), &house, work.clone()).await);
        assert!(matches!(stage.order().await, Order::Open { .. }));
    }
    stage.say(Word::News((1..=3).map(|row| (row, News::Seated)).collect()));
    // One was at work when its engine ended, one was parked; of the third nothing is heard any
    // more, as of one whose node was killed or cut off.
    stage.say(Word::News(vec![(1, News::Left(true)), (2, News::Left(false))]));
    let mut told = Vec::new();
    for (mut events, work) in all.into_iter().zip(&works) {
        assert_eq!(events.recv().await, Some(RowEvent::Seated));
        if told.len() == 2 {
            stage.far.stop(None);
        }
        assert_eq!(events.recv().await, None);
        told.push(work.is());
    }
    assert_eq!(told, [true, false, false]);
}

#[tokio::test]
async fn who_is_drained_is_sent_more_when_that_is_taken_back_unless_it_is_to_end() {
    let mut stage = Stage::new(Duration::from_secs(60)).await;
    let house = Arc::new(Semaphore::new(9));
    let mut events = stage.open(request(3, &[1, 2], 9), &house).await;
    assert!(matches!(stage.order().await, Order::Open { row: 3, .. }));
    assert!(stage.nodes.drain("one"));
    assert_eq!(stage.order().await, Order::Drain);
    assert!(!stage.nodes.is_open());
    assert_eq!(stage.nodes.resume("two"), Err(Stays::Unknown));
    assert_eq!(stage.nodes.resume("one"), Ok(()));
    assert_eq!(stage.order().await, Order::Resume);
    // The drain's deadline passes, and means nothing any more.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(stage.nodes.reports()[0].state, "ready");
    assert_eq!(events.try_recv(), Err(mpsc::error::TryRecvError::Empty));
    stage.say(Word::Leaving);
    assert_eq!(stage.order().await, Order::Drain);
    assert_eq!(stage.nodes.resume("one"), Err(Stays::Leaving));
    assert_eq!(events.recv().await, None);
}

#[tokio::test]
async fn draining_the_own_engine_is_told_at_the_gate_and_can_be_taken_back() {
    let nodes = Nodes::default();
    let (bank, _) = probe::<bank::Message>().await;
    let (gate, mut told) = probe::<gate::Message>().await;
    nodes.kept_by(gate);
    nodes.join("gateway".into(), To::Here(bank.clone()), 4);
    assert_eq!(nodes.own().map(|own| own.get_id()), Some(bank.get_id()));
    assert!(nodes.drain("gateway") && !nodes.is_open());
    assert!(matches!(told.recv().await, Some(gate::Message::Changed)));
    assert_eq!(nodes.resume("gateway"), Ok(()));
    assert!(nodes.is_open());
    assert!(matches!(told.recv().await, Some(gate::Message::Changed)));
}

#[tokio::test]
async fn what_a_drained_node_does_not_finish_in_time_goes_on_elsewhere() {
    let mut stage = Stage::new(Duration::from_secs(9)).await;
    let house = Arc::new(Semaphore::new(2));
    let mut events = stage.open(request(3, &[1, 2], 9), &house).await;
    assert!(matches!(stage.order().await, Order::Open { row: 3, .. }));
    stage.say(Word::Leaving);
    assert_eq!(stage.order().await, Order::Drain);
    assert_eq!(stage.nodes.reports()[0].state, "draining");
    let mut late = stage.open(request(4, &[1, 2], 9), &house).await;
    assert_eq!(late.recv().await, None, "who comes late goes on to the next");
    assert_eq!(events.recv().await, None);
    assert_eq!(stage.order().await, Order::Cancel(vec![3]));
}

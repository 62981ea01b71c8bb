//! Machines that join a door, each a stand-in of the gateway's with a node that is played here.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use mtplx_core::Token;
use mtplx_core::engine::EngineInfo;
use ractor::{Actor, ActorRef};
use tokio::sync::watch;

use crate::admission::{Door, Served, Way};
use crate::heart::Heart;
use crate::ingress::Handle;
use crate::node::far::{self, Far, Heard, Times};
use crate::node::secret::Secret;
use crate::node::wire::{self, Ended, Letter, News, Order, Spent, Word};
use crate::node::{Nodes, gate, session, worker};
use crate::probe::probe;

/// The token that ends every engine.
pub(crate) const POISON: Token = 666;

/// All of them; each comes back as soon as it is lost.
pub(crate) struct Town {
    pub(crate) nodes: Nodes,
    door: Handle,
    info: Arc<EngineInfo>,
    server: session::Server,
    gate: ActorRef<gate::Message>,
    /// Engines that ended.
    pub(crate) lost: AtomicUsize,
    /// Rows that were begun.
    pub(crate) begun: AtomicUsize,
    /// Whether rows come to their end.
    finish: AtomicBool,
    /// Times that all of them vanished.
    cuts: watch::Sender<u64>,
}

impl Town {
    pub(crate) async fn new(door: Handle, info: EngineInfo, names: &[&str]) -> Arc<Self> {
        let secret = Secret::new(&"5".repeat(64)).unwrap();
        let town = Arc::new(Self {
            nodes: Nodes::default(),
            door,
            info: Arc::new(info),
            server: session::server(&secret).await.unwrap(),
            gate: probe::<gate::Message>().await.0,
            lost: AtomicUsize::new(0),
            begun: AtomicUsize::new(0),
            finish: AtomicBool::new(false),
            cuts: watch::Sender::new(0),
        });
        for name in names {
            let (town, name) = (Arc::clone(&town), (*name).to_owned());
            tokio::spawn(async move {
                loop {
                    town.machine(&name).await;
                }
            });
        }
        while town.nodes.reports().len() < names.len() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        town.door.observe().await;
        town
    }

    /// From now on rows come to their end.
    pub(crate) fn finish(&self) {
        self.finish.store(true, Ordering::Relaxed);
    }

    /// All machines vanish without a word.
    pub(crate) fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    fn announce(&self) {
        if !self.nodes.is_open() {
            return self.door.between("no node is here".into());
        }
        let way = Way::Several(self.nodes.clone());
        let (info, heart) = (Arc::clone(&self.info), Heart::default());
        self.door.serve(Served { way, tuner: None, info, heart });
    }

    /// One membership, from its begin to its end.
    async fn machine(&self, name: &str) {
        let mut cut = self.cuts.subscribe();
        let (worker, mut orders) = probe::<worker::Message>().await;
        let times = Times {
            beat: Duration::from_millis(20),
            silence: Duration::from_secs(600),
            drain: Duration::from_secs(600),
        };
        let arguments = far::Arguments {
            epoch: 7,
            name: name.to_owned(),
            nodes: self.nodes.clone(),
            worker,
            gate: self.gate.clone(),
            server: self.server.clone(),
            heart: Heart::default(),
            slots: 4,
            times,
        };
        let (far, ended) = Actor::spawn(None, Far, arguments).await.unwrap();
        self.announce();
        let say = |word| drop(far.cast(far::Message::Heard(Heard(word))));
        let mut rows = BTreeSet::new();
        loop {
            let order = tokio::select! {
                order = orders.recv() => order,
                _ = cut.changed() => {
                    far.stop(None);
                    break;
                }
            };
            let Some(worker::Message::Letter(bytes)) = order else { break };
            let Some(Letter::<Order> { what, .. }) = wire::read(&bytes) else { break };
            match what {
                Order::Open { row, asked } => {
                    rows.insert(row);
                    if asked.prompt.contains(&POISON) {
                        // It takes everybody along who is here.
                        say(Word::News(rows.iter().map(|&row| (row, News::Left(true))).collect()));
                        self.lost.fetch_add(1, Ordering::Relaxed);
                        say(Word::Lost("it broke".into()));
                        break;
                    }
                    let made = News::Tokens(vec![5], Spent::default());
                    say(Word::News(vec![(row, News::Seated), (row, made)]));
                    self.begun.fetch_add(1, Ordering::Relaxed);
                }
                Order::Cancel(gone) => {
                    for row in gone.into_iter().filter(|row| rows.remove(row)) {
                        say(Word::News(vec![(row, News::Left(false))]));
                    }
                }
                Order::Beat(stamp) => say(Word::Beat(stamp)),
                Order::Drain | Order::Resume | Order::Part => {}
            }
            if self.finish.load(Ordering::Relaxed) {
                for row in std::mem::take(&mut rows) {
                    let spent = Spent::default();
                    let end = News::Finished(Ended::Stop, spent);
                    let all = [News::Tokens(vec![5], spent), end, News::Left(true)];
                    say(Word::News(all.into_iter().map(|news| (row, news)).collect()));
                }
            }
        }
        ended.await.unwrap();
        self.announce();
    }
}

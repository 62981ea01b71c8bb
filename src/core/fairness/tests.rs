//! A house of few seats and many clients, in service units instead of seconds.

#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::random::{Purpose, bits};

/// A request: how much it wants, when it came.
#[derive(Clone, Copy, Debug)]
struct Wish {
    standing: Standing,
    prompt: usize,
    reply: usize,
    tick: u64,
    since: u64,
}

/// Seats that each make a token a tick; prompts are fed at once.
struct House {
    fairness: Fairness,
    seats: usize,
    waiting: Vec<Wish>,
    running: Vec<Wish>,
    tick: u64,
    /// Ticks that requests waited, by client.
    waits: Vec<(Client, u64)>,
    got: BTreeMap<Client, u64>,
    made: u64,
    random: u64,
}

impl House {
    fn new(seats: usize) -> Self {
        let (waiting, running, waits) = (Vec::new(), Vec::new(), Vec::new());
        let (fairness, got) = (Fairness::default(), BTreeMap::new());
        Self { fairness, seats, waiting, running, tick: 0, waits, got, made: 0, random: 7 }
    }

    fn below(&mut self, n: usize) -> usize {
        self.random += 1;
        (bits(11, self.random, Purpose::Draw) % n as u64) as usize
    }

    fn ask(&mut self, standing: Standing, prompt: usize, reply: usize) {
        self.fairness.enter(standing);
        let since = self.fairness.now();
        self.waiting.push(Wish { standing, prompt, reply, tick: self.tick, since });
    }

    fn waits_of(&self, client: u64) -> Vec<u64> {
        self.waits.iter().filter(|(c, _)| c.0 == client).map(|&(_, wait)| wait).collect()
    }

    fn queued(&self, client: u64) -> usize {
        self.waiting.iter().filter(|wish| wish.standing.client.0 == client).count()
    }

    fn serve(&mut self, standing: Standing, fed: usize, made: usize) {
        self.fairness.charge(standing, fed, made);
        *self.got.entry(standing.client).or_default() += FED * fed as u64 + MADE * made as u64;
    }

    fn step(&mut self) {
        self.tick += 1;
        while self.running.len() < self.seats && !self.waiting.is_empty() {
            let fairness = &self.fairness;
            let rank = |wish: &Wish| fairness.rank(wish.standing, wish.since);
            let next = (0..self.waiting.len()).min_by_key(|&i| rank(&self.waiting[i])).unwrap();
            let wish = self.waiting.remove(next);
            self.waits.push((wish.standing.client, self.tick - wish.tick));
            self.serve(wish.standing, wish.prompt, 0);
            self.running.push(wish);
        }
        for i in 0..self.running.len() {
            self.running[i].reply -= 1;
            self.made += 1;
            self.serve(self.running[i].standing, 0, 1);
        }
        for wish in self.running.iter().filter(|wish| wish.reply == 0) {
            self.fairness.leave(wish.standing.client);
        }
        self.running.retain(|wish| wish.reply > 0);
    }
}

fn standing(client: u64, weight: u32) -> Standing {
    let weight = NonZeroU32::new(weight).unwrap();
    let client = Client(client);
    Standing { client, group: client, weight, class: Class::Interactive }
}

#[test]
fn a_crowd_of_one_client_delays_another_by_no_more_than_the_first_row_that_ends() {
    let mut house = House::new(4);
    for _ in 0..500 {
        let reply = 20 + house.below(60);
        house.ask(standing(1, 1), 100, reply);
    }
    for tick in 0..4000 {
        if tick % 90 == 60 {
            house.ask(standing(2, 1), 30, 20);
        }
        house.step();
    }
    let waits = house.waits_of(2);
    assert!(waits.len() > 40);
    // Rows of the crowd make 79 tokens at most, and four of them end at different times.
    assert!(waits.iter().all(|&wait| wait <= 80), "{waits:?}");
    let mean = waits.iter().sum::<u64>() as f64 / waits.len() as f64;
    assert!(mean < 20.0, "{mean}");
    assert!(house.queued(1) > 0, "the crowd waits all the time");
}

#[test]
fn weights_are_kept_within_five_percent() {
    for (first, second) in [(1, 1), (1, 2), (3, 1), (5, 4)] {
        let mut house = House::new(6);
        for _ in 0..30_000 {
            for (client, weight) in [(1, first), (2, second)] {
                while house.queued(client) < 8 {
                    // One has long prompts and short replies, the other the reverse.
                    let (prompt, reply) = if client == 1 { (400, 10) } else { (20, 90) };
                    let (prompt, reply) = (1 + house.below(prompt), 1 + house.below(reply));
                    house.ask(standing(client, weight), prompt, reply);
                }
            }
            house.step();
        }
        let [a, b] = [1, 2].map(|client| house.got[&Client(client)] as f64);
        let off = (a / b) / (f64::from(first) / f64::from(second));
        assert!((0.95..=1.05).contains(&off), "{first}:{second}: {a} and {b}, off by {off}");
    }
}

#[test]
fn people_behind_one_key_share_its_weight_however_many_of_them_are_present() {
    for people in [1, 5, 20] {
        let mut house = House::new(6);
        let group = Client(1000);
        for _ in 0..20_000 {
            let person = |i| Standing { group, ..standing(100 + i, 1) };
            for who in (0..people).map(person).chain([standing(1, 1)]) {
                while house.queued(who.client.0) < 8 {
                    let (prompt, reply) = (1 + house.below(60), 1 + house.below(60));
                    house.ask(who, prompt, reply);
                }
            }
            house.step();
        }
        let of = |client: u64| house.got[&Client(client)] as f64;
        let crowd: f64 = (0..people).map(|i| of(100 + i)).sum();
        let off = crowd / of(1);
        assert!((0.95..=1.05).contains(&off), "{people}: {crowd} and {}", of(1));
        let each = crowd / people as f64;
        assert!((0..people).all(|i| (0.9..1.1).contains(&(of(100 + i) / each))), "{people}");
    }
}

#[test]
fn a_group_is_as_many_as_are_present() {
    let mut fairness = Fairness::default();
    let group = Client(9);
    let [a, b] = [1, 2].map(|i| Standing { group, ..standing(i, 1) });
    fairness.enter(a);
    fairness.enter(b);
    fairness.enter(standing(3, 1));
    assert!(fairness.is_beyond_share(a.client, 3, 8) && !fairness.is_beyond_share(a.client, 2, 8));
    fairness.charge(a, 10, 0);
    assert_eq!(fairness.counter(a.client), 20);
    fairness.leave(b.client);
    fairness.charge(a, 10, 0);
    assert_eq!(fairness.counter(a.client), 30);
    assert!(!fairness.is_beyond_share(a.client, 4, 8));
    fairness.leave(a.client);
    assert!(!fairness.groups.contains_key(&group));
}

#[test]
fn whoever_was_away_has_saved_nothing_up() {
    let mut house = House::new(4);
    house.ask(standing(2, 1), 10, 10);
    for tick in 0..12_000 {
        while house.queued(1) < 4 {
            house.ask(standing(1, 1), 50, 30);
        }
        // Away for long, then as greedy as the other.
        while tick > 6000 && house.queued(2) < 4 {
            house.ask(standing(2, 1), 50, 30);
        }
        if tick == 6000 {
            house.got.clear();
        }
        house.step();
        if tick == 7000 {
            let [a, b] = [1, 2].map(|client| house.got[&Client(client)] as f64);
            assert!(b / (a + b) < 0.55, "{a} {b}");
        }
    }
}

#[test]
fn nobody_starves_and_no_seat_is_empty_while_somebody_waits() {
    for seed in 0..20 {
        let mut house = House::new(3);
        house.random = seed * 1_000_000;
        for _ in 0..6000 {
            // More is wanted than there is, for long.
            if house.waiting.len() < 60 && house.below(8) == 0 {
                let client = house.below(6) as u64;
                let class = if client == 5 { Class::Background } else { Class::Interactive };
                let weight = 1 + client as u32 % 3;
                let (prompt, reply) = (1 + house.below(300), 1 + house.below(50));
                house.ask(Standing { class, ..standing(client, weight) }, prompt, reply);
            }
            let busy = house.seats.min(house.running.len() + house.waiting.len()) as u64;
            let before: u64 = house.made;
            house.step();
            assert_eq!(house.made - before, busy, "no seat is empty while somebody waits");
        }
        // Background work ages: it is served while others still wait.
        let longest = house.waits.iter().map(|&(_, wait)| wait).max().unwrap();
        assert!(longest < 6000 / 2, "{seed}: {longest}");
        assert!(!house.waits_of(5).is_empty(), "{seed}");
    }
}

#[test]
fn work_in_the_background_is_last_until_it_has_aged() {
    let mut fairness = Fairness::default();
    let busy = standing(1, 1);
    let behind = Standing { class: Class::Background, ..standing(2, 1) };
    fairness.enter(busy);
    fairness.enter(behind);
    let since = fairness.now();
    fairness.charge(busy, 1000, 0);
    assert!(fairness.rank(busy, since) < fairness.rank(behind, since));
    fairness.charge(busy, PATIENCE as usize, 0);
    assert!(fairness.rank(behind, since) < fairness.rank(busy, fairness.now()));
}

#[test]
fn counters_of_those_who_left_do_not_pile_up() {
    let mut fairness = Fairness::default();
    for client in 0..3 * ABSENT_MAX as u64 {
        let who = standing(client, 1);
        fairness.enter(who);
        fairness.charge(who, 10, 10);
        fairness.leave(who.client);
    }
    assert!(fairness.accounts.len() <= ABSENT_MAX + 1, "{}", fairness.accounts.len());
}

#[test]
fn who_took_little_beside_a_greedy_one_is_no_more_than_the_lag_ahead() {
    let mut fairness = Fairness::default();
    let (little, much) = (standing(1, 1), standing(2, 1));
    fairness.enter(little);
    fairness.enter(much);
    fairness.charge(much, 1 << 20, 0);
    fairness.enter(little);
    assert_eq!(fairness.counter(much.client) - fairness.counter(little.client), LAG);
}

#[test]
fn shares_of_the_seats_go_by_the_weights_of_those_present() {
    let mut fairness = Fairness::default();
    let (one, three) = (standing(1, 1), standing(2, 3));
    fairness.enter(one);
    assert!(!fairness.is_beyond_share(one.client, 8, 8), "all are its own");
    fairness.enter(three);
    assert!(!fairness.is_beyond_share(one.client, 2, 8));
    assert!(fairness.is_beyond_share(one.client, 3, 8));
    assert!(!fairness.is_beyond_share(three.client, 6, 8));
    assert!(fairness.is_beyond_share(three.client, 7, 8));
}

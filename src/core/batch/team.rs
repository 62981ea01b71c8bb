//! Clients beside each other on one engine: who waits for whom, and for how long. The bounds are
//! those that are promised; what was found stands well within them.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use super::back::{FED_MIN, MADE_MIN};
use super::simulate::guests::{Rng, alone};
use super::tests::request;
use super::*;
use crate::accept::Rule;
use crate::engine::Engine;
use crate::fairness::{Client, Standing};
use crate::sample::Sampling;
use crate::scripted::{Script, Scripted};

struct Team {
    engine: Scripted,
    batch: Batch,
    rows_max: usize,
    step: u64,
    next: u64,
    /// When each came and got its first slot, and whose it is.
    came: BTreeMap<RequestId, (u64, Client)>,
    waits: Vec<(Client, u64)>,
    asked: BTreeMap<RequestId, Request>,
    told: BTreeMap<RequestId, Vec<Token>>,
    /// Units of service by client.
    got: BTreeMap<Client, u64>,
    stepped_back: usize,
    finished: Vec<(Client, u64)>,
    /// Prompt tokens fed so far.
    fed: u64,
}

impl Team {
    fn new(rows_max: usize) -> Self {
        let script = Script { head_noise: 3.0, ..Script::default() };
        let info = Scripted::small(script).info().clone();
        let info =
            EngineInfo { context_tokens_max: 8192, pages_max: 8192, slots: rows_max, ..info };
        let limits = BatchLimits { snapshots_max: 40, chunk_grain: 1 };
        Self {
            engine: Scripted::new(info.clone(), script),
            batch: Batch::new(info, limits),
            rows_max,
            step: 0,
            next: 0,
            came: BTreeMap::new(),
            waits: Vec::new(),
            asked: BTreeMap::new(),
            told: BTreeMap::new(),
            got: BTreeMap::new(),
            stepped_back: 0,
            finished: Vec::new(),
            fed: 0,
        }
    }

    fn ask(&mut self, standing: Standing, prompt: usize, reply: usize) -> RequestId {
        self.next += 1;
        let id = self.next;
        let prompt: Vec<Token> =
            (0..prompt as u64).map(|i| ((i * 7 + id * 13) % 31) as Token).collect();
        let sampling = Sampling {
            temperature: [0.0, 0.8][id as usize % 2],
            presence_penalty: [0.0, 0.0, 0.7][id as usize % 3],
            seed: id * 977,
            rule: Rule::Coupled,
            ..Sampling::default()
        };
        let request = Request { standing, sampling, ..request(id, &prompt, reply) };
        self.came.insert(request.id, (self.step, standing.client));
        self.asked.insert(request.id, request.clone());
        self.batch.admit(request, None);
        RequestId(id)
    }

    fn step(&mut self) {
        self.step += 1;
        let knobs = Knobs::fixed(2, self.rows_max, (16, 64));
        let plan = self.batch.plan(knobs);
        for row in self.batch.rows().values() {
            if let Some((came, client)) = self.came.remove(&row.request.id) {
                self.waits.push((client, self.step - came));
            }
        }
        let standing: BTreeMap<Slot, Client> = self
            .batch
            .rows()
            .iter()
            .map(|(&slot, row)| (slot, row.request.standing.client))
            .collect();
        for chunk in &plan.prefill {
            self.fed += (chunk.end - chunk.start) as u64;
            *self.got.entry(standing[&chunk.slot]).or_default() += (chunk.end - chunk.start) as u64;
        }
        let outcome = self.engine.run(&plan, self.batch.rows()).unwrap();
        let settled = self.batch.settle(&plan, outcome);
        self.batch.check_integrity().unwrap();
        self.stepped_back += settled.report.stepped_back;
        settled.deposits.iter().for_each(|deposit| self.batch.release(deposit.snapshot));
        for (id, event) in settled.events {
            let client = self.asked[&id].standing.client;
            match event {
                RowEvent::Tokens(tokens, _) => {
                    *self.got.entry(client).or_default() += 2 * tokens.len() as u64;
                    self.told.entry(id).or_default().extend(tokens);
                }
                RowEvent::Finished(finish, usage) => {
                    let request = self.asked.remove(&id).unwrap();
                    let text = self.told.remove(&id).unwrap();
                    assert_eq!((&text, finish), (&alone(&request, &self.engine).0, Finish::Length));
                    assert_eq!(usage.generated, text.len());
                    self.finished.push((client, self.step));
                }
                RowEvent::Logprobs(_)
                | RowEvent::Seated
                | RowEvent::Refused(_)
                | RowEvent::Late => {
                    panic!("{id:?}: {event:?}")
                }
            }
        }
    }

    fn of(&self, client: u64) -> usize {
        self.asked.values().filter(|r| r.standing.client.0 == client).count()
    }

    fn waits_of(&self, client: u64) -> Vec<u64> {
        self.waits.iter().filter(|(c, _)| c.0 == client).map(|&(_, wait)| wait).collect()
    }
}

fn client(client: u64, weight: u32) -> Standing {
    let weight = NonZeroU32::new(weight).unwrap();
    let client = Client(client);
    Standing { client, group: client, weight, class: Class::Interactive }
}

fn background(id: u64) -> Standing {
    Standing { class: Class::Background, ..client(id, 1) }
}

#[test]
fn a_heavy_client_cannot_push_a_light_ones_wait_beyond_one_turn_of_a_row() {
    for rows_max in [1, 2, 8] {
        let mut team = Team::new(rows_max);
        for step in 0..1500 {
            while team.of(1) < 4 * rows_max {
                team.ask(client(1, 1), 30, 600);
            }
            if step % 130 == 100 {
                team.ask(client(2, 1), 20, 12);
            }
            team.step();
        }
        let waits = team.waits_of(2);
        let longest = *waits.iter().max().unwrap();
        // Every row makes a token a step at least, and has its prompt fed before in a step or two
        // for each row beside it.
        let bound = MADE_MIN + 2 * rows_max + 4;
        assert!(waits.len() > 8 && longest <= bound as u64, "{rows_max}: {waits:?}");
        assert!(team.stepped_back >= 3, "{rows_max}: {}", team.stepped_back);
        // The heavy one loses no more than what the light one takes.
        let got = [1, 2].map(|c| team.got[&Client(c)]);
        assert!(got[0] > 4 * got[1], "{rows_max}: {got:?}");
    }
}

#[test]
fn a_heavy_clients_long_prompts_do_not_keep_a_light_one_from_its_first_token() {
    let mut team = Team::new(4);
    for _ in 0..8 {
        team.ask(client(1, 1), 6000, 3);
    }
    for _ in 0..5 {
        team.step();
    }
    let fed = team.fed;
    let light = team.ask(client(2, 1), 50, 5);
    while !team.told.contains_key(&light) {
        team.step();
    }
    // A slot whose prompt was not begun comes free at once, and the light prompt is fed next.
    assert!(team.fed - fed <= 2 * 64, "{} tokens came before", team.fed - fed);
}

#[test]
fn even_an_only_slot_in_the_middle_of_a_prompt_comes_free() {
    let mut team = Team::new(1);
    let heavy = team.ask(client(1, 1), 8000, 3);
    for _ in 0..3 {
        team.step();
    }
    let light = team.ask(client(2, 1), 50, 5);
    while !team.told.contains_key(&light) {
        team.step();
    }
    assert!(team.fed <= FED_MIN as u64 + 2 * 64 + 50, "{}", team.fed);
    while team.asked.contains_key(&heavy) {
        team.step();
    }
    // All is fed once, but for nothing: the state was parked.
    assert_eq!((team.fed, team.stepped_back), (8050, 1));
}

#[test]
fn the_text_of_who_steps_back_again_and_again_is_its_text_alone() {
    let mut team = Team::new(2);
    team.ask(client(1, 1), 40, 700);
    team.ask(client(2, 1), 40, 700);
    let mut others = 2;
    while team.of(1) + team.of(2) > 0 {
        if team.step.is_multiple_of(40) {
            others += 1;
            team.ask(client(others, 1), 25, 90);
        }
        // It is compared where it ends.
        team.step();
    }
    assert!(team.stepped_back > 6, "{}", team.stepped_back);
}

#[test]
fn weights_are_kept_within_five_percent_over_a_window() {
    for (first, second) in [(1, 1), (1, 2), (3, 1)] {
        let mut team = Team::new(6);
        let mut rng = Rng::new(5);
        let mut before = [0, 0];
        for step in 0..2500 {
            for (id, weight) in [(1, first), (2, second)] {
                while team.of(id) < 12 {
                    // One has long prompts and short replies, the other the reverse.
                    let (prompt, reply) = if id == 1 { (120, 12) } else { (12, 60) };
                    let (prompt, reply) = (1 + rng.below(prompt), 1 + rng.below(reply));
                    team.ask(client(id, weight), prompt as usize, reply as usize);
                }
            }
            team.step();
            if step == 500 {
                before = [1, 2].map(|c| team.got[&Client(c)]);
            }
        }
        let got = [1, 2].map(|c| team.got[&Client(c)]);
        let [a, b] = [0, 1].map(|i| (got[i] - before[i]) as f64);
        let off = (a / b) / (f64::from(first) / f64::from(second));
        assert!((0.95..=1.05).contains(&off), "{first}:{second}: {a} and {b}, off by {off}");
    }
}

#[test]
fn nobody_starves_and_no_slot_is_empty_while_somebody_waits() {
    for seed in 1..=6 {
        let mut team = Team::new(3);
        let mut rng = Rng::new(seed);
        for _ in 0..1200 {
            if team.asked.len() < 30 && rng.chance(5) {
                let id = rng.below(6);
                let standing = if id == 5 { background(id) } else { client(id, 1 + id as u32 % 3) };
                let (prompt, reply) = (1 + rng.below(80), 1 + rng.below(150));
                team.ask(standing, prompt as usize, reply as usize);
            }
            let all = team.asked.len();
            team.step();
            assert!(all - team.batch.waiting() >= all.min(3), "of {all} too few had a slot");
        }
        let end = team.step + 3000;
        while !team.asked.is_empty() {
            team.step();
            assert!(team.step < end, "{} never end", team.asked.len());
        }
        assert!(team.waits_of(5).len() > 3, "{seed}");
    }
}

#[test]
fn what_runs_in_the_background_gives_way_to_who_waits_and_comes_back() {
    let mut team = Team::new(2);
    for _ in 0..2 {
        team.ask(background(1), 20, 300);
    }
    for _ in 0..100 {
        team.step();
    }
    team.ask(client(2, 1), 20, 30);
    team.step();
    assert_eq!((team.waits_of(2), team.stepped_back), (vec![1], 1));
    while !team.asked.is_empty() {
        team.step();
    }
    assert_eq!(team.finished.len(), 3);
}

#[test]
fn nobody_steps_back_for_another_request_of_its_own_client() {
    let mut team = Team::new(2);
    for _ in 0..9 {
        team.ask(client(1, 1), 20, 200);
    }
    while !team.asked.is_empty() {
        team.step();
    }
    assert_eq!(team.stepped_back, 0);
}

#[test]
fn a_light_clients_prompt_is_fed_before_more_is_made_for_the_heavy_one() {
    let mut team = Team::new(4);
    for _ in 0..3 {
        team.ask(client(1, 1), 20, 600);
    }
    for _ in 0..20 {
        team.step();
    }
    let light = team.ask(client(2, 1), 12, 5);
    let made = team.got[&Client(1)];
    let before = team.step;
    while !team.told.contains_key(&light) {
        team.step();
    }
    assert_eq!((team.step - before, team.got[&Client(1)] - made), (1, 0));
    // A long one is fed beside the others, and its rest in every other step without them.
    let long = team.ask(client(3, 1), 4000, 5);
    let (before, mut missed) = (team.step, 0);
    while !team.told.contains_key(&long) {
        let made = team.got[&Client(1)];
        team.step();
        missed += u64::from(team.got[&Client(1)] == made);
    }
    assert!(missed <= 4 && team.step - before > 20, "{missed} of {}", team.step - before);
}

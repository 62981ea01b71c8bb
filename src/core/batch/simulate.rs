//! The whole scheduler against the scripted engine: seeded joins, leaves, cancels, depths, widths,
//! budgets, costs, evictions, shortages, rows that turn to nonsense and engines that break. What
//! must hold stands in [`invariants`].

#![allow(clippy::unwrap_used, reason = "a simulation is a test")]

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::Tenant;
use crate::engine::Engine;
use crate::fairness::Client;
use crate::guard::Budget;
use crate::scripted::{Script, Scripted};

pub(super) mod guests;
mod invariants;
mod porters;

use guests::{Rng, alone, anybody};
use invariants::*;
use porters::Porters;

/// Steps of all seeds together.
const STEPS: u64 = 100_000;
const SEEDS: u64 = 80;

/// A bank as simple as can be: it keeps a few deposits and hands out the longest match.
#[derive(Default)]
struct Shelf(Vec<Deposit>);

impl Shelf {
    fn warmest(&self, request: &Request) -> Option<Warm> {
        let own = self.0.iter().filter(|d| d.prefix.tenant == request.sharing.tenant);
        let fits = own.filter(|d| request.prompt.starts_with(&d.prefix.tokens));
        fits.max_by_key(|d| d.prefix.tokens.len())
            .map(|d| Warm { snapshot: d.snapshot, len: d.prefix.tokens.len() })
    }
}

/// How much of what happened.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    steps: u64,
    finished: usize,
    cached: usize,
    taken_over: usize,
    cancelled: usize,
    nonsense: usize,
    generations: usize,
    resumed: usize,
    stalls: usize,
    carried_out: usize,
    carried_in: usize,
    roots: usize,
    marks: usize,
    unfed: u64,
    stepped_back: usize,
}

struct World {
    rng: Rng,
    setup: Setup,
    engine: Scripted,
    batch: Batch,
    shelf: Shelf,
    porters: Porters,
    stems: Vec<Vec<Token>>,
    asked: BTreeMap<RequestId, Request>,
    told: BTreeMap<RequestId, Vec<Token>>,
    /// How much of it they were told by rows of lost generations.
    before: BTreeMap<RequestId, usize>,
    /// What they were told that the model thought of it.
    thoughts: BTreeMap<RequestId, Vec<Logprobs>>,
    /// Who was admitted and has not left.
    queue: BTreeSet<RequestId>,
    /// Whose each state is.
    owners: BTreeMap<SnapshotId, Tenant>,
    /// Who was cancelled since the last plan.
    gone: BTreeSet<RequestId>,
    /// What a row and its client's others had left to be fed when it got its seat.
    left: BTreeMap<RequestId, (u64, u64)>,
    /// Prompt tokens fed for a request, each counted once, and up to where.
    forwarded: BTreeMap<RequestId, (usize, usize)>,
    /// What became of all prompts of this generation.
    books: Books,
    last: Plan,
    stalled: bool,
    next: u64,
    tally: Tally,
}

/// What does not change with generations of the engine.
struct Setup {
    script: Script,
    info: EngineInfo,
    limits: BatchLimits,
    pace: fn(&Plan) -> u64,
}

/// What a step takes on machines of different kinds; the first reports no time.
const PACES: [fn(&Plan) -> u64; 3] = [
    |_| 0,
    |plan| 500 + 100 * (plan.verify.len() + fed(plan)) as u64,
    |plan| 9000 + plan.step * 7919 % 3000 + 10 * (plan.verify.len() + fed(plan)) as u64,
];

fn fed(plan: &Plan) -> usize {
    plan.prefill.iter().map(|c| c.end - c.start).sum()
}

impl Setup {
    fn of(seed: u64) -> Self {
        let pick = |of: &[usize], every: u64| of[(seed / every) as usize % of.len()];
        // Some languages have words after which the model has only nonsense to say.
        let script = Script {
            seed,
            head_noise: [0.0, 1.0, 6.0][seed as usize % 3],
            nan_one_in: pick(&[0, 300], 3) as u64,
            ..Script::default()
        };
        // Every other world is short of pages, some of context, some of snapshots.
        // And some of memory: for two of the longest sequences.
        let bytes = [u64::MAX, (1 << 20) + (80 << 10)][pick(&[0, 1], 6)];
        let info = EngineInfo {
            budget: Budget { bytes, base: 1 << 20, step: 1 << 10 },
            pages_max: pick(&[400, 24], 1),
            marks: pick(&[1, 0], 7) == 1,
            rows_pages_max: pick(&[usize::MAX, 40], 3),
            context_tokens_max: pick(&[512, 150], 2),
            ..Scripted::small(script).info().clone()
        };
        let limits =
            BatchLimits { snapshots_max: pick(&[12, 3], 4), chunk_grain: pick(&[8, 1, 4, 16], 5) };
        Self { script, info, limits, pace: PACES[seed as usize % PACES.len()] }
    }

    fn open(&self) -> (Scripted, Batch) {
        let mut engine = Scripted::new(self.info.clone(), self.script);
        engine.pace = self.pace;
        (engine, Batch::new(self.info.clone(), self.limits))
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let setup = Setup::of(seed);
        let (engine, batch) = setup.open();
        let stems = [0, 16, 33].map(|n| (0..n).map(|_| rng.below(32) as Token).collect()).to_vec();
        Self {
            rng,
            setup,
            engine,
            batch,
            shelf: Shelf::default(),
            porters: Porters::default(),
            stems,
            asked: BTreeMap::new(),
            told: BTreeMap::new(),
            before: BTreeMap::new(),
            thoughts: BTreeMap::new(),
            queue: BTreeSet::new(),
            owners: BTreeMap::new(),
            gone: BTreeSet::new(),
            left: BTreeMap::new(),
            forwarded: BTreeMap::new(),
            books: Books::default(),
            last: Plan::default(),
            stalled: false,
            next: 0,
            tally: Tally::default(),
        }
    }

    fn admit(&mut self, request: Request) {
        self.asked.insert(request.id, request.clone());
        self.enter(request);
    }

    fn enter(&mut self, request: Request) {
        let warm = self.shelf.warmest(&request);
        self.queue.insert(request.id);
        self.batch.admit(request, warm);
    }

    /// People come, people go, memory is wanted back, devices break.
    fn happen(&mut self) {
        if self.rng.chance(4) && self.asked.len() < 30 {
            self.next += 1;
            let request = anybody(&mut self.rng, self.next, &self.stems);
            self.admit(request);
        }
        if self.rng.chance(25) && !self.asked.is_empty() {
            let i = self.rng.below(self.asked.len() as u64) as usize;
            let id = *self.asked.keys().nth(i).unwrap();
            self.cancel(id);
        }
        if self.rng.chance(500) {
            self.engine.fault_at_step = Some(self.last.step + 1);
        }
    }

    fn cancel(&mut self, id: RequestId) {
        assert!(self.batch.cancel(id));
        let request = self.asked.remove(&id).unwrap();
        let text = self.told.remove(&id).unwrap_or_default();
        self.thoughts.remove(&id);
        self.before.remove(&id);
        a_broken_text_begins_right(&request, &text, &self.engine);
        self.queue.remove(&id);
        self.gone.insert(id);
        self.tally.cancelled += 1;
    }

    fn knobs(&mut self) -> Knobs {
        let rng = &mut self.rng;
        let mut depths = [0; crate::knobs::WIDTHS];
        depths.fill_with(|| rng.below(5) as u8);
        Knobs {
            depths: Depths::of_widths(|width| depths[width]),
            rows_max: 1 + rng.below(8) as usize,
            prefill_busy: 1 + rng.below(32) as usize,
            prefill_idle: 64,
            stretch: [None, Some(1.5), Some(3.0)][rng.below(3) as usize],
            pause: 0.0,
        }
    }

    fn step(&mut self) {
        self.tally.steps += 1;
        let knobs = self.knobs();
        self.batch.measured(self.engine.memory());
        let before: BTreeMap<RequestId, Row> =
            self.batch.rows().values().map(|row| (row.request.id, row.clone())).collect();
        let seated: BTreeSet<RequestId> = before.keys().copied().collect();
        let left = [0, 1, 2, 3].map(|client| prompts_left(&self.batch, Client(client)));
        self.left.retain(|id, _| seated.contains(id));
        let plan = self.batch.plan(knobs);
        self.tally.marks += plan.prefill.iter().filter(|chunk| chunk.mark.is_some()).count();
        for row in self.batch.rows().values() {
            let own = (row.start - row.restored) as u64;
            let others = left[row.request.standing.client.0 as usize];
            self.left.entry(row.request.id).or_insert((own, others));
        }
        self.note_restored();
        for chunk in &plan.prefill {
            let request = &self.batch.rows()[&chunk.slot].request;
            let (fed, reached) = self.forwarded.entry(request.id).or_default();
            let end = chunk.end.min(request.prompt.len());
            *fed += end.saturating_sub(chunk.start.max(*reached));
            *reached = end.max(*reached);
        }
        no_slot_is_planned_twice(&plan, &self.batch);
        the_token_budget_is_kept(&plan, &knobs, &self.batch);
        chunks_are_cut_where_they_may(&plan, &self.batch);
        depths_are_allowed(&plan, &knobs, &self.batch);
        whoever_decodes_is_in_every_step(&plan, &self.batch);
        who_waits_for_a_state_waits_for_one_that_comes(&plan, &self.batch);
        nobody_starts_from_the_state_of_another_tenant(&plan, &self.owners, &self.batch);
        no_prompt_starves(&self.left, &self.batch, &knobs);
        seats_are_given_by_rank(&seated, &self.batch);
        nobody_is_lost(&self.queue, &self.batch);
        rows_step_back_seldom_and_for_others(&before, &self.batch);
        no_seat_is_given_beyond_the_width(before.len(), &knobs, &self.batch);
        a_cancelled_row_is_gone_by_the_next_plan(&self.gone, &self.batch);
        plans_print_and_compare(&plan, &self.last);
        self.stalled = prompts_go_on(&plan, &self.batch, self.stalled);
        self.tally.stalls += usize::from(self.stalled);
        self.gone.clear();
        match self.engine.run(&plan, self.batch.rows()) {
            Ok(outcome) => self.settle(&plan, outcome),
            Err(fault) => {
                assert!(fault.0.contains("the script breaks"), "{fault}");
                self.next_generation();
            }
        }
        self.last = plan;
        self.carry();
        let Books { seated, forwarded, restored, unfed } = self.batch.take_books();
        self.books.seated += seated;
        self.books.forwarded += forwarded;
        self.books.restored += restored;
        self.books.unfed += unfed;
        self.tally.unfed += unfed;
        all_prompts_add_up(&self.books, &self.batch);
        memory_stays_within_the_budget(&self.engine);
        the_ledger_is_clean(&self.batch);
    }

    /// What a state brought counts as restored, even if it is lost and computed after all.
    fn note_restored(&mut self) {
        for row in self.batch.rows().values() {
            let stands = row.computed.min(row.request.prompt.len());
            let (_, reached) = self.forwarded.entry(row.request.id).or_default();
            *reached = stands.max(*reached);
        }
    }

    fn settle(&mut self, plan: &Plan, outcome: Outcome) {
        let settled = self.batch.settle(plan, outcome);
        self.note_restored();
        self.tally.taken_over += settled.report.taken_over;
        self.tally.stepped_back += settled.report.stepped_back;
        assert_eq!(settled.report.unaccounted, 0, "what was fed and restored is the prompt");
        equal_states_are_kept_once(&settled.deposits, &self.shelf.0);
        for deposit in &settled.deposits {
            self.owners.insert(deposit.snapshot, deposit.prefix.tenant);
            self.tally.roots += usize::from(deposit.kind == Kind::Root);
        }
        tokens_out_equal_tokens_settled(&settled);
        for (id, event) in settled.events {
            match event {
                RowEvent::Tokens(tokens, usage) => {
                    let forwarded = self.forwarded.get(&id).map(|(fed, _)| fed);
                    forwarded_and_restored_make_the_prompt(forwarded, &usage);
                    self.told.entry(id).or_default().extend(tokens);
                }
                RowEvent::Logprobs(told) => self.thoughts.entry(id).or_default().extend(told),
                RowEvent::Finished(finish, usage) => self.part(id, finish, usage),
                RowEvent::Seated | RowEvent::Refused(_) | RowEvent::Late => {
                    panic!("{id:?}, which ran: {event:?}")
                }
            }
        }
        self.shelf.0.extend(settled.deposits);
        while self.shelf.0.len() > 8 || (!self.shelf.0.is_empty() && self.rng.chance(40)) {
            self.evict();
        }
        // Pages or memory are short: whoever keeps states gives the oldest up.
        if self.batch.rows().is_empty() && self.batch.waiting() > 0 && !self.shelf.0.is_empty() {
            self.evict();
        }
        // Everybody here would fit alone, as the door sees to.
        if self.batch.rows().is_empty() && self.batch.ledger().snapshots() == 0 {
            self.batch.measured(self.engine.memory());
            assert_eq!(self.batch.give_up(), None, "{:?}", self.batch.shortage());
        }
    }

    fn part(&mut self, id: RequestId, finish: Finish, usage: Usage) {
        let request = self.asked.remove(&id).expect("finished once (L2)");
        self.queue.remove(&id);
        let text = self.told.remove(&id).unwrap_or_default();
        let thoughts = self.thoughts.remove(&id).unwrap_or_default();
        text_is_the_text_alone((&request, &text, finish), &self.engine);
        logprobs_are_those_of_the_text((&request, &text, &thoughts), &self.engine);
        let before = self.before.remove(&id);
        assert_eq!(usage.generated + before.unwrap_or(0), text.len());
        self.tally.resumed += usize::from(before.is_some());
        self.tally.finished += 1;
        self.tally.cached += usage.cached;
        self.tally.nonsense += usize::from(finish == Finish::Fault);
    }

    fn evict(&mut self) {
        let oldest = self.shelf.0.remove(0);
        self.batch.release(oldest.snapshot);
    }

    /// The device broke: its names mean nothing any more. Some clients leave, and the texts of the
    /// others go on from where they are.
    fn next_generation(&mut self) {
        (self.engine, self.batch) = self.setup.open();
        (self.shelf, self.books) = (Shelf::default(), Books::default());
        self.put_down();
        self.owners.clear();
        self.queue.clear();
        self.left.clear();
        self.forwarded.clear();
        self.stalled = false;
        self.tally.generations += 1;
        for (id, request) in std::mem::take(&mut self.asked) {
            let text = self.told.entry(id).or_default();
            a_broken_text_begins_right(&request, text, &self.engine);
            if self.rng.chance(3) {
                self.told.remove(&id);
                self.thoughts.remove(&id);
                self.before.remove(&id);
                continue;
            }
            if !text.is_empty() {
                self.before.insert(id, text.len());
            }
            let row = request.resume(id, text).expect("ends are told with the last tokens");
            self.asked.insert(id, request);
            self.enter(row);
        }
    }

    /// L5: with no new arrivals everything ends within the longest request's worst case.
    fn empty(mut self) -> Tally {
        self.engine.fault_at_step = None;
        for _ in 0..30 * 250 {
            if self.asked.is_empty() {
                break;
            }
            self.step();
        }
        assert!(self.asked.is_empty(), "L5: {:?} never ended", self.asked.keys());
        self.come_to_rest();
        while !self.shelf.0.is_empty() {
            self.evict();
        }
        let all = (self.setup.info.slots, self.setup.info.pages_max);
        assert_eq!(self.batch.ledger().free(), all, "L4");
        self.tally
    }
}

fn simulate(seed: u64, steps: u64) -> Tally {
    let mut world = World::new(seed);
    for _ in 0..steps {
        world.happen();
        world.step();
    }
    world.empty()
}

#[test]
fn whatever_happens_the_invariants_hold() {
    let mut sum = Tally::default();
    for seed in 1..=SEEDS {
        let tally = simulate(seed, STEPS.div_ceil(SEEDS));
        sum.steps += tally.steps;
        sum.finished += tally.finished;
        sum.cached += tally.cached;
        sum.taken_over += tally.taken_over;
        sum.cancelled += tally.cancelled;
        sum.nonsense += tally.nonsense;
        sum.generations += tally.generations;
        sum.resumed += tally.resumed;
        sum.stalls += tally.stalls;
        sum.carried_out += tally.carried_out;
        sum.carried_in += tally.carried_in;
        sum.roots += tally.roots;
        sum.marks += tally.marks;
        sum.unfed += tally.unfed;
        sum.stepped_back += tally.stepped_back;
    }
    // A simulation in which nothing happens proves nothing.
    assert!(sum.steps >= STEPS, "{sum:?}");
    assert!(sum.finished > 10_000 && sum.cached > 50_000 && sum.cancelled > 1_000, "{sum:?}");
    assert!(sum.taken_over > 10_000, "{sum:?}");
    assert!(sum.carried_out > 500 && sum.carried_in > 500, "{sum:?}");
    assert!(sum.unfed > 1_000 && sum.resumed > 100, "{sum:?}");
    assert!(sum.roots > 500 && sum.marks > 500 && sum.stepped_back > 300, "{sum:?}");
    assert!(sum.nonsense > 200 && sum.generations > 100 && sum.stalls > 100, "{sum:?}");
}

#[test]
fn a_seed_gives_the_same_plans_again() {
    let plans = |seed| {
        let mut world = World::new(seed);
        let mut all = Vec::new();
        for _ in 0..300 {
            world.happen();
            world.step();
            all.push(world.last.clone());
        }
        all
    };
    assert_eq!(plans(7), plans(7));
    assert_ne!(plans(7), plans(8));
}

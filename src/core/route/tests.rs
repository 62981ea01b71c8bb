use std::collections::{BTreeMap, VecDeque};

use super::*;

/// Numbers of a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) as usize % n
    }
}

fn ask(prompt: &[Token]) -> Ask<'_> {
    Ask { tenant: Tenant(0), prompt, leaves: true }
}

fn several(slots: &[usize]) -> Route {
    let mut route = Route::default();
    for (id, &slots) in (1..).zip(slots) {
        route.join(NodeId(id), slots);
    }
    route
}

/// Somebody's conversation, each turn longer than the one before, with a system prompt that others
/// have, too.
struct Talk {
    text: Vec<Token>,
}

impl Talk {
    fn new(number: u32, dice: &mut Dice) -> Self {
        let system = dice.below(3) as u32;
        let text = (0..400).map(|i| system * 1000 + i).chain([50_000 + number]).collect();
        Self { text }
    }

    fn grow(&mut self, dice: &mut Dice) {
        let more = 40 + dice.below(200);
        self.text.extend((0..more).map(|_| dice.below(40_000) as Token));
    }
}

/// Tokens found warm, of all, where rows last for some placements, and the most rows that any
/// engine had in relation to its bound.
fn talks(slots: &[usize], seed: u64) -> (usize, usize) {
    let mut dice = Dice(seed);
    let mut route = several(slots);
    let mut truth: BTreeMap<NodeId, Vec<Vec<Token>>> = BTreeMap::new();
    let mut talks: Vec<Talk> = (0..24).map(|n| Talk::new(n, &mut dice)).collect();
    let (mut running, mut warm, mut all) = (VecDeque::new(), 0, 0);
    for _ in 0..1200 {
        let at = dice.below(talks.len());
        if dice.below(20) == 0 {
            talks[at] = Talk::new(1000 + dice.below(10_000) as u32, &mut dice);
        }
        talks[at].grow(&mut dice);
        let text = talks[at].text.clone();
        let placed = route.place(&ask(&text), None).unwrap();
        route.seated(&placed);
        let known = truth.entry(placed.node).or_default();
        let best = known.iter().map(|k| crate::prefix::common(k, &text)).max().unwrap_or(0);
        (warm, all) = (warm + best, all + text.len());
        known.push(text);
        let total: usize = slots.iter().sum();
        let rows = |id| route.load(NodeId(id)).unwrap().rows;
        let of = (placed.node.0 - 1) as usize;
        let share = (running.len() + 1) as f64 * slots[of] as f64 / total as f64;
        assert!(rows(placed.node.0) as f64 <= RATIO_MAX * share + SLACK, "{slots:?} {seed}");
        running.push_back(placed);
        while running.len() > 1 + dice.below(12) {
            let at = dice.below(running.len());
            route.left(&running.remove(at).unwrap(), true);
        }
    }
    for node in route.nodes.values() {
        assert!(node.chosen > 0, "one was never chosen: {slots:?} {seed}");
    }
    (warm, all)
}

#[test]
fn conversations_find_nine_tenths_of_what_one_engine_alone_would_have_warm() {
    for seed in 0..12 {
        for slots in [&[8, 8][..], &[8, 8, 8], &[4, 16], &[8, 8, 8, 8]] {
            let (warm, all) = talks(slots, seed);
            let (alone, same) = talks(&[8], seed);
            assert_eq!(all, same);
            let share = warm as f64 / alone as f64;
            assert!(share >= 0.9, "{slots:?} with seed {seed}: {share:.3} of {alone}");
        }
    }
}

#[test]
fn nobody_is_sent_to_who_is_gone_drains_or_was_just_lost() {
    for seed in 0..20 {
        let mut dice = Dice(seed);
        let mut route = several(&[8, 8, 8, 8]);
        let mut health = BTreeMap::from([1, 2, 3, 4].map(|id| (NodeId(id), Some(Health::Ready))));
        let mut running: Vec<Placed> = Vec::new();
        for step in 0..600 {
            let id = NodeId(1 + dice.below(4) as u64);
            match dice.below(12) {
                0 => {
                    route.leave(id);
                    health.insert(id, None);
                }
                1 => {
                    route.join(id, 8);
                    health.insert(id, Some(Health::Ready));
                    // A new one of that name has none of its rows.
                    running.retain(|placed| placed.node != id);
                }
                2 | 3 => {
                    let to = [Health::Ready, Health::Silent, Health::Draining][dice.below(3)];
                    route.turn(id, to);
                    health.entry(id).and_modify(|now| *now = now.map(|_| to));
                }
                4 if !running.is_empty() => {
                    let placed = running.swap_remove(dice.below(running.len()));
                    route.left(&placed, dice.below(2) == 0);
                }
                _ => {
                    let prompt: Vec<Token> = (0..dice.below(300) as u32).collect();
                    let last = (dice.below(3) == 0).then_some(id);
                    let placed = route.place(&ask(&prompt), last);
                    let fit = |&(id, now): &(&NodeId, &Option<Health>)| {
                        Some(*id) != last && !matches!(now, None | Some(Health::Draining))
                    };
                    let fits: Vec<_> = health.iter().filter(fit).collect();
                    assert_eq!(placed.is_some(), !fits.is_empty(), "{seed} at {step}");
                    assert_eq!(route.has_other(last), !fits.is_empty());
                    let Some(placed) = placed else { continue };
                    let chosen = health[&placed.node];
                    let ready = fits.iter().any(|(_, now)| **now == Some(Health::Ready));
                    assert_eq!(chosen, Some(if ready { Health::Ready } else { Health::Silent }));
                    assert_ne!(Some(placed.node), last);
                    running.push(placed);
                }
            }
        }
    }
}

#[test]
fn equal_engines_share_what_has_nothing_in_common() {
    let mut route = several(&[8, 8, 8]);
    let placed: Vec<Placed> = (0..30_u32)
        .map(|n| {
            let prompt: Vec<Token> = (0..200).map(|i| n * 1000 + i).collect();
            route.place(&ask(&prompt), None).unwrap()
        })
        .collect();
    for id in 1..=3 {
        assert_eq!(route.load(NodeId(id)).unwrap().rows, 10);
    }
    placed.iter().for_each(|placed| route.left(placed, false));
    for id in 1..=3 {
        let Load { rows, queued, .. } = route.load(NodeId(id)).unwrap();
        assert_eq!((rows, queued), (0, 0));
    }
}

#[test]
fn a_prompt_that_all_begin_with_does_not_keep_others_idle() {
    let mut route = several(&[4, 4]);
    let system: Vec<Token> = (0..5000).collect();
    for n in 0..64 {
        let prompt: Vec<Token> = system.iter().copied().chain([9000 + n]).collect();
        route.place(&ask(&prompt), None).unwrap();
    }
    let rows = [1, 2].map(|id| route.load(NodeId(id)).unwrap().rows);
    assert!(rows.iter().all(|&rows| rows as f64 <= RATIO_MAX * 32.0 + SLACK), "{rows:?}");
}

#[test]
fn tenants_share_nothing_and_the_background_leaves_nothing() {
    let mut route = several(&[8]);
    let prompt: Vec<Token> = (0..320).collect();
    let mut warm = |tenant, leaves| {
        let ask = Ask { tenant: Tenant(tenant), prompt: &prompt, leaves };
        route.place(&ask, None).unwrap().warm
    };
    assert_eq!([warm(1, false), warm(1, true), warm(1, false)], [0, 0, 320]);
    assert_eq!(warm(2, true), 0);
}

#[test]
fn what_is_remembered_is_bounded_and_roots_stay_longest() {
    let mut route = several(&[8]);
    let root: Vec<Token> = (0..BLOCK as Token * 4).collect();
    let blocks_each = 300;
    for n in 0..(BLOCKS_MAX / blocks_each * 2) as Token {
        let own = (0..(BLOCK * blocks_each) as Token).map(|i| n * 7 + i + 10_000);
        let prompt: Vec<Token> = root.iter().copied().chain(own).collect();
        let placed = route.place(&ask(&prompt), None).unwrap();
        assert!(n == 0 || placed.warm >= root.len(), "{placed:?}");
        route.left(&placed, false);
        let warm = &route.nodes[&NodeId(1)].warm;
        assert!(warm.last.len() <= BLOCKS_MAX && warm.last.len() == warm.by_use.len());
    }
}

#![allow(clippy::unwrap_used, reason = "tests")]

use super::world::{CALLS, CODE, MACHINES, Machine, PROSE, Phase, STRANGE, Second, Simulation};
use super::*;
use crate::batch::Tried;
use crate::engine::Phases;
use crate::sample::TEMPERATURES;

mod bars;

fn limits() -> TuneLimits {
    let start = Knobs::fixed(2, 8, (64, 512));
    let cycle_us_max = f64::INFINITY;
    TuneLimits { start, auto_depth: true, depth_max: 4, cycle_us_max, auto_chunk: true }
}

/// Drafts that stand at `rate`, of a great many rows.
fn judged(depth: u8, rate: f64) -> [Vec<Tried>; TEMPERATURES] {
    let mut tried = 1000.0;
    let positions = (0..depth).map(|_| {
        let here = tried;
        tried *= rate;
        Tried { tried: here as u32, accepted: tried as u32 }
    });
    [Vec::new(), positions.collect(), Vec::new()]
}

/// A machine in which a cycle costs `base + per_depth * K` and drafts stand at `rate`.
fn run(tuner: &mut Tuner, cycles: u32, rows: usize, rate: f64, per_depth: f64) {
    for i in 0..cycles {
        let depth = tuner.knobs().depths.at(rows);
        let noise = f64::from(i * 7919 % 13) / 13.0 * 20.0;
        let micros = 1000.0 + per_depth * f64::from(depth) + noise;
        let phases = Phases { verify_us: micros as u64, ..Phases::default() };
        let (judged, uniform) = (judged(depth, rate), true);
        tuner.hear(&Report { rows, depth, uniform, judged, phases, ..Report::default() });
    }
}

#[test]
fn cheap_drafts_that_stand_are_drafted_deep() {
    let mut tuner = Tuner::new(limits());
    run(&mut tuner, 300, 1, 0.95, 50.0);
    let here = tuner.here().unwrap();
    assert_eq!((here.chosen, here.reason), (4, Reason::Fastest));
}

#[test]
fn why_nothing_is_drafted_is_said() {
    for (rate, per_depth, reason) in
        [(0.2, 500.0, Reason::DraftsFall), (0.8, 3000.0, Reason::DraftsDear)]
    {
        let mut tuner = Tuner::new(limits());
        run(&mut tuner, 300, 1, rate, per_depth);
        let here = tuner.here().unwrap();
        assert_eq!((here.chosen, here.reason), (0, reason));
    }
}

#[test]
fn it_changes_its_mind_when_the_text_does() {
    let mut tuner = Tuner::new(limits());
    run(&mut tuner, 300, 1, 0.2, 300.0);
    assert_eq!(tuner.depth(), 0);
    run(&mut tuner, 2000, 1, 0.95, 50.0);
    assert!(tuner.here().unwrap().chosen >= 3, "{:#?}", tuner.view());
}

#[test]
fn widths_are_learnt_apart() {
    let mut tuner = Tuner::new(limits());
    run(&mut tuner, 300, 1, 0.8, 100.0);
    run(&mut tuner, 300, 8, 0.8, 5000.0);
    let depths = tuner.knobs().depths;
    assert!(depths.at(1) >= 2 && depths.at(8) == 0, "{depths:?}");
}

#[test]
fn a_width_never_met_begins_with_what_its_neighbour_knows() {
    let mut tuner = Tuner::new(limits());
    run(&mut tuner, 300, 1, 0.95, 50.0);
    let chosen = tuner.here().unwrap().chosen;
    assert_eq!(tuner.knobs().depths.at(2), chosen);
}

#[test]
fn a_trial_that_cannot_measure_ends() {
    let mut tuner = Tuner::new(limits());
    run(&mut tuner, 6, 2, 0.9, 50.0);
    // From now on every cycle carries a prompt: nothing is learnt of costs.
    let mut seen = Vec::new();
    for _ in 0..500 {
        let depth = tuner.knobs().depths.at(2);
        seen.push(depth);
        tuner.hear(&Report { rows: 2, depth, prefilled: 64, ..Report::default() });
    }
    assert_eq!(seen[499], 2, "the depth it started with");
    assert!(seen.iter().filter(|&&d| d != 2).count() <= 4 * 61, "{seen:?}");
}

#[test]
fn a_trial_that_cannot_measure_is_paid_for() {
    let mut tuner = Tuner::new(limits());
    run(&mut tuner, 6, 2, 0.9, 500.0);
    // From now on one of two rows has its own depth: nothing is learnt of costs.
    let mut others = 0;
    for _ in 0..20_000 {
        let depth = tuner.knobs().depths.at(2);
        others += u32::from(depth != 2);
        let phases = Phases { verify_us: 2000, ..Phases::default() };
        tuner.hear(&Report { rows: 2, depth: 4, phases, ..Report::default() });
    }
    assert!(others <= 300, "{others} of 20000");
}

#[test]
fn time_at_depths_of_others_buys_no_trials() {
    let mut tuner = Tuner::new(limits());
    run(&mut tuner, 600, 1, 0.8, 100.0);
    // What trials lost is owed.
    tuner.budget = -0.1;
    let others = |tuner: &mut Tuner, uniform| {
        let phases = Phases { verify_us: 2000, ..Phases::default() };
        tuner.hear(&Report { rows: 1, depth: 1, uniform, phases, ..Report::default() });
    };
    (0..500).for_each(|_| others(&mut tuner, false));
    assert!((tuner.budget + 0.1).abs() < 1e-9);
    others(&mut tuner, true);
    assert!(tuner.budget > -0.1);
}

#[test]
fn nothing_is_tried_anew_beside_prompts() {
    let mut tuner = Tuner::new(limits());
    run(&mut tuner, 300, 1, 0.8, 100.0);
    let chosen = tuner.here().unwrap().chosen;
    for _ in 0..5000 {
        let depth = tuner.knobs().depths.at(1);
        let phases = Phases { verify_us: 9000, ..Phases::default() };
        tuner.hear(&Report { rows: 1, depth, prefilled: 8, phases, ..Report::default() });
        assert_eq!(depth, chosen);
    }
    let before = tuner.counts().0;
    run(&mut tuner, 300, 1, 0.8, 100.0);
    assert!(tuner.counts().0 > before, "once the prompt is done, what is old is tried");
}

#[test]
fn a_cycle_after_a_prompt_s_chunk_is_no_measure_of_a_known_depth() {
    let mut tuner = Tuner::new(limits());
    run(&mut tuner, 300, 1, 0.95, 50.0);
    for _ in 0..100 {
        tuner.hear(&Report { rows: 1, depth: 4, prefilled: 8, ..Report::default() });
        let phases = Phases { verify_us: 9000, ..Phases::default() };
        tuner.hear(&Report { rows: 1, depth: 4, phases, uniform: true, ..Report::default() });
    }
    assert_eq!(tuner.here().unwrap().chosen, 4);
    assert!(tuner.here().unwrap().cycle_us.unwrap() < 2000.0);
}

#[test]
fn beside_prompts_only_a_large_advantage_deepens_drafts() {
    // Depth 4 promises 17 % more than 3 and twice as much as 1.
    for (chosen, prefilled, settled) in [(3, 8, 3), (3, 0, 4), (1, 8, 4)] {
        let mut tuner = Tuner::new(limits());
        run(&mut tuner, 300, 1, 0.95, 50.0);
        let (now, seconds) = (tuner.now, tuner.seconds);
        tuner.cell().trial = None;
        tuner.cell().switch(chosen, now, seconds - 2.0 * cell::DWELL_S);
        tuner.hear(&Report { rows: 1, depth: chosen, prefilled, ..Report::default() });
        assert_eq!(tuner.depth(), settled, "from {chosen} beside {prefilled}");
    }
}

#[test]
fn a_fixed_depth_stays() {
    let mut tuner = Tuner::new(TuneLimits { auto_depth: false, ..limits() });
    run(&mut tuner, 100, 1, 0.1, 5000.0);
    assert_eq!(tuner.depth(), 2);
}

#[test]
fn heat_narrows_the_batch_and_never_closes_it() {
    let mut tuner = Tuner::new(limits());
    tuner.set_ceiling(Ceiling::Low);
    assert_eq!(tuner.knobs().rows_max, 2);
    tuner.set_ceiling(Ceiling::Full);
    assert_eq!(tuner.knobs().rows_max, 8);
}

#[test]
fn the_inter_token_target_is_kept_and_named() {
    // Depth 4 would be the fastest; cycles of depth 2 are the longest within 1250 us.
    let mut tuner = Tuner::new(TuneLimits { cycle_us_max: 1250.0, ..limits() });
    run(&mut tuner, 600, 1, 0.95, 100.0);
    let here = tuner.here().unwrap();
    assert_eq!((here.chosen, here.reason), (2, Reason::Target));
}

#[test]
fn bands_of_temperature_are_believed_apart() {
    let mut tuner = Tuner::new(limits());
    for i in 0..4000 {
        let greedy = i < 2000;
        let (band, rate) = if greedy { (0, 0.95) } else { (2, 0.1) };
        let depth = tuner.knobs().depths.at(1);
        let mut all = judged(depth, rate);
        all.swap(1, band);
        let mut temperatures = [0; TEMPERATURES];
        temperatures[band] = 1;
        let phases = Phases { verify_us: 1000 + 200 * u64::from(depth), ..Phases::default() };
        let uniform = true;
        let report = Report { rows: 1, depth, uniform, judged: all, phases, ..Report::default() };
        tuner.hear(&Report { temperatures, ..report });
        if i == 1999 {
            assert!(tuner.here().unwrap().chosen >= 3);
        }
    }
    assert_eq!(tuner.here().unwrap().chosen, 0);
    let view = tuner.view();
    assert!(view.acceptance[2][0].mean < 0.4);
    assert!((view.mix[2] - 1.0).abs() < 0.01);
}

#[test]
fn what_was_learnt_spares_the_next_process_its_trials() {
    let mut tuner = Tuner::new(limits());
    run(&mut tuner, 600, 1, 0.95, 50.0);
    let learnt = tuner.learnt();
    let mut next = Tuner::new(limits());
    next.recall(&learnt);
    assert_eq!(next.knobs().depths.at(1), 4);
    run(&mut next, 60, 1, 0.95, 50.0);
    assert_eq!(next.here().unwrap().chosen, 4);
    assert!(next.counts().0 <= 1, "{:?}", next.counts());
}

#[test]
fn nonsense_that_was_written_down_is_passed_over() {
    let bad = LearntCost {
        rows: 1,
        context_max: Some(4096),
        depth: 9,
        ratios: vec![Some(f64::NAN), Some(-1.0), Some(1e9)],
    };
    let worse = LearntCost { rows: 0, context_max: Some(7), depth: 0, ratios: Vec::new() };
    let odd = vec![Some(f64::NAN), None, Some(-3.0), Some(f64::INFINITY), Some(0.0)];
    let odd = LearntCost { rows: usize::MAX, context_max: None, depth: 1, ratios: odd };
    let acceptance = [vec![(f64::NAN, 1.0); 9], vec![(5.0, 9.0)], vec![(-1.0, 0.0)]];
    let mut tuner = Tuner::new(limits());
    tuner.recall(&Learnt { acceptance, costs: vec![bad, worse, odd] });
    run(&mut tuner, 300, 1, 0.95, 50.0);
    assert_eq!(tuner.here().unwrap().chosen, 4);
}

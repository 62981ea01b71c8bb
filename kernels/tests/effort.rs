//! What a cycle costs besides arithmetic: waits for the device, compilations, copies.

use mtplx_core::accept::Rule;
use mtplx_core::batch::Report;
use mtplx_core::engine::Engine;
use mtplx_core::sample::Sampling;
use mtplx_kernels::memory;
use mtplx_kernels::place::Place;

use crate::house::{House, Q8, engine, exact_place, prompts};

/// Cycles that verified, of three requests that come one after another.
fn cycles(sampling: &Sampling, depth: u8) -> Vec<Report> {
    let mut house = House::new(engine(Q8, None, 4));
    for prompt in prompts(3) {
        house.ask(&prompt, sampling.clone(), 20, false);
        house.step(depth);
    }
    house.run(depth);
    house.reports.retain(|report| report.rows > 0);
    assert!(house.reports.iter().any(|report| report.depth == depth && report.rows > 1));
    house.reports
}

#[test]
#[cfg(target_os = "linux")]
fn a_cycle_waits_for_the_device_once_however_deep_it_drafts() {
    let ratio = Sampling { temperature: 0.7, top_p: 0.9, ..Sampling::default() };
    for sampling in [Sampling::greedy(), ratio.clone(), Sampling { rule: Rule::Coupled, ..ratio }] {
        for depth in [0, 1, 3] {
            let reports = cycles(&sampling, depth);
            let waits: Vec<u64> = reports.iter().map(|report| report.synchronisations).collect();
            assert!(waits.iter().all(|&n| n == 1), "{waits:?} at K={depth}");
        }
    }
}

#[test]
fn steady_cycles_compile_nothing() {
    let reports = cycles(&Sampling::greedy(), 2);
    assert!(reports.iter().skip(3).all(|report| report.compilations == 0));
}

#[test]
fn drafts_that_depend_on_the_text_so_far_are_drawn_by_the_host() {
    let penalty = Sampling { presence_penalty: 0.3, ..Sampling::greedy() };
    let reports = cycles(&penalty, 3);
    assert!(reports.iter().any(|report| report.synchronisations == 4));
}

/// Runs the test of this name again in a process where nobody else allocates; true in there.
fn alone(name: &str) -> bool {
    const ALONE: &str = "MTPLX_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let mut test = std::process::Command::new(std::env::current_exe().unwrap());
    let status = test.args([name, "--exact", "--nocapture"]).env(ALONE, "1").status().unwrap();
    assert!(status.success(), "{status}");
    false
}

/// Bytes that a step had allocated at its height, beyond those before it.
fn rise(house: &mut House) -> usize {
    memory::trim();
    let before = memory::arrays().unwrap().active;
    mlx_rs::memory::reset_peak_memory().unwrap();
    house.step(1);
    memory::arrays().unwrap().peak.saturating_sub(before)
}

#[test]
fn whoever_comes_or_goes_moves_the_bytes_of_one_sequence() {
    const SLOTS: usize = 48;
    if !alone("effort::whoever_comes_or_goes_moves_the_bytes_of_one_sequence") {
        return;
    }
    let prompts = prompts(8);
    for place in [exact_place(), Place::Mlx(mlx_rs::Dtype::Float32)] {
        let mut house = House::new(engine(Q8, Some(place), SLOTS));
        let own = house.engine.info().snapshot_bytes as usize;
        for prompt in &prompts[..4] {
            house.ask(prompt, Sampling::greedy(), 40, false);
        }
        (0..6).for_each(|_| house.step(1));
        let steady = (0..4).map(|_| rise(&mut house)).max().unwrap();
        // One comes and is fed its few tokens, its state is kept twice, and it goes.
        house.ask(&prompts[4][..3], Sampling::greedy(), 4, false);
        let mut worst = 0;
        while house.batch.rows().len() > 4 || house.batch.waiting() > 0 {
            worst = worst.max(rise(&mut house));
        }
        // Another starts from what the first left.
        house.ask(&prompts[4][..5], Sampling::greedy(), 2, true);
        while house.batch.rows().len() > 4 || house.batch.waiting() > 0 {
            worst = worst.max(rise(&mut house));
        }
        // Its own state, kept twice, and what a fifth row needs in a step of four.
        let extra = 2 * own + steady / 4;
        assert!(worst <= steady + extra, "{place:?}: {worst} bytes, {steady} without, own {own}");
        // A copy of all states of a single layer, one of six, would be seen.
        assert!(SLOTS * own / 6 > extra, "{place:?}: {extra}");
    }
}

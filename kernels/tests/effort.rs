//! What a cycle costs besides arithmetic: waits for the device, compilations.

use mtplx_core::accept::Rule;
use mtplx_core::batch::Report;
use mtplx_core::sample::Sampling;

use crate::house::{House, Q8, engine, prompts};

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

use std::collections::BTreeSet;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use mtplx_core::batch::{Report, Tried};
use mtplx_core::fairness::Class;
use mtplx_core::request::Finish;

use super::*;

/// What `/metrics` would say after `act`.
fn rendered(act: impl FnOnce()) -> String {
    let recorder = with_buckets(PrometheusBuilder::new()).unwrap().build_recorder();
    metrics::with_local_recorder(&recorder, || {
        metrics::with_recorder(prepare);
        act();
    });
    recorder.handle().render()
}

#[test]
fn names_are_unique_and_end_in_their_unit() {
    let names: BTreeSet<&str> = ALL.iter().map(|m| m.name).collect();
    assert_eq!(names.len(), ALL.len());
    for metric in ALL {
        assert!(metric.name.starts_with("mtplx_"), "{}", metric.name);
        assert!(metric.help.ends_with('.'), "{}", metric.name);
        let stem = metric.name.strip_suffix("_total");
        assert_eq!(stem.is_some(), metric.kind == Kind::Counter, "{}", metric.name);
        let unit = match metric.unit {
            Unit::Count => "",
            Unit::Tokens => "_tokens",
            Unit::Seconds => "_seconds",
            Unit::Bytes => "_bytes",
            Unit::Celsius => "_celsius",
            Unit::Ratio => "_ratio",
            Unit::Info => "_info",
        };
        assert!(stem.unwrap_or(metric.name).ends_with(unit), "{}", metric.name);
    }
}

#[test]
fn buckets_rise() {
    for metric in ALL {
        if let Kind::Histogram(bounds) = metric.kind {
            assert!(bounds.windows(2).all(|w| w[0] < w[1]), "{}", metric.name);
        }
    }
}

#[test]
fn counters_stand_at_zero_before_anything_happens() {
    let text = rendered(|| prepare_route("/v1/completions"));
    assert!(text.contains("mtplx_refusals_total{reason=\"overloaded\"} 0"), "{text}");
    let finish =
        "mtplx_requests_total{route=\"/v1/completions\",class=\"background\",finish=\"stop\"} 0";
    assert!(text.contains(finish), "{text}");
    assert!(text.contains("mtplx_cycle_seconds_count{kind=\"decode\"} 0"), "{text}");
}

#[test]
fn histograms_have_buckets_and_are_never_summaries() {
    let text = rendered(|| {
        first_token("/v1/completions", Duration::from_millis(70));
        more_tokens("/v1/completions", Duration::from_millis(30), 3);
    });
    assert!(!text.contains(" summary"), "{text}");
    let ttft = "mtplx_time_to_first_token_seconds_bucket{route=\"/v1/completions\",le=\"0.075\"} 1";
    assert!(text.contains(ttft), "{text}");
    let gaps = "mtplx_inter_token_seconds_bucket{route=\"/v1/completions\",le=\"0.01\"} 3";
    assert!(text.contains(gaps), "{text}");
}

#[test]
fn a_cycle_is_told_by_kind_phase_and_position() {
    let report = Report {
        rows: 2,
        emitted: 5,
        positions: vec![Tried { tried: 2, accepted: 2 }, Tried { tried: 2, accepted: 1 }],
        ..Report::default()
    };
    let text = rendered(|| {
        cycle(&report, Duration::from_millis(12), Duration::from_millis(10));
        request_finished("/v1/completions", Class::Interactive, Finish::Stop);
    });
    for line in [
        "mtplx_cycles_total{kind=\"decode\"} 1",
        "mtplx_generated_tokens_total 5",
        "mtplx_draft_accepted_tokens_total{position=\"2\"} 1",
        "mtplx_draft_judged_tokens_total{position=\"2\"} 2",
        "mtplx_cycle_phase_seconds_bucket{phase=\"host\",le=\"0.002\"} 1",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
}

/// What a cycle of eight rows costs to be told, beside the shortest cycle that was seen: 3 ms of
/// the small model alone on two cores. It may be no more than a hundredth.
#[test]
fn a_cycle_is_told_in_less_than_a_hundredth_of_it() {
    const CYCLE_NS: u128 = 3_000_000;
    let recorder = with_buckets(PrometheusBuilder::new()).unwrap().build_recorder();
    let tried = Tried { tried: 8, accepted: 5 };
    let report = Report { rows: 8, emitted: 20, positions: vec![tried; 4], ..Report::default() };
    let info = mtplx_core::engine::Engine::info(&mtplx_core::scripted::Scripted::small(
        mtplx_core::scripted::Script::default(),
    ))
    .clone();
    let limits = mtplx_core::batch::BatchLimits { snapshots_max: 64, chunk_grain: 1 };
    let mut batch = mtplx_core::batch::Batch::new(info, limits);
    let each = metrics::with_local_recorder(&recorder, || {
        metrics::with_recorder(prepare);
        let mut least = u128::MAX;
        // The best of some: others use this machine, too.
        for _ in 0..20 {
            let began = std::time::Instant::now();
            for _ in 0..100 {
                heartbeat();
                drafted(20);
                cycle(&report, Duration::from_millis(3), Duration::from_millis(3));
                decode_stalled(Duration::from_millis(1));
                books(&mut batch);
                acceptance(&[0.9, 0.8, 0.7, 0.6]);
            }
            recorder.handle().run_upkeep();
            least = least.min(began.elapsed().as_nanos() / 100);
        }
        least
    });
    println!("{each} ns a cycle, of {CYCLE_NS}: {:.3} %", each as f64 / CYCLE_NS as f64 * 100.0);
    assert!(each < CYCLE_NS / 100, "{each} ns");
}

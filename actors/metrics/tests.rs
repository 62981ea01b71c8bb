use std::collections::BTreeSet;
use std::time::Duration;

use mtplx_core::batch::{Report, Tried};
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
    let finish = "mtplx_requests_total{route=\"/v1/completions\",finish=\"stop\"} 0";
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
        request_finished("/v1/completions", Finish::Stop);
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

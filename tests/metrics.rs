//! What /metrics shows is what was served.

use crate::house::{House, question};

#[test]
fn metrics_count_what_was_served() {
    let house = House::start(&[]);
    let mut body = question("Tell me a short story about a brave cat.");
    body["max_tokens"] = 32.into();
    body["ignore_eos"] = true.into();
    let (status, first) = house.post("/v1/chat/completions", &body);
    assert_eq!(status, 200, "{first}");
    let (_, second) = house.post("/v1/chat/completions", &body);
    let prompt = first["usage"]["prompt_tokens"].as_f64().unwrap();
    let cached = second["usage"]["prompt_tokens_details"]["cached_tokens"].as_f64().unwrap();
    assert!(cached > 0.0, "{second}");
    let source = |name: &str| house.metric_of("mtplx_prompt_tokens_total", name);
    assert_eq!(house.metric("mtplx_generated_tokens_total"), 64.0);
    assert_eq!(source("source=\"restored\""), cached);
    assert_eq!(source("source=\"forwarded\""), 2.0 * prompt - cached);
    let drafted = house.metric("mtplx_draft_judged_tokens_total");
    let accepted = house.metric("mtplx_draft_accepted_tokens_total");
    assert!(drafted >= accepted && accepted > 0.0, "{accepted} of {drafted}");
    // The model alone has more than ten million bytes.
    let (active, peak) = ("mtplx_engine_active_bytes", "mtplx_engine_peak_bytes");
    let (active, peak) = (house.metric(active), house.metric(peak));
    assert!(active > 1e7 && peak >= active, "{active} of {peak}");
    let (_, text) = house.get("/metrics");
    assert!(text.contains("mtplx_time_to_first_token_seconds_bucket{"), "{text}");
    assert!(!text.contains("quantile="), "histograms, never summaries");
}

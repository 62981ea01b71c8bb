//! What /metrics shows is what was served.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::dashboards::prometheus;
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

#[test]
fn promtool_finds_nothing_wrong_with_what_is_shown() {
    let Some(promtool) = prometheus("promtool") else { return };
    let house = House::shared();
    house.post("/v1/chat/completions", &question("Tell me a short story about a brave cat."));
    let (_, text) = house.get("/metrics");
    let mut check = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let out = check.wait_with_output().unwrap();
    let said = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(out.status.success() && said.concat().trim().is_empty(), "{}", said.concat());
}

#[test]
fn vllms_names_are_shown_where_they_are_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let settings = folder.path().join("my.toml");
    std::fs::write(&settings, "[metrics]\nvllm_names = true\n").unwrap();
    let house = House::start(&["--config", &settings.display().to_string()]);
    let (_, answer) = house.post("/v1/chat/completions", &question("Tell me about a brave cat."));
    let made = answer["usage"]["completion_tokens"].as_f64().unwrap();
    assert_eq!(house.metric("vllm:generation_tokens_total"), made);
    assert_eq!(house.metric_of("vllm:request_success_total", "finished_reason=\""), 1.0);
    assert_eq!(house.metric("vllm:time_to_first_token_seconds_count"), 1.0);
    let (_, text) = house.get("/metrics");
    assert!(text.contains("\nvllm:num_requests_running{model_name=\""), "{text}");
    assert!(!House::shared().get("/metrics").1.contains("vllm:"));
}

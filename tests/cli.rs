//! What the command line says, above all when something is wrong.

use std::time::{Duration, Instant};

use crate::commands::fits;
use crate::house::{mtplx, root};

/// Runs the binary to its end; its exit code and everything it said on stderr.
fn fails(args: &[&str]) -> String {
    let out = mtplx().args(args).output().unwrap();
    assert!(!out.status.success(), "{args:?} succeeded");
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[test]
fn what_cannot_be_served_is_named_before_anything_listens() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("my.toml");
    std::fs::write(&path, "[server]\nprot = 1\n").unwrap();
    let error = fails(&["serve", "--config", path.to_str().unwrap()]);
    assert!(error.contains("prot"), "{error}");
    let error = fails(&["serve", "--model", "/nonexistent/model"]);
    assert!(error.contains("/nonexistent/model"), "{error}");
    let error = fails(&["serve", "--model", dir.path().to_str().unwrap()]);
    assert!(error.contains("config.json"), "{error}");
    let error = fails(&["serve", "--port", "70000"]);
    assert!(error.contains("70000"), "{error}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let error = fails(&["serve", "--port", &port]);
    assert!(error.contains(&port) && error.contains("in use"), "{error}");
}

/// The optimised binary must answer within 50 ms; this one is not optimised, and never alone on its
/// machine, so that it gets more and the quickest of many runs tells.
const PROMPT_TIME: Duration = Duration::from_millis(250);

#[test]
fn what_only_looks_answers_at_once() {
    let model = root().join("config/models/tiny-q8");
    let inspect = ["inspect", model.to_str().unwrap()];
    for args in [&["--help"][..], &["serve", "--help"], &inspect, &["doctor", "--summary"]] {
        let (patience, mut quickest) = (Instant::now(), Duration::MAX);
        while quickest >= PROMPT_TIME && patience.elapsed() < Duration::from_secs(60) {
            let start = Instant::now();
            mtplx().args(args).output().unwrap();
            quickest = quickest.min(start.elapsed());
        }
        println!("mtplx {}: {quickest:?}", args[0]);
        assert!(quickest < PROMPT_TIME, "{args:?}: {quickest:?} at best");
    }
}

/// As small as it can be: what it finds is no matter.
const SMALL: [&str; 7] = ["--rounds", "2", "--tokens", "8", "--depth-max", "1", "--json"];

#[test]
fn depths_are_compared_and_a_file_that_is_there_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("my.toml");
    let save = ["--save", path.to_str().unwrap()];
    let out = mtplx().arg("tune").args(SMALL).args(save).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    fits("tune", &report);
    assert_eq!(report["depths"].as_array().map(Vec::len), Some(2), "{report}");
    let prose = &report["depths"][1]["by_kind"]["prose"];
    assert_eq!(prose["tokens_per_s"].as_array().map(Vec::len), Some(2), "{report}");
    assert_eq!(prose["acceptance"].as_array().map(Vec::len), Some(1), "{report}");
    assert_eq!(report["kept"].is_null(), !path.exists());
    let own = "[server]\nport = 4321\n";
    std::fs::write(&path, own).unwrap();
    let error = fails(&[&["tune"], &SMALL[..], &save[..]].concat());
    assert!(error.contains("--retune"), "{error}");
    let out = mtplx().args(["tune", "--retune"]).args(SMALL).args(save).output().unwrap();
    assert!(out.status.success());
    assert!(std::fs::read_to_string(&path).unwrap().contains(own), "what is not its own stays");
}

#[test]
fn what_the_machine_did_is_said_of_every_depth_with_whose_samples_it_rests_on() {
    let out = mtplx().args(["bench", "tune", "--sample-s", "0.02"]).args(SMALL).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    fits("bench tune", &report);
    for depth in report["depths"].as_array().unwrap() {
        for quantity in ["watts", "megahertz", "celsius", "busy", "rpm", "pressure"] {
            let of = &depth["machine"][quantity];
            let scope = of["scope"].as_str().unwrap();
            assert!(["candidate", "run", "none"].contains(&scope), "{depth}");
            assert_eq!(of["sensors"].is_null(), scope == "none", "{depth}");
        }
    }
}

#[test]
fn a_shape_is_measured_without_a_checkpoint_and_says_what_is_forced() {
    let small = ["bench", "shape", "--preset", "small", "--layers", "4", "--steps", "2"];
    let out = mtplx()
        .args(small)
        .args(["--clients", "2", "--depth", "1", "--acceptance", "1", "--prompt", "64", "--json"])
        .output()
        .unwrap();
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    fits("bench shape", &report);
    assert_eq!(report["decode"][0]["forced"], true, "{report}");
    assert_eq!(report["decode"][0]["tokens_per_row"], 2.0, "every draft was to be accepted");
    assert!(report["prefill"]["ms"].as_f64().is_some_and(|ms| ms > 0.0), "{report}");
    let other = ["--clients", "1", "--prompt", "0", "--bits", "8", "--group", "32", "--json"];
    let out = mtplx().args(small).args(other).args(["--dtype", "float16"]).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(report["weights"], "random, 8 bits in groups of 32", "{report}");
    assert!(fails(&["bench", "shape", "--bits", "5"]).contains("[4, 8]"));
    assert!(fails(&["bench", "shape", "--preset", "gpt-9"]).contains("gpt-9"));
    assert!(fails(&["bench", "shape", "--layers", "0"]).contains("layers"));
}

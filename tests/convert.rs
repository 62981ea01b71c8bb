//! A published checkpoint becomes one that is inspected, verified and served, or nothing at all.

use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use serde_json::Value;

use crate::commands::fits;
use crate::house::{House, mtplx, question, root};

fn golden() -> String {
    root().join("tests/golden/bf16").display().to_string()
}

fn run(args: &[&str]) -> Output {
    mtplx().arg("convert").args(args).output().unwrap()
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// The names in a folder, hidden ones too.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn json_of(out: &Output) -> Value {
    serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", said(out)))
}

#[test]
fn what_was_converted_is_inspected_verified_and_served() {
    let ground = tempfile::tempdir().unwrap();
    let dest = ground.path().join("q4");
    let path = dest.to_str().unwrap();
    let report = json_of(&run(&[&golden(), path, "--bits", "4", "--json"]));
    fits("convert", &report);
    assert_eq!((&report["bits"], &report["mtp_bits"]), (&4.into(), &8.into()));
    let expected = [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "mtp.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names(&dest), expected);
    assert_eq!(report["files"], serde_json::json!(expected));
    assert_eq!(names(ground.path()), ["q4"]);
    let tier = |path: &str| {
        let out = mtplx().args(["inspect", path, "--json"]).output().unwrap();
        json_of(&out)["tier"].as_str().unwrap().to_owned()
    };
    assert_eq!(tier(path), "unverified");
    let small = ["verify", path, "--tokens", "8", "--draws", "100"];
    let out = mtplx().args(small).output().unwrap();
    assert!(out.status.success(), "{}{}", String::from_utf8_lossy(&out.stdout), said(&out));
    assert_eq!(tier(path), "verified");
    let house = House::start(&["--model", path]);
    let (status, answer) = house.post("/v1/chat/completions", &question("Hello!"));
    assert_eq!(status, 200, "{answer}");
    assert!(answer["usage"]["completion_tokens"].as_u64().unwrap() > 0, "{answer}");
}

#[test]
fn what_is_there_already_stays_and_what_cannot_be_converted_leaves_nothing() {
    let ground = tempfile::tempdir().unwrap();
    let there = ground.path().join("there");
    fs::create_dir(&there).unwrap();
    let new = ground.path().join("new");
    let (there, new) = (there.to_str().unwrap(), new.to_str().unwrap());
    let quantised = root().join("config/models/tiny-q8").display().to_string();
    for (source, dest, words) in [
        (golden().as_str(), there, "is there already"),
        (quantised.as_str(), new, "original"),
        (there, new, "config.json"),
        ("/nonexistent/model", new, "does not exist"),
        (golden().as_str(), "/nonexistent/folder/new", "make it first"),
    ] {
        let out = run(&[source, dest, "--bits", "8"]);
        assert_eq!(out.status.code(), Some(1), "{}", said(&out));
        assert!(said(&out).contains(words) && out.stdout.is_empty(), "{}", said(&out));
    }
    assert_eq!(names(ground.path()), ["there"]);
    assert_eq!(run(&[&golden(), new, "--bits", "5"]).status.code(), Some(2));
}

#[test]
fn ctrl_c_leaves_nothing() {
    // It may be done before the signal comes, on a machine that has much else to do.
    for _ in 0..50 {
        let ground = tempfile::tempdir().unwrap();
        let dest = ground.path().join("new");
        let args = [golden(), dest.display().to_string()];
        let mut child = mtplx().arg("convert").args(args).args(["--bits", "4"]).spawn().unwrap();
        let begun = || names(ground.path()).iter().any(|name| name.ends_with(".partial"));
        while !begun() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let pid = child.id().to_string();
        // It may have ended by itself.
        let _ = std::process::Command::new("kill").args(["-INT", &pid]).status();
        match child.wait().unwrap().code() {
            Some(130) => {
                assert!(names(ground.path()).is_empty(), "{:?}", names(ground.path()));
                return;
            }
            code => assert_eq!((code, names(ground.path())), (Some(0), vec!["new".to_owned()])),
        }
    }
    panic!("it was never interrupted");
}

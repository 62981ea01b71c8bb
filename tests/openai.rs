//! The official clients of OpenAI and Anthropic, for Python from PyPI and for JavaScript from npm,
//! against the real server.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::house::{House, question, root};

pub fn make(target: &str) {
    // Tests run side by side; two installers in one folder would spoil each other's work.
    static ONE_BY_ONE: Mutex<()> = Mutex::new(());
    let _turn = ONE_BY_ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let made = Command::new("make").args(["--silent", target]).current_dir(root()).output();
    let made = made.unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// A Python with the judges installed; made once below the checkout.
pub fn judges() -> PathBuf {
    make("judges");
    root().join(".native/judges/bin/python")
}

/// Runs a judge of both clients against the server.
fn judged(program: PathBuf, script: &str) {
    judged_by(&House::shared(), program, script);
}

fn judged_by(house: &House, program: PathBuf, script: &str) {
    let out = Command::new(program).arg(root().join(script)).arg(&house.url).output().unwrap();
    let said = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(out.status.success(), "{}", said.concat());
}

#[test]
fn both_official_clients_for_python_are_served() {
    judged(judges(), "tests/judges/real_server.py");
}

#[test]
fn both_official_clients_for_javascript_are_served() {
    if Command::new("node").arg("--version").output().is_err() {
        println!("NOT JUDGED: there is no node on this machine");
        return;
    }
    make("judges-js");
    judged("node".into(), ".native/judges-js/real_server.mjs");
}

#[test]
fn a_client_without_patience_leaves_one_row_behind() {
    // Of its own: it counts places.
    judged_by(&House::start(&[]), judges(), "tests/judges/retry_client.py");
}

#[test]
fn the_official_client_is_served() {
    let house = House::shared();
    let script = root().join("tests/judges/openai_client.py");
    // Elsewhere kernels may round differently for different batch sizes.
    let exact = if cfg!(target_os = "linux") { "exact" } else { "near" };
    let out = Command::new(judges()).arg(script).args([&house.url, exact]).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
    println!("{text}");
}

#[test]
fn many_at_once_get_the_text_they_would_get_alone() {
    let house = House::shared();
    let ask = |i: usize| {
        let mut body = question(&format!("Tell me a short story about a dragon, number {i}."));
        body["max_tokens"] = 48.into();
        if i % 2 == 1 {
            body["temperature"] = 0.8.into();
            body["seed"] = i.into();
        }
        let (status, answer) = house.post("/v1/chat/completions", &body);
        assert_eq!(status, 200, "{answer}");
        answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    let alone: Vec<String> = (0..10).map(ask).collect();
    let together: Vec<String> = std::thread::scope(|s| {
        let ask = &ask;
        let threads: Vec<_> = (0..10).map(|i| s.spawn(move || ask(i))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    if cfg!(target_os = "linux") {
        assert_eq!(alone, together);
    }
}

//! The bank from outside: a second server is warm from the first one's files, and `mtplx bank`
//! shows and manages what is warm.

use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::house::{House, mtplx};

const TOKEN: &str = "a token of tests";

fn settings(folder: &tempfile::TempDir) -> String {
    let path = folder.path().join("settings.toml");
    let files = folder.path().join("bank").display().to_string();
    let text = format!("[admin]\ntoken = {TOKEN:?}\n[disk]\npath = {files:?}\ntokens_min = 16\n");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn bank(house: &House, args: &[&str]) -> Output {
    let mut command = mtplx();
    command.args(["bank", "--url", &house.url]).args(args).env("MTPLX_ADMIN_TOKEN", TOKEN);
    command.output().unwrap()
}

fn listing(house: &House) -> Value {
    let output = bank(house, &["--json"]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn leave(mut house: House) {
    let pid = house.child.id().to_string();
    std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap();
    let start = Instant::now();
    while house.child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(60), "it does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_second_server_is_warm_from_the_files_of_the_first_and_says_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&folder);
    let words = "A dragon and a boy went to the sea to see the old clock. ".repeat(12);
    let body = json!({"messages": [{"role": "user", "content": words}], "max_tokens": 12,
        "temperature": 0.0, "ignore_eos": true});
    let house = House::start(&["--config", &settings]);
    let (status, first) = house.post("/v1/chat/completions", &body);
    assert_eq!(status, 200, "{first}");
    let listed = listing(&house);
    assert!(listed["bank"]["entries"].as_u64() >= Some(2), "{listed}");
    let text = String::from_utf8(bank(&house, &[]).stdout).unwrap();
    assert!(text.contains("warm prefixes") && text.contains("reply"), "{text}");
    leave(house);

    let house = House::start(&["--config", &settings]);
    let (_, second) = house.post("/v1/chat/completions", &body);
    let cached = &second["usage"]["prompt_tokens_details"]["cached_tokens"];
    assert_eq!(*cached, second["usage"]["prompt_tokens"], "{second}");
    assert_eq!(second["choices"][0]["message"], first["choices"][0]["message"]);
    // Carried to a file, dropped, and carried in again.
    let listed = listing(&house);
    let state = &listed["states"][0];
    let id = state["id"].as_str().unwrap();
    assert!(bank(&house, &["pin", id]).status.success());
    assert_eq!(listing(&house)["states"][0]["pinned"], true);
    let file = folder.path().join("carried").display().to_string();
    assert!(bank(&house, &["export", id, &file]).status.success());
    assert!(bank(&house, &["drop", id]).status.success());
    let gone = bank(&house, &["drop", id]);
    assert!(!gone.status.success() && String::from_utf8_lossy(&gone.stderr).contains("no such"));
    let taken = bank(&house, &["import", &file]);
    assert_eq!(String::from_utf8_lossy(&taken.stdout).trim(), id, "{taken:?}");
    assert!(listing(&house)["states"].as_array().unwrap().iter().any(|s| s["id"] == id));
}

#[test]
fn without_a_token_the_command_says_what_is_missing() {
    let house = House::shared();
    let asked =
        mtplx().args(["bank", "--url", &house.url]).env_remove("MTPLX_ADMIN_TOKEN").output();
    let said = String::from_utf8(asked.unwrap().stderr).unwrap();
    assert!(said.contains("MTPLX_ADMIN_TOKEN"), "{said}");
    let said = String::from_utf8(bank(&house, &[]).stderr).unwrap();
    assert!(said.contains("without admin.token"), "{said}");
}

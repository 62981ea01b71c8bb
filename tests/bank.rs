//! The bank from outside: a second server is warm from the first one's files, and `mtplx bank`
//! shows and manages what is warm.

use std::collections::BTreeMap;
use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::commands::fits;
use crate::house::{House, block, mtplx};

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
    let listing = serde_json::from_slice(&output.stdout).unwrap();
    fits("bank", &listing);
    fits("bank list", &listing);
    listing
}

/// The report of `command`, which is as its schema says.
fn and_fits(command: &str, args: &[&str], house: &House) {
    let args = [&[command.trim_start_matches("bank ")], args, &["--json"]].concat();
    let output = bank(house, &args);
    assert!(output.status.success(), "{output:?}");
    fits(command, &serde_json::from_slice(&output.stdout).unwrap());
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
    let pinned = || listing(&house)["states"][0]["pinned"].clone();
    and_fits("bank pin", &[id], &house);
    assert_eq!(pinned(), true);
    and_fits("bank unpin", &[id], &house);
    assert_eq!(pinned(), false);
    let file = folder.path().join("carried").display().to_string();
    and_fits("bank export", &[id, &file], &house);
    and_fits("bank drop", &[id], &house);
    let gone = bank(&house, &["drop", id]);
    assert!(!gone.status.success() && String::from_utf8_lossy(&gone.stderr).contains("no such"));
    let taken = bank(&house, &["import", &file]);
    assert_eq!(String::from_utf8_lossy(&taken.stdout).trim(), id, "{taken:?}");
    assert!(listing(&house)["states"].as_array().unwrap().iter().any(|s| s["id"] == id));
    and_fits("bank import", &[&file], &house);
}

/// The first turn of somebody who has tools, and one more after its reply.
fn turns_with_tools() -> (Value, Value) {
    let call = json!({"id": "call_1", "type": "function",
        "function": {"name": "look_up", "arguments": "{\"word\": \"dragon\"}"}});
    let system = "You live in an old tower by the sea and answer in few words. ".repeat(12);
    let mut first = json!({"temperature": 0.0, "max_tokens": 12, "ignore_eos": true,
    "logprobs": true, "top_logprobs": 20,
    "tools": [{"type": "function", "function": {"name": "look_up",
        "description": "Looks a word up.", "parameters": {"type": "object",
        "properties": {"word": {"type": "string"}}, "required": ["word"]}}}],
    "messages": [
        {"role": "system", "content": system},
        {"role": "user", "content": "What is a dragon? ".repeat(20)},
    ]});
    let before = first.clone();
    let messages = first["messages"].as_array_mut().unwrap();
    messages.push(json!({"role": "assistant", "content": null, "tool_calls": [call]}));
    messages.push(json!({"role": "tool", "tool_call_id": "call_1", "content": "A large worm."}));
    (before, first)
}

/// An answer's logits, as far as they are told, and its tokens, which are compared to the bit.
fn thought(answer: &Value) -> (usize, Value) {
    let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    let told = answer["choices"][0]["logprobs"]["content"].clone();
    // Tokens that are no text have none.
    assert!(told.as_array().map(Vec::len) >= Some(8), "{answer}");
    (cached.unwrap_or(0) as usize, told)
}

#[test]
fn with_tools_a_turn_has_the_logits_of_a_cold_one_from_memory_from_disk_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&folder);
    // Room for few states: what others say sends these to disk.
    let mut text = std::fs::read_to_string(&settings).unwrap();
    text.push_str("[bank]\nbytes_max = 40_000_000\nroots_share = 0.0\n");
    std::fs::write(&settings, text).unwrap();
    let (first, second) = turns_with_tools();
    let ask = |house: &House, body: &Value| {
        let (status, answer) = house.post("/v1/chat/completions", body);
        assert_eq!(status, 200, "{answer}");
        thought(&answer)
    };
    let cold = {
        let house = House::start(&[]);
        ask(&house, &second)
    };
    assert_eq!(cold.0, 0);
    let house = House::start(&["--config", &settings]);
    ask(&house, &first);
    // While others are served beside it.
    let other = json!({"messages": [{"role": "user", "content": "A boy and a boat."}],
        "max_tokens": 60, "temperature": 0.0, "ignore_eos": true});
    let warm = std::thread::scope(|scope| {
        let beside = [(); 3].map(|()| scope.spawn(|| house.post("/v1/chat/completions", &other)));
        let warm = ask(&house, &second);
        beside.into_iter().for_each(|other| assert_eq!(other.join().unwrap().0, 200));
        warm
    });
    assert!(warm.0 > 300 && warm.1 == cold.1, "from memory: {}", warm.0);
    let restored = |house: &House| house.metric_of("mtplx_bank_hits_total", "disk");
    for number in 0..8 {
        let words = format!("{number} boats went to the sea and came back again. ").repeat(40);
        let body = json!({"messages": [{"role": "user", "content": words}], "max_tokens": 2});
        assert_eq!(house.post("/v1/chat/completions", &body).0, 200);
    }
    assert_eq!(restored(&house), 0.0);
    let warm = ask(&house, &second);
    assert!(restored(&house) > 0.0, "it was let go");
    assert!(warm.0 > 300 && warm.1 == cold.1, "from disk: {}", warm.0);
    leave(house);
    let house = House::start(&["--config", &settings]);
    let warm = ask(&house, &second);
    assert!(restored(&house) > 0.0 && warm.0 > 300 && warm.1 == cold.1, "restarted: {}", warm.0);
}

/// Files of the bank whose names end like this.
fn files(folder: &tempfile::TempDir, ending: &str) -> usize {
    let Ok(all) = std::fs::read_dir(folder.path().join("bank")) else { return 0 };
    all.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().ends_with(ending)).count()
}

/// How often the server is killed; the bar is 200.
fn kills() -> u64 {
    std::env::var("MTPLX_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(6)
}

#[test]
fn a_server_that_is_killed_while_states_go_to_disk_serves_rightly_ever_after() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&folder);
    // Room for two or three states: each new one sends another to disk.
    let mut text = std::fs::read_to_string(&settings).unwrap();
    text.push_str("bytes_max = 60_000_000\n[bank]\nbytes_max = 6_000_000\nroots_share = 0.0\n");
    std::fs::write(&settings, text).unwrap();
    let body = |number: u64| {
        let words = format!("{number} dragons and a boy went to the sea to see the old clock. ");
        json!({"messages": [{"role": "user", "content": words.repeat(10)}], "max_tokens": 4,
            "temperature": 0.0, "ignore_eos": true})
    };
    let (mut said, mut halves, mut restored) = (BTreeMap::new(), 0, 0);
    for kill in 0..=kills() {
        let mut house = House::start(&["--config", &settings]);
        assert_eq!(files(&folder, ".part"), 0, "after kill {kill}");
        for number in [kill, kill + 2, kill + 5].map(|n| n % 7) {
            let (status, answer) = house.post("/v1/chat/completions", &body(number));
            assert_eq!(status, 200, "after kill {kill}: {answer}");
            let message = answer["choices"][0]["message"].clone();
            assert_eq!(*said.entry(number).or_insert(message.clone()), message, "kill {kill}");
        }
        restored += house.metric_of("mtplx_bank_file_events_total", "restored") as u64;
        let refused = house.metric_of("mtplx_bank_file_events_total", "refused");
        assert_eq!(refused, 0.0, "after kill {kill}: {:?}", house.log());
        if kill == kills() {
            leave(house);
            break;
        }
        // What it says sends other states to disk while it is killed.
        let (url, last) = (format!("{}/v1/chat/completions", house.url), body(kill % 7 + 10));
        let last = std::thread::spawn(move || {
            block(async { drop(reqwest::Client::new().post(url).json(&last).send().await) });
        });
        std::thread::sleep(Duration::from_micros(kill * 7919 % 60_000));
        // On Unix this is SIGKILL.
        house.child.kill().unwrap();
        house.child.wait().unwrap();
        last.join().unwrap();
        halves += files(&folder, ".part");
    }
    println!("{halves} of {} kills left a file half written; {restored} were restored", kills());
    assert!(restored >= kills() / 2, "{restored}");
    assert_eq!(files(&folder, ".part"), 0);
    let others = |e: &std::fs::DirEntry| {
        let name = e.file_name().to_string_lossy().into_owned();
        !name.ends_with(".state") && name != "lock"
    };
    let all = std::fs::read_dir(folder.path().join("bank")).unwrap().map(Result::unwrap);
    assert_eq!(all.filter(others).count(), 0, "no stray file");
}

#[test]
fn the_billing_line_does_not_end_the_warm_prefix_and_every_token_is_accounted_for() {
    let house = House::start(&[]);
    let body = |line: &str| {
        json!({"model": "claude-x", "max_tokens": 4, "temperature": 0.0,
            "system": [
                {"type": "text", "text": format!("x-anthropic-billing-header: cch={line};")},
                {"type": "text", "text": "You are a dragon who lives by the sea. ".repeat(12),
                    "cache_control": {"type": "ephemeral"}},
            ],
            "messages": [{"role": "user", "content": "Who are you?"}]})
    };
    let (status, first) = house.post("/v1/messages", &body("0f3a"));
    assert_eq!(status, 200, "{first}");
    let (_, second) = house.post("/v1/messages", &body("77c1"));
    let usage = &second["usage"];
    assert!(usage["cache_read_input_tokens"].as_u64() > Some(60), "{usage}");
    assert_eq!(usage["input_tokens"], 0, "{usage}");
    assert_eq!(second["content"], first["content"]);
    let tokens = house.metric("mtplx_prompt_tokens_total");
    assert_eq!(tokens, house.metric("mtplx_prompt_seated_tokens_total"));
    assert_eq!(tokens, house.metric("mtplx_request_prompt_tokens_sum"));
    assert_eq!(house.metric("mtplx_prompt_unaccounted_total"), 0.0);
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

//! `mtplx start`: its questions in a terminal, what it remembers, and what it says to a script.

use std::path::Path;
use std::process::{Command, Output};

use rexpect::session::{PtySession, spawn_command};
use serde_json::{Value, json};

use crate::house::mtplx;

const PATIENCE_MS: Option<u64> = Some(120_000);

fn start(home: &Path, args: &[&str]) -> Command {
    let mut command = mtplx();
    command.arg("start").args(args).env("HOME", home).env("TERM", "xterm");
    for name in ["XDG_STATE_HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "MTPLX_URL"] {
        command.env_remove(name);
    }
    command
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

fn session(home: &Path, args: &[&str]) -> PtySession {
    spawn_command(start(home, args), PATIENCE_MS).unwrap()
}

/// Takes what is marked already.
fn enter(terminal: &mut PtySession, question: &str) {
    terminal.exp_string(question).unwrap();
    terminal.send("\r").unwrap();
    terminal.flush().unwrap();
}

#[test]
fn three_questions_lead_into_a_chat_and_one_is_enough_the_next_time() {
    let home = tempfile::tempdir().unwrap();
    let mut terminal = session(home.path(), &[]);
    enter(&mut terminal, "Which model?");
    enter(&mut terminal, "Which mode?");
    enter(&mut terminal, "Where do you want to talk?");
    terminal.exp_string("/help").unwrap();
    terminal.send_line("/exit").unwrap();
    terminal.exp_eof().unwrap();
    let file = home.path().join(match cfg!(target_os = "macos") {
        true => "Library/Application Support/mtplx/start.json",
        false => ".local/state/mtplx/start.json",
    });
    let kept: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(kept, json!({"model": "small", "mode": "sustained", "surface": "cli"}));
    let mut terminal = session(home.path(), &[]);
    terminal.exp_string("Same as last time?").unwrap();
    terminal.send("y").unwrap();
    terminal.flush().unwrap();
    terminal.exp_string("/help").unwrap();
    terminal.send_control('d').unwrap();
    terminal.exp_eof().unwrap();
    // Forgotten, it is asked again; who leaves a question starts nothing.
    let mut terminal = session(home.path(), &["--fresh"]);
    terminal.exp_string("Which model?").unwrap();
    terminal.send("\x1b").unwrap();
    terminal.flush().unwrap();
    terminal.exp_string("interrupted").unwrap();
    terminal.exp_eof().unwrap();
}

#[test]
fn without_a_terminal_nothing_is_asked_and_what_is_missing_is_named() {
    let home = tempfile::tempdir().unwrap();
    let out = start(home.path(), &["--model", "small"]).output().unwrap();
    assert_eq!(out.status.code(), Some(3), "{}", said(&out));
    assert!(said(&out).contains("--mode") && said(&out).contains("--yes"), "{}", said(&out));
    assert!(!said(&out).contains("--model"), "{}", said(&out));
    let out = start(home.path(), &["web", "--yes", "--json"]).output().unwrap();
    let told: Value = serde_json::from_slice(&out.stdout).unwrap();
    crate::commands::fits("start", &told);
    assert_eq!((&told["model"], &told["surface"]), (&json!("small"), &json!("web")));
    let out = start(home.path(), &["--yes", "--mode", "fast"]).output().unwrap();
    assert!(said(&out).contains("sustained-max"), "{}", said(&out));
    let out = start(home.path(), &["--yes", "--model", "/nonexistent/model"]).output().unwrap();
    assert!(said(&out).contains("/nonexistent/model"), "{}", said(&out));
}

#[test]
fn what_does_not_fit_is_refused_with_what_would() {
    let home = tempfile::tempdir().unwrap();
    let many = ["--yes", "--clients", "4000000000"];
    let out = start(home.path(), &many).output().unwrap();
    assert_eq!(out.status.code(), Some(3), "{}", said(&out));
    assert!(said(&out).contains("it would fit with --"), "{}", said(&out));
    let out = start(home.path(), &[&many[..], &["--json"]].concat()).output().unwrap();
    let told: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(told["fits"], false, "{told}");
}

#[test]
fn an_agent_gets_a_server_and_settings_of_its_own_and_its_exit_code_is_heard() {
    let home = tempfile::tempdir().unwrap();
    let bin = home.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let out = start(home.path(), &["claude", "--yes"]).env("PATH", &bin).output().unwrap();
    assert_eq!(out.status.code(), Some(3), "{}", said(&out));
    assert!(said(&out).contains("npm install -g @anthropic-ai/claude-code"), "{}", said(&out));
    for (name, script) in [
        ("claude", "#!/bin/sh\necho \"$ANTHROPIC_BASE_URL|$ANTHROPIC_API_KEY|$*\"\n"),
        ("opencode", "#!/bin/sh\ncat \"$OPENCODE_CONFIG\"\n"),
        ("pi", "#!/bin/sh\ncat \"$PI_CODING_AGENT_DIR/models.json\"; exit 7\n"),
        ("swival", "#!/bin/sh\necho \"$OPENAI_API_KEY|$*\"\n"),
    ] {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(bin.join(name), script).unwrap();
        std::fs::set_permissions(bin.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:/usr/bin:/bin", bin.display());
    let run = |args: &[&str]| {
        let out = start(home.path(), args).env("PATH", &path).output().unwrap();
        (String::from_utf8(out.stdout.clone()).unwrap(), out)
    };
    let (text, out) = run(&["claude", "--yes", "--", "-p", "hi"]);
    assert!(out.status.success(), "{}", said(&out));
    assert!(text.starts_with("http://127.0.0.1:") && text.ends_with("|none|-p hi\n"), "{text}");
    let (text, _) = run(&["opencode", "--yes"]);
    let told: Value = serde_json::from_str(&text).unwrap();
    assert!(told["provider"]["mtplx"]["options"]["baseURL"].as_str().unwrap().ends_with("/v1"));
    let (text, out) = run(&["pi", "--yes"]);
    assert!(text.contains("openai-completions"), "{text}");
    assert!(!out.status.success() && said(&out).contains("ended with 7"), "{}", said(&out));
    let (text, out) = run(&["swival", "--yes", "--", "do it"]);
    assert!(text.starts_with("none|--provider generic --base-url http://127.0.0.1:"), "{text}");
    assert!(out.status.success() && text.ends_with(" do it\n"), "{text}");
    assert!(!home.path().join(".pi").exists(), "what is the user's own is left alone");
}

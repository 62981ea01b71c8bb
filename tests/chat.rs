//! `mtplx chat` and `mtplx run`: in a terminal, for a script, and with nobody to talk to.

use std::io::Write;
use std::process::{Output, Stdio};

use rexpect::session::{PtySession, spawn_command};
use serde_json::Value;

use crate::house::{House, mtplx};

const PATIENCE_MS: Option<u64> = Some(120_000);

fn run(args: &[&str], stdin: &str) -> Output {
    let mut command = mtplx();
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[test]
fn one_answer_is_what_the_server_says_and_nothing_else() {
    let house = House::shared();
    let greedy = ["--url", &house.url, "--temperature", "0", "--max-tokens", "24"];
    let of = |args: &[&str], stdin: &str| {
        let out = run(&[args, &greedy].concat(), stdin);
        assert!(out.status.success(), "{}", said(&out));
        String::from_utf8(out.stdout).unwrap()
    };
    let text = of(&["run", "Tell me a story."], "");
    let report: Value =
        serde_json::from_str(&of(&["run", "--json", "Tell me a story."], "")).unwrap();
    crate::commands::fits("run", &report);
    assert_eq!(
        text.trim_end_matches('\n'),
        report["text"].as_str().unwrap().trim_end_matches('\n')
    );
    assert!(
        report["tokens"].as_u64().is_some_and(|n| n > 0) && report["drafted"].as_u64() > Some(0)
    );
    // Drafts change no greedy text.
    let plain = of(&["run", "--json", "--no-mtp", "Tell me a story."], "");
    let plain: Value = serde_json::from_str(&plain).unwrap();
    assert_eq!((&plain["text"], plain["drafted"].as_u64()), (&report["text"], Some(0)));
    // The same by way of stdin.
    let piped: Value = serde_json::from_str(&of(&["chat", "--json"], "Tell me a story.")).unwrap();
    crate::commands::fits("chat", &piped);
    assert_eq!(piped["text"], report["text"]);
    assert!(!text.contains('\x1b'));
}

#[test]
fn who_is_not_there_or_asked_nothing_is_said_so() {
    let out = run(&["run", "--url", "http://127.0.0.1:9", "Hi"], "");
    assert_eq!(out.status.code(), Some(5), "{}", said(&out));
    assert!(said(&out).contains("mtplx serve"), "{}", said(&out));
    assert_eq!(run(&["run"], " ").status.code(), Some(1));
    assert_eq!(run(&["chat"], "").status.code(), Some(1));
    let out = run(&["chat", "--model", "/nonexistent/model"], "Hi");
    assert!(said(&out).contains("/nonexistent/model"), "{}", said(&out));
    assert_eq!(run(&["run", "--url", "x", "--model", "y", "Hi"], "").status.code(), Some(2));
}

fn terminal(url: &str) -> PtySession {
    let mut command = mtplx();
    command.args(["chat", "--url", url, "--temperature", "0", "--max-tokens", "400"]);
    command.env("TERM", "xterm").env_remove("NO_COLOR");
    let mut terminal = spawn_command(command, PATIENCE_MS).unwrap();
    terminal.exp_string("/help").unwrap();
    terminal
}

#[test]
fn in_a_terminal_answers_stream_commands_work_and_ctrl_c_stops_no_more_than_the_answer() {
    let house = House::shared();
    let mut terminal = terminal(&house.url);
    terminal.send_line("/help").unwrap();
    terminal.exp_string("/retry").unwrap();
    terminal.send_line("/mtp off").unwrap();
    terminal.exp_string("without drafts").unwrap();
    terminal.send_line("/nonsense").unwrap();
    terminal.exp_string("no such command").unwrap();
    terminal.send_line("Tell me a story about a dragon.").unwrap();
    terminal.exp_string("tok/s").unwrap();
    terminal.send_line("/mtp on").unwrap();
    terminal.exp_string("with drafts").unwrap();
    terminal.send_line("/retry").unwrap();
    terminal.exp_string("of drafts accepted").unwrap();
    // At the prompt it only says how to leave.
    terminal.send_control('c').unwrap();
    terminal.exp_string("Ctrl-D leaves").unwrap();
    terminal.send_line("/exit").unwrap();
    terminal.exp_eof().unwrap();
}

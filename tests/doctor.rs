//! `mtplx doctor`, `mtplx connect`, `mtplx init` and what shells and manuals are given.

use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::commands::fits;
use crate::house::{House, mtplx};

/// Nobody listens there.
const NOBODY: &str = "http://127.0.0.1:9";

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

fn told(command: &mut Command) -> Value {
    let out = command.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}{}", said(&out)))
}

fn status<'a>(report: &'a Value, id: &str) -> &'a str {
    let checks = report["checks"].as_array().unwrap();
    checks.iter().find(|check| check["id"] == id).unwrap()["status"].as_str().unwrap()
}

#[test]
fn the_doctor_finds_what_is_well_and_ends_as_it_judges() {
    let house = House::shared();
    let mut command = mtplx();
    let report = told(command.args(["doctor", "--json", "--url", &house.url]));
    fits("doctor", &report);
    assert_eq!((status(&report, "server"), status(&report, "model")), ("pass", "pass"));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("my.toml");
    std::fs::write(&file, "[server]\nprot = 1\n").unwrap();
    let run = |args: &[&str]| {
        mtplx().args(["doctor", "--config"]).arg(&file).args(args).output().unwrap()
    };
    let out = run(&["--summary", "--url", NOBODY]);
    assert_eq!(out.status.code(), Some(1), "{}", said(&out));
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.contains("prot") && !text.contains("\nok "), "{text}");
    assert!(said(&out).contains("not well: settings"), "{}", said(&out));
    // Somebody listens beyond this machine without keys.
    std::fs::write(&file, "[server]\nhost = \"0.0.0.0\"\n").unwrap();
    assert_eq!(run(&["--url", NOBODY]).status.code(), Some(1));
}

#[test]
fn the_self_test_serves_the_small_model_and_compares_its_texts() {
    let report = told(mtplx().args(["doctor", "--deep", "--json", "--url", NOBODY]));
    assert_eq!(status(&report, "self-test"), "pass", "{report:#}");
}

#[test]
fn a_bundle_can_be_shown_to_anybody() {
    let dir = tempfile::tempdir().unwrap();
    let (file, bundle) = (dir.path().join("my.toml"), dir.path().join("report.tar.gz"));
    std::fs::write(&file, "[admin]\ntoken = \"0123456789abcdefghij\"\n[model]\nname = \"m\"\n")
        .unwrap();
    let run = || {
        let mut command = mtplx();
        command.args(["doctor", "--url", NOBODY, "--config"]).arg(&file).env("HOME", dir.path());
        command.arg("--bundle").arg(&bundle).output().unwrap()
    };
    assert!(run().status.success(), "{}", said(&run()));
    let bytes = std::fs::read(&bundle).unwrap();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&*bytes));
    let mut all = String::new();
    for entry in archive.entries().unwrap() {
        std::io::Read::read_to_string(&mut entry.unwrap(), &mut all).unwrap();
    }
    assert!(all.contains("name = \"m\"") && all.contains("\"overall\""), "{all}");
    assert!(!all.contains("0123456789abcdefghij"), "{all}");
    assert!(!all.contains(dir.path().to_str().unwrap()), "{all}");
    // Nothing is written over.
    assert_eq!(run().status.code(), Some(1));
}

fn connect(home: &std::path::Path, args: &[&str]) -> Command {
    let mut command = mtplx();
    command.arg("connect").args(args).env("HOME", home);
    let names = ["XDG_CONFIG_HOME", "CODEX_HOME", "CLAUDE_CONFIG_DIR", "PI_CODING_AGENT_DIR"];
    names.iter().chain(&["CONTINUE_GLOBAL_DIR", "MTPLX_URL", "MTPLX_API_KEY"]).for_each(|name| {
        command.env_remove(name);
    });
    command
}

#[test]
fn clients_are_told_of_the_server_that_runs_and_their_files_keep_what_was_theirs() {
    let house = House::shared();
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join(".claude/settings.json");
    std::fs::create_dir(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "{\"theme\": \"dark\", \"env\": {\"A\": \"b\"}}").unwrap();
    let of = |args: &[&str]| {
        told(&mut connect(home.path(), &[args, &["--url", &house.url, "--json"]].concat()))
    };
    let clients =
        ["claude-code", "opencode", "pi", "codex", "swival", "continue", "cline", "open-webui"];
    for client in clients {
        let report = of(&[client]);
        fits("connect", &report);
        assert_eq!(
            (&report["written"], &report["model"]),
            (&json!(false), &json!("tiny-qwen3_5-mtp-q8"))
        );
        assert!(report.to_string().contains(&house.url), "{report}");
    }
    // Nobody is here to agree.
    let out =
        connect(home.path(), &["claude-code", "--url", &house.url, "--write"]).output().unwrap();
    assert_eq!(out.status.code(), Some(3), "{}", said(&out));
    let report = of(&["claude-code", "--write", "--yes"]);
    let new: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!((&new["theme"], &new["env"]["A"]), (&json!("dark"), &json!("b")));
    assert_eq!(new["env"]["ANTHROPIC_BASE_URL"], json!(house.url));
    let backup = std::fs::read_to_string(report["backup"].as_str().unwrap()).unwrap();
    assert!(
        backup.contains("\"env\": {\"A\": \"b\"}") && !backup.contains("ANTHROPIC"),
        "{backup}"
    );
    // What is there already is not written again.
    assert_eq!(of(&["claude-code", "--write", "--yes"])["backup"], Value::Null);
    for client in ["opencode", "pi", "codex", "swival", "continue"] {
        let report = of(&[client, "--write", "--yes"]);
        assert!(std::fs::metadata(report["file"].as_str().unwrap()).is_ok(), "{report}");
    }
    assert_eq!(
        connect(home.path(), &["cline", "--url", &house.url, "--write", "--yes"])
            .output()
            .unwrap()
            .status
            .code(),
        Some(1)
    );
}

#[test]
fn what_cannot_be_read_for_certain_is_left_as_it_is() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("opencode.json");
    std::fs::write(&file, "{ // mine\n}").unwrap();
    let known = ["opencode", "--url", NOBODY, "--model", "m", "--write", "--yes", "--file"];
    let out = connect(home.path(), &known).arg(&file).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(said(&out).contains("by hand"), "{}", said(&out));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "{ // mine\n}");
    let out = connect(home.path(), &["codex", "--url", NOBODY]).output().unwrap();
    assert_eq!(out.status.code(), Some(5), "{}", said(&out));
}

#[test]
fn clients_are_told_of_a_server_that_only_they_can_ask() {
    let home = tempfile::tempdir().unwrap();
    let url = "https://studio.example:8000";
    let of = |args: &[&str]| connect(home.path(), &[args, &["--url", url]].concat());
    let report = told(&mut of(&["codex", "--model", "m", "--json"]));
    fits("connect", &report);
    assert!(report["settings"].as_str().unwrap().contains(&format!("{url}/v1")), "{report}");
    let out = of(&["codex"]).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(said(&out).contains("--model names it"), "{}", said(&out));
    let args = ["openwebui", "docker-command", "--json", "--url", url];
    let argv = &told(mtplx().args(args).env_remove("MTPLX_API_KEY"))["argv"];
    assert!(argv.as_array().unwrap().contains(&json!(format!("OPENAI_API_BASE_URL={url}/v1"))));
}

#[test]
fn open_webui_s_command_is_one_that_a_shell_reads_as_it_was_meant() {
    let args = ["openwebui", "docker-command", "--json", "--port", "3001"];
    let report = told(mtplx().args(args).env("MTPLX_API_KEY", "a 'b").env_remove("MTPLX_URL"));
    fits("openwebui docker-command", &report);
    let shell = format!(
        "docker() {{ printf '%s\\n' docker \"$@\"; }}; {}",
        report["command"].as_str().unwrap()
    );
    let out = Command::new("sh").args(["-c", &shell]).output().unwrap();
    let words: Vec<String> =
        String::from_utf8(out.stdout).unwrap().lines().map(Into::into).collect();
    assert_eq!(json!(words), report["argv"]);
    assert!(words.contains(&"OPENAI_API_KEY=a 'b".to_owned()), "{words:?}");
}

#[test]
fn settings_are_written_once_and_can_be_served_with() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("my.toml");
    let report = told(mtplx().args(["init", "--json", "--mode", "stable"]).arg(&file));
    fits("init", &report);
    let plan = told(mtplx().args(["plan", "--context", "512", "--json", "--config"]).arg(&file));
    assert!(plan["bytes"]["total"].as_u64() > Some(0), "{plan}");
    let out = mtplx().arg("init").arg(&file).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert_eq!(
        mtplx().args(["init", "-", "--mode", "fast"]).output().unwrap().status.code(),
        Some(1)
    );
}

#[test]
fn shells_and_manuals_know_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let out = mtplx().args(["completions", shell]).output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        assert!(
            out.status.success() && text.contains("quickstart") && text.contains("force-space")
        );
    }
    let out = mtplx().arg("man").output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.contains(".SH \"MTPLX PULL\"") && text.contains("Exit codes"), "{text}");
    assert!(!text.contains("MTPLX TUNE\\-CANDIDATE") && !text.contains("FAN"), "hidden ones");
}

//! What is asked in a terminal before anything is written, deleted or begun, and that a no, or
//! Ctrl-C, leaves everything as it was.

use std::fs;
use std::path::Path;
use std::process::Command;

use rexpect::process::WaitStatus;
use rexpect::session::{PtySession, spawn_command};
use serde_json::Value;

use crate::house::{House, mtplx};
use crate::ui::slow_way;

const PATIENCE_MS: Option<u64> = Some(120_000);

/// A command in a terminal of its own, at home in `home`.
pub fn terminal(mut command: Command, home: &Path) -> PtySession {
    command.env("HOME", home).env("TERM", "xterm").env("NO_COLOR", "1");
    for name in ["XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "CLAUDE_CONFIG_DIR"] {
        command.env_remove(name);
    }
    for name in ["HF_HOME", "HF_HUB_CACHE", "MTPLX_URL", "MTPLX_API_KEY"] {
        command.env_remove(name);
    }
    spawn_command(command, PATIENCE_MS).unwrap()
}

fn of(words: &[&str]) -> Command {
    let mut command = mtplx();
    command.args(words);
    command
}

/// Waits for a question and answers it.
pub fn answers(terminal: &mut PtySession, question: &str, keys: &str) {
    terminal.exp_string(question).unwrap();
    terminal.send(keys).unwrap();
    terminal.flush().unwrap();
}

/// What it said to its end, and its exit code; none if Ctrl-C was its end.
pub fn end(mut terminal: PtySession) -> (String, Option<i32>) {
    let said = terminal.exp_eof().unwrap();
    let end = terminal.process().wait().unwrap();
    let code = if let WaitStatus::Exited(_, code) = end { Some(code) } else { None };
    (said, code)
}

#[test]
fn a_model_is_deleted_after_a_yes_alone() {
    let home = tempfile::tempdir().unwrap();
    let models = home.path().join("models");
    let model = models.join("maker/tiny");
    fs::create_dir_all(&model).unwrap();
    fs::write(model.join("config.json"), "{}").unwrap();
    let delete = |keys: &str| {
        let command = of(&["models", models.to_str().unwrap(), "--delete", "tiny"]);
        let mut terminal = terminal(command, home.path());
        answers(&mut terminal, "[y/N]", keys);
        end(terminal)
    };
    for no in ["n", "\r", "\x1b"] {
        let (said, code) = delete(no);
        assert!(code == Some(3) && said.contains("nothing was deleted"), "{no:?}: {said}");
    }
    let (said, code) = delete("\x03");
    assert!(code != Some(0) && !said.contains("freed"), "Ctrl-C is no yes: {said}");
    assert!(model.join("config.json").exists());
    let (said, code) = delete("y");
    assert!(code == Some(0) && said.contains("freed") && !model.exists(), "{said}");
}

#[test]
fn ctrl_c_stops_an_answer_and_not_the_conversation() {
    let house = House::shared();
    let home = tempfile::tempdir().unwrap();
    // Half a minute, if nobody stopped it.
    let url = slow_way(&house.url, 2_000);
    let chat = of(&["chat", "--url", &url, "--temperature", "0", "--max-tokens", "400"]);
    let mut terminal = terminal(chat, home.path());
    terminal.exp_string("/exit").unwrap();
    terminal.send_line("TELL ME A STORY ABOUT A DRAGON").unwrap();
    terminal.exp_regex("[a-z]{2,} [a-z]{2,} [a-z]").expect("an answer comes");
    terminal.send_control('c').unwrap();
    terminal.exp_string("stopped").unwrap();
    terminal.send_line("/mtp off").unwrap();
    terminal.exp_string("without drafts").unwrap();
    terminal.send_line("/exit").unwrap();
    let (said, code) = end(terminal);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn who_wants_another_start_than_the_last_is_asked_anew() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join(match cfg!(target_os = "macos") {
        true => "Library/Application Support/mtplx",
        false => ".local/state/mtplx",
    });
    fs::create_dir_all(&folder).unwrap();
    let kept = r#"{"model": "small", "mode": "stable", "surface": "cli"}"#;
    fs::write(folder.join("start.json"), kept).unwrap();
    let mut asked = terminal(of(&["start"]), home.path());
    answers(&mut asked, "Same as last time?", "n");
    answers(&mut asked, "Which model?", "\x1b");
    let (said, code) = end(asked);
    assert!(code == Some(130) && said.contains("interrupted"), "{said}");
    assert_eq!(fs::read_to_string(folder.join("start.json")).unwrap(), kept);
}

#[test]
fn settings_of_a_client_are_written_after_a_yes_alone() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join(".claude/settings.json");
    fs::create_dir(file.parent().unwrap()).unwrap();
    fs::write(&file, "{\"theme\": \"dark\"}").unwrap();
    let write = |keys: &str| {
        let words = ["connect", "claude-code", "--write", "--model", "m"];
        let mut terminal = terminal(of(&words), home.path());
        answers(&mut terminal, "Write it?", keys);
        end(terminal)
    };
    for no in ["n", "\r", "\x1b"] {
        let (said, code) = write(no);
        assert!(code == Some(3) && said.contains("nothing was written"), "{no:?}: {said}");
    }
    assert_ne!(write("\x03").1, Some(0), "Ctrl-C is no yes");
    assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "nor is there a backup");
    assert_eq!(fs::read_to_string(&file).unwrap(), "{\"theme\": \"dark\"}");
    let (said, code) = write("y");
    assert_eq!(code, Some(0), "{said}");
    let now: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert!(now["theme"] == "dark" && now["env"]["ANTHROPIC_BASE_URL"].is_string(), "{now}");
}

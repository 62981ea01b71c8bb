//! Real agents, run headless with the settings that `mtplx connect` writes: each has to write a
//! file with the tools it brings, while a script plays the model. `make conformance` installs and
//! runs those from npm, `make swival-test` the one from PyPI.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::harness::*;
use crate::admission::Admission;
use crate::ingress::text::tests::shown;

const TASK: &str = "Write the word written into the file hello.txt";

/// The call with which an agent of these tools writes a file.
fn write_call(prompt: &str, file: &str) -> Option<String> {
    let shell = format!("echo written > {file}");
    let shells = json!(["bash", "-lc", shell]).to_string();
    let ways: [(&str, &[(&str, &str)]); 7] = [
        ("Write", &[("file_path", file), ("content", "written")]),
        ("write", &[("filePath", file), ("content", "written")]),
        ("write", &[("path", file), ("content", "written")]),
        ("write_file", &[("file_path", file), ("content", "written")]),
        ("exec_command", &[("cmd", &shell)]),
        ("shell_command", &[("command", &shell)]),
        ("shell", &[("command", &shells)]),
    ];
    // Tools are declared a line each.
    let has = |(tool, arguments): &(&str, &[(&str, &str)])| {
        let names = format!("{{\"name\": \"{tool}\"");
        let takes = |key: &str| format!("\"{key}\": {{");
        let fits = |line: &str| arguments.iter().all(|(key, _)| line.contains(&takes(key)));
        prompt.lines().any(|line| line.contains(&names) && fits(line))
    };
    let (tool, arguments) = ways.iter().find(|way| has(way))?;
    let parameters = arguments.iter();
    let parameters = parameters.map(|(k, v)| format!("<parameter={k}>\n{v}\n</parameter>\n"));
    let parameters: String = parameters.collect();
    let call = format!("<tool_call>\n<function={tool}>\n{parameters}</function>\n</tool_call>");
    Some(format!("I write it.\n\n{call}"))
}

/// Plays the model: where it has a tool to write with and was told nothing of it yet, it calls it.
fn agent(file: &Path) -> impl Fn(Admission) + Send + Sync + 'static {
    let file = file.display().to_string();
    move |admission| {
        let prompt = shown(&admission.request.prompt);
        let last = prompt.trim_end().rsplit("<|im_start|>").nth(1).unwrap_or_default();
        let call = write_call(&prompt, &file).filter(|_| !last.contains("<tool_response>"));
        let said = call.unwrap_or_else(|| "It is written.".into());
        answers(admission, "A file.", &said);
    }
}

/// Where agents are installed.
fn agents() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../.native")
}

/// Where an agent is.
fn installed(name: &str) -> PathBuf {
    let folder = if name == "swival" { "swival/bin" } else { "agents/node_modules/.bin" };
    let program = agents().join(folder).join(name);
    assert!(program.exists(), "{name} is not installed; make does it, as the test's remark says");
    program
}

/// The program whose settings are tried.
fn mtplx() -> PathBuf {
    let program = std::env::var_os("MTPLX_BIN").map(PathBuf::from);
    program.expect("MTPLX_BIN names no mtplx; make conformance does it")
}

/// Lets an agent do the task in a folder of its own; it must be done, and told. All that it is told
/// of the server is what `mtplx connect` writes into its home.
async fn does_the_task(name: &str, client: &str, arrange: fn(&mut Command, &Path)) {
    let program = installed(name);
    let home = tempfile::tempdir().unwrap();
    let work = home.path().join("work");
    std::fs::create_dir(&work).unwrap();
    let file = work.join("hello.txt");
    let handle = agents_door(agent(&file)).await;
    let alone = |program: PathBuf| {
        let mut command = Command::new(program);
        command.env_clear().current_dir(&work).stdin(std::process::Stdio::null());
        command.env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", home.path());
        command
    };
    let mut connect = alone(mtplx());
    connect.args(["connect", client, "--write", "--yes", "--url"]);
    connect.arg(format!("http://{}", handle.address));
    let mut command = alone(program);
    arrange(&mut command, &work);
    let run = move || (connect.output().unwrap(), command.output().unwrap());
    let (connected, out) = tokio::task::spawn_blocking(run).await.unwrap();
    let connected = connected.status.success().then_some(()).ok_or(connected.stderr);
    connected.unwrap_or_else(|e| panic!("{name}: {}", String::from_utf8_lossy(&e)));
    let said = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let said = said.concat();
    assert!(out.status.success(), "{name}: {said}");
    let written = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{name}: {e}: {said}"));
    assert_eq!(written.trim(), "written", "{name}: {said}");
    assert!(said.contains("It is written."), "{name}: {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "wants an agent from npm: make conformance"]
async fn claude_code_does_a_task() {
    does_the_task("claude", "claude-code", |command, _| {
        command.args(["-p", TASK, "--allowedTools", "Write"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "wants an agent from npm: make conformance"]
async fn opencode_does_a_task() {
    does_the_task("opencode", "opencode", |command, work| {
        // Nothing of the server: a folder's own settings are laid over those of the home.
        let settings = json!({"autoupdate": false, "permission": {"edit": "allow"}});
        std::fs::write(work.join("opencode.json"), settings.to_string()).unwrap();
        command.args(["run", TASK]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "wants an agent from npm: make conformance"]
async fn codex_does_a_task() {
    does_the_task("codex", "codex", |command, _| {
        command.args(["exec", "--skip-git-repo-check", "-s", "danger-full-access", TASK]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "wants an agent from npm: make conformance"]
async fn pi_does_a_task() {
    does_the_task("pi", "pi", |command, _| {
        command.args(["-p", TASK, "--provider", "mtplx", "--model", "tiny"]);
        // It would look for newer versions of itself and of tools that it uses.
        command.env("PI_OFFLINE", "1");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "wants an agent from PyPI: make swival-test"]
async fn swival_does_a_task() {
    does_the_task("swival", "swival", |command, _| {
        command.args(["--quiet", "--no-history", "--no-memory", TASK]);
        // It would fetch a tokenizer's table and a list of prices, which came along with litellm.
        let tables = agents().join("swival/tokenizers");
        command.env("TIKTOKEN_CACHE_DIR", tables).env("LITELLM_LOCAL_MODEL_COST_MAP", "True");
    })
    .await;
}

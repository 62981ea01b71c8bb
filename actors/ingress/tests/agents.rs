//! Real agents from npm, run headless: each has to write a file with the tools it brings, while a
//! script plays the model. `make conformance` installs and runs them.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::harness::*;
use crate::admission::Admission;
use crate::ingress::Handle;
use crate::ingress::text::tests::shown;

const TASK: &str = "Write the word written into the file hello.txt";

/// The call with which an agent of these tools writes a file.
fn write_call(prompt: &str, file: &str) -> Option<String> {
    let shell = format!("echo written > {file}");
    let shells = json!(["bash", "-lc", shell]).to_string();
    let ways: [(&str, &[(&str, &str)]); 6] = [
        ("Write", &[("file_path", file), ("content", "written")]),
        ("write", &[("filePath", file), ("content", "written")]),
        ("write", &[("path", file), ("content", "written")]),
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

/// Where an agent is.
fn installed(name: &str) -> PathBuf {
    let agents = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.native/agents");
    let program = agents.join("node_modules/.bin").join(name);
    assert!(program.exists(), "{name} is not installed; make conformance does it");
    program
}

/// Lets an agent do the task in a folder of its own; it must be done, and told.
async fn does_the_task(name: &str, arrange: fn(&mut Command, &Handle, &Path)) {
    let program = installed(name);
    let home = tempfile::tempdir().unwrap();
    let work = home.path().join("work");
    std::fs::create_dir(&work).unwrap();
    let file = work.join("hello.txt");
    let handle = agents_door(agent(&file)).await;
    let mut command = Command::new(program);
    command.env_clear().current_dir(&work).stdin(std::process::Stdio::null());
    command.env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", home.path());
    arrange(&mut command, &handle, home.path());
    let run = move || command.output().unwrap();
    let out = tokio::task::spawn_blocking(run).await.unwrap();
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
    does_the_task("claude", |command, handle, _| {
        command.args(["-p", TASK, "--allowedTools", "Write"]);
        command.env("ANTHROPIC_BASE_URL", format!("http://{}", handle.address));
        command.env("ANTHROPIC_API_KEY", "none");
        // It would also ask its maker's servers for this and that.
        command.env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "wants an agent from npm: make conformance"]
async fn opencode_does_a_task() {
    does_the_task("opencode", |command, handle, home| {
        let settings = json!({
            "model": "mtplx/tiny", "small_model": "mtplx/tiny", "autoupdate": false,
            "provider": {"mtplx": {
                "npm": "@ai-sdk/openai-compatible",
                "options": {"baseURL": format!("http://{}/v1", handle.address), "apiKey": "none"},
                "models": {"tiny": {"limit": {"context": 100_000, "output": 8000}}},
            }},
            "permission": {"edit": "allow"},
        });
        std::fs::write(home.join("work/opencode.json"), settings.to_string()).unwrap();
        command.args(["run", TASK]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "wants an agent from npm: make conformance"]
async fn codex_does_a_task() {
    does_the_task("codex", |command, handle, home| {
        let settings = format!(
            "model = \"tiny\"\nmodel_provider = \"mtplx\"\n[model_providers.mtplx]\n\
             name = \"mtplx\"\nbase_url = \"http://{}/v1\"\nwire_api = \"responses\"\n",
            handle.address
        );
        std::fs::create_dir(home.join(".codex")).unwrap();
        std::fs::write(home.join(".codex/config.toml"), settings).unwrap();
        command.args(["exec", "--skip-git-repo-check", "-s", "danger-full-access", TASK]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "wants an agent from npm: make conformance"]
async fn pi_does_a_task() {
    does_the_task("pi", |command, handle, home| {
        let settings = json!({"providers": {"mtplx": {
            "baseUrl": format!("http://{}/v1", handle.address), "apiKey": "none",
            "api": "openai-completions",
            "models": [{"id": "tiny", "contextWindow": 100_000, "maxTokens": 8000}],
        }}});
        let folder = home.join(".pi/agent");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("models.json"), settings.to_string()).unwrap();
        command.args(["-p", TASK, "--provider", "mtplx", "--model", "tiny"]);
        // It would look for newer versions of itself and of tools that it uses.
        command.env("PI_OFFLINE", "1");
    })
    .await;
}

//! Real clients, from PyPI and npm, against the real door with a model behind it that follows a
//! script.

use std::path::PathBuf;
use std::process::Command;

use super::harness::*;
use crate::admission::Admission;
use crate::ingress::text::tests::shown;

const CALL: &str = "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n\
    <parameter=days>\n2\n</parameter>\n</function>\n</tool_call>";

/// What a good model would say: it calls the tool it has, then tells what that said.
fn agent(admission: Admission) {
    let prompt = shown(&admission.request.prompt);
    let was_told = prompt.trim_end().rsplit("<|im_start|>").nth(1).unwrap_or_default();
    let said = match (prompt.contains("# Tools"), was_told.contains("<tool_response>")) {
        (_, true) => "It is sunny in Paris.",
        (true, false) => CALL,
        (false, false) => "Hello.",
    };
    answers(admission, "I must look.", said);
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn make(target: &str) {
    let made = Command::new("make").args(["--silent", target]).current_dir(root()).output();
    let made = made.unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// Runs a judge against a door of its own.
async fn judged(program: PathBuf, script: &str) {
    let config = crate::ingress::Config { requests_max: 64.try_into().unwrap(), ..config() };
    let handle = open(config, roomy(), agent).await;
    let script = root().join("tests/judges").join(script);
    let url = format!("http://{}", handle.address);
    let run = move || Command::new(program).arg(script).arg(url).output().unwrap();
    let out = tokio::task::spawn_blocking(run).await.unwrap();
    let said = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(out.status.success(), "{}", said.concat());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_official_clients_for_python_are_served() {
    make("judges");
    judged(root().join(".native/judges/bin/python"), "agent_clients.py").await;
}

/// schemathesis reads the document and asks every route, in ways that it allows and in ways that it
/// does not: no 5xx, and what is answered is what the document says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_keeps_what_the_document_says_of_it() {
    make("judges");
    let config = crate::ingress::Config {
        requests_max: 64.try_into().unwrap(),
        admin: crate::ingress::Secret::new("judge"),
        ..config()
    };
    let handle = open(config, roomy(), agent).await;
    let mut judge = Command::new(root().join(".native/judges/bin/schemathesis"));
    judge.arg("--config-file").arg(root().join("tests/judges/schemathesis.toml")).arg("--no-color");
    judge.args(["run", &format!("http://{}/openapi.json", handle.address)]);
    judge.args(["-H", "authorization: Bearer judge"]);
    // It keeps what it found out where it is started.
    let folder = tempfile::tempdir().unwrap();
    judge.current_dir(folder.path());
    let out = tokio::task::spawn_blocking(move || judge.output().unwrap()).await.unwrap();
    let said = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(out.status.success(), "{}", said.concat());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_official_clients_for_javascript_are_served() {
    if Command::new("node").arg("--version").output().is_err() {
        println!("NOT JUDGED: there is no node on this machine");
        return;
    }
    make("judges-js");
    judged("node".into(), "../../.native/judges-js/agent_clients.mjs").await;
}

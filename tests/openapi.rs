//! schemathesis, from PyPI, reads the document of the real server and asks every route of it, in
//! ways that the document allows and in ways that it does not: no 5xx, and what is answered is what
//! the document says.

use std::process::Command;

use crate::house::{House, root};
use crate::openai::judges;

/// Answers are short, so that many bodies can be tried.
const SETTINGS: &str = "[server]\nnew_tokens_max = 8\n[admin]\ntoken = \"judge\"\n";

#[test]
fn every_route_keeps_what_the_document_says_of_it() {
    let python = judges();
    let folder = tempfile::tempdir().unwrap();
    let settings = folder.path().join("settings.toml");
    std::fs::write(&settings, SETTINGS).unwrap();
    let house = House::start(&["--config", &settings.display().to_string()]);
    let mut judge = Command::new(python.with_file_name("schemathesis"));
    judge.arg("--config-file").arg(root().join("tests/judges/schemathesis.toml"));
    judge.args(["run", &format!("{}/openapi.json", house.url), "--max-time", "60"]);
    judge.args(["--no-color", "-H", "authorization: Bearer judge"]);
    // It keeps what it found out where it is started.
    let out = judge.current_dir(folder.path()).output().unwrap();
    let said = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(out.status.success(), "{}", said.concat());
    // Nobody was hurt either.
    assert_eq!(house.get("/health").0, 200);
    let faults = house.log().into_iter().filter(|line| line.contains("panicked"));
    assert_eq!(faults.collect::<Vec<_>>(), Vec::<String>::new());
}

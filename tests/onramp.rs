//! What the commands of the on-ramp say: their help, word for word, and their JSON, by the schemas
//! that are documented. `MTPLX_REWRITE=1` writes the former anew.

use std::path::PathBuf;

use serde_json::Value;

use crate::house::{mtplx, root};

/// Whether a report is as documented.
pub fn fits_schema(name: &str, report: &Value) {
    let path = root().join("src/schemas").join(format!("{name}.json"));
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let judge = jsonschema::validator_for(&schema).unwrap();
    let wrong: Vec<String> = judge.iter_errors(report).map(|e| e.to_string()).collect();
    assert!(wrong.is_empty(), "{name}: {wrong:?} in {report:#}");
}

fn golden(command: &str) -> PathBuf {
    root().join("tests/golden/help").join(format!("{command}.txt"))
}

const COMMANDS: [&str; 9] =
    ["start", "quickstart", "pull", "convert", "chat", "run", "doctor", "connect", "init"];

#[test]
fn the_help_of_each_command_is_what_was_read_and_found_good() {
    for command in COMMANDS {
        let out = mtplx().args([command, "--help"]).env("NO_COLOR", "1").output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        let path = golden(command);
        if std::env::var_os("MTPLX_REWRITE").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let known = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(text, known, "{command}: MTPLX_REWRITE=1 writes it anew");
        assert!(!text.contains('\x1b') && text.contains("Examples:"), "{text}");
    }
}

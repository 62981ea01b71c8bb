//! The rules of the house, as a test.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::house::root;

const LINES_MAX: usize = 500;
const COLUMNS_MAX: usize = 100;

/// Source files below the parts that we write.
fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> =
        ["src", "actors", "kernels", "loadtests", "tests"].map(|f| root().join(f)).to_vec();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs" || e == "py") {
                found.push(path);
            }
        }
    }
    found
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

#[test]
fn files_are_short_narrow_and_begin_with_what_they_are() {
    let mut wrong = Vec::new();
    for path in sources() {
        let text = read(&path);
        let name = shown(&path);
        let lines = text.lines().count();
        if lines > LINES_MAX {
            wrong.push(format!("{name}: {lines} lines"));
        }
        // Data and templates in strings keep their lines.
        let long =
            |l: &str| l.chars().count() > COLUMNS_MAX && l.contains(' ') && !l.contains("{%");
        if let Some(i) = text.lines().position(long) {
            wrong.push(format!("{name}:{}: over {COLUMNS_MAX} columns", i + 1));
        }
        let begins =
            text.starts_with("//!") || text.starts_with("\"\"\"") || text.starts_with("#!");
        // Tests of a file stand in a child of it and need no word.
        if !begins && path.file_name().is_none_or(|name| name != "tests.rs") {
            wrong.push(format!("{name}: no word on what it is"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn nothing_is_left_for_later_and_nothing_is_nobodys() {
    // Spelled so that this file does not find itself.
    let banned =
        ["TO", "FIX"].map(|word| format!("{word}{}", if word == "TO" { "DO" } else { "ME" }));
    let vague = ["util", "utils", "common", "helpers", "misc", "manager", "types"];
    let mut wrong = Vec::new();
    for path in sources() {
        let text = read(&path);
        let name = shown(&path);
        wrong.extend(
            banned.iter().filter(|w| text.contains(w.as_str())).map(|w| format!("{name}: {w}")),
        );
        let stem = path.file_stem().unwrap().to_string_lossy();
        if vague.contains(&stem.as_ref()) || stem == "mod" {
            wrong.push(format!("{name}: a name that says nothing"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn layers_point_one_way() {
    let depends = |manifest: &str| -> BTreeSet<String> {
        let text = read(&root().join(manifest));
        let table: toml::Table = text.parse().unwrap();
        let deps = table.get("dependencies").and_then(|d| d.as_table()).cloned();
        deps.unwrap_or_default().keys().cloned().collect()
    };
    assert!(depends("src/core/Cargo.toml").is_empty(), "the core depends on nothing");
    let actors = depends("actors/Cargo.toml");
    assert!(!actors.iter().any(|d| d.contains("mlx-") || d == "mtplx-kernels"), "{actors:?}");
    let kernels = depends("kernels/Cargo.toml");
    assert!(!kernels.iter().any(|d| d == "mtplx-actors" || d == "tokio" || d == "axum"));
    let loadtests = depends("loadtests/Cargo.toml");
    assert!(!loadtests.iter().any(|d| d.starts_with("mtplx")), "load tests speak HTTP only");
}

#[test]
fn the_top_level_is_what_was_asked_for() {
    let allowed = [
        "Cargo.toml",
        "Cargo.lock",
        "src",
        "actors",
        "kernels",
        "config",
        "dashboards",
        "tests",
        "loadtests",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "LICENSE",
        "NOTICE",
        "Makefile",
        "deny.toml",
        "target",
    ];
    let extra: Vec<String> = std::fs::read_dir(root())
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.') && !allowed.contains(&name.as_str()))
        .collect();
    assert!(extra.is_empty(), "{extra:?}");
    let missing: Vec<_> = allowed.iter().filter(|name| !root().join(name).exists()).collect();
    assert!(missing.iter().all(|name| **name == "target"), "{missing:?}");
}

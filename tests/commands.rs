//! Every command there is, found by its parent's help: its help with an example, the schema of what
//! it prints as JSON, and what it says when something is wrong. A new command without them fails
//! here. What stands in tests/snapshots was read by a person; `MTPLX_SNAPSHOTS=write` writes it
//! anew.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::house::{mtplx, root};

/// What is said by a command, its exit code before it; `hide` is where the test happens to run.
/// Leading words with an = go into its environment.
pub fn told(args: &[&str], hide: &Path) -> String {
    let (settings, args) = args.split_at(args.iter().take_while(|w| is_setting(w)).count());
    let mut command = mtplx();
    // What decides where models are looked for, who is asked, and how it is said.
    for name in ["HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN"] {
        command.env_remove(name);
    }
    for name in ["MTPLX_MODEL_DIR", "MTPLX_URL", "MTPLX_API_KEY", "MTPLX_ADMIN_TOKEN", "RUST_LOG"] {
        command.env_remove(name);
    }
    for name in ["XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "SUDO_USER"] {
        command.env_remove(name);
    }
    let ground = hide.display().to_string();
    let args = args.iter().map(|word| word.replace("[GROUND]", &ground));
    command.args(args).env("HOME", hide).env("NO_COLOR", "1").current_dir(hide);
    command.envs(settings.iter().filter_map(|word| word.split_once('=')));
    let out = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let all = format!("{}{}", text(&out.stdout), text(&out.stderr)).replace(&ground, "[GROUND]");
    let lines = all.lines().map(|line| format!("{}\n", line.trim_end()));
    format!("exit {}\n{}", out.status.code().unwrap(), lines.collect::<String>())
}

fn is_setting(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| name.chars().all(|c| c == '_' || c.is_uppercase()))
}

/// Holds `text` against what stands in tests/snapshots; MTPLX_SNAPSHOTS=write writes it there.
pub fn snapshot(name: &str, text: &str) {
    let path = root().join("tests/snapshots").join(format!("{name}.txt"));
    if std::env::var("MTPLX_SNAPSHOTS").is_ok_and(|word| word == "write") {
        fs::write(&path, text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{name} has changed: MTPLX_SNAPSHOTS=write if that is meant");
}

/// Holds what a command printed with --json against what `mtplx schema` says of it.
pub fn fits(command: &str, value: &Value) {
    let (name, part) = schema_of(command);
    let mut schema = schema(name);
    if let Some(part) = part {
        assert!(schema["$defs"][part].is_object(), "{name} has nothing of {part}");
        schema = json!({"$ref": format!("#/$defs/{part}"), "$defs": schema["$defs"]});
    }
    let judge = jsonschema::validator_for(&schema).unwrap();
    let faults: Vec<String> = judge.iter_errors(value).map(|e| e.to_string()).collect();
    assert!(faults.is_empty(), "{command}: {faults:?} in {value:#}");
}

/// Which schema a command's report has, and which part of it.
fn schema_of(command: &str) -> (&str, Option<&str>) {
    match command {
        "quickstart" => ("start", None),
        "chat" => ("run", None),
        "openwebui docker-command" => ("openwebui", None),
        "bench tune" => ("tune", None),
        "bench shape" => ("bench-shape", None),
        "bench products" => ("bench-products", None),
        _ => command.split_once(' ').map_or((command, None), |(name, part)| (name, Some(part))),
    }
}

fn schema(name: &str) -> Value {
    let out = mtplx().args(["schema", name]).output().unwrap();
    serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("schema {name}: {e}: {out:?}"))
}

/// A command and its help.
struct Command {
    /// Its words, without the program's.
    name: String,
    help: String,
}

impl Command {
    /// Nothing but the parent of others.
    fn is_group(&self) -> bool {
        let usage = self.help.lines().find(|line| line.starts_with("Usage:"));
        usage.is_some_and(|usage| usage.contains("<COMMAND>"))
    }

    fn children(&self) -> Vec<String> {
        let lines = self.help.lines().skip_while(|line| *line != "Commands:").skip(1);
        let lines = lines.take_while(|line| !line.is_empty());
        // Beyond the names are lines of what is said of them.
        let names = lines.filter_map(|line| line.strip_prefix("  ")?.split_once("  "));
        let names = names.map(|(name, _)| name).filter(|name| !name.is_empty() && *name != "help");
        names.map(|name| format!("{} {name}", self.name).trim_start().to_owned()).collect()
    }
}

/// The whole tree, from the root on; what is hidden is nobody's.
fn all(ground: &Path) -> Vec<Command> {
    let mut left = vec![String::new()];
    let mut found = Vec::new();
    while let Some(name) = left.pop() {
        let words: Vec<&str> = name.split_whitespace().chain(["--help"]).collect();
        let help = told(&words, ground);
        let command = Command { name, help };
        left.extend(command.children());
        found.push(command);
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    let names: Vec<&str> = found.iter().map(|command| command.name.as_str()).collect();
    for known in ["serve", "bench shape", "keys add", "openwebui docker-command"] {
        assert!(names.contains(&known), "the walk is not all: {names:?}");
    }
    found
}

fn file_of(name: &str) -> String {
    if name.is_empty() { "mtplx".into() } else { name.replace(' ', "-") }
}

/// What lies in a folder of tests/snapshots.
fn kept(folder: &str) -> BTreeSet<String> {
    let files = fs::read_dir(root().join("tests/snapshots").join(folder)).unwrap();
    let name = |path: std::path::PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
    files.map(|file| name(file.unwrap().path())).collect()
}

#[test]
fn the_help_of_every_command_has_an_example_and_stays_as_it_was_read() {
    let ground = tempfile::tempdir().unwrap();
    let all = all(ground.path());
    for Command { name, help } in &all {
        assert!(help.starts_with("exit 0\n") && !help.contains('\x1b'), "{name}: {help}");
        assert!(help.contains("\nExample"), "{name} has no example in its help");
        let examples = help.lines().skip_while(|line| !line.starts_with("Example"));
        let own = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            name.split_whitespace()
                .chain(["mtplx"])
                .all(|word| words.iter().any(|w| w.ends_with(word)))
        };
        assert!(examples.into_iter().any(own), "{name} is in none of its examples: {help}");
        snapshot(&format!("help/{}", file_of(name)), help);
    }
    let names: BTreeSet<String> = all.iter().map(|command| file_of(&command.name)).collect();
    assert_eq!(names, kept("help"), "snapshots of commands that there are");
}

/// What reports nothing by itself: a server, or text for other programs.
const SILENT: [&str; 6] = ["", "completions", "man", "node", "schema", "serve"];

#[test]
fn every_report_has_a_schema_and_some_test_holds_a_real_one_against_it() {
    let ground = tempfile::tempdir().unwrap();
    let tests = fs::read_dir(root().join("tests")).unwrap().map(|file| file.unwrap().path());
    let tests = tests.filter(|path| path.extension().is_some_and(|end| end == "rs"));
    let tests: String = tests.map(|path| fs::read_to_string(path).unwrap()).collect();
    let mut named = BTreeSet::new();
    for command in all(ground.path()) {
        let (name, reports) = (command.name.as_str(), command.help.contains("--json"));
        if SILENT.contains(&name) || command.is_group() {
            continue;
        }
        assert!(reports, "{name} reports something, so it wants --json");
        let schema = schema_of(name).0;
        named.insert(schema.to_owned());
        assert!(command.help.contains("`mtplx schema"), "{name}: its help names no schema");
        assert!(tests.contains(&format!("fits(\"{name}\"")), "no test calls fits of {name:?}");
    }
    let help = told(&["schema", "--help"], ground.path());
    let (_, listed) = help.split_once("[possible values: ").unwrap();
    let listed = listed.split_once(']').unwrap().0.split(", ").map(str::to_owned);
    assert_eq!(listed.collect::<BTreeSet<_>>(), named, "schemas of commands that there are");
    for name in named {
        assert!(jsonschema::meta::is_valid(&schema(&name)), "{name}");
        assert!(schema(&name)["title"].is_string(), "{name}");
    }
}

/// A way in which each command fails. Port 9 is nobody's.
const FAILURES: &[(&str, &[&str])] = &[
    ("", &["fly"]),
    ("bank", &["bank"]),
    ("bank list", &["MTPLX_ADMIN_TOKEN=t", "bank", "list", "--url", "http://127.0.0.1:9"]),
    ("bank pin", &["bank", "pin"]),
    ("bank unpin", &["MTPLX_ADMIN_TOKEN=t", "bank", "unpin", "a", "--url", "http://127.0.0.1:9"]),
    ("bank drop", &["bank", "drop", "a"]),
    ("bank export", &["bank", "export", "a"]),
    ("bank import", &["MTPLX_ADMIN_TOKEN=t", "bank", "import", "[GROUND]/none"]),
    ("bench", &["bench", "--model", "[GROUND]/none"]),
    ("bench products", &["bench", "products", "--rows", "0"]),
    ("bench shape", &["bench", "shape", "--bits", "5"]),
    ("bench tune", &["bench", "tune", "--mode", "fast"]),
    ("chat", &["chat", "--url", "http://127.0.0.1:9"]),
    ("completions", &["completions", "cmd"]),
    ("connect", &["connect", "emacs"]),
    ("doctor", &["doctor", "--bundle", "[GROUND]/there", "--config", "[GROUND]/none.toml"]),
    ("init", &["init", "[GROUND]/there"]),
    ("inspect", &["inspect", "[GROUND]/none"]),
    ("keys add", &["keys", "add", "ann"]),
    ("keys list", &["keys", "--config", "[GROUND]/none.toml", "list"]),
    ("keys revoke", &["keys", "--file", "[GROUND]/keys.toml", "revoke", "ann"]),
    ("keys rotate", &["keys", "--file", "[GROUND]/keys.toml", "rotate", "ann"]),
    ("man", &["man", "serve"]),
    ("max", &["max", "--install", "--program", "[GROUND]/none"]),
    ("models", &["models", "--delete", "x", "--yes"]),
    ("node", &["node"]),
    ("node drain", &["node", "drain", "studio-2"]),
    ("node list", &["MTPLX_ADMIN_TOKEN=t", "node", "list", "--url", "http://127.0.0.1:9"]),
    ("node resume", &["node", "resume"]),
    ("node secret", &["node", "secret", "[GROUND]/there"]),
    ("openwebui docker-command", &["openwebui", "docker-command", "--port", "70000"]),
    ("plan", &["plan", "--memory", "0"]),
    ("pull", &["pull", "a/b/c"]),
    ("convert", &["convert", "[GROUND]/none", "[GROUND]/new"]),
    ("quickstart", &["quickstart", "--model", "[GROUND]/none"]),
    ("run", &["run", "--url", "http://127.0.0.1:9", "Hi"]),
    ("schema", &["schema", "serve"]),
    ("serve", &["serve", "--model", "[GROUND]/none"]),
    ("service install", &["service", "--manager", "systemd", "--gpu", "false", "install"]),
    ("service print", &["service", "--config", "[GROUND]/none.toml", "print"]),
    ("service status", &["service", "--name", "a b", "status"]),
    ("service uninstall", &["service", "--manager", "systemd", "uninstall"]),
    ("start", &["start", "--model", "small"]),
    ("tune", &["tune", "--save", "[GROUND]/there"]),
    ("verify", &["verify", "[GROUND]/none"]),
];

#[test]
fn every_command_says_what_is_wrong_and_how_it_is_mended() {
    let ground = tempfile::tempdir().unwrap();
    fs::write(ground.path().join("there"), "").unwrap();
    for (name, args) in FAILURES {
        let told = told(args, ground.path());
        assert!(!told.starts_with("exit 0\n") && !told.contains("panicked"), "{name}: {told}");
        snapshot(&format!("errors/{}", file_of(name)), &told);
    }
    let mut names: BTreeSet<String> = FAILURES.iter().map(|(name, _)| file_of(name)).collect();
    assert_eq!(names, kept("errors"), "snapshots of commands that there are");
    for command in all(ground.path()) {
        let known = names.remove(&file_of(&command.name)) || command.is_group();
        assert!(known, "{} has no failure here", command.name);
    }
    assert!(names.is_empty(), "no commands: {names:?}");
}

/// The JSON that a command printed.
fn report(args: &[&str], ground: &Path) -> Value {
    let told = told(args, ground);
    let (code, text) = told.split_once('\n').unwrap();
    assert_eq!(code, "exit 0", "{args:?}: {told}");
    // What people are told besides goes to stderr, behind it.
    let mut values = serde_json::Deserializer::from_str(text).into_iter();
    values.next().unwrap_or_else(|| panic!("{args:?}: {told}")).unwrap()
}

#[test]
fn keys_services_and_secrets_report_by_their_schemas() {
    let ground = tempfile::tempdir().unwrap();
    let report = |args: &[&str]| report(args, ground.path());
    let keys = ["keys", "--json", "--file", "[GROUND]/keys.toml"];
    let keys = |args: &[&str]| report(&[&keys[..], args].concat());
    fits("keys add", &keys(&["add", "ann", "--day-tokens", "1000", "--tenant", "team"]));
    fits("keys add", &keys(&["add", "bob", "--background", "--soft-minute-tokens", "5"]));
    fits("keys list", &keys(&["list"]));
    fits("keys rotate", &keys(&["rotate", "ann"]));
    fits("keys revoke", &keys(&["revoke", "ann"]));
    let service = ["service", "--manager", "systemd", "--json"];
    let service = |args: &[&str]| report(&[&service[..], args].concat());
    fits("service print", &service(&["print"]));
    fits("service install", &service(&["install", "--dry-run"]));
    fits("service uninstall", &service(&["uninstall", "--dry-run"]));
    fits("node secret", &report(&["node", "secret", "[GROUND]/cluster.secret", "--json"]));
    fits("plan", &report(&["plan", "--json"]));
    fits("quickstart", &report(&["quickstart", "--json"]));
}

#[test]
fn bare_measurements_report_by_their_schemas() {
    let ground = tempfile::tempdir().unwrap();
    let small = ["bench", "--tokens", "4", "--rounds", "1", "--depth-max", "1", "--clients", "2"];
    let bench = report(&[&small[..], &["--json"]].concat(), ground.path());
    fits("bench", &bench);
    let ratio = &bench["alone"][0]["over_plain"];
    assert_eq!((bench["clients"].as_u64(), ratio.as_f64()), (Some(2), Some(1.0)), "{bench}");
    let small = ["bench", "products", "--outputs", "128", "--inputs", "128", "--rows", "1,2"];
    fits("bench products", &report(&[&small[..], &["--json"]].concat(), ground.path()));
}

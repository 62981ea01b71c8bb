//! What a release is made with: the script, the formula that it fills in, and the licences.

use std::path::Path;
use std::process::{Command, Output};

use crate::house::root;

fn packaging(file: &str) -> String {
    root().join("config/packaging").join(file).display().to_string()
}

fn read(file: &str) -> String {
    std::fs::read_to_string(packaging(file)).unwrap()
}

/// What a program says, where it is here.
fn run(program: &str, args: &[&str]) -> Option<Output> {
    Command::new(program).args(args).output().ok()
}

fn told(out: &Output) -> String {
    [&out.stdout, &out.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}

/// The words between @ of a text.
fn words(text: &str) -> Vec<String> {
    let is_word = |word: &&str| {
        !word.is_empty()
            && word.starts_with(|c: char| c.is_ascii_uppercase())
            && !word.contains(' ')
    };
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.flat_map(|line| line.split('@').filter(is_word).map(str::to_owned)).collect()
}

#[test]
fn the_script_of_a_release_is_one_that_a_shell_reads() {
    let script = packaging("release.sh");
    let out = run("bash", &["-n", &script]).unwrap();
    assert!(out.status.success(), "{}", told(&out));
    if let Some(out) = run("shellcheck", &[&script]) {
        assert!(out.status.success(), "{}", told(&out));
    }
    let out = run("bash", &[&script, "--odd"]).unwrap();
    assert!(!out.status.success() && told(&out).contains("unknown: --odd"), "{}", told(&out));
}

#[test]
fn the_script_fills_in_all_of_the_formula_and_packs_what_it_installs() {
    let (script, formula) = (read("release.sh"), read("mtplx.rb"));
    for word in words(&formula) {
        let name = word.split(':').next().unwrap();
        assert!(script.contains(&format!("//@{name}")), "nobody fills in @{word}@");
    }
    for (begin, _) in formula.match_indices("# begin ") {
        let target = formula[begin + 8..].lines().next().unwrap();
        assert!(formula.contains(&format!("# end {target}\n")), "{target} has no end");
        assert!(formula.contains(&format!("@SHA256:{target}@")), "{target} has no checksum");
        assert!(formula.contains(&format!("mtplx-@VERSION@-{target}.tar.gz")), "{target}");
    }
    let installed = formula.split('"').skip(1).step_by(2);
    for file in installed.filter(|word| word.starts_with("share/")) {
        assert!(script.contains(&format!("\"$root/{file}\"")), "{file} is not packed");
    }
    for file in ["README.md", "LICENSE", "NOTICE", "THIRD-PARTY.txt"] {
        assert!(formula.contains(file) && script.contains(file), "{file}");
    }
    if let Some(out) = run("ruby", &["-c", &packaging("mtplx.rb")]) {
        assert!(out.status.success(), "{}", told(&out));
    }
}

#[test]
fn whatever_the_program_holds_has_the_text_of_its_licence() {
    // GNU's texts are where Debian keeps them.
    if cfg!(target_os = "linux") && !Path::new("/usr/share/common-licenses/GPL-3").exists() {
        return;
    }
    let out = run("python3", &[&packaging("licences.py")]).unwrap();
    assert!(out.status.success(), "{}", told(&out));
    let text = told(&out);
    for name in ["\ntokio ", "\nmlx-rs ", "\nclap ", "MLX", "mlx-c", "Permission is hereby granted"]
    {
        assert!(text.contains(name), "{name} is missing");
    }
    // What only tests need is in no release.
    assert!(!text.contains("\nrexpect "), "a crate of tests");
}

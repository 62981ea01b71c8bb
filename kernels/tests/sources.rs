//! The GPU kernels' sources on the host: compiled as C++ with `gpu/host/device_on_host.h` in the
//! place of CUDA, and run beside references in double precision.

use std::process::Command;

use crate::house::folder;

/// Compiles and runs a check of `gpu/host`; it fails the test by its exit code.
fn run(check: &str) {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let out = tempfile::tempdir().unwrap();
    let program = out.path().join(check);
    let source = folder("kernels/gpu/host").join(format!("{check}.cpp"));
    let built = Command::new(compiler)
        .args(["-std=c++20", "-O1", "-w"])
        .arg(source)
        .arg("-o")
        .arg(&program)
        .status();
    assert!(built.unwrap().success(), "{check} does not compile");
    let ran = Command::new(program).output().unwrap();
    assert!(ran.status.success(), "{check}: {}", String::from_utf8_lossy(&ran.stdout));
}

#[test]
fn gated_delta_rule_replays_what_was_accepted_and_goes_on() {
    run("gdn");
}

#[test]
fn attention_sees_every_key_of_its_row_and_no_other() {
    run("attention");
}

#[test]
fn the_largest_logits_are_found_and_ties_go_to_the_lowest_ids() {
    run("top");
}

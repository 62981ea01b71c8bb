//! The GPU kernels' sources on the host: compiled as C++ with `gpu/host/cuda_on_host.h` or
//! `metal_on_host.h` in the place of the device, and run beside references in double precision.

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::house::folder;

mod acceptance;

/// Compiles a program of `gpu/host`; the folder holds it as long as it lives.
fn build(check: &str, options: &[&str]) -> (TempDir, PathBuf) {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let out = tempfile::tempdir().unwrap();
    let program = out.path().join(check);
    let source = folder("kernels/gpu/host").join(format!("{check}.cpp"));
    let built = Command::new(compiler)
        .args(["-std=c++20", "-O1", "-w"])
        .args(options)
        .arg(source)
        .arg("-o")
        .arg(&program)
        .status();
    assert!(built.unwrap().success(), "{check} {options:?} does not compile");
    (out, program)
}

/// Compiles and runs a check of `gpu/host`; it fails the test by its exit code.
fn run(check: &str, options: &[&str]) {
    let (_folder, program) = build(check, options);
    let ran = Command::new(program).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{check} {options:?}: {said}");
}

/// Both kinds of source.
fn run_both(check: &str) {
    run(check, &[]);
    run(check, &["-DMETAL"]);
}

#[test]
fn gated_delta_rule_replays_what_was_accepted_and_goes_on() {
    run_both("gdn");
}

#[test]
fn gated_delta_rule_in_chunks_is_the_rule_token_by_token() {
    for language in ["-DCUDA", "-DMETAL"] {
        run("gdn", &["-DSET_CHUNKED=1", language]);
    }
}

#[test]
fn chunks_of_any_length_go_on_from_any_state_however_fast_it_decays() {
    for language in ["-DCUDA", "-DMETAL"] {
        run("gdn", &["-DSET_CHUNKED=1", "-DSCENE=edges", "-DEXTREME", language]);
    }
}

#[test]
fn chunks_of_metal_know_the_heads_of_small_and_large_models_and_both_halves() {
    for heads in [["-DSET_HK=16", "-DSET_HV=16"], ["-DSET_HK=16", "-DSET_HV=48"]] {
        run("gdn", &[&heads[..], &["-DSET_CHUNKED=1", "-DSCENE=wide", "-DMETAL"]].concat());
    }
    run("gdn", &["-DSET_CHUNKED=1", "-DSCENE=wide", "-DMETAL", "-DSET_TYPE=Half"]);
}

/// 4 096 tokens in 257 chunks of Metal's.
#[test]
fn errors_of_chunks_do_not_grow_with_the_text() {
    let heads = ["-DSET_HK=1", "-DSET_HV=1"];
    run("gdn", &[&heads[..], &["-DSET_CHUNKED=1", "-DSCENE=whole", "-DMETAL"]].concat());
}

#[test]
fn attention_sees_every_key_of_its_row_and_no_other() {
    run_both("attention");
    for language in ["-DCUDA", "-DMETAL"] {
        run("attention", &["-DSET_E=8", "-DSET_ROTARY=64", language]);
    }
}

#[test]
fn the_largest_logits_are_found_and_what_is_no_number_and_ties_go_to_the_lowest_ids() {
    run_both("top");
    run("top", &["-DMETAL", "-DSET_TYPE=Half"]);
}

#[test]
fn what_the_host_says_in_pieces_arrives_whole() {
    for count in ["-DSET_COUNT=32", "-DSET_COUNT=256", "-DSET_COUNT=960"] {
        run("numbers", &[count]);
    }
}

#[test]
fn draws_follow_the_weights_that_are_returned() {
    run_both("draw");
}

/// Every form of weights, as the check of products wants to be told.
fn each_form(run: impl Fn(&[&str])) {
    for half in ["Brain", "Half"] {
        for bits in [4, 8] {
            for group in [32, 64, 128] {
                let form = [
                    format!("-DSET_TYPE={half}"),
                    format!("-DSET_BITS={bits}"),
                    format!("-DGROUP={group}"),
                    format!("-DSET_PARTS={}", if group == 64 { 8 } else { 4 }),
                ];
                run(&form.each_ref().map(String::as_str));
            }
        }
    }
}

#[test]
fn products_of_metal_know_every_form_and_no_row_changes_another() {
    each_form(|form| run("qmm", &[form, &["-DMETAL"]].concat()));
}

/// With few rows of x, and with many that tiles share.
#[test]
fn products_of_cuda_know_every_form_and_no_row_changes_another() {
    each_form(|form| run("qmm", form));
}

/// What a compiler for Metal would say of address spaces, libclang says here; and of a
/// threadgroup's memory, of which Apple's GPUs have 32 KiB.
#[test]
fn metal_sources_keep_their_address_spaces_apart_and_fit_a_threadgroup() {
    let host = folder("kernels/gpu/host");
    for half in ["Brain", "Half"] {
        let parsed = Command::new(folder(".native/venv/bin/python"))
            .arg(host.join("parse.py"))
            .arg(host.join("metal_types.cpp"))
            .args(["-std=c++17", &format!("-DSET_TYPE={half}")])
            .output()
            .unwrap();
        assert!(parsed.status.success(), "{}", String::from_utf8_lossy(&parsed.stdout));
    }
}

//! What the command line says of models, which of them are served, verified and deleted.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use crate::commands::{fits, snapshot, told};
use crate::house::{House, mtplx, root};

/// The small model in a folder of its own, as nobody has verified it.
fn unverified(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    for file in fs::read_dir(root().join("config/models/tiny-q8")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), folder.join(file.file_name())).unwrap();
    }
    fs::remove_file(folder.join("mtplx_runtime.json")).unwrap();
}

/// A hub's cache with two revisions of a repository that share a file, and another repository.
fn hub(ground: &Path) -> PathBuf {
    let hub = ground.join("hub");
    let repository = hub.join("models--org--small");
    let blobs = repository.join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    for (name, content) in [("c1", "{}"), ("c2", "{ }"), ("w", "weights")] {
        fs::write(blobs.join(name), content).unwrap();
    }
    for (revision, config) in [("aaaaaaaaaa", "c1"), ("bbbbbbbbbb", "c2")] {
        let snapshot = repository.join("snapshots").join(revision);
        fs::create_dir_all(&snapshot).unwrap();
        symlink(format!("../../blobs/{config}"), snapshot.join("config.json")).unwrap();
        symlink("../../blobs/w", snapshot.join("model.safetensors")).unwrap();
    }
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::write(repository.join("refs/main"), "aaaaaaaaaa").unwrap();
    let other = hub.join("models--org--other/snapshots/cccccccccc");
    fs::create_dir_all(&other).unwrap();
    fs::write(other.join("config.json"), "{}").unwrap();
    hub
}

fn json_of(args: &[&str]) -> (Value, Output) {
    let out = mtplx().args(args).output().unwrap();
    let value = serde_json::from_slice(&out.stdout);
    (value.unwrap_or_else(|e| panic!("{args:?}: {e}: {out:?}")), out)
}

#[test]
fn schemas_of_the_commands_of_models_stay_as_they_are() {
    let ground = tempfile::tempdir().unwrap();
    for command in ["convert", "inspect", "models", "verify"] {
        snapshot(&format!("{command}-schema"), &told(&["schema", command], ground.path()));
    }
}

#[test]
fn what_is_wrong_with_a_model_is_said_with_its_reason_and_its_cure() {
    let ground = tempfile::tempdir().unwrap();
    let path = |name: &str| ground.path().join(name).display().to_string();
    unverified(&ground.path().join("model"));
    fs::create_dir(path("empty")).unwrap();
    fs::create_dir(path("foreign")).unwrap();
    let config = r#"{"model_type": "deepseek_v3", "num_nextn_predict_layers": 1}"#;
    fs::write(ground.path().join("foreign/config.json"), config).unwrap();
    for (name, args) in [
        ("inspect-unverified", vec!["inspect", &path("model")]),
        ("inspect-empty", vec!["inspect", &path("empty")]),
        ("inspect-foreign", vec!["inspect", &path("foreign")]),
        ("inspect-nothing", vec!["inspect"]),
        ("models-none", vec!["models"]),
        ("models-yes-alone", vec!["models", "--yes"]),
        ("verify-foreign", vec!["verify", &path("foreign")]),
        ("serve-unverified", vec!["serve", "--port", "0", "--model", &path("model")]),
    ] {
        snapshot(name, &told(&args, ground.path()));
    }
    fs::remove_file(ground.path().join("model/mtp.safetensors")).unwrap();
    let config = ground.path().join("model/config.json");
    let text = fs::read_to_string(&config).unwrap().replace("mlx_lm_extra_tensors", "_");
    fs::write(config, text).unwrap();
    let serve = ["serve", "--port", "0", "--model", &path("model")];
    snapshot("serve-without-head", &told(&serve, ground.path()));
    let house = House::start(&["--model", &path("model"), "--no-mtp"]);
    assert!(house.get("/health").1.contains("\"tier\":\"no-mtp\""));
}

#[test]
fn an_unverified_model_is_served_where_that_is_asked_for_and_called_so() {
    let ground = tempfile::tempdir().unwrap();
    unverified(ground.path());
    let path = ground.path().display().to_string();
    let tiers = |house: &House| {
        let told = |path: &str| serde_json::from_str::<Value>(&house.get(path).1).unwrap();
        let model = told("/v1/models")["data"][0]["meta"].clone();
        (told("/health")["tier"].clone(), model["tier"].clone(), model["mtp"].clone())
    };
    let house = House::start(&["--model", &path, "--unsafe-force-unverified"]);
    assert_eq!(tiers(&house), ("unverified".into(), "unverified".into(), true.into()));
    drop(house);
    let settings = ground.path().join("my.toml");
    fs::write(&settings, "[model]\nunverified = \"accept\"\ngeneration = \"ar\"\n").unwrap();
    let house = House::start(&["--model", &path, "--config", settings.to_str().unwrap()]);
    assert_eq!(tiers(&house), ("unverified".into(), "unverified".into(), false.into()));
    assert_eq!(tiers(&House::shared()), ("verified".into(), "verified".into(), true.into()));
}

#[test]
fn the_embedded_model_is_verified_by_the_contract_that_it_comes_with() {
    let path = root().join("config/models/tiny-q8").display().to_string();
    let (report, out) = json_of(&["inspect", &path, "--json"]);
    fits("inspect", &report);
    assert_eq!(
        (report["tier"].as_str(), out.status.code()),
        (Some("verified"), Some(0)),
        "{report}"
    );
    let gates = report["verification"]["gates"].as_array().unwrap();
    let names: Vec<_> = gates.iter().map(|gate| gate["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["greedy-parity", "seeded-parity", "distribution", "acceptance"]);
}

#[test]
fn a_model_that_passes_is_verified_until_it_changes() {
    let ground = tempfile::tempdir().unwrap();
    unverified(ground.path());
    fs::write(ground.path().join("mtplx_runtime.json"), r#"{"public_model_id": "mine"}"#).unwrap();
    let path = ground.path().display().to_string();
    let small = ["verify", &path, "--tokens", "8", "--draws", "100", "--json"];
    let (report, out) = json_of(&small);
    fits("verify", &report);
    // Promises to the bit hold on Linux's CPU; elsewhere it is the same but for near-ties.
    assert!(report["passed"] == true && out.status.success(), "{report}");
    let inspect = || {
        let (report, _) = json_of(&["inspect", &path, "--json"]);
        fits("inspect", &report);
        report["tier"].as_str().unwrap().to_owned()
    };
    assert_eq!(inspect(), "verified");
    let contract = fs::read_to_string(ground.path().join("mtplx_runtime.json")).unwrap();
    let contract: Value = serde_json::from_str(&contract).unwrap();
    assert_eq!(contract["public_model_id"], "mine", "what stood there is kept");
    for key in ["mtplx_version", "arch_id", "mtp_depth_max", "recommended_profile"] {
        assert!(!contract[key].is_null(), "the original asks for {key}");
    }
    assert_eq!(contract["exactness_baseline"]["status"], "passed");
    let config = ground.path().join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}\n")).unwrap();
    assert_eq!(inspect(), "unverified");
}

#[test]
fn models_are_found_named_and_numbered_wherever_they_are() {
    let ground = tempfile::tempdir().unwrap();
    let hub = hub(ground.path());
    let studio = ground.path().join("studio");
    unverified(&studio.join("maker/tiny"));
    // Reached on two ways, and round in a circle.
    symlink(studio.join("maker"), studio.join("again")).unwrap();
    symlink(&studio, studio.join("maker/round")).unwrap();
    let args = ["models", hub.to_str().unwrap(), studio.to_str().unwrap()];
    let (listing, _) = json_of(&[&args[..], &["--json"]].concat());
    fits("models", &listing);
    let models = listing["models"].as_array().unwrap();
    let shown: Vec<_> = models
        .iter()
        .map(|model| (model["name"].as_str().unwrap(), model["tier"].as_str().unwrap()))
        .collect();
    let expected = [
        ("maker/tiny", "unverified"),
        ("org/other", "damaged"),
        ("org/small", "damaged"),
        ("org/small@bbbbbbbb", "damaged"),
    ];
    assert_eq!(shown, expected);
    let text = String::from_utf8(mtplx().args(args).output().unwrap().stdout).unwrap();
    assert!(text.starts_with("1  maker/tiny") && text.contains("\n4  org/small@"), "{text}");
}

#[test]
fn what_is_deleted_is_one_model_and_nothing_that_others_need() {
    let ground = tempfile::tempdir().unwrap();
    let hub = hub(ground.path());
    let root = hub.to_str().unwrap();
    let delete = |name: &str, more: &[&str]| {
        mtplx().args([&["models", root, "--delete", name], more].concat()).output().unwrap()
    };
    let out = delete("org/small", &[]);
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && error.contains("--yes"), "{error}");
    let repository = hub.join("models--org--small");
    assert!(delete("org/small", &["--yes"]).status.success());
    let has = |path: &str| repository.join(path).exists();
    assert!(!has("snapshots/aaaaaaaaaa") && !has("blobs/c1"), "what is its own is gone");
    assert!(has("snapshots/bbbbbbbbbb/model.safetensors") && has("blobs/w"), "the rest is there");
    let (listing, _) = json_of(&["models", root, "--delete", "small", "--yes", "--json"]);
    fits("models", &listing);
    assert!(!repository.exists(), "the last snapshot takes the repository along");
    assert_eq!(listing["models"].as_array().unwrap().len(), 1);
    // A link in a root leads out of it.
    let mine = ground.path().join("mine");
    unverified(&mine);
    symlink(&mine, hub.join("linked")).unwrap();
    let out = delete("linked", &["--yes"]);
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && error.contains("not below"), "{error}");
    assert!(mine.join("config.json").exists());
}

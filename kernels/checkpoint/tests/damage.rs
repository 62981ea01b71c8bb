//! Damaged folders: each must fail, and its error must name the culprit.

use std::fs;
use std::path::Path;

use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use super::fixture::{CHANNELS, HIDDEN, Model, Raw, load, quantize};
use crate::checkpoint::{Checkpoint, Error};

pub(super) const SHARD: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
const FIRST: &str = "language_model.model.layers.0.mlp.up_proj";

pub(super) fn check(result: Result<Checkpoint, Error>, parts: &[&str]) {
    let text = result.expect_err(parts[0]).to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

/// An index that puts every tensor of the small model into its one shard.
fn index() -> Value {
    let names = Model::small().trunk.into_keys();
    let map: serde_json::Map<_, _> = names.map(|name| (name, SHARD.into())).collect();
    json!({ "weight_map": map })
}

fn rewrite(folder: &Path, name: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    let path = folder.join(name);
    fs::write(&path, change(fs::read(&path).unwrap())).unwrap();
}

fn rewrite_as(folder: &Path, copy: &str) {
    fs::copy(folder.join(SHARD), folder.join(copy)).unwrap();
}

/// Changes the header of the shard as text; its length stays right.
fn edit_header(folder: &Path, change: impl FnOnce(String) -> String) {
    rewrite(folder, SHARD, |content| {
        let length = u64::from_le_bytes(content[..8].try_into().unwrap()) as usize;
        let header = change(String::from_utf8(content[8..8 + length].to_vec()).unwrap());
        let mut new = (header.len() as u64).to_le_bytes().to_vec();
        new.extend(header.bytes());
        new.extend(&content[8 + length..]);
        new
    });
}

type Damage = fn(&Path);

/// Each damage, done to a fresh folder, must fail with an error that has all its parts.
fn check_all(zoo: &[(Damage, &[&str])]) {
    for (damage, parts) in zoo {
        let folder = Model::small().write();
        damage(folder.path());
        check(load(folder.path()), parts);
    }
}

#[test]
fn a_damaged_configuration_is_described() {
    check_all(&[
        (|f| fs::remove_file(f.join("config.json")).unwrap(), &["config.json", "not exist"]),
        (|f| rewrite(f, "config.json", |_| vec![]), &["config.json", "JSON"]),
        (|f| rewrite(f, "config.json", |c| c[..99].to_vec()), &["config.json", "line 1"]),
        (|f| rewrite(f, "config.json", |_| b"[]".to_vec()), &["config.json", "object"]),
        (
            |f| rewrite(f, "config.json", |_| b"[".repeat(100_000)),
            &["config.json", "recursion limit"],
        ),
        (
            |f| rewrite(f, "config.json", |_| br#"{"text_config": 1}"#.to_vec()),
            &["text_config is 1"],
        ),
        (
            |f| {
                fs::remove_file(f.join("config.json")).unwrap();
                fs::create_dir(f.join("config.json")).unwrap();
            },
            &["config.json", "regular file"],
        ),
    ]);
}

#[test]
fn damaged_shards_are_described() {
    check_all(&[
        (|f| fs::remove_file(f.join(SHARD)).unwrap(), &["model*.safetensors"]),
        (
            |f| fs::rename(f.join(SHARD), f.join("model-q4.gguf")).unwrap(),
            &["model-q4.gguf", "safetensors form"],
        ),
        (|f| rewrite(f, SHARD, |_| vec![]), &[SHARD, "cut short: 0 bytes"]),
        (|f| rewrite(f, SHARD, |c| c[..7].to_vec()), &[SHARD, "cut short: 7 bytes"]),
        (|f| rewrite(f, SHARD, |c| c[..200].to_vec()), &[SHARD, "header should end"]),
        (
            |f| rewrite(f, SHARD, |c| c[..c.len() - 1].to_vec()),
            &[SHARD, "tensor language_model.model.", "cut short"],
        ),
        (|f| rewrite(f, SHARD, |c| [c, vec![0; 9]].concat()), &[SHARD, "its header describes"]),
        (
            |f| rewrite(f, SHARD, |c| [&[0xff; 8], &c[8..]].concat()),
            &[SHARD, "no safetensors file"],
        ),
        (
            |f| rewrite(f, SHARD, |_| b"<html>Not found</html>".to_vec()),
            &[SHARD, "no safetensors file"],
        ),
        (
            |f| fs::rename(f.join(SHARD), f.join("model-00001-of-00002.safetensors")).unwrap(),
            &["model-00002-of-00002.safetensors", "missing"],
        ),
        (
            |f| rewrite_as(f, "model-copy.safetensors"),
            &[SHARD, "model-copy.safetensors", "the same", "one copy"],
        ),
    ]);
}

#[test]
fn a_damaged_header_is_described() {
    check_all(&[
        (|f| edit_header(f, |h| h.replacen(":", ";", 1)), &[SHARD, "header"]),
        (
            |f| edit_header(f, |h| h.replacen("\"dtype\":\"BF16\"", "\"d\":1", 1)),
            &[SHARD, "language_model.model.", "missing field `dtype`"],
        ),
        (
            |f| edit_header(f, |h| h.replacen("[64,128]", "[64,-8]", 1)),
            &[SHARD, "embed_tokens.weight", "-8"],
        ),
        (
            |f| edit_header(f, |h| h.replacen("[64,128]", "[64,129]", 1)),
            &[SHARD, "embed_tokens.weight", "BF16 [64, 129]", "16384 bytes"],
        ),
        (
            |f| edit_header(f, |h| h.replacen("[64,128]", "[9223372036854775807,128]", 1)),
            &[SHARD, "embed_tokens.weight", "9223372036854775807"],
        ),
        (
            |f| edit_header(f, |h| h.replace("layers.0.mlp.up_proj", "layers.0.mlp.down_proj")),
            &[SHARD, "layers.0.mlp.down_proj.weight", "twice"],
        ),
    ]);
}

#[test]
fn a_damaged_index_is_described() {
    check_all(&[
        (|f| fs::write(f.join(INDEX), "{").unwrap(), &[INDEX, "index of shards"]),
        (|f| fs::write(f.join(INDEX), "{}").unwrap(), &[INDEX, "weight_map"]),
        (|f| fs::write(f.join(INDEX), r#"{"weight_map":{}}"#).unwrap(), &[INDEX, "no tensors"]),
        (
            |f| fs::write(f.join(INDEX), r#"{"weight_map":{"a":3}}"#).unwrap(),
            &[INDEX, "at a", "expected a string"],
        ),
        (
            |f| fs::write(f.join(INDEX), r#"{"weight_map":{"a":"x","a":"x"}}"#).unwrap(),
            &[INDEX, "tensor a twice"],
        ),
        (
            |f| {
                let mut index = index();
                index["weight_map"]["language_model.model.ghost"] = SHARD.into();
                fs::write(f.join(INDEX), index.to_string()).unwrap();
            },
            &[INDEX, "language_model.model.ghost", SHARD, "does not hold"],
        ),
        (
            |f| {
                let mut index = index();
                index["weight_map"]["ghost"] = "model-00002-of-00002.safetensors".into();
                fs::write(f.join(INDEX), index.to_string()).unwrap();
            },
            &[INDEX, "model-00002-of-00002.safetensors", "missing"],
        ),
        (
            |f| {
                let mut index = index();
                index["weight_map"]["ghost"] = "/etc/passwd".into();
                fs::write(f.join(INDEX), index.to_string()).unwrap();
            },
            &["/etc/passwd", "plain path"],
        ),
    ]);
}

type Bend = fn(&mut Model);

/// Each bent model must fail with an error that has all its parts.
fn check_bent(model: &Model, zoo: &[(Bend, &[&str])]) {
    for (bend, parts) in zoo {
        let mut model = model.clone();
        bend(&mut model);
        check(model.load(), parts);
    }
}

#[test]
fn a_trunk_of_other_tensors_is_described() {
    check_bent(
        &Model::small(),
        &[
            (
                |m| drop(m.trunk.remove("language_model.model.embed_tokens.weight")),
                &["embed_tokens.weight", "missing from model.safetensors", "[64, 128]"],
            ),
            (
                |m| drop(m.trunk.remove(&format!("{FIRST}.weight"))),
                &["layers.0.mlp.up_proj.weight", "missing", "[256, 128]"],
            ),
            (
                |m| m.tensor("layers.0.mlp.up_proj.weight").shape.reverse(),
                &["layers.0.mlp.up_proj.weight", "BF16 [128, 256]", "[256, 128]"],
            ),
            (
                |m| m.tensor("norm.weight").shape = vec![1, HIDDEN],
                &["language_model.model.norm.weight", "[1, 128]", "[128]"],
            ),
            (
                |m| m.tensor("layers.0.linear_attn.conv1d.weight").shape = vec![4, CHANNELS],
                &["layers.0.linear_attn.conv1d.weight", "[4, 128]", "[128, 4, 1] or [128, 1, 4]"],
            ),
            (
                |m| m.tensor("layers.2.linear_attn.conv1d.weight").shape = vec![CHANNELS, 1, 4],
                &["layers.2.linear_attn.conv1d.weight", "[128, 1, 4]", "[128, 4, 1]"],
            ),
            (
                |m| {
                    let bias = Raw::floats(Dtype::F32, &[64], &[0.0; 64]);
                    let name = "language_model.model.layers.3.self_attn.k_proj.bias";
                    drop(m.trunk.insert(name.into(), bias));
                },
                &["layers.3.self_attn.k_proj.bias", "F32 [64]", "no bias"],
            ),
            (
                |m| drop(m.text().insert("tie_word_embeddings".into(), false.into())),
                &["lm_head.weight", "missing", "[64, 128]"],
            ),
            (
                |m| {
                    let copy = m.tensor("norm.weight").clone();
                    drop(m.trunk.insert("model.norm.weight".into(), copy));
                },
                &["model.norm.weight is the same as language_model.model.norm.weight"],
            ),
        ],
    );
}

#[test]
fn a_trunk_of_other_elements_is_described() {
    check_bent(
        &Model::small(),
        &[
            (
                |m| {
                    let raw = Raw { dtype: Dtype::I64, shape: vec![2], bytes: vec![0; 16] };
                    *m.tensor("layers.1.linear_attn.A_log") = raw;
                },
                &["layers.1.linear_attn.A_log", "I64 [2]", "f32, f16 or bf16 [2]"],
            ),
            (
                |m| {
                    let bytes = vec![0; 256 * 128];
                    let shape = vec![256, 128];
                    let raw = Raw { dtype: Dtype::F8_E4M3, shape, bytes };
                    *m.tensor("layers.0.mlp.up_proj.weight") = raw;
                },
                &["layers.0.mlp.up_proj.weight", "F8_E4M3", "bf16"],
            ),
            (
                |m| {
                    m.tensor("layers.2.linear_attn.dt_bias").bytes =
                        [f32::INFINITY; 2].iter().flat_map(|x| x.to_le_bytes()).collect()
                },
                &["layers.2.linear_attn.dt_bias", "finite", "inf"],
            ),
        ],
    );
}

#[test]
fn codes_that_do_not_fit_are_described() {
    let mut model = Model::small();
    Model::quantize(&mut model.trunk, 4, 64);
    model.config["quantization"] = json!({"bits": 4, "group_size": 64, "mode": "affine"});
    assert!(model.load().is_ok());
    let zoo: &[(Bend, &[&str])] = &[
        (
            |m| drop(m.trunk.remove(&format!("{FIRST}.scales"))),
            &["layers.0.mlp.up_proj.weight", "U32 [256, 16]", "layers.0.mlp.up_proj.scales"],
        ),
        (
            |m| drop(m.trunk.remove(&format!("{FIRST}.biases"))),
            &["layers.0.mlp.up_proj.biases", "missing", "affine"],
        ),
        (
            |m| m.config["quantization"]["bits"] = 8.into(),
            &["U32", "8 bits in groups of 64 as config.json says", "4 bits in groups of 64"],
        ),
        (
            |m| m.config["quantization"][FIRST] = json!({"bits": 4, "group_size": 32}),
            &[FIRST, "4 bits in groups of 32 as config.json says"],
        ),
        (
            |m| m.config["quantization"][FIRST] = false.into(),
            &[FIRST, "not quantised", "4 bits in groups of 64"],
        ),
        (
            |m| m.config["quantization"][FIRST] = json!({"mode": "nvfp4"}),
            &[FIRST, "mode affine", "nvfp4"],
        ),
        (
            |m| m.tensor("layers.0.mlp.up_proj.weight").shape = vec![128, 32],
            &[FIRST, "U32 [128, 32]", "[256, 128 · bits / 32]"],
        ),
        (
            |m| {
                let raw = m.tensor("layers.0.mlp.up_proj.weight");
                (raw.shape, raw.bytes) = (vec![256, 28], vec![0; 256 * 28 * 4]);
            },
            &[FIRST, "U32 [256, 28]", "bits in [2, 3, 4, 5, 6, 8]"],
        ),
        (
            |m| {
                let raw = m.tensor("layers.0.mlp.up_proj.scales");
                *raw = Raw::floats(Dtype::BF16, &[256, 8], &[1.0; 2048]);
            },
            &["layers.0.mlp.up_proj.scales", "BF16 [256, 8]", "group in [32, 64, 128]"],
        ),
        (
            |m| {
                let raw = m.tensor("layers.0.mlp.up_proj.biases");
                *raw = raw.cast(Dtype::F32);
            },
            &["layers.0.mlp.up_proj.biases", "F32 [256, 2]", "BF16 [256, 2] like its scales"],
        ),
        (
            |m| {
                *m.tensor("layers.0.mlp.up_proj.weight") =
                    Raw::floats(Dtype::F32, &[256, 16], &[0.0; 4096])
            },
            &["layers.0.mlp.up_proj.weight", "F32 [256, 16]", "packed u32"],
        ),
    ];
    check_bent(&model, zoo);
    // Codes narrower than a word's share: three bits of 32 columns fit, of 16 they do not.
    let mut model = Model::small();
    quantize(&mut model.trunk, FIRST, 3, 32);
    assert!(model.load().is_ok());
}

#[test]
fn long_and_odd_names_stay_readable() {
    let mut model = Model::small();
    let raw = model.tensor("norm.weight").clone();
    let name = format!("\u{1b}[31m{}", "x".repeat(5000));
    model.trunk.insert(name.clone(), raw.clone());
    model.trunk.insert(format!("model.{name}"), raw);
    let text = model.load().unwrap_err().to_string();
    assert!(text.len() < 1000 && !text.contains('\u{1b}'), "{text}");
}

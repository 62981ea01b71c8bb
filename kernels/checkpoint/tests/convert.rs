//! Checkpoints in other forms, and what must not change on the way.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::Dtype as Stored;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::fixture::{Model, Raw, Tensors, is_gain, load, repository, tensors};
use super::{BF16, Q8, linears, vectors};
use crate::checkpoint::{Checkpoint, Conversion, Dtype, Failure, Files, Recipe};

fn plain() -> Recipe {
    Recipe::default()
}

fn coded(bits: usize) -> Recipe {
    Recipe { bits: Some(bits), head_bits: Some(8), ..Recipe::default() }
}

fn plan(source: &Path, recipe: &Recipe) -> Conversion {
    Conversion::plan(&Files::folder(source).unwrap(), recipe).unwrap()
}

fn refused(model: &Model, recipe: &Recipe) -> String {
    let folder = model.write();
    let files = Files::folder(folder.path()).unwrap();
    let told = match Conversion::plan(&files, recipe) {
        Err(error) => error.to_string(),
        Ok(plan) => {
            let new = tempfile::tempdir().unwrap();
            plan.write(new.path(), &mut |_| true).unwrap_err().to_string()
        }
    };
    told.replace(&folder.path().display().to_string(), "")
}

fn convert(source: &Path, recipe: &Recipe) -> TempDir {
    let (plan, folder) = (plan(source, recipe), tempfile::tempdir().unwrap());
    let mut told = 0;
    let mut hear = |bytes| {
        told += bytes;
        true
    };
    plan.write(folder.path(), &mut hear).unwrap();
    let names = fs::read_dir(folder.path()).unwrap();
    let sizes = names.map(|entry| entry.unwrap().metadata().unwrap().len());
    assert_eq!((told, sizes.sum::<u64>()), (plan.bytes_total(), plan.bytes_total()));
    folder
}

fn config_of(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
}

/// All tensors of the trunk's shards.
fn trunk(folder: &Path) -> Tensors {
    let index = fs::read(folder.join("model.safetensors.index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    let map: BTreeMap<String, String> =
        serde_json::from_value(index["weight_map"].clone()).unwrap();
    let shards: BTreeMap<&String, Tensors> =
        map.values().map(|shard| (shard, tensors(&folder.join(shard)))).collect();
    let held: usize = shards.values().map(BTreeMap::len).sum();
    assert_eq!(held, map.len());
    let bytes: usize = shards.values().flat_map(BTreeMap::values).map(|raw| raw.bytes.len()).sum();
    assert_eq!(index["metadata"]["total_size"], bytes);
    map.iter().map(|(name, shard)| (name.clone(), shards[shard][name].clone())).collect()
}

fn head(folder: &Path) -> Tensors {
    tensors(&folder.join("mtp.safetensors"))
}

fn assert_same_weights(a: &Checkpoint, b: &Checkpoint) {
    assert_eq!(vectors(a), vectors(b));
    assert_same_matrices(a, b, |a, b, _| a == b);
}

fn assert_same_matrices(a: &Checkpoint, b: &Checkpoint, same: fn(f32, f32, f32) -> bool) {
    let (all, others) = (linears(a), linears(b));
    assert_eq!(all.len(), others.len());
    for (one, other) in all.iter().zip(others) {
        for row in 0..one.out {
            let (one, other) = (one.row_f32(row), other.row_f32(row));
            let most = one.iter().fold(0f32, |most, x| most.max(x.abs()));
            assert!(one.iter().zip(&other).all(|(&a, &b)| same(a, b, most)));
        }
    }
}

#[test]
fn what_is_converted_already_stays_to_the_bit() {
    let source = repository(BF16);
    let made = convert(&source, &plain());
    assert_eq!(trunk(made.path()), tensors(&source.join("model.safetensors")));
    assert_eq!(head(made.path()), head(&source));
    let mut config = config_of(made.path());
    let said = config.as_object_mut().unwrap().remove("mtplx_mtp_norm_encoding");
    assert_eq!((said, config), (Some(json!("absolute")), config_of(&source)));
}

#[test]
fn eight_bits_of_the_small_model_are_those_that_mlx_lm_made() {
    let (made, known) = (convert(&repository(BF16), &coded(8)), repository(Q8));
    assert_eq!(config_of(made.path()), config_of(&known));
    assert_eq!(trunk(made.path()), tensors(&known.join("model.safetensors")));
    assert_eq!(head(made.path()), head(&known));
    let index = "model.safetensors.index.json";
    let of = |folder: &Path| -> Value {
        serde_json::from_slice(&fs::read(folder.join(index)).unwrap()).unwrap()
    };
    assert_eq!(of(made.path())["weight_map"], of(&known)["weight_map"]);
}

#[test]
fn published_files_become_those_that_they_were_made_of() {
    let model = Model::small();
    let recipe = Recipe { dtype: Some(Dtype::BF16), ..plain() };
    let made = convert(model.raw_hf().write().path(), &recipe);
    let as_made = |tensors: &Tensors| -> Tensors {
        let cast = |(name, raw): (&String, &Raw)| match name.ends_with("A_log") {
            true => (name.clone(), raw.clone()),
            false => (name.clone(), raw.cast(Stored::BF16)),
        };
        tensors.iter().map(cast).collect()
    };
    assert_eq!(trunk(made.path()), as_made(&model.trunk));
    assert_eq!(head(made.path()), as_made(&model.head));
    assert!(model.trunk.keys().any(|name| is_gain(name)));
    // The decay keeps the width that it came in.
    let decay = "language_model.model.layers.0.linear_attn.A_log";
    assert_eq!(trunk(made.path())[decay].dtype, Stored::F32);
    // Where no type is named, none is changed; and it loads as the published one did.
    let kept = convert(model.raw_hf().write().path(), &plain());
    assert_same_weights(&load(kept.path()).unwrap(), &load(model.raw_hf().write().path()).unwrap());
}

#[test]
fn the_type_that_the_configuration_names_is_that_of_what_is_written() {
    let mut model = Model::small();
    model.text().insert("dtype".into(), json!("float16"));
    let made = convert(model.write().path(), &plain());
    let types = |raw: &Raw| raw.dtype;
    let f16 = |(name, raw): (&String, &Raw)| name.ends_with("A_log") || types(raw) == Stored::F16;
    assert!(trunk(made.path()).iter().all(f16) && head(made.path()).iter().all(f16));
    let recipe = Recipe { dtype: Some(Dtype::F32), ..plain() };
    let made = convert(model.write().path(), &recipe);
    assert_eq!(config_of(made.path())["text_config"]["dtype"], "float32");
    assert!(trunk(made.path()).values().all(|raw| types(raw) == Stored::F32));
}

#[test]
fn mixtures_keep_their_numbers_in_every_layout() {
    for (name, path) in [("moe-raw", "language_model.model"), ("next-raw", "model")] {
        let source = repository("tests/golden/moe").join(name);
        let recipe = Recipe { dtype: Some(Dtype::F32), ..plain() };
        let made = convert(&source, &recipe);
        // Sums of gains are rounded in no other way than they are in reading.
        assert_same_weights(&load(made.path()).unwrap(), &load(&source).unwrap());
        let stack = &trunk(made.path())[&format!("{path}.layers.1.mlp.switch_mlp.up_proj.weight")];
        assert_eq!(stack.shape, [6, 16, 64]);
        assert_eq!(config_of(made.path())["mlx_lm_extra_tensors"]["mtp_file"], "mtp.safetensors");
    }
}

#[test]
fn mixtures_are_coded_as_mlx_lm_would_and_what_no_group_fits_is_named() {
    for (name, known, path) in
        [("moe-raw", "moe-q4", "language_model.model"), ("next-raw", "next-q8", "model")]
    {
        let folder = repository("tests/golden/moe");
        let bits = if known == "moe-q4" { 4 } else { 8 };
        let recipe = Recipe { bits: Some(bits), head_bits: Some(8), ..plain() };
        let planned = plan(&folder.join(name), &recipe);
        let down = format!("{path}.layers.1.mlp.switch_mlp.down_proj");
        assert!(planned.uncoded.contains(&down), "{:?}", planned.uncoded);
        let made = convert(&folder.join(name), &recipe);
        let (new, old) = (config_of(made.path()), config_of(&folder.join(known)));
        for (key, value) in old["quantization"].as_object().unwrap() {
            assert_eq!(&new["quantization"][key], value, "{name} {key}");
        }
        assert_eq!(new["quantization"][&down], false);
        // The same tensors of the same types, but for those that no group fits.
        let (mine, theirs) =
            (trunk(made.path()), tensors(&folder.join(known).join("model.safetensors")));
        for (name, raw) in &mine {
            let path = name.rsplit_once('.').unwrap().0;
            if !planned.uncoded.iter().any(|uncoded| uncoded == path) {
                assert_eq!(raw.dtype, theirs[name].dtype, "{name}");
            }
        }
        let close = |a: f32, b: f32, most: f32| (a - b).abs() <= most / 7.0;
        let (source, made) = (load(&folder.join(name)).unwrap(), load(made.path()).unwrap());
        assert_same_matrices(&source, &made, close);
    }
}

#[test]
fn heads_are_kept_in_eight_bits_or_whole_beside_a_trunk_of_four() {
    let source = repository(BF16);
    for (bits, dtype) in [(Some(8), Stored::U32), (None, Stored::BF16)] {
        let recipe = Recipe { head_bits: bits, ..coded(4) };
        let made = convert(&source, &recipe);
        let head = head(made.path());
        assert_eq!(head["mtp.fc.weight"].dtype, dtype);
        let trunk = &trunk(made.path())["language_model.model.embed_tokens.weight"];
        assert_eq!((trunk.dtype, trunk.shape[1]), (Stored::U32, 64));
        assert!(load(made.path()).unwrap().mtp.is_ok());
        let said = &config_of(made.path())["mtplx_mtp_quantization"]["bits"];
        assert_eq!(said.as_u64(), bits.map(|bits| bits as u64));
    }
}

#[test]
fn shards_are_bounded_and_indexed() {
    let source = repository(BF16);
    let recipe = Recipe { shard_bytes_max: 4 << 20, ..plain() };
    let planned = plan(&source, &recipe);
    let shards: Vec<&str> = planned.files().filter(|name| name.starts_with("model-")).collect();
    assert!(shards.len() > 10 && shards[0].starts_with("model-00001-of-000"), "{shards:?}");
    let made = convert(&source, &recipe);
    for shard in shards {
        let content = tensors(&made.path().join(shard));
        let bytes: usize = content.values().map(|raw| raw.bytes.len()).sum();
        assert!(bytes <= 4 << 20 || content.len() == 1, "{shard} has {bytes}");
    }
    assert_eq!(trunk(made.path()), tensors(&source.join("model.safetensors")));
    assert!(load(made.path()).unwrap().unused.is_empty());
}

#[test]
fn a_head_beside_the_trunk_wins_over_a_copy_within_it_and_what_nobody_reads_is_left() {
    let mut model = Model::small();
    for (name, raw) in model.head.clone() {
        let none = Raw::floats(Stored::BF16, &raw.shape, &vec![0.5; raw.numbers().len()]);
        model.trunk.insert(name, none);
    }
    let image = Raw::floats(Stored::BF16, &[4], &[0.0; 4]);
    model.trunk.insert("vision_tower.patch_embed.proj.weight".into(), image.clone());
    model.trunk.insert("language_model.model.layers.0.odd.weight".into(), image);
    let source = model.write();
    let planned = plan(source.path(), &plain());
    assert!(planned.unused.contains(&"language_model.model.layers.0.odd.weight".into()));
    let made = convert(source.path(), &plain());
    assert_eq!(head(made.path()), model.head);
    assert_eq!(trunk(made.path()).len() + model.head.len() + 2, model.trunk.len());
}

#[test]
fn a_model_without_a_head_is_converted_and_says_so() {
    let mut model = Model::small();
    model.head.clear();
    let source = model.write();
    assert!(plan(source.path(), &coded(4)).headless.is_some_and(|why| why.contains("mtp.*")));
    let made = convert(source.path(), &coded(4));
    assert!(config_of(made.path()).get("mtplx_mtp_quantization").is_none());
    assert!(load(made.path()).unwrap().mtp.is_err());
}

#[test]
fn what_cannot_be_converted_is_named_with_its_mend() {
    let error = Conversion::plan(&Files::folder(repository(Q8)).unwrap(), &plain()).unwrap_err();
    let told = error.to_string();
    assert!(told.contains("embed_tokens") && told.contains("original"), "{told}");

    let up = "layers.1.mlp.up_proj.weight";
    let mut model = Model::small();
    let mut numbers = model.tensor(up).numbers();
    numbers[300] = f32::NAN;
    let shape = model.tensor(up).shape.clone();
    *model.tensor(up) = Raw::floats(Stored::BF16, &shape, &numbers);
    let told = refused(&model, &plain());
    assert!(told.contains(up) && told.contains("row 2") && told.contains("download"), "{told}");

    numbers[300] = 1e6;
    *model.tensor(up) = Raw::floats(Stored::BF16, &shape, &numbers);
    let told = refused(&model, &Recipe { dtype: Some(Dtype::F16), ..plain() });
    assert!(told.contains(up) && told.contains("bf16"), "{told}");

    model.trunk.remove(&format!("language_model.model.{up}"));
    let told = refused(&model, &plain());
    assert!(told.contains(up) && told.contains("missing"), "{told}");

    let mut model = Model::small();
    model.head.remove("mtp.fc.weight");
    let told = refused(&model, &plain());
    assert!(told.contains("mtp.fc.weight"), "{told}");
}

#[test]
fn whoever_wants_no_more_of_it_is_obeyed_at_once() {
    let plan = plan(&repository(BF16), &coded(8));
    let (folder, mut heard) = (tempfile::tempdir().unwrap(), 0);
    let mut hear = |_| {
        heard += 1;
        heard < 5
    };
    let failure = plan.write(folder.path(), &mut hear).unwrap_err();
    assert!(matches!(failure, Failure::Stopped) && heard == 5, "{failure}");
}

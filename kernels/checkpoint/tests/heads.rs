//! Where MTP heads are found, how their norms are understood, and what makes one unusable.

use std::fs;

use safetensors::tensor::Dtype;
use serde_json::json;

use super::fixture::{HIDDEN, Model, Raw, Tensors, is_gain, load, write, zero_centred};
use super::{assert_same, linears};
use crate::checkpoint::{Checkpoint, NormEncoding};

fn renamed(head: &Tensors, from: &str, to: &str) -> Tensors {
    head.iter().map(|(name, raw)| (name.replacen(from, to, 1), raw.clone())).collect()
}

fn zero_centred_head(model: &mut Model) {
    for (_, raw) in model.head.iter_mut().filter(|(name, _)| is_gain(name)) {
        *raw = zero_centred(raw);
    }
}

fn source(checkpoint: &Checkpoint) -> &str {
    &checkpoint.mtp.as_ref().unwrap().source
}

/// Why the head of `model` cannot be used; the trunk must be there all the same.
fn reason(model: &Model) -> String {
    let checkpoint = model.load().unwrap();
    assert_eq!(checkpoint.layers.len(), 4);
    checkpoint.mtp.unwrap_err()
}

#[test]
fn a_head_is_found_under_every_usual_name() {
    let model = Model::small();
    let plain = model.load().unwrap();
    let places = [
        "mtp.safetensors",
        "model-mtp-head.safetensors",
        "model-mtp.safetensors",
        "mtp/weights.safetensors",
        "mtp/model.safetensors",
    ];
    for place in places {
        for prefix in ["mtp.", "language_model.mtp.", ""] {
            let folder = Model { head: Tensors::new(), ..model.clone() }.write();
            fs::create_dir(folder.path().join("mtp")).unwrap();
            write(&folder.path().join(place), &renamed(&model.head, "mtp.", prefix));
            let loaded = load(folder.path()).unwrap();
            assert_same(&plain, &loaded);
            assert_eq!(source(&loaded), place);
            assert_eq!(loaded.unused, [""; 0]);
        }
    }
}

#[test]
fn a_head_among_the_shards_is_found_under_both_names() {
    let model = Model::small();
    let plain = model.load().unwrap();
    for prefix in ["mtp.", "language_model.mtp."] {
        let mut other = model.clone();
        other.trunk.extend(renamed(&model.head, "mtp.", prefix));
        other.head.clear();
        let loaded = other.load().unwrap();
        assert_same(&plain, &loaded);
        assert_eq!(source(&loaded), "model.safetensors");
    }
}

#[test]
fn the_named_file_wins_over_the_usual_one_and_that_over_the_trunk() {
    let mut model = Model::small();
    model.trunk.extend(renamed(&model.head, "mtp.", "language_model.mtp."));
    let folder = model.write();
    let loaded = load(folder.path()).unwrap();
    assert_eq!(source(&loaded), "mtp.safetensors");
    assert_eq!(loaded.unused.len(), 15, "the trunk's copy is reported");

    model.config["mlx_lm_extra_tensors"] = json!({"mtp_file": "model-draft.safetensors"});
    fs::write(folder.path().join("config.json"), model.config.to_string()).unwrap();
    write(&folder.path().join("model-draft.safetensors"), &model.head);
    let loaded = load(folder.path()).unwrap();
    assert_eq!(source(&loaded), "model-draft.safetensors");
}

#[test]
fn a_sidecar_that_the_index_lists_is_read_once() {
    let model = Model::small();
    let folder = model.write();
    let trunk = model.trunk.keys().map(|name| (name.clone(), "model.safetensors".into()));
    let head = model.head.keys().map(|name| (name.clone(), "mtp.safetensors".into()));
    let map: serde_json::Map<_, _> = trunk.chain(head).collect();
    let index = folder.path().join("model.safetensors.index.json");
    fs::write(index, json!({ "weight_map": map }).to_string()).unwrap();
    let loaded = load(folder.path()).unwrap();
    assert_same(&model.load().unwrap(), &loaded);
    assert_eq!(loaded.unused, [""; 0]);
}

#[test]
fn norms_are_understood_by_statement_and_by_content() {
    let absolute = Model::small();
    let mut delta = absolute.clone();
    zero_centred_head(&mut delta);
    let expected = absolute.load().unwrap();
    for (model, word, encoding) in [
        (&absolute, "absolute", NormEncoding::Absolute),
        (&delta, "delta", NormEncoding::ZeroCentred),
    ] {
        let mut nested = model.clone();
        nested.config["mtplx_mtp_quantization"] = json!({ "norm_encoding": word });
        let mut flag = model.clone();
        flag.config["mtplx_mtp_norm_encoding"] = word.into();
        for model in [model, &nested, &flag] {
            let loaded = model.load().unwrap();
            assert_same(&expected, &loaded);
            assert_eq!(loaded.mtp.unwrap().encoding, encoding);
        }
    }
    // A statement outweighs the look of things.
    let mut stated = absolute.clone();
    stated.config["mtplx_mtp_norm_encoding"] = "delta".into();
    let shifted = stated.load().unwrap().mtp.unwrap();
    let plain = expected.mtp.unwrap();
    assert_eq!(shifted.norm[0], plain.norm[0] + 1.0);
}

#[test]
fn a_fresh_head_is_understood_as_well() {
    for (gain, encoding) in [(0.0, NormEncoding::ZeroCentred), (1.0, NormEncoding::Absolute)] {
        let mut model = Model::small();
        for (_, raw) in model.head.iter_mut().filter(|(name, _)| is_gain(name)) {
            *raw = Raw::floats(Dtype::BF16, &raw.shape, &vec![gain; raw.shape[0]]);
        }
        let mtp = model.load().unwrap().mtp.unwrap();
        assert_eq!(mtp.encoding, encoding);
        assert_eq!(mtp.hidden_norm, [1.0; HIDDEN]);
    }
}

#[test]
fn a_converted_head_beside_a_published_trunk_keeps_its_gains() {
    let model = Model::small();
    let mut mixed = Model { head: Tensors::new(), ..model.clone() }.raw_hf();
    mixed.head = model.head.clone();
    assert_same(&model.load().unwrap(), &mixed.load().unwrap());
}

#[test]
fn two_layers_make_a_longer_head() {
    let mut model = Model::small();
    let second = renamed(&model.head, "layers.0", "layers.1");
    model.head.extend(second);
    let mtp = model.load().unwrap().mtp.unwrap();
    assert_eq!(mtp.layers.len(), 2);
}

#[test]
fn an_absent_head_is_reported_with_what_was_promised() {
    let mut model = Model::small();
    model.head.clear();
    let text = reason(&model);
    assert!(text.contains("no mtp.* tensors") && text.contains("speaks of 1 MTP"), "{text}");
    model.text().remove("mtp_num_hidden_layers");
    assert!(reason(&model).contains("speaks of no MTP layers"));
    // Promises count for nothing where there are tensors.
    let mut model = Model::small();
    model.text().insert("mtp_num_hidden_layers".into(), 0.into());
    assert_eq!(model.load().unwrap().mtp.unwrap().layers.len(), 1);
}

type Bend = fn(&mut Model);

/// Each bent head must be missing for a reason that has all its parts.
fn check_all(zoo: &[(Bend, &[&str])]) {
    for (bend, parts) in zoo {
        let mut model = Model::small();
        bend(&mut model);
        let text = reason(&model);
        for part in *parts {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
    }
}

#[test]
fn a_head_that_does_not_fit_is_a_reason() {
    check_all(&[
        (|m| drop(m.head.remove("mtp.fc.weight")), &["mtp.fc.weight", "missing", "[128, 256]"]),
        (
            |m| drop(m.head.remove("mtp.layers.0.self_attn.q_norm.weight")),
            &["mtp.layers.0.self_attn.q_norm.weight", "mtp.safetensors"],
        ),
        (
            |m| m.head.get_mut("mtp.fc.weight").unwrap().shape.reverse(),
            &["mtp.fc.weight", "BF16 [256, 128]", "[128, 256]"],
        ),
        (
            |m| m.head = renamed(&m.head, "layers.0", "layers.7"),
            &["MTP layer 7", "mtp.safetensors"],
        ),
        (
            |m| {
                let extra = Raw::floats(Dtype::F32, &[1], &[0.0]);
                drop(m.head.insert("mtp.layers.99999999999999999999.x".into(), extra));
            },
            &["MTP layer 99999999999999999999"],
        ),
        (
            |m| {
                let raw = m.head.get_mut("mtp.norm.weight").unwrap();
                *raw = Raw::floats(Dtype::F32, &[HIDDEN], &[f32::NAN; HIDDEN]);
            },
            &["mtp.norm.weight", "finite", "NaN"],
        ),
        (
            |m| {
                Model::quantize(&mut m.head, 4, 64);
                m.head.remove("mtp.fc.biases");
            },
            &["mtp.fc.biases", "missing", "affine"],
        ),
    ]);
}

#[test]
fn settings_that_rule_a_head_out_are_a_reason() {
    check_all(&[
        (
            |m| m.config["mlx_lm_extra_tensors"] = json!({"mtp_file": "gone.safetensors"}),
            &["gone.safetensors", "does not exist", "mlx_lm_extra_tensors"],
        ),
        (
            |m| m.config["mlx_lm_extra_tensors"] = json!({"mtp_file": "../x.safetensors"}),
            &["../x.safetensors", "plain path"],
        ),
        (
            |m| m.config["mlx_lm_extra_tensors"] = json!({"mtp_file": 3}),
            &["mlx_lm_extra_tensors.mtp_file", "is 3", "text"],
        ),
        (
            |m| m.config["mtplx_mtp_norm_encoding"] = "upside-down".into(),
            &["mtplx_mtp_norm_encoding", "upside-down", "absolute"],
        ),
        (
            |m| {
                m.config["mtplx_mtp_norm_encoding"] = "delta".into();
                m.config["mtplx_mtp_quantization"] = json!({"norm_encoding": "absolute"});
            },
            &["norm_encoding", "contradicts"],
        ),
        (
            |m| m.config["mtplx_mtp_contract"] = json!({"concat_order": "hidden_embedding"}),
            &["mtplx_mtp_contract.concat_order", "hidden_embedding", "embedding_hidden"],
        ),
        (
            |m| m.config["mtplx_mtp_contract"] = json!({"mtp_position_mode": "local"}),
            &["mtp_position_mode", "local", "cache"],
        ),
        (
            |m| drop(m.text().insert("mtp_use_dedicated_embeddings".into(), true.into())),
            &["mtp_use_dedicated_embeddings", "true"],
        ),
    ]);
}

#[test]
fn a_contract_for_another_cycle_is_a_reason() {
    let sound = json!({"mtp_depth_max": 3, "mtp_contract": {
        "base_hidden_variant": "post_norm", "hidden_variant": "post_norm",
        "concat_order": "embedding_hidden", "mtp_position_mode": "cache",
    }});
    let loaded = |contract: String| {
        let folder = Model::small().write();
        fs::write(folder.path().join("mtplx_runtime.json"), contract).unwrap();
        load(folder.path()).unwrap()
    };
    let plain = loaded(sound.to_string());
    assert_eq!(plain.config.mtp.depth_max, Some(3));
    assert!(plain.mtp.is_ok());
    for (key, value) in [
        ("base_hidden_variant", "pre_norm"),
        ("hidden_variant", "mix:fc:prev:0.5"),
        ("concat_order", "hidden_embedding"),
    ] {
        let mut other = sound.clone();
        other["mtp_contract"][key] = value.into();
        let text = loaded(other.to_string()).mtp.unwrap_err();
        assert!(text.contains("mtplx_runtime.json") && text.contains(key), "{text}");
        assert!(text.contains(value), "{text}");
    }
    let text = loaded(sound.to_string()[..40].to_owned()).mtp.unwrap_err();
    assert!(text.contains("mtplx_runtime.json") && text.contains("JSON"), "{text}");
}

#[test]
fn a_broken_sidecar_is_reported_and_not_passed_over() {
    let mut model = Model::small();
    model.trunk.extend(model.head.clone());
    let folder = model.write();
    let sidecar = folder.path().join("mtp.safetensors");
    let content = fs::read(&sidecar).unwrap();
    fs::write(&sidecar, &content[..content.len() - 100]).unwrap();
    let loaded = load(folder.path()).unwrap();
    let text = loaded.mtp.clone().unwrap_err();
    assert!(text.contains("mtp.safetensors") && text.contains("cut short"), "{text}");
    assert_eq!(linears(&loaded).len(), 1 + 3 * 8 + 7);
}

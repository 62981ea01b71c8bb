//! The forms that sound checkpoints come in.

use std::fs;

use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use super::fixture::{HIDDEN, Model, Raw, VOCAB, element, load, quantize, repository, write};
use super::{BF16, assert_same, linears};
use crate::checkpoint::{Checkpoint, Format, Linear, NormEncoding};

fn scheme(linear: &Linear) -> Option<(usize, usize)> {
    match &linear.format {
        Format::Dense(_) => None,
        Format::Affine { bits, group, .. } => Some((*bits, *group)),
    }
}

fn find<'a>(checkpoint: &'a Checkpoint, path: &str) -> &'a Linear {
    linears(checkpoint).into_iter().find(|linear| linear.path == path).unwrap()
}

#[test]
fn published_and_converted_forms_give_equal_weights() {
    for model in [Model::small(), Model::of_folder(&repository(BF16))] {
        let mut raw = model.raw_hf();
        // There the head stands among the shards.
        raw.config.as_object_mut().unwrap().remove("mlx_lm_extra_tensors");
        let (converted, raw) = (model.load().unwrap(), raw.load().unwrap());
        assert_same(&converted, &raw);
        assert_eq!(raw.mtp.as_ref().unwrap().encoding, NormEncoding::ZeroCentred);
        assert_eq!(raw.mtp.unwrap().source, "model.safetensors");
    }
}

#[test]
fn a_trunk_without_convolutions_is_understood_by_its_gains() {
    let mut model = Model::with_attention_at(&[0, 1, 2, 3]);
    model.text().insert("layer_types".into(), json!(vec!["full_attention"; 4]));
    let (converted, raw) = (model.load().unwrap(), model.raw_hf().load().unwrap());
    assert_same(&converted, &raw);
    assert_eq!(raw.mtp.unwrap().encoding, NormEncoding::ZeroCentred);
}

#[test]
fn gains_are_added_in_single_precision() {
    let mut model = Model::small().raw_hf();
    for raw in model.trunk.values_mut().filter(|raw| raw.dtype == Dtype::F32) {
        *raw = raw.cast(Dtype::BF16);
    }
    let name = "model.language_model.norm.weight";
    model.trunk.insert(name.into(), Raw::floats(Dtype::BF16, &[HIDDEN], &[0.001; HIDDEN]));
    let stored = half::bf16::from_f32(0.001).to_f32();
    assert_eq!(model.load().unwrap().norm, [1.0 + stored; HIDDEN]);
}

#[test]
fn vision_tensors_are_passed_over_and_strangers_reported() {
    let mut model = Model::small();
    let plain = model.load().unwrap();
    let raw = Raw::floats(Dtype::F32, &[2], &[1.0, 2.0]);
    for name in ["vision_tower.blocks.0.norm1.weight", "model.visual.pos_embed.weight"] {
        model.trunk.insert(name.into(), raw.clone());
    }
    assert_eq!(model.load().unwrap().unused, [""; 0]);
    model.trunk.insert("language_model.model.rotary_emb.inv_freq".into(), raw.clone());
    model.head.insert("mtp.stranger".into(), raw);
    let loaded = model.load().unwrap();
    assert_eq!(loaded.unused, ["language_model.model.rotary_emb.inv_freq", "mtp.stranger"]);
    assert_eq!(loaded.bytes_total, plain.bytes_total);
}

#[test]
fn every_prefix_and_the_flat_configuration_are_understood() {
    let model = Model::small();
    let plain = model.load().unwrap();
    for prefix in ["model.language_model.", "model.", ""] {
        let mut other = model.clone();
        let rename = |(name, raw): (&String, &Raw)| {
            (name.replacen("language_model.model.", prefix, 1), raw.clone())
        };
        other.trunk = model.trunk.iter().map(rename).collect();
        let mut flat = other.text().clone();
        flat.insert("model_type".into(), "qwen3_5_text".into());
        flat.insert("eos_token_id".into(), json!([60, 62]));
        other.config = Value::Object(flat);
        let loaded = other.load().unwrap();
        assert_same(&plain, &loaded);
        assert_eq!(plain.config, loaded.config);
    }
}

#[test]
fn shards_are_found_by_index_and_by_name() {
    let model = Model::small();
    let plain = model.load().unwrap();
    let folder = model.write();
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let mut map = serde_json::Map::new();
    for shard in 1..=3 {
        let file = format!("model-{shard:05}-of-00003.safetensors");
        let part = model.trunk.iter().enumerate().filter(|(i, _)| i % 3 + 1 == shard);
        let part = part.map(|(_, (name, raw))| (name.clone(), raw.clone())).collect();
        write(&folder.path().join(&file), &part);
        map.extend(part.into_keys().map(|name| (name, file.clone().into())));
    }
    assert_same(&plain, &load(folder.path()).unwrap());
    let index = folder.path().join("model.safetensors.index.json");
    fs::write(index, json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    assert_same(&plain, &load(folder.path()).unwrap());
}

#[cfg(unix)]
#[test]
fn links_into_a_download_cache_are_followed() {
    let (cache, folder) = (Model::small().write(), tempfile::tempdir().unwrap());
    for name in ["config.json", "model.safetensors", "mtp.safetensors"] {
        let link = folder.path().join(name);
        std::os::unix::fs::symlink(cache.path().join(name), link).unwrap();
    }
    assert_same(&load(cache.path()).unwrap(), &load(folder.path()).unwrap());
}

#[test]
fn an_untied_head_stands_at_the_top_or_in_the_language_model() {
    let head = Raw::floats(Dtype::BF16, &[VOCAB, HIDDEN], &[0.5; VOCAB * HIDDEN]);
    for name in ["lm_head.weight", "language_model.lm_head.weight"] {
        // The inner statement wins; where there is none, the tensors tell.
        for (outer, inner) in [(Some(true), Some(false)), (Some(false), None), (None, None)] {
            let mut model = Model::small();
            model.trunk.insert(name.into(), head.clone());
            model.config["tie_word_embeddings"] = outer.into();
            model.text().insert("tie_word_embeddings".into(), inner.into());
            let loaded = model.load().unwrap();
            assert!(!loaded.config.tied);
            assert_eq!(loaded.output_head().row_f32(3), [0.5; HIDDEN]);
        }
        let mut model = Model::small();
        model.trunk.insert(name.into(), head.clone());
        let loaded = model.load().unwrap();
        assert!(loaded.config.tied && loaded.head.is_none());
        assert_eq!(loaded.unused, [name]);
    }
    let mut model = Model::small();
    model.text().remove("tie_word_embeddings");
    assert!(model.load().unwrap().config.tied);
}

#[test]
fn half_and_single_precision_keep_their_numbers() {
    let model = Model::small();
    let plain = model.load().unwrap();
    for (dtype, shown) in [(Dtype::F16, "F16"), (Dtype::F32, "F32")] {
        let mut other = model.clone();
        for raw in other.trunk.values_mut().chain(other.head.values_mut()) {
            *raw = raw.cast(dtype);
        }
        let loaded = other.load().unwrap();
        // The fixture's numbers are exact in all three types.
        assert_same(&plain, &loaded);
        let Format::Dense(tensor) = &loaded.embed.format else { panic!("not dense") };
        assert_eq!(tensor.dtype().to_string(), shown);
    }
}

#[test]
fn all_bits_and_groups_unpack_to_their_codes() {
    for bits in [2, 3, 4, 5, 6, 8] {
        for group in [32, 64, 128] {
            let mut model = Model::small();
            // Only the embedding: other rows are too short for the widest groups.
            quantize(&mut model.trunk, "language_model.model.embed_tokens", bits, group);
            model.config["quantization"] = json!({"bits": bits, "group_size": group});
            let loaded = model.load().unwrap();
            assert_eq!(scheme(&loaded.embed), Some((bits, group)));
            for row in [0, 1, VOCAB - 1] {
                let expected: Vec<f32> =
                    (0..HIDDEN).map(|column| element(bits, group, row, column)).collect();
                assert_eq!(loaded.embed.row_f32(row), expected, "{bits} bits, group {group}");
            }
            assert_eq!(loaded.embed.row_f32(VOCAB), [0.0; 0]);
        }
    }
}

#[test]
fn codes_lie_as_mlx_packs_them() {
    // mx.quantize of mlx 0.32.2 on 32 numbers, and the codes its dequantize sees.
    type Case = (usize, &'static [u32], [u32; 32]);
    let cases: [Case; 3] = [
        (
            3,
            &[0x1666b157, 0x1ccd62af, 0x399a845a],
            [
                7, 2, 5, 0, 3, 5, 1, 3, 6, 2, 4, 7, 2, 5, 0, 3, 5, 1, 3, 6, 1, 4, 6, 2, 4, 0, 2, 5,
                1, 3, 6, 1,
            ],
        ),
        (
            5,
            &[0x30d1597e, 0xaec8fb81, 0x3c97606a, 0x144f626d, 0x2e5c3b2c],
            [
                30, 11, 22, 2, 13, 24, 4, 16, 27, 7, 18, 29, 10, 21, 1, 12, 23, 4, 15, 26, 6, 17,
                29, 9, 20, 0, 11, 22, 3, 14, 25, 5,
            ],
        ),
        (
            6,
            &[0x9b12d5bf, 0x63b7809c, 0x642ad4f6, 0x0dd5e1f0, 0x70294bb9, 0x2f3705b9],
            [
                63, 22, 45, 4, 27, 50, 9, 32, 55, 14, 38, 61, 20, 43, 2, 25, 48, 7, 30, 53, 13, 36,
                59, 18, 41, 0, 23, 46, 5, 28, 51, 11,
            ],
        ),
    ];
    for (bits, words, codes) in cases {
        let mut model = Model::small();
        quantize(&mut model.trunk, "language_model.model.embed_tokens", bits, 32);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        model.tensor("embed_tokens.weight").bytes[..bytes.len()].copy_from_slice(&bytes);
        // Row 0 has scale 1, and bias 0 in its first group.
        let row = model.load().unwrap().embed.row_f32(0);
        assert_eq!(row[..32], codes.map(|code| code as f32), "{bits} bits");
    }
}

#[test]
fn modules_may_differ_from_the_default() {
    let mut model = Model::small();
    Model::quantize(&mut model.trunk, 4, 64);
    model.head.clear();
    let path = "language_model.model.layers.0.mlp.up_proj";
    let dense = Model::small();
    model.trunk.retain(|name, _| !name.starts_with(path));
    let weight = format!("{path}.weight");
    model.trunk.insert(weight.clone(), dense.trunk[&weight].clone());
    for (name, bits, group) in [("gate_proj", 8, 32), ("down_proj", 6, 128)] {
        let path = format!("language_model.model.layers.0.mlp.{name}");
        let weight = format!("{path}.weight");
        model.trunk.insert(weight.clone(), dense.trunk[&weight].clone());
        quantize(&mut model.trunk, &path, bits, group);
    }
    model.config["quantization_config"] = json!({
        "bits": 4, "group_size": 64, "mode": "affine",
        path: false,
        "language_model.model.layers.0.mlp.gate_proj": {"bits": 8, "group_size": 32},
        // Under another prefix, and silent about its groups.
        "model.layers.0.mlp.down_proj": {"bits": 6},
        "vision_tower.blocks.0.attn.qkv": {"bits": 16},
    });
    let loaded = model.load().unwrap();
    assert_eq!(scheme(find(&loaded, "layers.0.mlp.up_proj")), None);
    assert_eq!(scheme(find(&loaded, "layers.0.mlp.gate_proj")), Some((8, 32)));
    assert_eq!(scheme(find(&loaded, "layers.0.mlp.down_proj")), Some((6, 128)));
    assert_eq!(scheme(find(&loaded, "layers.1.mlp.up_proj")), Some((4, 64)));
    assert_eq!(loaded.unused, [""; 0]);
}

#[test]
fn a_quantised_head_need_not_resemble_its_trunk() {
    for (bits, group) in [(8, 32), (3, 64), (6, 128)] {
        let mut model = Model::small();
        Model::quantize(&mut model.trunk, 4, 64);
        Model::quantize(&mut model.head, bits, group);
        model.config["quantization"] = json!({"bits": 4, "group_size": 64, "mode": "affine"});
        let loaded = model.load().unwrap();
        assert_eq!(scheme(&loaded.mtp.as_ref().unwrap().fc), Some((bits, group)));
        assert_eq!(scheme(find(&loaded, "mtp.layers.0.mlp.down_proj")), Some((bits, group)));
        assert_eq!(scheme(find(&loaded, "layers.0.mlp.down_proj")), Some((4, 64)));
    }
}

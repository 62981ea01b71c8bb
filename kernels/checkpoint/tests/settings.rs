//! Settings that are understood, and settings that are refused.

use serde_json::{Value, json};

use super::fixture::Model;
use crate::checkpoint::{LayerKind, RopeScaling};

/// The error of the small model with the language setting `key` changed.
fn error(key: &str, value: Value) -> String {
    let mut model = Model::small();
    // A null counts as absent.
    model.text().insert(key.into(), value);
    model.load().err().unwrap_or_else(|| panic!("{key} was accepted")).to_string()
}

#[test]
fn a_setting_that_makes_no_sense_is_named_with_its_value() {
    let zoo = [
        ("hidden_size", json!(null), "missing"),
        ("hidden_size", json!("128"), "\"128\""),
        ("hidden_size", json!(-1), "-1"),
        ("hidden_size", json!(128.5), "128.5"),
        ("hidden_size", json!(0), "0"),
        ("hidden_size", json!(u64::MAX), "18446744073709551615"),
        ("num_hidden_layers", json!(1_000_000_000), "1000000000"),
        ("vocab_size", json!([64]), "[64]"),
        ("head_dim", json!(null), "missing"),
        ("intermediate_size", json!(null), "missing"),
        ("num_key_value_heads", json!(3), "num_key_value_heads = 3"),
        ("linear_num_key_heads", json!(4), "linear_num_key_heads = 4"),
        ("linear_key_head_dim", json!(null), "missing"),
        ("linear_conv_kernel_dim", json!(3), "not supported"),
        ("rms_norm_eps", json!(null), "missing"),
        ("rms_norm_eps", json!(0.0), "0.0"),
        ("max_position_embeddings", json!(null), "missing"),
        ("tie_word_embeddings", json!("yes"), "\"yes\""),
        ("full_attention_interval", json!(null), "missing"),
        ("full_attention_interval", json!(0), "0"),
        ("layer_types", json!(["full_attention"]), "1 entries"),
        ("layer_types", json!([1, 2, 3, 4]), "layer 0"),
        (
            "layer_types",
            json!(["linear_attention", "sliding_attention", "x", "y"]),
            "\"sliding_attention\" for layer 1",
        ),
        ("eos_token_id", json!(64), "64"),
        ("eos_token_id", json!("stop"), "\"stop\""),
        ("attention_bias", json!(true), "not supported"),
        ("attn_output_gate", json!(false), "not supported"),
        ("hidden_act", json!("gelu"), "gelu"),
        ("output_gate_type", json!("tanh"), "tanh"),
        ("num_experts", json!(256), "256"),
        ("rope_parameters", json!({}), "rope_theta is missing"),
        ("rope_parameters", json!("default"), "an object"),
    ];
    for (key, value, part) in zoo {
        let text = error(key, value);
        assert!(text.contains(key) && text.contains(part), "{key}, {part}: {text}");
        assert!(text.contains("config.json"), "{text}");
    }
}

#[test]
fn other_architectures_are_refused_by_name() {
    for (outer, inner, part) in [
        ("qwen3_5_mtp", "qwen3_5_text", "mtp.safetensors"),
        ("qwen4_exp", "qwen4_exp", "qwen3_5_text"),
        ("llama", "llama", "qwen3_5"),
    ] {
        let mut model = Model::small();
        model.config["model_type"] = outer.into();
        model.text().insert("model_type".into(), inner.into());
        let text = model.load().unwrap_err().to_string();
        assert!(text.contains(&format!("model_type = \"{outer}\"")), "{text}");
        assert!(text.contains(part) && text.contains("supported"), "{text}");
    }
    for (outer, inner) in [("qwen3_5", "qwen3_5_moe_text"), ("qwen3_next", "qwen3_5_text")] {
        let mut model = Model::small();
        model.config["model_type"] = outer.into();
        model.text().insert("model_type".into(), inner.into());
        let text = model.load().unwrap_err().to_string();
        assert!(text.contains(&format!("text_config.model_type is {inner}")), "{text}");
    }
    let mut model = Model::small();
    model.config.as_object_mut().unwrap().remove("model_type");
    assert!(model.load().is_ok(), "the inner type is enough");
    model.text().remove("model_type");
    let text = model.load().unwrap_err().to_string();
    assert!(text.contains("model_type is missing"), "{text}");
}

#[test]
fn a_quantisation_of_another_kind_is_refused() {
    for (key, block, part) in [
        ("quantization_config", json!({"quant_method": "fp8"}), "quant_method = \"fp8\""),
        ("quantization_config", json!({"quant_method": "awq", "bits": 4}), "mlx_lm.convert"),
        ("quantization", json!({"bits": 4, "mode": "mxfp4"}), "mode = \"mxfp4\""),
        ("quantization", json!({"bits": 7}), "bits = 7"),
        ("quantization", json!({"bits": "4"}), "quantization.bits is \"4\""),
        ("quantization", json!({"bits": 4, "group_size": 16}), "group_size = 16"),
        ("quantization", json!({"bits": 4, "lm_head": {"bits": "x"}}), "lm_head.bits is \"x\""),
        ("quantization", json!([4]), "expected an object"),
        (
            "quantization",
            json!({"lm_head": {"bits": 4}, "language_model.lm_head": {"bits": 8}}),
            "lm_head",
        ),
    ] {
        let mut model = Model::small();
        model.config[key] = block;
        let text = model.load().unwrap_err().to_string();
        assert!(text.contains(key) && text.contains(part), "{part}: {text}");
    }
}

#[test]
fn layer_types_win_over_the_interval() {
    let mut model = Model::small();
    model.text().insert("full_attention_interval".into(), 2.into());
    assert!(model.load().unwrap_err().to_string().contains("layers.1.self_attn"));
    let types = [["linear_attention"; 3].as_slice(), &["full_attention"]].concat();
    model.text().insert("layer_types".into(), json!(types));
    let layers = model.load().unwrap().config.layers;
    assert_eq!(layers, [LayerKind::Gdn, LayerKind::Gdn, LayerKind::Gdn, LayerKind::Attention]);
}

#[test]
fn stop_ids_are_gathered_from_all_files() {
    let folder = Model::small().write();
    let path = folder.path().join("generation_config.json");
    std::fs::write(&path, r#"{"eos_token_id": [61, 60], "temperature": 0.6}"#).unwrap();
    let loaded = super::load(folder.path()).unwrap();
    assert_eq!(loaded.config.eos, [60, 61, 62]);
    std::fs::write(&path, r#"{"eos_token_id": [61"#).unwrap();
    let text = super::load(folder.path()).unwrap_err().to_string();
    assert!(text.contains("generation_config.json"), "{text}");
}

#[test]
fn rope_is_read_from_either_place() {
    let mut model = Model::small();
    let nested = model.load().unwrap().config.rope;
    assert_eq!((nested.theta, nested.dims, nested.scaling), (1e7, 16, RopeScaling::Plain));
    // Beside, and equal inside: both are in use.
    model.text().insert("partial_rotary_factor".into(), 0.25.into());
    assert_eq!(model.load().unwrap().config.rope, nested);
    model.text().insert("partial_rotary_factor".into(), 0.5.into());
    let text = model.load().unwrap_err().to_string();
    assert!(text.contains("partial_rotary_factor is 0.25, but 0.5"), "{text}");
    // Only beside, with the older name of the object.
    model.text().remove("rope_parameters");
    model.text().insert("rope_theta".into(), 1e6.into());
    model.text().insert("rope_scaling".into(), json!({"type": "mrope", "mrope_section": [3, 3]}));
    let flat = model.load().unwrap().config.rope;
    assert_eq!((flat.theta, flat.dims, flat.scaling), (1e6, 32, RopeScaling::Plain));
}

#[test]
fn senseless_ropes_are_refused() {
    for (rope, part) in [
        (json!({"rope_theta": 1e7}), "partial_rotary_factor is missing"),
        (json!({"partial_rotary_factor": 0.25}), "rope_theta is missing"),
        (json!({"rope_theta": 1, "partial_rotary_factor": 0.25}), "rope_theta is 1"),
        (json!({"rope_theta": 1e7, "partial_rotary_factor": 0.27}), "17.28"),
        (json!({"rope_theta": 1e7, "partial_rotary_factor": 0.05}), "an even number"),
        (json!({"rope_theta": 1e7, "partial_rotary_factor": 2}), "an even number"),
        (
            json!({"rope_theta": 1e7, "partial_rotary_factor": 0.25, "rope_type": "llama3"}),
            "rope_type = \"llama3\"",
        ),
        (
            json!({"rope_theta": 1e7, "partial_rotary_factor": 0.25, "rope_type": "yarn",
                   "factor": 0.5}),
            "factor is 0.5",
        ),
    ] {
        let text = error("rope_parameters", rope);
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn published_yarn_settings_stretch_the_positions() {
    let mut model = Model::small();
    let rope = json!({"rope_theta": 1e7, "partial_rotary_factor": 0.25, "rope_type": "yarn",
                      "factor": 4.0, "original_max_position_embeddings": 2048});
    model.text().insert("rope_parameters".into(), rope);
    let config = model.load().unwrap().config;
    assert_eq!(config.positions_max, 8192);
    assert!((config.rope.magnitude() - 1.138_629_4).abs() < 1e-6);
}

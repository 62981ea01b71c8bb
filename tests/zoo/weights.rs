//! Small sound models, written as the reference writer writes them; all elements are zero.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

/// Shapes by name; all bf16.
pub type Tensors = BTreeMap<String, Vec<usize>>;

const HIDDEN: usize = 32;
const TRUNK: &str = "language_model.model.";

/// A model in converted form.
#[derive(Clone)]
pub struct Model {
    pub config: Value,
    pub trunk: Tensors,
    pub head: Tensors,
}

impl Model {
    /// Of so many layers, every fourth of which is attention.
    pub fn sound(layers: usize) -> Self {
        let mut trunk = Tensors::new();
        trunk.insert(format!("{TRUNK}embed_tokens.weight"), vec![64, HIDDEN]);
        trunk.insert(format!("{TRUNK}norm.weight"), vec![HIDDEN]);
        for i in 0..layers {
            let path = format!("{TRUNK}layers.{i}");
            block(&mut trunk, &path);
            match (i + 1) % 4 {
                0 => attention(&mut trunk, &path),
                _ => gdn(&mut trunk, &path),
            }
        }
        let mut head = Tensors::new();
        head.insert("mtp.fc.weight".into(), vec![HIDDEN, 2 * HIDDEN]);
        for name in ["norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"] {
            head.insert(format!("mtp.{name}.weight"), vec![HIDDEN]);
        }
        block(&mut head, "mtp.layers.0");
        attention(&mut head, "mtp.layers.0");
        Self { config: config(layers), trunk, head }
    }

    pub fn write(&self, folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("config.json"), self.config.to_string()).unwrap();
        std::fs::write(folder.join("tokenizer.json"), "{}").unwrap();
        std::fs::write(folder.join("model.safetensors"), safetensors(&self.trunk)).unwrap();
        if !self.head.is_empty() {
            std::fs::write(folder.join("mtp.safetensors"), safetensors(&self.head)).unwrap();
        }
    }

    /// The trunk in two shards, and their index.
    pub fn write_shards(&self, folder: &Path) {
        self.write(folder);
        std::fs::remove_file(folder.join("model.safetensors")).unwrap();
        let mut map = Map::new();
        let half = self.trunk.len() / 2;
        let parts = [(0, half), (half, self.trunk.len() - half)];
        for (i, (skip, count)) in (1..).zip(parts) {
            let part = self.trunk.iter().skip(skip).take(count);
            let name = format!("model-{i:05}-of-00002.safetensors");
            let part: Tensors = part.map(|(name, shape)| (name.clone(), shape.clone())).collect();
            map.extend(part.keys().map(|tensor| (tensor.clone(), json!(name))));
            std::fs::write(folder.join(name), safetensors(&part)).unwrap();
        }
        let index = json!({"metadata": {}, "weight_map": map}).to_string();
        std::fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    }
}

/// A whole file.
pub fn safetensors(tensors: &Tensors) -> Vec<u8> {
    let mut header = Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]});
        header.insert(name.clone(), entry);
    }
    with_header(&Value::Object(header).to_string(), end)
}

/// A file of this header and so many bytes of elements.
pub fn with_header(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.resize(file.len() + data, 0);
    file
}

fn block(tensors: &mut Tensors, path: &str) {
    for name in ["input_layernorm", "post_attention_layernorm"] {
        tensors.insert(format!("{path}.{name}.weight"), vec![HIDDEN]);
    }
    for name in ["gate_proj", "up_proj", "down_proj"] {
        tensors.insert(format!("{path}.mlp.{name}.weight"), vec![HIDDEN, HIDDEN]);
    }
}

fn attention(tensors: &mut Tensors, path: &str) {
    let shapes = [
        ("q_proj", vec![64, HIDDEN]),
        ("k_proj", vec![16, HIDDEN]),
        ("v_proj", vec![16, HIDDEN]),
        ("o_proj", vec![HIDDEN, 32]),
        ("q_norm", vec![16]),
        ("k_norm", vec![16]),
    ];
    for (name, shape) in shapes {
        tensors.insert(format!("{path}.self_attn.{name}.weight"), shape);
    }
}

fn gdn(tensors: &mut Tensors, path: &str) {
    let shapes = [
        ("in_proj_qkv.weight", vec![32, HIDDEN]),
        ("in_proj_z.weight", vec![16, HIDDEN]),
        ("in_proj_b.weight", vec![2, HIDDEN]),
        ("in_proj_a.weight", vec![2, HIDDEN]),
        ("out_proj.weight", vec![HIDDEN, 16]),
        ("conv1d.weight", vec![32, 4, 1]),
        ("norm.weight", vec![8]),
        ("A_log", vec![2]),
        ("dt_bias", vec![2]),
    ];
    for (name, shape) in shapes {
        tensors.insert(format!("{path}.linear_attn.{name}"), shape);
    }
}

fn config(layers: usize) -> Value {
    json!({
        "model_type": "qwen3_5",
        "eos_token_id": [62, 60],
        "text_config": {
            "model_type": "qwen3_5_text",
            "hidden_size": HIDDEN,
            "num_hidden_layers": layers,
            "full_attention_interval": 4,
            "intermediate_size": HIDDEN,
            "vocab_size": 64,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "linear_num_key_heads": 1,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_conv_kernel_dim": 4,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": true,
            "mtp_num_hidden_layers": 1,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25,
            },
        },
    })
}

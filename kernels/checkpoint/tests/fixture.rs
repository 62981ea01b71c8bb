//! Small checkpoints, built in memory, bent by tests, and written out by the reference writer.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::checkpoint::{Checkpoint, Error, Files};

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Raw {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Vec<u8>,
}

pub(super) type Tensors = BTreeMap<String, Raw>;

/// A checkpoint in converted form: trunk in one file, head in a sidecar.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) config: Value,
    pub(super) trunk: Tensors,
    pub(super) head: Tensors,
}

pub(super) const HIDDEN: usize = 128;
pub(super) const FFN: usize = 256;
pub(super) const VOCAB: usize = 64;
pub(super) const CHANNELS: usize = 128;
const TRUNK: &str = "language_model.model.";

impl Raw {
    pub(super) fn floats(dtype: Dtype, shape: &[usize], numbers: &[f32]) -> Self {
        let bytes: Vec<u8> = if dtype == Dtype::F32 {
            numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
        } else if dtype == Dtype::F16 {
            numbers.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect()
        } else {
            numbers.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect()
        };
        Self { dtype, shape: shape.to_vec(), bytes }
    }

    pub(super) fn numbers(&self) -> Vec<f32> {
        let halves = self.bytes.chunks(2).map(|b| u16::from_le_bytes(b.try_into().unwrap()));
        if self.dtype == Dtype::F32 {
            self.bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        } else if self.dtype == Dtype::F16 {
            halves.map(|bits| f16::from_bits(bits).to_f32()).collect()
        } else {
            halves.map(|bits| bf16::from_bits(bits).to_f32()).collect()
        }
    }

    pub(super) fn cast(&self, dtype: Dtype) -> Self {
        Self::floats(dtype, &self.shape, &self.numbers())
    }
}

impl Model {
    /// Four layers, the last one attention; bf16; tied.
    pub(super) fn small() -> Self {
        Self::with_attention_at(&[3])
    }

    /// Four layers, of which those of `places` are attention; bf16; tied.
    pub(super) fn with_attention_at(places: &[usize]) -> Self {
        let mut trunk = Tensors::new();
        put(&mut trunk, &format!("{TRUNK}embed_tokens"), &[VOCAB, HIDDEN]);
        gain(&mut trunk, &format!("{TRUNK}norm"), HIDDEN, 1.6);
        for i in 0..4 {
            let path = format!("{TRUNK}layers.{i}");
            block(&mut trunk, &path);
            match places.contains(&i) {
                true => attention(&mut trunk, &path),
                false => gdn(&mut trunk, &path),
            }
        }
        let mut head = Tensors::new();
        put(&mut head, "mtp.fc", &[HIDDEN, 2 * HIDDEN]);
        for (name, mean) in
            [("norm", 1.5), ("pre_fc_norm_embedding", 0.49), ("pre_fc_norm_hidden", 0.27)]
        {
            gain(&mut head, &format!("mtp.{name}"), HIDDEN, mean);
        }
        block(&mut head, "mtp.layers.0");
        attention(&mut head, "mtp.layers.0");
        Self { config: config(), trunk, head }
    }

    /// The checkpoint in `folder`, with its head from `mtp.safetensors`.
    pub(super) fn of_folder(folder: &Path) -> Self {
        let config = fs::read(folder.join("config.json")).unwrap();
        Self {
            config: serde_json::from_slice(&config).unwrap(),
            trunk: tensors(&folder.join("model.safetensors")),
            head: tensors(&folder.join("mtp.safetensors")),
        }
    }

    pub(super) fn write(&self) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), self.config.to_string()).unwrap();
        write(&folder.path().join("model.safetensors"), &self.trunk);
        if !self.head.is_empty() {
            write(&folder.path().join("mtp.safetensors"), &self.head);
        }
        folder
    }

    pub(super) fn load(&self) -> Result<Checkpoint, Error> {
        load(self.write().path())
    }

    /// The language settings.
    pub(super) fn text(&mut self) -> &mut serde_json::Map<String, Value> {
        self.config["text_config"].as_object_mut().unwrap()
    }

    /// The trunk's tensor `name`, by inner name.
    pub(super) fn tensor(&mut self, name: &str) -> &mut Raw {
        self.trunk.get_mut(&format!("{TRUNK}{name}")).unwrap()
    }

    /// As published: names, convolutions, zero-centred norms in fp32, the head among the trunk.
    pub(super) fn raw_hf(&self) -> Self {
        let mut trunk = Tensors::new();
        for (name, raw) in self.trunk.iter().chain(&self.head) {
            let name = name.replacen("language_model.model.", "model.language_model.", 1);
            let mut raw = raw.clone();
            if let [channels, taps, 1] = raw.shape[..] {
                raw.shape = vec![channels, 1, taps];
            }
            trunk.insert(name.clone(), if is_gain(&name) { zero_centred(&raw) } else { raw });
        }
        Self { config: self.config.clone(), trunk, head: Tensors::new() }
    }

    /// All matrices of `tensors` as affine codes. The elements are new ones.
    pub(super) fn quantize(tensors: &mut Tensors, bits: usize, group: usize) {
        let matrices: Vec<String> = tensors
            .iter()
            .filter(|(_, raw)| raw.shape.len() == 2)
            .filter_map(|(name, _)| name.strip_suffix(".weight").map(str::to_owned))
            .collect();
        for path in matrices {
            quantize(tensors, &path, bits, group);
        }
    }
}

/// Replaces the matrix `path` by affine codes: column c of row r has the code r + c, the scale
/// r + 1 and the bias of its group's number.
pub(super) fn quantize(tensors: &mut Tensors, path: &str, bits: usize, group: usize) {
    let shape = tensors[&format!("{path}.weight")].shape.clone();
    let (out, input) = (shape[0], shape[1]);
    let mut bytes = vec![];
    for row in 0..out {
        let mut stream = vec![0u8; input * bits / 8];
        for column in 0..input {
            let code = (row + column) & ((1 << bits) - 1);
            for bit in 0..bits {
                let at = column * bits + bit;
                stream[at / 8] |= ((code >> bit & 1) as u8) << (at % 8);
            }
        }
        bytes.extend(stream);
    }
    let shape = vec![out, input * bits / 32];
    tensors.insert(format!("{path}.weight"), Raw { dtype: Dtype::U32, shape, bytes });
    let groups = input / group;
    let scales: Vec<f32> = (0..out * groups).map(|i| (i / groups % 64) as f32 + 1.0).collect();
    let biases: Vec<f32> = (0..out * groups).map(|i| (i % groups) as f32).collect();
    let shape = [out, groups];
    tensors.insert(format!("{path}.scales"), Raw::floats(Dtype::BF16, &shape, &scales));
    tensors.insert(format!("{path}.biases"), Raw::floats(Dtype::BF16, &shape, &biases));
}

/// What [`quantize`] put at row `row`, column `column`.
pub(super) fn element(bits: usize, group: usize, row: usize, column: usize) -> f32 {
    let code = (row + column) & ((1 << bits) - 1);
    (row % 64 + 1) as f32 * code as f32 + (column / group) as f32
}

pub(super) fn is_gain(name: &str) -> bool {
    name.contains("norm") && !name.contains("linear_attn")
}

pub(super) fn zero_centred(raw: &Raw) -> Raw {
    let numbers: Vec<f32> = raw.numbers().iter().map(|gain| gain - 1.0).collect();
    Raw::floats(Dtype::F32, &raw.shape, &numbers)
}

pub(super) fn load(folder: &Path) -> Result<Checkpoint, Error> {
    Checkpoint::load(&Files::folder(folder)?)
}

pub(super) fn write(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, raw)| {
        (name, TensorView::new(raw.dtype, raw.shape.clone(), &raw.bytes).unwrap())
    });
    fs::write(path, serialize(views, None).unwrap()).unwrap();
}

pub(super) fn tensors(path: &Path) -> Tensors {
    let content = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&content).unwrap();
    let raw = |view: TensorView<'_>| Raw {
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        bytes: view.data().to_vec(),
    };
    file.tensors().into_iter().map(|(name, view)| (name, raw(view))).collect()
}

/// A folder of this repository.
pub(super) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn block(tensors: &mut Tensors, path: &str) {
    gain(tensors, &format!("{path}.input_layernorm"), HIDDEN, 1.1);
    gain(tensors, &format!("{path}.post_attention_layernorm"), HIDDEN, 0.9);
    put(tensors, &format!("{path}.mlp.gate_proj"), &[FFN, HIDDEN]);
    put(tensors, &format!("{path}.mlp.up_proj"), &[FFN, HIDDEN]);
    put(tensors, &format!("{path}.mlp.down_proj"), &[HIDDEN, FFN]);
}

fn attention(tensors: &mut Tensors, path: &str) {
    let path = format!("{path}.self_attn");
    put(tensors, &format!("{path}.q_proj"), &[256, HIDDEN]);
    put(tensors, &format!("{path}.k_proj"), &[64, HIDDEN]);
    put(tensors, &format!("{path}.v_proj"), &[64, HIDDEN]);
    put(tensors, &format!("{path}.o_proj"), &[HIDDEN, 128]);
    gain(tensors, &format!("{path}.q_norm"), 64, 1.7);
    gain(tensors, &format!("{path}.k_norm"), 64, 1.7);
}

fn gdn(tensors: &mut Tensors, path: &str) {
    let path = format!("{path}.linear_attn");
    put(tensors, &format!("{path}.in_proj_qkv"), &[CHANNELS, HIDDEN]);
    put(tensors, &format!("{path}.in_proj_z"), &[64, HIDDEN]);
    put(tensors, &format!("{path}.in_proj_b"), &[2, HIDDEN]);
    put(tensors, &format!("{path}.in_proj_a"), &[2, HIDDEN]);
    put(tensors, &format!("{path}.out_proj"), &[HIDDEN, 64]);
    put(tensors, &format!("{path}.conv1d"), &[CHANNELS, 4, 1]);
    gain(tensors, &format!("{path}.norm"), 32, 0.9);
    for name in ["A_log", "dt_bias"] {
        let numbers = Raw::floats(Dtype::F32, &[2], &[0.5, -0.25]);
        tensors.insert(format!("{path}.{name}"), numbers);
    }
}

/// A weight of small numbers that depend on its name.
fn put(tensors: &mut Tensors, path: &str, shape: &[usize]) {
    let seed = path.bytes().fold(7u32, |h, b| h.wrapping_mul(31).wrapping_add(u32::from(b)));
    let count: usize = shape.iter().product();
    let number = |i: usize| {
        let mixed = (seed ^ i as u32).wrapping_mul(0x9e37_79b9) >> 24;
        (mixed as f32 - 127.5) / 1024.0
    };
    let numbers: Vec<f32> = (0..count).map(number).collect();
    tensors.insert(format!("{path}.weight"), Raw::floats(Dtype::BF16, shape, &numbers));
}

fn gain(tensors: &mut Tensors, path: &str, len: usize, mean: f32) {
    let numbers: Vec<f32> = (0..len).map(|i| mean + (i % 8) as f32 / 64.0).collect();
    tensors.insert(format!("{path}.weight"), Raw::floats(Dtype::BF16, &[len], &numbers));
}

fn config() -> Value {
    json!({
        "model_type": "qwen3_5",
        "eos_token_id": [62, 60],
        "text_config": {
            "model_type": "qwen3_5_text",
            "hidden_size": HIDDEN,
            "num_hidden_layers": 4,
            "full_attention_interval": 4,
            "intermediate_size": FFN,
            "vocab_size": VOCAB,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 64,
            "linear_num_key_heads": 1,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 32,
            "linear_value_head_dim": 32,
            "linear_conv_kernel_dim": 4,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "eos_token_id": 60,
            "tie_word_embeddings": true,
            "mtp_num_hidden_layers": 1,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25,
            },
        },
    })
}

//! Mixtures of experts: every layout gives the same weights, and what is wrong is named.

use std::fs;

use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::fixture::{Raw, Tensors, load, repository, tensors, write};
use super::{linears, vectors};
use crate::checkpoint::{Checkpoint, Family, Format};

const FOLDERS: [&str; 4] = ["moe-raw", "moe-q4", "next-raw", "next-q8"];
const LAYER: &str = "model.language_model.layers.0";

/// A golden mixture, to be bent.
struct Mixture {
    config: Value,
    tensors: Tensors,
}

impl Mixture {
    /// A published one: trunk and head in one file.
    fn raw(name: &str) -> Self {
        let folder = repository("tests/golden/moe").join(name);
        let config = fs::read(folder.join("config.json")).unwrap();
        let config = serde_json::from_slice(&config).unwrap();
        Self { config, tensors: tensors(&folder.join("model.safetensors")) }
    }

    fn folder(&self) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), self.config.to_string()).unwrap();
        write(&folder.path().join("model.safetensors"), &self.tensors);
        folder
    }

    fn load(&self) -> Checkpoint {
        load(self.folder().path()).unwrap()
    }

    fn error(&self) -> String {
        load(self.folder().path()).unwrap_err().to_string()
    }

    /// Every tensor of fused experts, by the block it belongs to.
    fn take_experts(&mut self) -> Vec<(String, Raw, Raw)> {
        let blocks: Vec<String> = self
            .tensors
            .keys()
            .filter_map(|name| name.strip_suffix(".experts.down_proj").map(str::to_owned))
            .collect();
        let mut take = |name: String| self.tensors.remove(&name).unwrap();
        blocks
            .into_iter()
            .map(|block| {
                let gate_up = take(format!("{block}.experts.gate_up_proj"));
                let down = take(format!("{block}.experts.down_proj"));
                (block, gate_up, down)
            })
            .collect()
    }
}

/// Part `i` of `n` of each matrix of a stack, along its rows.
fn slices(stack: &Raw, i: usize, n: usize) -> Vec<Raw> {
    let [count, rows, columns] = stack.shape[..] else { panic!("{:?}", stack.shape) };
    let bytes = stack.bytes.len() / count / n;
    let slice = |e: usize| Raw {
        dtype: stack.dtype,
        shape: vec![rows / n, columns],
        bytes: stack.bytes[(e * n + i) * bytes..][..bytes].to_vec(),
    };
    (0..count).map(slice).collect()
}

fn stacked(slices: &[Raw]) -> Raw {
    let shape = [&[slices.len()], &slices[0].shape[..]].concat();
    let bytes = slices.iter().flat_map(|raw| raw.bytes.clone()).collect();
    Raw { dtype: slices[0].dtype, shape, bytes }
}

/// The three matrices of every expert by name, from the fused form.
fn parts(gate_up: &Raw, down: &Raw) -> [(&'static str, Vec<Raw>); 3] {
    let gate_up = |i| slices(gate_up, i, 2);
    [("gate_proj", gate_up(0)), ("up_proj", gate_up(1)), ("down_proj", slices(down, 0, 1))]
}

/// Equal in every number; the files' names for them may differ.
fn assert_same_numbers(a: &Checkpoint, b: &Checkpoint) {
    assert_eq!(vectors(a), vectors(b));
    let (a, b) = (linears(a), linears(b));
    assert_eq!(a.len(), b.len());
    for (a, b) in a.into_iter().zip(b) {
        assert_eq!((a.out, a.input), (b.out, b.input), "{} and {}", a.path, b.path);
        for row in 0..a.out {
            assert_eq!(a.row_f32(row), b.row_f32(row), "{} and {} row {row}", a.path, b.path);
        }
    }
}

#[test]
fn golden_mixtures_load_whole() {
    for name in FOLDERS {
        let checkpoint = load(&repository("tests/golden/moe").join(name)).unwrap();
        let moe = checkpoint.config.moe.as_ref().unwrap();
        assert_eq!((moe.experts, moe.per_token), (6, 2));
        let next = name.starts_with("next");
        assert_eq!(checkpoint.config.family == Family::Qwen3Next, next);
        assert_eq!(moe.renormalise, !next);
        let layers: &[bool] = if next { &[false, true, false, false] } else { &[true; 3] };
        assert_eq!(moe.layers, layers, "{name}");
        assert_eq!(checkpoint.unused, [""; 0], "{name}");
        assert_eq!(checkpoint.mtp.as_ref().unwrap().layers.len(), 1);
        let linears = linears(&checkpoint);
        let router = linears.iter().find(|linear| linear.path == "layers.1.mlp.gate").unwrap();
        let bits = match &router.format {
            Format::Dense(_) => 16,
            Format::Affine { bits, .. } => *bits,
        };
        // mlx-lm gives routers more bits than the rest.
        assert_eq!(bits, if name.ends_with("raw") { 16 } else { 8 }, "{name}");
    }
}

#[test]
fn every_layout_of_experts_gives_the_same_weights() {
    let fused = Mixture::raw("moe-raw");
    let (mut apart, mut stacks) = (Mixture::raw("moe-raw"), Mixture::raw("moe-raw"));
    stacks.take_experts();
    for (block, gate_up, down) in apart.take_experts() {
        for (part, matrices) in parts(&gate_up, &down) {
            let stack = format!("{block}.switch_mlp.{part}.weight");
            stacks.tensors.insert(stack, stacked(&matrices));
            for (e, matrix) in matrices.into_iter().enumerate() {
                apart.tensors.insert(format!("{block}.experts.{e}.{part}.weight"), matrix);
            }
        }
    }
    let fused = fused.load();
    for other in [apart.load(), stacks.load()] {
        assert_same_numbers(&fused, &other);
        assert_eq!((other.unused.len(), other.bytes_total), (0, fused.bytes_total));
    }
}

#[test]
fn projections_apart_are_read_in_the_next_family_too() {
    let fused = Mixture::raw("next-raw").load();
    let mut apart = Mixture::raw("next-raw");
    let name = "model.layers.0.linear_attn";
    for (part, from) in [("in_proj_qkvz", 0..2), ("in_proj_ba", 2..4)] {
        apart.tensors.remove(&format!("{name}.{part}.weight")).unwrap();
        for linear in &linears(&fused)[2 + from.start..2 + from.end] {
            let numbers: Vec<f32> = (0..linear.out).flat_map(|row| linear.row_f32(row)).collect();
            let raw = Raw::floats(Dtype::BF16, &[linear.out, linear.input], &numbers);
            assert!(linear.path.starts_with("layers.0.linear_attn.in_proj_"), "{}", linear.path);
            apart.tensors.insert(format!("model.{}.weight", linear.path), raw);
        }
    }
    assert_same_numbers(&fused, &apart.load());
}

type Damage = fn(&mut Mixture);

#[test]
fn damaged_experts_are_named() {
    let zoo: &[(Damage, &[&str])] = &[
        (
            |m| drop(m.take_experts()),
            &["layers.0.mlp.switch_mlp.gate_proj.weight", "missing", "[6, 16, 64]"],
        ),
        (
            |m| drop(m.tensors.remove(&format!("{LAYER}.mlp.experts.down_proj"))),
            &["layers.0.mlp.experts.down_proj", "missing", "[6, 64, 16]"],
        ),
        (
            |m| {
                let name = format!("{LAYER}.mlp.experts.gate_up_proj");
                m.tensors.get_mut(&name).unwrap().shape = vec![6, 64, 32];
            },
            &["layers.0.mlp.experts.gate_up_proj", "BF16 [6, 64, 32]", "[6, 32, 64]"],
        ),
        (
            |m| drop(m.tensors.remove(&format!("{LAYER}.mlp.gate.weight"))),
            &["layers.0.mlp.gate.weight", "missing", "[6, 64]"],
        ),
        (
            |m| drop(m.tensors.remove(&format!("{LAYER}.mlp.shared_expert_gate.weight"))),
            &["layers.0.mlp.shared_expert_gate.weight", "missing", "[1, 64]"],
        ),
        (
            |m| drop(m.tensors.remove(&format!("{LAYER}.mlp.shared_expert.up_proj.weight"))),
            &["layers.0.mlp.shared_expert.up_proj.weight", "missing", "[64, 64]"],
        ),
        (
            |m| m.config["text_config"]["num_experts"] = 7.into(),
            &["layers.0.mlp.gate.weight", "BF16 [6, 64]", "[7, 64]"],
        ),
    ];
    for (damage, parts) in zoo {
        let mut mixture = Mixture::raw("moe-raw");
        damage(&mut mixture);
        let text = mixture.error();
        for part in *parts {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
    }
}

#[test]
fn damaged_projections_are_named() {
    let name = "model.layers.0.linear_attn.in_proj_qkvz.weight";
    let mut mixture = Mixture::raw("next-raw");
    let raw = mixture.tensors.get_mut(name).unwrap();
    raw.shape = vec![64, 384];
    let text = mixture.error();
    assert!(text.contains(name) && text.contains("expected f32, f16 or bf16 [384, 64]"), "{text}");
    mixture.tensors.remove(name);
    let text = mixture.error();
    assert!(text.contains("in_proj_qkvz.weight is missing"), "{text}");
}

#[test]
fn senseless_settings_of_experts_are_named() {
    for (name, key, value, part) in [
        ("moe-raw", "num_experts_per_tok", json!(7), "num_experts = 6"),
        ("moe-raw", "num_experts_per_tok", json!(0), "from 1"),
        ("moe-raw", "num_experts", json!(null), "missing"),
        ("moe-raw", "moe_intermediate_size", json!(null), "missing"),
        ("moe-raw", "shared_expert_intermediate_size", json!("x"), "\"x\""),
        ("next-raw", "norm_topk_prob", json!(null), "missing"),
        ("next-raw", "norm_topk_prob", json!(1), "true or false"),
        ("next-raw", "mlp_only_layers", json!([4]), "from 0 to 3"),
        ("next-raw", "mlp_only_layers", json!(["1"]), "from 0 to 3"),
        ("next-raw", "decoder_sparse_step", json!(0), "from 1"),
        ("next-raw", "intermediate_size", json!(null), "missing"),
    ] {
        let mut mixture = Mixture::raw(name);
        match name {
            "moe-raw" => mixture.config["text_config"][key] = value,
            _ => mixture.config[key] = value,
        }
        let text = mixture.error();
        assert!(text.contains(key) && text.contains(part), "{key}, {part}: {text}");
    }
}

#[test]
fn layers_are_sparse_by_step_unless_they_are_excepted() {
    let layers = |step: Value, only: Value| {
        let mut mixture = Mixture::raw("next-raw");
        mixture.config["decoder_sparse_step"] = step;
        mixture.config["mlp_only_layers"] = only;
        // Which tensors a layer must have follows: the first one that is missing tells.
        mixture.error()
    };
    assert!(layers(json!(1), json!([])).contains("layers.0.mlp.gate.weight is missing"));
    assert!(layers(json!(null), json!([0])).contains("layers.2.mlp.gate.weight is missing"));
    assert!(layers(json!(2), json!(null)).contains("layers.3.mlp.gate.weight is missing"));
    assert!(layers(json!(4), json!([])).contains("layers.1.mlp.gate_proj.weight is missing"));
}

#[test]
fn a_head_may_be_dense_where_its_width_is_known() {
    let mut mixture = Mixture::raw("moe-raw");
    let head = "mtp.layers.0.mlp.";
    for part in ["gate", "up", "down"] {
        let name = format!("{head}shared_expert.{part}_proj.weight");
        let raw = mixture.tensors.remove(&name).unwrap();
        mixture.tensors.insert(format!("{head}{part}_proj.weight"), raw);
    }
    for part in ["experts.gate_up_proj", "experts.down_proj"] {
        mixture.tensors.remove(&format!("{head}{part}")).unwrap();
    }
    mixture.tensors.remove(&format!("{head}gate.weight")).unwrap();
    mixture.tensors.remove(&format!("{head}shared_expert_gate.weight")).unwrap();
    let reason = mixture.load().mtp.unwrap_err();
    assert!(reason.contains("no router") && reason.contains("intermediate_size"), "{reason}");
    mixture.config["text_config"]["intermediate_size"] = 64.into();
    assert!(mixture.load().mtp.is_ok());
}

#[test]
fn a_mixtures_head_does_not_fit_a_dense_trunk() {
    let mut mixture = Mixture::raw("next-raw");
    mixture.config["num_experts"] = 0.into();
    let mlp = "model.layers.1.mlp.";
    mixture.tensors.retain(|name, _| !name.starts_with(mlp));
    for part in ["gate_proj", "up_proj", "down_proj"] {
        let raw = mixture.tensors[&format!("model.layers.0.mlp.{part}.weight")].clone();
        mixture.tensors.insert(format!("{mlp}{part}.weight"), raw);
    }
    let checkpoint = mixture.load();
    assert!(checkpoint.config.moe.is_none());
    let reason = checkpoint.mtp.unwrap_err();
    assert!(reason.contains("router") && reason.contains("says nothing of experts"), "{reason}");
}

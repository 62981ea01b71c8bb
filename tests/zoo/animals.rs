//! What there is to be seen: each kind says what it is to be called, and what is to be said of it.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use mtplx::tiers::{Tier, contract};
use serde_json::{Value, json};

use super::weights::{Model, Tensors, safetensors, with_header};

/// One folder.
pub struct Animal {
    pub name: &'static str,
    pub tier: Tier,
    /// Part of what is said of it.
    pub says: &'static str,
    pub path: PathBuf,
}

type Kind = (&'static str, Tier, &'static str, fn(&Model, &Path));

/// `count` folders below `ground`, every kind in turn, of sizes that follow from `seed`.
pub fn zoo(ground: &Path, count: usize, seed: u64) -> Vec<Animal> {
    let kinds = SOUND.iter().chain(&FOREIGN).chain(&DAMAGED).cycle();
    let animal = |(i, &(name, tier, says, build)): (usize, &Kind)| {
        let random = (seed + i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let path = ground.join(format!("{i:03} {name}"));
        let mut model = Model::sound(4 + random as usize % 5);
        model.config["x"] = json!(random);
        build(&model, &path);
        Animal { name, tier, says, path }
    };
    (0..count).zip(kinds).map(animal).collect()
}

pub const KINDS: usize = SOUND.len() + FOREIGN.len() + DAMAGED.len();
const SHARD: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

const SOUND: [Kind; 13] = [
    ("sound", Tier::Unverified, "mtplx verify", |m, f| m.write(f)),
    ("head in the trunk", Tier::Unverified, "never verified", |m, f| {
        let mut trunk = m.trunk.clone();
        trunk.extend(m.head.clone());
        Model { trunk, head: Tensors::new(), ..m.clone() }.write(f);
    }),
    ("shards", Tier::Unverified, "never verified", |m, f| m.write_shards(f)),
    ("snapshot of links", Tier::Unverified, "never verified", |m, f| {
        let store = f.join("models--a--b/blobs");
        m.write(&store);
        for entry in fs::read_dir(&store).unwrap() {
            let path = entry.unwrap().path();
            symlink(&path, f.join(path.file_name().unwrap())).unwrap();
        }
    }),
    ("cycles of folders", Tier::Unverified, "never verified", |m, f| {
        m.write(f);
        symlink(f, f.join("again")).unwrap();
        symlink("b", f.join("a")).unwrap();
        symlink("a", f.join("b")).unwrap();
    }),
    ("many files", Tier::Unverified, "never verified", |m, f| {
        m.write(f);
        (0..1000).for_each(|i| drop(File::create(f.join(format!("{i}.txt"))).unwrap()));
    }),
    ("deep tree", Tier::Unverified, "never verified", |m, f| {
        m.write(f);
        fs::create_dir_all(f.join("d/".repeat(200))).unwrap();
    }),
    ("another's contract", Tier::Unverified, "mtplx_verification", |m, f| {
        m.write(f);
        write(f, contract::FILE, json!({"mtplx_version": "0.3.7", "mtp_depth_max": 3}));
    }),
    ("verified", Tier::Verified, "passed 1 gates", |m, f| {
        m.write(f);
        verify(f, true);
    }),
    ("changed", Tier::Unverified, "has changed", |m, f| {
        m.write(f);
        verify(f, true);
        change(f, "config.json", |c| [c, b" ".to_vec()].concat());
    }),
    ("not passed", Tier::Unverified, "did not pass", |m, f| {
        m.write(f);
        verify(f, false);
    }),
    ("no head", Tier::NoMtp, "no mtp.* tensors", |m, f| {
        Model { head: Tensors::new(), ..m.clone() }.write(f);
    }),
    ("another kind of head", Tier::NoMtp, "concat_order", |m, f| {
        m.write(f);
        write(f, contract::FILE, json!({"mtp_contract": {"concat_order": "hidden_embedding"}}));
    }),
];

const FOREIGN: [Kind; 12] = [
    ("deepseek", Tier::Incompatible, "DeepSeek V3 is", |m, f| {
        foreign(m, f, "deepseek_v3", "num_nextn_predict_layers");
    }),
    ("deepseek 3.2", Tier::Incompatible, "DeepSeek V3.2 is", |m, f| {
        foreign(m, f, "deepseek_v32", "num_nextn_predict_layers");
    }),
    ("glm", Tier::Incompatible, "GLM-4 MoE is", |m, f| {
        foreign(m, f, "glm4_moe", "num_nextn_predict_layers");
    }),
    ("mimo", Tier::Incompatible, "MiMo is", |m, f| {
        foreign(m, f, "mimo", "num_nextn_predict_layers");
    }),
    ("minimax", Tier::Incompatible, "MiniMax M2 is", |m, f| {
        foreign(m, f, "minimax_m2", "num_mtp_modules");
    }),
    ("nemotron", Tier::Incompatible, "Nemotron-H is", |m, f| {
        foreign(m, f, "nemotron_h", "num_nextn_predict_layers");
    }),
    ("nobody knows it", Tier::Incompatible, "though it has 1 MTP layer", |m, f| {
        foreign(m, f, "granite_five", "n_predict");
    }),
    ("llama", Tier::Incompatible, "Llama is an architecture", |m, f| {
        foreign(m, f, "llama", "x");
    }),
    ("gguf", Tier::Incompatible, ".gguf", |m, f| {
        m.write(f);
        fs::rename(f.join(SHARD), f.join("model.gguf")).unwrap();
        fs::remove_file(f.join("mtp.safetensors")).unwrap();
    }),
    ("fp8", Tier::Incompatible, "quant_method", |m, f| {
        let mut m = m.clone();
        m.config["quantization_config"] = json!({"quant_method": "fp8"});
        m.write(f);
    }),
    ("biased attention", Tier::Incompatible, "attention_bias", |m, f| {
        let mut m = m.clone();
        m.config["text_config"]["attention_bias"] = json!(true);
        m.write(f);
    }),
    ("head alone", Tier::Incompatible, "mtp.safetensors", |m, f| {
        foreign(m, f, "qwen3_5_mtp", "mtp_num_hidden_layers");
    }),
];

const DAMAGED: [Kind; 37] = [
    ("nothing there", Tier::Damaged, "does not exist", |_, _| {}),
    ("a file", Tier::Damaged, "not a folder", |_, f| fs::write(f, "x").unwrap()),
    ("a link to nowhere", Tier::Damaged, "which does not exist", |_, f| {
        symlink("/nonexistent/model", f).unwrap();
    }),
    ("an empty folder", Tier::Damaged, "config.json", |_, f| fs::create_dir(f).unwrap()),
    ("no config", Tier::Damaged, "config.json", |m, f| {
        m.write(f);
        fs::remove_file(f.join("config.json")).unwrap();
    }),
    ("empty config", Tier::Damaged, "no valid JSON", |m, f| bent(m, f, "config.json", |_| vec![])),
    ("half a config", Tier::Damaged, "no valid JSON", |m, f| {
        bent(m, f, "config.json", |c| c[..c.len() / 2].to_vec());
    }),
    ("a list for a config", Tier::Damaged, "no JSON object", |m, f| {
        bent(m, f, "config.json", |_| b"[]".to_vec());
    }),
    ("deep config", Tier::Damaged, "recursion limit", |m, f| {
        bent(m, f, "config.json", |_| b"[".repeat(1_000_000));
    }),
    ("huge config", Tier::Damaged, "too many for a configuration", |m, f| {
        bent(m, f, "config.json", |c| [c, b" ".repeat(5 << 20)].concat());
    }),
    ("config of noise", Tier::Damaged, "config.json", |m, f| {
        bent(m, f, "config.json", |c| c.iter().map(|b| b ^ 0xa5).collect());
    }),
    ("config without a kind", Tier::Damaged, "model_type", |m, f| {
        bent(m, f, "config.json", |_| b"{}".to_vec());
    }),
    ("config without a size", Tier::Damaged, "hidden_size", |m, f| {
        let mut m = m.clone();
        m.config["text_config"]["hidden_size"] = Value::Null;
        m.write(f);
    }),
    ("a folder for a config", Tier::Damaged, "not a regular file", |m, f| {
        m.write(f);
        fs::remove_file(f.join("config.json")).unwrap();
        fs::create_dir(f.join("config.json")).unwrap();
    }),
    ("dataless config", Tier::Damaged, "no content on this disk", |m, f| {
        m.write(f);
        dataless(f, "config.json");
    }),
    ("no weights", Tier::Damaged, "no model*.safetensors", |m, f| {
        m.write(f);
        fs::remove_file(f.join(SHARD)).unwrap();
    }),
    ("cut short", Tier::Damaged, "cut short", |m, f| {
        bent(m, f, SHARD, |c| c[..c.len() - 9].to_vec());
    }),
    ("half a header", Tier::Damaged, "cut short", |m, f| bent(m, f, SHARD, |c| c[..99].to_vec())),
    ("three bytes", Tier::Damaged, "cut short", |m, f| bent(m, f, SHARD, |c| c[..3].to_vec())),
    ("no bytes", Tier::Damaged, "cut short", |m, f| bent(m, f, SHARD, |_| vec![])),
    ("endless header", Tier::Damaged, "more than the format allows", |m, f| {
        bent(m, f, SHARD, |c| [&[255; 8], &c[8..]].concat());
    }),
    ("a web page", Tier::Damaged, "no safetensors file", |m, f| {
        bent(m, f, SHARD, |_| b"<!DOCTYPE html><html>not found</html>".to_vec());
    }),
    ("header of noise", Tier::Damaged, "broken safetensors header", |m, f| {
        bent(m, f, SHARD, |_| with_header("{\"a\": nonsense}", 64));
    }),
    ("deep header", Tier::Damaged, "broken safetensors header", |m, f| {
        bent(m, f, SHARD, |_| with_header(&"{\"a\":".repeat(100_000), 0));
    }),
    ("offsets beyond", Tier::Damaged, "ends at byte 2048", |m, f| {
        let header = r#"{"a":{"dtype":"BF16","shape":[1024],"data_offsets":[0,2048]}}"#;
        m.write(f);
        fs::write(f.join(SHARD), with_header(header, 64)).unwrap();
    }),
    ("offsets backwards", Tier::Damaged, "before it starts", |m, f| {
        let header = r#"{"a":{"dtype":"BF16","shape":[4],"data_offsets":[8,0]}}"#;
        m.write(f);
        fs::write(f.join(SHARD), with_header(header, 8)).unwrap();
    }),
    ("dataless weights", Tier::Damaged, "no content on this disk", |m, f| {
        m.write(f);
        dataless(f, SHARD);
    }),
    ("dangling link", Tier::Damaged, "which does not exist", |m, f| {
        m.write(f);
        fs::remove_file(f.join(SHARD)).unwrap();
        symlink("../../blobs/0123abcd", f.join(SHARD)).unwrap();
    }),
    ("link to itself", Tier::Damaged, "cannot be read", |m, f| {
        m.write(f);
        fs::remove_file(f.join(SHARD)).unwrap();
        symlink(SHARD, f.join(SHARD)).unwrap();
    }),
    ("unfinished download", Tier::Damaged, "its download is not finished", |m, f| {
        m.write_shards(f);
        let shard = f.join("model-00002-of-00002.safetensors");
        let own = f.join(".cache/huggingface/download");
        fs::create_dir_all(&own).unwrap();
        fs::rename(shard, own.join("abc.incomplete")).unwrap();
    }),
    ("missing shard", Tier::Damaged, "names the shard", |m, f| {
        m.write_shards(f);
        fs::remove_file(f.join("model-00002-of-00002.safetensors")).unwrap();
    }),
    ("missing shard without index", Tier::Damaged, "is missing beside", |m, f| {
        m.write_shards(f);
        fs::remove_file(f.join("model-00001-of-00002.safetensors")).unwrap();
        fs::remove_file(f.join(INDEX)).unwrap();
    }),
    ("broken index", Tier::Damaged, "no valid index", |m, f| {
        m.write_shards(f);
        fs::write(f.join(INDEX), "{\"weight_map\": 7}").unwrap();
    }),
    ("missing tensor", Tier::Damaged, "is missing from", |m, f| {
        let mut m = m.clone();
        m.trunk.remove("language_model.model.layers.2.mlp.up_proj.weight").unwrap();
        m.write(f);
    }),
    ("other shapes", Tier::Damaged, "do not belong together", |m, f| {
        let mut m = m.clone();
        m.config["text_config"]["intermediate_size"] = json!(48);
        m.write(f);
    }),
    ("no tokenizer", Tier::Damaged, "tokenizer.json", |m, f| {
        m.write(f);
        fs::remove_file(f.join("tokenizer.json")).unwrap();
    }),
    ("half a head", Tier::Damaged, "--no-mtp serves the rest", |m, f| {
        let mut head = m.head.clone();
        head.remove("mtp.norm.weight").unwrap();
        m.write(f);
        fs::write(f.join("mtp.safetensors"), safetensors(&head)).unwrap();
    }),
];

fn write(folder: &Path, name: &str, content: Value) {
    fs::write(folder.join(name), content.to_string()).unwrap();
}

fn change(folder: &Path, name: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    let path = folder.join(name);
    fs::write(&path, change(fs::read(&path).unwrap())).unwrap();
}

fn bent(model: &Model, folder: &Path, name: &str, bend: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    model.write(folder);
    change(folder, name, bend);
}

/// As a cloud leaves a file: its length, and none of its content.
fn dataless(folder: &Path, name: &str) {
    File::create(folder.join(name)).unwrap().set_len(1 << 30).unwrap();
}

/// A model of another kind, whose tensors nobody will ask for.
fn foreign(model: &Model, folder: &Path, kind: &str, key: &str) {
    model.write(folder);
    write(folder, "config.json", json!({"model_type": kind, "hidden_size": 32, key: 1}));
}

/// Writes a contract as `mtplx verify` does.
fn verify(folder: &Path, passed: bool) {
    let fingerprint = mtplx::tiers::judge(folder).fingerprint.unwrap();
    let gate = json!({"name": "greedy-parity", "passed": passed, "told": "", "measured": 0.0,
        "bound": 0.0});
    let section = json!({"format": 1, "program": "mtplx", "at": "2026-11-23T12:00:00Z",
        "fingerprint": fingerprint, "passed": passed, "gates": [gate]});
    write(folder, contract::FILE, json!({contract::SECTION: section}));
}

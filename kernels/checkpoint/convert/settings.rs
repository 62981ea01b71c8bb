//! The configuration of what is written.

use serde_json::{Map, Value, json};

use super::layout::Shard;
use super::modules::is_router;
use super::{HEAD, Recipe};
use crate::checkpoint::tensor::Dtype;
use crate::checkpoint::{Files, json};

/// Where files say in which type their weights are.
const DTYPE_KEYS: [&str; 2] = ["dtype", "torch_dtype"];

/// The type that config.json names, which mlx-lm would convert to as well.
pub(super) fn dtype(files: &Files) -> Option<Dtype> {
    let value = json::read(files, "config.json").ok().flatten()?;
    let levels = [value.get("text_config"), Some(&value)];
    let mut named = levels.into_iter().flatten().flat_map(|level| {
        DTYPE_KEYS.iter().filter_map(|key| Dtype::spoken(level.get(*key)?.as_str()?))
    });
    named.next()
}

/// What is said of modules that are coded otherwise than the others, by path.
pub(super) fn overrides(shards: &[Shard], recipe: &Recipe) -> Map<String, Value> {
    let mut all = Map::new();
    let trunk = shards.iter().filter(|shard| shard.name != HEAD);
    for (module, _) in trunk.flat_map(Shard::modules) {
        let Some(scheme) = module.scheme else {
            // No reader has to find out by itself.
            if recipe.bits.is_some() && module.is_matrix() {
                all.insert(module.path().to_owned(), Value::Bool(false));
            }
            continue;
        };
        if is_router(module.path()) {
            let stated = json!({"group_size": scheme.group, "bits": scheme.bits});
            all.insert(module.path().to_owned(), stated);
        }
    }
    all
}

/// The text of config.json: the source's, but for what has changed.
pub(super) fn write(
    mut config: Value,
    recipe: &Recipe,
    (tied, has_head): (bool, bool),
    overrides: Map<String, Value>,
) -> String {
    if let Some(top) = config.as_object_mut() {
        for key in [
            "quantization",
            "quantization_config",
            "mlx_lm_extra_tensors",
            "mtplx_mtp_quantization",
            "mtplx_mtp_norm_encoding",
            "mtp_norm_encoding",
        ] {
            top.shift_remove(key);
        }
        if let Some(dtype) = recipe.dtype {
            set_dtype(top, dtype);
        }
        set_tied(top, tied);
        if has_head {
            top.insert("mlx_lm_extra_tensors".into(), json!({"mtp_file": HEAD}));
        }
        if let Some(bits) = recipe.bits {
            let mut block = scheme(bits, recipe.group);
            block.extend(overrides);
            // Both names are read, the second by Hugging Face's tools.
            top.insert("quantization".into(), Value::Object(block.clone()));
            top.insert("quantization_config".into(), Value::Object(block));
        }
        match recipe.head_bits.filter(|_| has_head) {
            Some(bits) => {
                let mut block = scheme(bits, recipe.group);
                let more = json!({
                    "prequantized": true, "policy": "all", "norm_encoding": "absolute",
                });
                block.extend(more.as_object().cloned().unwrap_or_default());
                top.insert("mtplx_mtp_quantization".into(), Value::Object(block));
            }
            None if has_head => {
                top.insert("mtplx_mtp_norm_encoding".into(), json!("absolute"));
            }
            None => {}
        }
    }
    format!("{config:#}\n")
}

fn scheme(bits: usize, group: usize) -> Map<String, Value> {
    let block = json!({"group_size": group, "bits": bits, "mode": "affine"});
    block.as_object().cloned().unwrap_or_default()
}

/// Wherever it is said; at the top where it is nowhere.
fn set_dtype(top: &mut Map<String, Value>, dtype: Dtype) {
    let name = Value::String(dtype.in_config().to_owned());
    let mut said = false;
    let mut set = |level: &mut Map<String, Value>| {
        for key in DTYPE_KEYS {
            if let Some(value) = level.get_mut(key) {
                *value = name.clone();
                said = true;
            }
        }
    };
    set(top);
    if let Some(text) = top.get_mut("text_config").and_then(Value::as_object_mut) {
        set(text);
    }
    if !said {
        top.insert(DTYPE_KEYS[0].to_owned(), name);
    }
}

/// mlx-lm looks for it among the language settings alone, and takes silence for a no.
fn set_tied(top: &mut Map<String, Value>, tied: bool) {
    let level = match top.get("text_config").is_some_and(Value::is_object) {
        true => top.get_mut("text_config").and_then(Value::as_object_mut),
        false => Some(top),
    };
    if let Some(level) = level {
        level.insert("tie_word_embeddings".into(), Value::Bool(tied));
    }
}

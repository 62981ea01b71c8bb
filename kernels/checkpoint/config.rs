//! `config.json` and its companions, typed and checked.

mod moe;
mod mtp;
mod quantization;
mod rope;

pub use moe::MoeShape;
pub use mtp::{MtpConfig, NormEncoding};
pub(super) use quantization::{BITS, GROUPS};
pub use quantization::{Override, Quantization, Scheme};
pub use rope::{Rope, RopeScaling, Yarn};

use super::json::{self, Object};
use super::{Error, Files};

/// The bound of every width and head count: no product of three of them overflows.
const SIZE_MAX: usize = 1 << 20;
const LAYERS_MAX: usize = 4096;
const VOCAB_MAX: usize = 1 << 24;
const POSITIONS_MAX: usize = 1 << 30;
const CONV_KERNEL: usize = 4;
const SUPPORTED: &str = "supported are text models of type qwen3_5, qwen3_5_moe and qwen3_next \
                         (qwen3_5_text and qwen3_5_moe_text inside)";

/// The architectures that can be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Qwen3.5 and 3.6, dense.
    Qwen35Dense,
    /// Qwen3.5 and 3.6 with experts, such as 35B-A3B.
    Qwen35Moe,
    /// Qwen3-Next: fused projections, experts in some layers.
    Qwen3Next,
}

/// The mixer of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// Gated DeltaNet, called `linear_attention` in files.
    Gdn,
    /// Gated full attention.
    Attention,
}

/// Heads of the full-attention layers. `heads` is a multiple of `kv_heads`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct AttentionShape {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

/// Heads of the DeltaNet layers. `value_heads` is a multiple of `key_heads`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct GdnShape {
    pub key_heads: usize,
    pub value_heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    pub conv_kernel: usize,
}

impl GdnShape {
    /// The convolution's channels C: all queries, all keys, all values.
    #[must_use]
    pub fn channels(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.values()
    }

    /// The width of all value heads together.
    #[must_use]
    pub fn values(&self) -> usize {
        self.value_heads * self.value_dim
    }
}

/// What the engine must know of a model besides its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Which architecture this is.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Rows of the embedding; the tokenizer may know fewer.
    pub vocab: usize,
    /// Width inside the feed-forward blocks without experts; 0 where there is none and it is not
    /// told.
    pub ffn: usize,
    /// The experts of the other blocks.
    pub moe: Option<MoeShape>,
    /// The mixer of every layer, first to last.
    pub layers: Vec<LayerKind>,
    /// Heads of the full-attention layers and of the MTP head.
    pub attention: AttentionShape,
    /// Heads of the DeltaNet layers.
    pub gdn: GdnShape,
    /// Rotary positions of the full-attention layers.
    pub rope: Rope,
    /// The epsilon of every RMS norm.
    pub norm_eps: f32,
    /// Positions the model was made for, stretching by YaRN included.
    pub positions_max: usize,
    /// Whether the embedding is the output head as well.
    pub tied: bool,
    /// Stop ids of config.json (both levels) and generation_config.json, sorted.
    pub eos: Vec<u32>,
    /// How the trunk's modules are said to be quantised.
    pub quantization: Quantization,
    /// What the files say about the MTP head.
    pub mtp: MtpConfig,
}

/// The configuration of `files`, and whether it says that the embedding is the output head: some
/// files leave that out, and then the tensors tell.
///
/// # Errors
/// A file is missing or broken; a setting is missing, senseless or not supported.
pub(super) fn read(files: &Files) -> Result<(ModelConfig, Option<bool>), Error> {
    let file = files.path_of("config.json");
    let Some(value) = json::read(files, "config.json")? else {
        let mend = "give the folder of a checkpoint in safetensors form";
        return Err(Error::file(&file, "does not exist", mend));
    };
    let top = Object::root(&file, &value)?;
    let nested = top.object("text_config")?;
    let family = family(&top, nested.as_ref())?;
    let text = nested.as_ref().unwrap_or(&top);
    refuse_variants(text, family)?;
    let attention = attention(text)?;
    let positions = text.size("max_position_embeddings", POSITIONS_MAX)?;
    let rope = rope::read(text, attention.head_dim, positions)?;
    let norm_eps = match text.number("rms_norm_eps")? {
        Some(eps) if eps as f32 > 0.0 && eps < 1.0 => eps as f32,
        _ => return Err(text.wrong("rms_norm_eps", "a number between 0 and 1")),
    };
    let vocab = text.size("vocab_size", VOCAB_MAX)?;
    let tied = match text.flag("tie_word_embeddings")? {
        Some(tied) => Some(tied),
        None => top.flag("tie_word_embeddings")?,
    };
    let layers = layer_kinds(text)?;
    let moe = moe::read(text, family, layers.len())?;
    let config = ModelConfig {
        family,
        hidden: text.size("hidden_size", SIZE_MAX)?,
        vocab,
        ffn: ffn(text, moe.as_ref())?,
        moe,
        layers,
        attention,
        gdn: gdn(text)?,
        positions_max: rope.positions(positions),
        rope,
        norm_eps,
        eos: eos(files, &top, text, vocab)?,
        quantization: quantization::read(&top, text)?,
        mtp: mtp::read(files, &top, text),
        tied: tied.unwrap_or_default(),
    };
    Ok((config, tied))
}

fn family(top: &Object<'_>, nested: Option<&Object<'_>>) -> Result<Family, Error> {
    let mut family = None;
    for level in std::iter::once(top).chain(nested) {
        let Some(kind) = level.text("model_type")? else { continue };
        let (one, more) = match kind {
            "qwen3_5" | "qwen3_5_text" => (Some(Family::Qwen35Dense), ""),
            "qwen3_5_moe" | "qwen3_5_moe_text" => (Some(Family::Qwen35Moe), ""),
            "qwen3_next" => (Some(Family::Qwen3Next), ""),
            "qwen3_5_mtp" => {
                let more = "; this is an MTP head alone: put its safetensors file into the folder \
                            of its trunk as mtp.safetensors";
                (None, more)
            }
            _ => (None, ""),
        };
        let Some(one) = one else {
            return Err(level.unsupported("model_type", format!("{SUPPORTED}{more}")));
        };
        if family.is_some_and(|other| other != one) {
            let problem = format!("is {kind}, but another kind of model one level up");
            return Err(level.error("model_type", problem));
        }
        family = Some(one);
    }
    family.ok_or_else(|| top.wrong("model_type", "a text"))
}

/// The width of dense blocks, which mixtures need not tell.
fn ffn(text: &Object<'_>, moe: Option<&MoeShape>) -> Result<usize, Error> {
    let key = "intermediate_size";
    match moe {
        Some(moe) if !moe.layers.contains(&false) && text.get(key).is_none() => Ok(0),
        _ => text.size(key, SIZE_MAX),
    }
}

/// Refuses settings that would make another model of the same type.
fn refuse_variants(text: &Object<'_>, family: Family) -> Result<(), Error> {
    let experts = text.count("num_experts", usize::MAX)?.is_some_and(|n| n > 0);
    if experts && family == Family::Qwen35Dense {
        let supported = "experts are supported in models of type qwen3_5_moe and qwen3_next";
        return Err(text.unsupported("num_experts", supported));
    }
    if text.flag("attention_bias")? == Some(true) {
        return Err(text.unsupported("attention_bias", "supported is false"));
    }
    if text.flag("attn_output_gate")? == Some(false) {
        return Err(text.unsupported("attn_output_gate", "supported is true"));
    }
    if !matches!(text.text("hidden_act")?, None | Some("silu")) {
        return Err(text.unsupported("hidden_act", "supported is silu"));
    }
    // It describes DeltaNet's gate silu(z), whatever its name suggests.
    if !matches!(text.text("output_gate_type")?, None | Some("swish" | "silu")) {
        return Err(text.unsupported("output_gate_type", "supported is swish"));
    }
    Ok(())
}

fn attention(text: &Object<'_>) -> Result<AttentionShape, Error> {
    let heads = text.size("num_attention_heads", SIZE_MAX)?;
    let kv_heads = text.size("num_key_value_heads", SIZE_MAX)?;
    // Never derived: the family's head_dim is not hidden_size / num_attention_heads.
    let head_dim = text.size("head_dim", SIZE_MAX)?;
    if !heads.is_multiple_of(kv_heads) {
        let expected = format!("a multiple of num_key_value_heads = {kv_heads}");
        return Err(text.wrong("num_attention_heads", &expected));
    }
    Ok(AttentionShape { heads, kv_heads, head_dim })
}

fn gdn(text: &Object<'_>) -> Result<GdnShape, Error> {
    let conv_kernel = text.size("linear_conv_kernel_dim", SIZE_MAX)?;
    if conv_kernel != CONV_KERNEL {
        let supported = format!("supported is {CONV_KERNEL}");
        return Err(text.unsupported("linear_conv_kernel_dim", supported));
    }
    let shape = GdnShape {
        key_heads: text.size("linear_num_key_heads", SIZE_MAX)?,
        value_heads: text.size("linear_num_value_heads", SIZE_MAX)?,
        key_dim: text.size("linear_key_head_dim", SIZE_MAX)?,
        value_dim: text.size("linear_value_head_dim", SIZE_MAX)?,
        conv_kernel,
    };
    if !shape.value_heads.is_multiple_of(shape.key_heads) {
        let expected = format!("a multiple of linear_num_key_heads = {}", shape.key_heads);
        return Err(text.wrong("linear_num_value_heads", &expected));
    }
    Ok(shape)
}

/// `layer_types` where it stands, else every `full_attention_interval`-th layer is attention.
fn layer_kinds(text: &Object<'_>) -> Result<Vec<LayerKind>, Error> {
    let layers = text.size("num_hidden_layers", LAYERS_MAX)?;
    let Some(types) = text.list("layer_types")? else {
        let interval = text.size("full_attention_interval", LAYERS_MAX)?;
        let kind = |i: usize| match (i + 1).is_multiple_of(interval) {
            true => LayerKind::Attention,
            false => LayerKind::Gdn,
        };
        return Ok((0..layers).map(kind).collect());
    };
    if types.len() != layers {
        let problem = format!("has {} entries for num_hidden_layers = {layers}", types.len());
        return Err(text.error("layer_types", problem));
    }
    let kind = |(i, value): (usize, &serde_json::Value)| match value.as_str() {
        Some("linear_attention") => Ok(LayerKind::Gdn),
        Some("full_attention") => Ok(LayerKind::Attention),
        _ => {
            let problem = format!("has {} for layer {i}", super::error::shown(value));
            let expected = "expected linear_attention or full_attention";
            Err(text.error("layer_types", format!("{problem}, {expected}")))
        }
    };
    types.iter().enumerate().map(kind).collect()
}

/// All stop ids: config.json alone often names the base model's but not the chat's.
fn eos(
    files: &Files,
    top: &Object<'_>,
    text: &Object<'_>,
    vocab: usize,
) -> Result<Vec<u32>, Error> {
    let name = "generation_config.json";
    let (file, value) = (files.path_of(name), json::read(files, name)?);
    let generation = value.as_ref().map(|value| Object::root(&file, value)).transpose()?;
    let mut ids = vec![];
    for object in [Some(top), Some(text), generation.as_ref()].into_iter().flatten() {
        let values = match object.get("eos_token_id") {
            None => continue,
            Some(serde_json::Value::Array(list)) => list.iter().collect(),
            Some(single) => vec![single],
        };
        for value in values {
            let id = value.as_u64().filter(|&id| id < vocab as u64);
            let expected = format!("token ids below vocab_size = {vocab}");
            ids.push(id.ok_or_else(|| object.wrong("eos_token_id", &expected))? as u32);
        }
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

//! The weights of a model, typed as its forward pass reads them.

use super::config::{Family, LayerKind, ModelConfig, MoeShape, NormEncoding};
use super::linear::Linear;
use super::moe::{self, MoeWeights};
use super::reader::Reader;
use super::{Error, Norm, fused};

/// One layer: `h = x + mixer(norm(x)); h + mlp(norm(h))`.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Before the mixer [hidden].
    pub input_norm: Norm,
    /// Mixes positions.
    pub mixer: Mixer,
    /// Before the feed-forward block [hidden].
    pub post_norm: Norm,
    /// Mixes features.
    pub mlp: FeedForward,
}

/// The part of a layer that mixes features.
#[derive(Clone, Debug)]
pub enum FeedForward {
    /// One block for all tokens.
    Dense(Box<Mlp>),
    /// A few blocks of many for each token.
    Experts(Box<MoeWeights>),
}

/// The part of a layer that mixes positions.
#[derive(Clone, Debug)]
pub enum Mixer {
    /// Gated DeltaNet.
    Gdn(Box<GdnWeights>),
    /// Gated full attention.
    Attention(Box<AttentionWeights>),
}

/// Gated DeltaNet; C channels are all queries, all keys, all values.
#[derive(Clone, Debug)]
pub struct GdnWeights {
    /// [C, hidden].
    pub in_qkv: Linear,
    /// [value heads · value dim, hidden].
    pub in_z: Linear,
    /// [value heads, hidden].
    pub in_b: Linear,
    /// [value heads, hidden].
    pub in_a: Linear,
    /// Taps [C, 4]; the last one is for the newest token.
    pub conv: Vec<f32>,
    /// [value heads].
    pub a_log: Vec<f32>,
    /// [value heads].
    pub dt_bias: Vec<f32>,
    /// The gain of the output norm [value dim].
    pub norm: Norm,
    /// [hidden, value heads · value dim].
    pub out: Linear,
}

/// Gated full attention.
#[derive(Clone, Debug)]
pub struct AttentionWeights {
    /// [heads · 2 · head dim, hidden]: of each head first the query, then the gate.
    pub q: Linear,
    /// [kv heads · head dim, hidden].
    pub k: Linear,
    /// [kv heads · head dim, hidden].
    pub v: Linear,
    /// [hidden, heads · head dim].
    pub o: Linear,
    /// [head dim].
    pub q_norm: Norm,
    /// [head dim].
    pub k_norm: Norm,
}

/// `down(silu(gate x) · up x)`.
#[derive(Clone, Debug)]
pub struct Mlp {
    /// [ffn, hidden].
    pub gate: Linear,
    /// [ffn, hidden].
    pub up: Linear,
    /// [hidden, ffn].
    pub down: Linear,
}

/// The head that drafts. It shares the trunk's embedding and output head.
#[derive(Clone, Debug)]
pub struct MtpWeights {
    /// [hidden, 2 · hidden]; its input is the embedding's half, then the hidden's.
    pub fc: Linear,
    /// Of the next token's embedding, before `fc` [hidden].
    pub embedding_norm: Norm,
    /// Of the trunk's hidden, before `fc` [hidden].
    pub hidden_norm: Norm,
    /// After the layers [hidden].
    pub norm: Norm,
    /// At least one; all of the attention kind.
    pub layers: Vec<Layer>,
    /// The files it came from.
    pub source: String,
    /// How its norms were stored; `norm` and the others hold plain gains either way.
    pub encoding: NormEncoding,
}

/// The layer at `path`, such as `layers.0`.
pub(super) fn layer(
    reader: &Reader<'_>,
    config: &ModelConfig,
    path: &str,
    kind: LayerKind,
    experts: Option<&MoeShape>,
) -> Result<Layer, Error> {
    let gain = |name: &str| reader.gain(&format!("{path}.{name}.weight"), config.hidden);
    let mlp = format!("{path}.mlp");
    Ok(Layer {
        input_norm: gain("input_layernorm")?,
        mixer: match kind {
            LayerKind::Gdn => Mixer::Gdn(Box::new(gdn(reader, config, path)?)),
            LayerKind::Attention => Mixer::Attention(Box::new(attention(reader, config, path)?)),
        },
        post_norm: gain("post_attention_layernorm")?,
        mlp: match experts {
            None => FeedForward::Dense(Box::new(dense(reader, &mlp, config.hidden, config.ffn)?)),
            Some(shape) => {
                FeedForward::Experts(Box::new(moe::read(reader, &mlp, config.hidden, shape)?))
            }
        },
    })
}

/// The block [hidden → ffn → hidden] at `path`.
pub(super) fn dense(
    reader: &Reader<'_>,
    path: &str,
    hidden: usize,
    ffn: usize,
) -> Result<Mlp, Error> {
    Ok(Mlp {
        gate: reader.linear(&format!("{path}.gate_proj"), ffn, hidden)?,
        up: reader.linear(&format!("{path}.up_proj"), ffn, hidden)?,
        down: reader.linear(&format!("{path}.down_proj"), hidden, ffn)?,
    })
}

fn gdn(reader: &Reader<'_>, config: &ModelConfig, path: &str) -> Result<GdnWeights, Error> {
    let (shape, hidden) = (&config.gdn, config.hidden);
    let name = |name: &str| format!("{path}.linear_attn.{name}");
    let linear = |part: &str, out, input| reader.linear(&name(part), out, input);
    let fused = reader.has(&name("in_proj_qkvz.weight"))
        || config.family == Family::Qwen3Next && !reader.has(&name("in_proj_qkv.weight"));
    let [in_qkv, in_z, in_b, in_a] = match fused {
        true => fused::read(reader, &name(""), shape, hidden)?,
        false => [
            linear("in_proj_qkv", shape.channels(), hidden)?,
            linear("in_proj_z", shape.values(), hidden)?,
            linear("in_proj_b", shape.value_heads, hidden)?,
            linear("in_proj_a", shape.value_heads, hidden)?,
        ],
    };
    Ok(GdnWeights {
        in_qkv,
        in_z,
        in_b,
        in_a,
        conv: reader.taps(&name("conv1d.weight"), shape.channels(), shape.conv_kernel)?,
        a_log: reader.vector(&name("A_log"), shape.value_heads)?,
        dt_bias: reader.vector(&name("dt_bias"), shape.value_heads)?,
        // Alone among the norms it is stored as a plain gain everywhere.
        norm: reader.vector(&name("norm.weight"), shape.value_dim)?,
        out: linear("out_proj", hidden, shape.values())?,
    })
}

fn attention(
    reader: &Reader<'_>,
    config: &ModelConfig,
    path: &str,
) -> Result<AttentionWeights, Error> {
    let (shape, hidden) = (&config.attention, config.hidden);
    let name = |name: &str| format!("{path}.self_attn.{name}");
    let linear = |part: &str, out, input| reader.linear(&name(part), out, input);
    let (queries, keys) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    Ok(AttentionWeights {
        q: linear("q_proj", 2 * queries, hidden)?,
        k: linear("k_proj", keys, hidden)?,
        v: linear("v_proj", keys, hidden)?,
        o: linear("o_proj", hidden, queries)?,
        q_norm: reader.gain(&name("q_norm.weight"), shape.head_dim)?,
        k_norm: reader.gain(&name("k_norm.weight"), shape.head_dim)?,
    })
}

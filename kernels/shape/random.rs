//! A checkpoint of a full shape with random affine weights: one stretch of noise that all matrices
//! share on the host, each read as it would be from a file.

use crate::checkpoint::{
    AttentionShape, AttentionWeights, Bytes, Checkpoint, Dtype, Family, FeedForward, Format,
    GdnShape, GdnWeights, Layer, LayerKind, Linear, Mixer, Mlp, ModelConfig, MtpConfig, MtpWeights,
    NormEncoding, Quantization, Rope, RopeScaling, Tensor,
};
use half::{bf16, f16};
use rayon::prelude::*;

/// How weights are quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheme {
    /// Of a code: 4 or 8.
    pub bits: usize,
    /// Columns that share a scale: 32, 64 or 128.
    pub group: usize,
    /// Whether scales are fp16, not bf16.
    pub half: bool,
}

impl Scheme {
    /// Bytes of a weight, with its part of scale and bias.
    #[must_use]
    pub fn bytes(&self) -> f64 {
        self.bits as f64 / 8.0 + 4.0 / self.group as f64
    }
}

/// Names of shapes: published ones, and one that a CPU computes in a moment.
pub const PRESETS: [&str; 5] = ["qwen3.6-27b", "qwen3.5-9b", "qwen3.5-4b", "qwen3.5-0.8b", "small"];

/// A shape by its name, with fewer or more layers if so wished.
#[must_use]
pub fn preset(name: &str, layers: Option<usize>) -> Option<ModelConfig> {
    if name == "small" {
        let mut config = preset("qwen3.5-0.8b", Some(layers.unwrap_or(8)))?;
        config.vocab = 16_384;
        return Some(config);
    }
    let (hidden, count, ffn, value_heads, heads, kv_heads, tied) = match name {
        "qwen3.6-27b" => (5120, 64, 17408, 48, 24, 4, false),
        "qwen3.5-9b" => (4096, 32, 12288, 32, 16, 4, false),
        "qwen3.5-4b" => (2560, 32, 9216, 32, 16, 4, true),
        "qwen3.5-0.8b" => (1024, 24, 3584, 16, 8, 2, true),
        _ => return None,
    };
    let kind = |i| if i % 4 == 3 { LayerKind::Attention } else { LayerKind::Gdn };
    Some(ModelConfig {
        family: Family::Qwen35Dense,
        hidden,
        vocab: 248_320,
        ffn,
        layers: (0..layers.unwrap_or(count)).map(kind).collect(),
        attention: AttentionShape { heads, kv_heads, head_dim: 256 },
        gdn: GdnShape { key_heads: 16, value_heads, key_dim: 128, value_dim: 128, conv_kernel: 4 },
        rope: Rope { theta: 1e7, dims: 64, scaling: RopeScaling::Plain },
        norm_eps: 1e-6,
        positions_max: 262_144,
        tied,
        eos: vec![],
        quantization: Quantization::default(),
        mtp: MtpConfig::default(),
        moe: None,
    })
}

/// Noise that all matrices share.
#[derive(Debug)]
pub struct Noise {
    scheme: Scheme,
    words: &'static [u8],
    /// Halves around a fixed scale, and around what makes the codes' middle 0.
    scales: &'static [u8],
    biases: &'static [u8],
}

impl Noise {
    /// Enough for matrices of up to `elements`.
    #[must_use]
    pub fn new(elements: usize, scheme: Scheme) -> Self {
        let mix = |i: usize| {
            let v =
                (i as u64).wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (v ^ v >> 29).wrapping_mul(0x94d0_49bb_1331_11eb)
        };
        let words: Vec<u8> = (0..elements * scheme.bits / 64)
            .into_par_iter()
            .flat_map_iter(|i| mix(i).to_le_bytes())
            .collect();
        let around = |value: f32| -> Vec<u8> {
            let one = |i: usize| {
                let noise = 0.9 + 0.2 * (mix(i) >> 40) as f32 / (1 << 24) as f32;
                match scheme.half {
                    true => f16::from_f32(value * noise).to_bits(),
                    false => bf16::from_f32(value * noise).to_bits(),
                }
            };
            (0..elements / scheme.group)
                .into_par_iter()
                .flat_map_iter(|i| one(i).to_le_bytes())
                .collect()
        };
        // Products with such weights keep the size of x at 5120 columns, about.
        let top = (1 << scheme.bits) as f32 - 1.0;
        let scale = 0.217 / 72.0 * 15.0 / top;
        let leak = |bytes: Vec<u8>| -> &'static [u8] { bytes.leak() };
        let (scales, biases) = (leak(around(scale)), leak(around(-0.5 * top * scale)));
        Self { scheme, words: leak(words), scales, biases }
    }

    pub(super) fn linear(&self, path: &str, out: usize, input: usize) -> Linear {
        let tensor = |dtype: Dtype, cols: usize, bytes: &'static [u8]| {
            let bytes = Bytes::from_static(&bytes[..out * cols * dtype.size()]);
            Tensor::new(path, dtype, &[out, cols], bytes).expect("bytes of that size")
        };
        let Scheme { bits, group, half } = self.scheme;
        let side =
            |bytes| tensor(if half { Dtype::F16 } else { Dtype::BF16 }, input / group, bytes);
        let format = Format::Affine {
            bits,
            group,
            words: tensor(Dtype::U32, input * bits / 32, self.words),
            scales: side(self.scales),
            biases: side(self.biases),
        };
        Linear { path: path.into(), out, input, format }
    }

    /// A layer of a kind.
    #[must_use]
    pub fn layer(&self, c: &ModelConfig, kind: LayerKind) -> Layer {
        let (h, a, g) = (c.hidden, &c.attention, &c.gdn);
        let mixer = match kind {
            LayerKind::Gdn => Mixer::Gdn(Box::new(GdnWeights {
                in_qkv: self.linear("qkv", g.channels(), h),
                in_z: self.linear("z", g.values(), h),
                in_b: self.linear("b", g.value_heads, h),
                in_a: self.linear("a", g.value_heads, h),
                conv: (0..4 * g.channels()).map(|i| 0.1 + (i % 7) as f32 * 0.05).collect(),
                a_log: (0..g.value_heads).map(|i| i as f32 / 40.0 - 0.5).collect(),
                dt_bias: vec![0.5; g.value_heads],
                norm: vec![1.0; g.value_dim],
                out: self.linear("out", h, g.values()),
            })),
            LayerKind::Attention => Mixer::Attention(Box::new(AttentionWeights {
                q: self.linear("q", 2 * a.heads * a.head_dim, h),
                k: self.linear("k", a.kv_heads * a.head_dim, h),
                v: self.linear("v", a.kv_heads * a.head_dim, h),
                o: self.linear("o", h, a.heads * a.head_dim),
                q_norm: vec![1.0; a.head_dim],
                k_norm: vec![1.0; a.head_dim],
            })),
        };
        let mlp = FeedForward::Dense(Box::new(Mlp {
            gate: self.linear("gate", c.ffn, h),
            up: self.linear("up", c.ffn, h),
            down: self.linear("down", h, c.ffn),
        }));
        Layer { input_norm: vec![1.0; h], mixer, post_norm: vec![1.0; h], mlp }
    }

    /// The whole model.
    #[must_use]
    pub fn checkpoint(&self, config: &ModelConfig) -> Checkpoint {
        let (c, h) = (config.clone(), config.hidden);
        let layers: Vec<Layer> = c.layers.iter().map(|&kind| self.layer(&c, kind)).collect();
        let table = self.linear("embed_tokens", c.vocab, h);
        let head = (!c.tied).then(|| table.clone());
        let mtp = MtpWeights {
            fc: self.linear("fc", h, 2 * h),
            embedding_norm: vec![1.0; h],
            hidden_norm: vec![1.0; h],
            norm: vec![1.0; h],
            layers: vec![self.layer(&c, LayerKind::Attention)],
            source: "random".into(),
            encoding: NormEncoding::Absolute,
        };
        Checkpoint {
            config: c,
            embed: table,
            layers,
            norm: vec![1.0; h],
            head,
            mtp: Ok(mtp),
            unused: vec![],
            bytes_total: 0,
            identity: "random".into(),
        }
    }
}

/// Bytes of packed weights that one pass reads, without the embedding.
#[must_use]
pub fn pass_bytes(c: &ModelConfig, scheme: Scheme) -> f64 {
    let (h, a, g) = (c.hidden, &c.attention, &c.gdn);
    let mixer = |kind: &LayerKind| match kind {
        LayerKind::Gdn => h * (g.channels() + 2 * g.values() + 2 * g.value_heads),
        LayerKind::Attention => h * a.head_dim * (3 * a.heads + 2 * a.kv_heads),
    };
    let layers: usize = c.layers.iter().map(|k| mixer(k) + 3 * h * c.ffn).sum();
    (layers + c.vocab * h) as f64 * scheme.bytes()
}

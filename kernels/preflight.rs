//! A checkpoint as the core's preflight sees it: its shape and how its numbers are stored.

use mtplx_core::preflight::{Ffn, GdnHeads, Heads, Precision, Shape};

use crate::checkpoint::{Checkpoint, Format, LayerKind};
use crate::place::Place;

/// The shape of a checkpoint, as far as memory goes.
#[must_use]
pub fn shape(checkpoint: &Checkpoint) -> Shape {
    let c = &checkpoint.config;
    let count = |kind| c.layers.iter().filter(|&&k| k == kind).count();
    let (a, g) = (&c.attention, &c.gdn);
    Shape {
        hidden: c.hidden,
        vocab: c.vocab,
        tied: checkpoint.head.is_none(),
        gdn_layers: count(LayerKind::Gdn),
        attention_layers: count(LayerKind::Attention),
        attention: Heads { queries: a.heads, kv: a.kv_heads, dim: a.head_dim },
        gdn: GdnHeads {
            keys: g.key_heads,
            values: g.value_heads,
            key_dim: g.key_dim,
            value_dim: g.value_dim,
        },
        // Where some layers have experts, all are counted as having them: they are the larger.
        ffn: c.moe.as_ref().map_or(Ffn::Dense(c.ffn), |moe| Ffn::Experts {
            experts: moe.experts,
            active: moe.per_token,
            inner: moe.ffn,
            shared: moe.shared_ffn,
        }),
        mtp: checkpoint.mtp.is_ok(),
    }
}

/// Slots beside those of clients: where the engine sets states aside in the middle of a chunk, it
/// does so in one more. On GPUs a chunk ends where a state is to be kept.
#[must_use]
pub fn spare_slots(place: Place) -> usize {
    usize::from(!matches!(place, Place::Mlx(_)))
}

/// How its numbers are stored, and how wide activations are at `place`.
#[must_use]
pub fn precision(checkpoint: &Checkpoint, place: Place) -> Precision {
    let scheme = checkpoint.config.quantization.default.as_ref();
    let stored = match &checkpoint.embed.format {
        Format::Dense(tensor) => tensor.dtype().size(),
        Format::Affine { scales, .. } => scales.dtype().size(),
    };
    Precision {
        weight_bits: scheme.and_then(|s| s.bits).unwrap_or(8 * stored),
        group: scheme.map_or(0, |s| s.group.unwrap_or(64)),
        float_bytes: if place.dtype() == mlx_rs::Dtype::Float32 { 4 } else { 2 },
        // The host's kernels pack them anew, with scales and biases as wide as activations.
        weights_total: matches!(place, Place::Mlx(_)).then_some(checkpoint.bytes_total as u64),
    }
}

//! How the norms of a group of weights are stored. A wrong guess costs everything: gains of 1 + g
//! write fluent nonsense, and drafts that are never accepted.

use super::config::{LayerKind, ModelConfig, NormEncoding};
use super::reader::wrong;
use super::shards::{Inventory, Stored};
use super::tensor::{Dtype, Tensor};
use super::{Error, mtp};

/// The trunk's encoding. Converters move the convolution's axes when they add 1 to the norms, so
/// the shape of the first convolution tells; every other must have the same.
pub(super) fn of_trunk(inventory: &Inventory, config: &ModelConfig) -> Result<NormEncoding, Error> {
    let Some(first) = config.layers.iter().position(|&kind| kind == LayerKind::Gdn) else {
        return Ok(of_layer(inventory, "layers.0"));
    };
    let (channels, kernel) = (config.gdn.channels(), config.gdn.conv_kernel);
    let Some(stored) = inventory.get(&format!("layers.{first}.linear_attn.conv1d.weight")) else {
        // Whoever reads the layer will say what is missing.
        return Ok(NormEncoding::Absolute);
    };
    if stored.entry.shape == [channels, 1, kernel] {
        Ok(NormEncoding::ZeroCentred)
    } else if stored.entry.shape == [channels, kernel, 1] {
        Ok(NormEncoding::Absolute)
    } else {
        let shapes = format!("[{channels}, {kernel}, 1] or [{channels}, 1, {kernel}]");
        Err(wrong(stored, &shapes))
    }
}

/// The MTP head's encoding: as stated; else as the trunk's where both came as published; else by
/// its contents.
pub(super) fn of_head(
    stated: Option<NormEncoding>,
    place: &mtp::Place<'_>,
    trunk: NormEncoding,
) -> NormEncoding {
    match (stated, place) {
        (Some(stated), _) => stated,
        (None, mtp::Place::Trunk(_)) if trunk == NormEncoding::ZeroCentred => trunk,
        (None, mtp::Place::Trunk(inventory)) => of_layer(inventory, "mtp.layers.0"),
        (None, mtp::Place::Sidecar(inventory)) => {
            of_layer(inventory, &format!("{}layers.0", place.prefix()))
        }
    }
}

/// The encoding by the means of an attention layer's gains. In published models the stored means
/// of the input norm are 0.30 to 0.39 zero-centred and above 0.87 absolute, those of the query and
/// key norms 0.73 to 0.75 and above 1.73; fresh ones are at 0 and 1. Both must look zero-centred.
/// The norms before `fc` are no witnesses: absolute ones were seen at 0.27.
fn of_layer(inventory: &Inventory, layer: &str) -> NormEncoding {
    const INPUT_MEAN_MAX: f32 = 0.5;
    const HEAD_MEAN_MAX: f32 = 1.25;
    let below = |name: &str, max: f32| {
        let stored = inventory.get(&format!("{layer}.{name}.weight"));
        stored.and_then(mean).is_some_and(|mean| mean < max)
    };
    let zero_centred = below("input_layernorm", INPUT_MEAN_MAX)
        && below("self_attn.q_norm", HEAD_MEAN_MAX)
        && below("self_attn.k_norm", HEAD_MEAN_MAX);
    match zero_centred {
        true => NormEncoding::ZeroCentred,
        false => NormEncoding::Absolute,
    }
}

fn mean(stored: &Stored) -> Option<f32> {
    let entry = &stored.entry;
    let dtype = Dtype::named(&entry.dtype).filter(|dtype| dtype.is_float())?;
    let gains = Tensor::new(&entry.name, dtype, &entry.shape, entry.bytes.clone())?.to_f32();
    Some(gains.iter().sum::<f32>() / gains.len() as f32)
}

//! Finds and reads the MTP head. Whatever is wrong with it, the trunk can be served without.
//!
//! The first place that has a head decides; a broken one is reported, not passed over:
//! 1. the file that config.json names (`mlx_lm_extra_tensors.mtp_file`);
//! 2. the usual sidecars, [`SIDECARS`], in that order;
//! 3. the trunk's own shards, under `mtp.`.
//!
//! So a sidecar wins over copies in the trunk: whoever adds one wants it used.

use std::collections::BTreeSet;

use super::config::{LayerKind, ModelConfig, NormEncoding};
use super::error::shown;
use super::reader::Reader;
use super::shards::Inventory;
use super::weights::{self, MtpWeights};
use super::{Error, Files, encoding};

/// Where heads are found beside a trunk.
const SIDECARS: [&str; 5] = [
    "mtp.safetensors",
    "model-mtp-head.safetensors",
    "model-mtp.safetensors",
    "mtp/weights.safetensors",
    "mtp/model.safetensors",
];

pub(super) const PREFIX: &str = "mtp.";

/// The files that are not part of the trunk, by config and by custom.
pub(super) fn sidecars(config: &ModelConfig) -> Vec<&str> {
    config.mtp.file.iter().map(String::as_str).chain(SIDECARS).collect()
}

/// Where a head was found.
#[derive(Debug)]
pub(super) enum Place<'a> {
    Trunk(&'a Inventory),
    Sidecar(Inventory),
}

impl Place<'_> {
    pub(super) fn inventory(&self) -> &Inventory {
        match self {
            Self::Trunk(inventory) => inventory,
            Self::Sidecar(inventory) => inventory,
        }
    }

    /// What stands before the head's names: nothing in the files of repositories that hold only a
    /// head.
    pub(super) fn prefix(&self) -> &'static str {
        match self {
            Self::Trunk(_) => PREFIX,
            Self::Sidecar(own) if own.iter().any(|(name, _)| name.starts_with(PREFIX)) => PREFIX,
            Self::Sidecar(_) => "",
        }
    }

    fn source(&self) -> String {
        let files = self.inventory().files.iter().map(String::as_str);
        files.collect::<Vec<_>>().join(", ")
    }
}

/// Why there is no head.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoHead {
    /// Nothing of one is there.
    #[error("{0}")]
    Absent(String),
    /// There is one, or what its files say of it, that cannot be used.
    #[error("{0}")]
    Unusable(Error),
}

/// The head's weights, the place they came from and the names read there; or why there is none.
pub(super) fn read<'a>(
    files: &Files,
    config: &ModelConfig,
    trunk: &'a Inventory,
    trunk_encoding: NormEncoding,
) -> Result<(MtpWeights, Place<'a>, BTreeSet<String>), NoHead> {
    let place = find(files, config, trunk).map_err(NoHead::Unusable)?;
    let place = place.ok_or_else(|| NoHead::Absent(absent(config)))?;
    if let Some(refusal) = &config.mtp.refusal {
        return Err(NoHead::Unusable(refusal.clone()));
    }
    let encoding = encoding::of_head(config.mtp.encoding, &place, trunk_encoding);
    let (weights, taken) = weights(config, &place, encoding).map_err(NoHead::Unusable)?;
    Ok((weights, place, taken))
}

pub(super) fn find<'a>(
    files: &Files,
    config: &ModelConfig,
    trunk: &'a Inventory,
) -> Result<Option<Place<'a>>, Error> {
    let has_head = trunk.iter().any(|(name, _)| name.starts_with(PREFIX));
    for name in sidecars(config) {
        // An index may list the sidecar among the shards; then it is read already.
        match trunk.files.contains(name) {
            true if has_head => break,
            true => continue,
            false => {}
        }
        if let Some(inventory) = Inventory::of_file(files, name)? {
            return Ok(Some(Place::Sidecar(inventory)));
        }
        if config.mtp.file.as_deref() == Some(name) {
            let problem = "is named by config.json as the MTP head's file but does not exist";
            let mend = "fetch it, or remove mlx_lm_extra_tensors from config.json";
            return Err(Error::file(&files.path_of(name), problem, mend));
        }
    }
    Ok(has_head.then_some(Place::Trunk(trunk)))
}

fn absent(config: &ModelConfig) -> String {
    let stated = match config.mtp.layers {
        Some(layers) => format!("config.json speaks of {layers} MTP layers"),
        None => "config.json speaks of no MTP layers".to_owned(),
    };
    format!(
        "there are no mtp.* tensors ({stated}); many converters drop them: take them from the \
         original checkpoint and put them beside this one as {}",
        SIDECARS[0]
    )
}

fn weights(
    config: &ModelConfig,
    place: &Place<'_>,
    encoding: NormEncoding,
) -> Result<(MtpWeights, BTreeSet<String>), Error> {
    let reader = Reader::of_head(place.inventory(), place.prefix(), encoding);
    let hidden = config.hidden;
    let gain = |name: &str| reader.gain(&format!("{name}.weight"), hidden);
    let layer = |i: usize| {
        let path = format!("layers.{i}");
        // config.json is silent on the head's kind: its tensors tell.
        let routed = reader.has(&format!("{path}.mlp.gate.weight"));
        let unlike = match (&config.moe, routed) {
            (None, true) => "has a router, but config.json says nothing of experts",
            (Some(_), false) if config.ffn == 0 => {
                "has no router, but config.json has no intermediate_size"
            }
            (moe, routed) => {
                let experts = moe.as_ref().filter(|_| routed);
                return weights::layer(&reader, config, &path, LayerKind::Attention, experts);
            }
        };
        Err(Error::file(&place.source(), unlike, "use a head that was made for this trunk"))
    };
    let weights = MtpWeights {
        fc: reader.linear("fc", hidden, 2 * hidden)?,
        embedding_norm: gain("pre_fc_norm_embedding")?,
        hidden_norm: gain("pre_fc_norm_hidden")?,
        norm: gain("norm")?,
        layers: (0..layer_count(place)?).map(layer).collect::<Result<_, _>>()?,
        source: place.source(),
        encoding,
    };
    Ok((weights, reader.into_taken()))
}

/// One more than the highest layer that has a tensor, at least one. Config's count is not asked:
/// it has many names and is often wrong.
fn layer_count(place: &Place<'_>) -> Result<usize, Error> {
    let layers = format!("{}layers.", place.prefix());
    let numbers: BTreeSet<&str> = place
        .inventory()
        .iter()
        .filter_map(|(name, _)| name.strip_prefix(&layers)?.split_once('.'))
        .map(|(number, _)| number)
        .collect();
    let count = numbers.len().max(1);
    let known: BTreeSet<String> = (0..count).map(|i| i.to_string()).collect();
    match numbers.into_iter().find(|&number| !known.contains(number)) {
        None => Ok(count),
        Some(stray) => {
            let problem = format!("has an MTP layer {} but only {count} in all", shown(stray));
            Err(Error::file(&place.source(), problem, "use a head whose layers count from 0"))
        }
    }
}

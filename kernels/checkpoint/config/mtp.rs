//! What the files say about the MTP head. Nothing here can stop the trunk from being served.

use crate::checkpoint::json::{self, Object};
use crate::checkpoint::{Error, Files};

/// How a file stores the gains of its RMS norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormEncoding {
    /// As gain − 1, the way models are trained and published.
    ZeroCentred,
    /// As the gain itself, the way MLX converts them.
    Absolute,
}

/// What the files say about the MTP head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MtpConfig {
    /// How many layers it is said to have; the tensors decide.
    pub layers: Option<usize>,
    /// The deepest draft its maker recommends.
    pub depth_max: Option<usize>,
    /// The file it is said to stand in.
    pub file: Option<String>,
    /// How its norms are said to be stored.
    pub encoding: Option<NormEncoding>,
    /// Why it cannot be used, whatever its tensors are.
    pub refusal: Option<Error>,
}

/// Names of the same count in files of different origin.
const LAYER_KEYS: [&str; 5] = [
    "mtp_num_hidden_layers",
    "num_nextn_predict_layers",
    "nextn_predict_layers",
    "n_predict",
    "num_mtp_modules",
];
const COUNT_MAX: usize = 1 << 20;

pub(super) fn read(files: &Files, top: &Object<'_>, text: &Object<'_>) -> MtpConfig {
    let mut config = MtpConfig::default();
    let read = from_config(&mut config, top, text).and_then(|()| from_contract(&mut config, files));
    if let Err(error) = read {
        config.refusal = Some(error);
    }
    config
}

fn from_config(config: &mut MtpConfig, top: &Object<'_>, text: &Object<'_>) -> Result<(), Error> {
    if let Some(extra) = top.object("mlx_lm_extra_tensors")? {
        config.file = extra.text("mtp_file")?.map(str::to_owned);
    }
    for level in [text, top] {
        for key in LAYER_KEYS {
            config.layers = config.layers.or(level.count(key, COUNT_MAX)?);
        }
        if level.flag("mtp_use_dedicated_embeddings")? == Some(true) {
            return Err(level.unsupported("mtp_use_dedicated_embeddings", "supported is false"));
        }
    }
    let quantization = top.object("mtplx_mtp_quantization")?;
    let stated = [
        (Some(top), "mtplx_mtp_norm_encoding"),
        (Some(top), "mtp_norm_encoding"),
        (quantization.as_ref(), "norm_encoding"),
        (quantization.as_ref(), "norm_weight_encoding"),
    ];
    for (object, key) in stated {
        let Some(object) = object else { continue };
        let encoding = match object.text(key)? {
            None => continue,
            Some("absolute") => NormEncoding::Absolute,
            Some("delta" | "delta_plus_one" | "mlx_delta") => NormEncoding::ZeroCentred,
            Some(_) => return Err(object.unsupported(key, "supported are absolute and delta")),
        };
        if config.encoding.is_some_and(|other| other != encoding) {
            return Err(object.error(key, "contradicts another statement of the same file"));
        }
        config.encoding = Some(encoding);
    }
    match top.object("mtplx_mtp_contract")? {
        Some(contract) => check_contract(&contract),
        None => Ok(()),
    }
}

fn from_contract(config: &mut MtpConfig, files: &Files) -> Result<(), Error> {
    let name = "mtplx_runtime.json";
    let file = files.path_of(name);
    let Some(value) = json::read(files, name)? else { return Ok(()) };
    let runtime = Object::root(&file, &value)?;
    config.depth_max = runtime.count("mtp_depth_max", COUNT_MAX)?;
    match runtime.object("mtp_contract")? {
        Some(contract) => check_contract(&contract),
        None => Ok(()),
    }
}

/// The head is run in one way only: on the trunk's normalised hidden, embedding half first, and
/// upon its own normalised hidden from the second draft on.
fn check_contract(contract: &Object<'_>) -> Result<(), Error> {
    for (key, supported) in [
        ("base_hidden_variant", "post_norm"),
        ("hidden_variant", "post_norm"),
        ("concat_order", "embedding_hidden"),
    ] {
        if contract.text(key)?.is_some_and(|value| value != supported) {
            return Err(contract.unsupported(key, format!("supported is {supported}")));
        }
    }
    // Rotary positions count by difference, so any common offset will do; starting anew in every
    // cycle is something else.
    if !matches!(contract.text("mtp_position_mode")?, None | Some("cache" | "absolute")) {
        return Err(contract.unsupported("mtp_position_mode", "supported is cache"));
    }
    Ok(())
}

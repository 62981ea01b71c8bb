//! The quantisation block: defaults, and what single modules do otherwise.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::checkpoint::Error;
use crate::checkpoint::json::Object;
use crate::checkpoint::names;

/// Bits per element that the affine format has.
pub(in crate::checkpoint) const BITS: [usize; 6] = [2, 3, 4, 5, 6, 8];
/// Elements per scale that the affine format has.
pub(in crate::checkpoint) const GROUPS: [usize; 3] = [32, 64, 128];

/// What config.json says of quantised modules. A module is quantised if it has scales, and its
/// shapes say how; this is held against them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quantization {
    /// How modules without an entry of their own are quantised.
    pub default: Option<Scheme>,
    /// Modules with an entry of their own, by inner name.
    pub overrides: BTreeMap<String, Override>,
}

/// What config.json says of one module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Override {
    /// Not quantised.
    Dense,
    /// Quantised in its own way.
    Quantized(Scheme),
}

/// Parameters of a quantised module; what is not said is taken from the shapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scheme {
    /// Bits per element.
    pub bits: Option<usize>,
    /// Elements per scale.
    pub group: Option<usize>,
    /// The kind of code; only `affine` can be run.
    pub mode: String,
}

impl Quantization {
    /// What is said of the module `path`: `Some(None)` that it is dense, `None` nothing.
    pub(in crate::checkpoint) fn of(&self, path: &str) -> Option<Option<&Scheme>> {
        match self.overrides.get(path) {
            Some(Override::Dense) => Some(None),
            Some(Override::Quantized(scheme)) => Some(Some(scheme)),
            None => self.default.as_ref().map(Some),
        }
    }
}

/// The block of MLX checkpoints; another program's `quantization_config` is refused.
pub(super) fn read(top: &Object<'_>, text: &Object<'_>) -> Result<Quantization, Error> {
    for (level, key) in [top, text]
        .into_iter()
        .flat_map(|level| [(level, "quantization"), (level, "quantization_config")])
    {
        let Some(block) = level.object(key)? else { continue };
        if block.get("quant_method").is_some() {
            let supported = "supported is MLX's affine format, as mlx_lm.convert -q makes it";
            return Err(block.unsupported("quant_method", supported));
        }
        return from_block(&block);
    }
    Ok(Quantization::default())
}

fn from_block(block: &Object<'_>) -> Result<Quantization, Error> {
    let default = scheme(block)?;
    if default.mode != "affine" {
        return Err(block.unsupported("mode", "supported is affine"));
    }
    if default.bits.is_some_and(|bits| !BITS.contains(&bits)) {
        return Err(block.unsupported("bits", format!("supported are {BITS:?}")));
    }
    if default.group.is_some_and(|group| !GROUPS.contains(&group)) {
        return Err(block.unsupported("group_size", format!("supported are {GROUPS:?}")));
    }
    let mut overrides = BTreeMap::new();
    for (key, value) in block.members() {
        let entry = match value {
            Value::Bool(false) => Override::Dense,
            Value::Bool(true) => Override::Quantized(default.clone()),
            Value::Object(_) => match block.object(key)? {
                Some(object) => Override::Quantized(scheme(&object)?),
                None => continue,
            },
            // Settings of the block itself, known or not.
            Value::Null | Value::Number(_) | Value::String(_) | Value::Array(_) => continue,
        };
        // Entries for what is not read, such as the vision tower, are nobody's business.
        let Some(path) = names::inner(key) else { continue };
        if overrides.insert(path.to_owned(), entry.clone()).is_some_and(|other| other != entry) {
            let problem = format!("differs from another entry for the module {path}");
            return Err(block.error(key, problem));
        }
    }
    Ok(Quantization { default: Some(default), overrides })
}

fn scheme(object: &Object<'_>) -> Result<Scheme, Error> {
    Ok(Scheme {
        bits: object.count("bits", 64)?,
        group: object.count("group_size", 1 << 20)?,
        mode: object.text("mode")?.unwrap_or("affine").to_owned(),
    })
}

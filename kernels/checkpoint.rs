//! Reads a checkpoint: from a folder, or from the binary, to typed and checked weights.
//!
//! Nothing in a file is trusted. What the trunk cannot be built from is an [`Error`] that names
//! the culprit; an MTP head that is absent or unusable is a reason, and the model serves without.
//! Elements stay in the file's own form, mapped, until an engine asks for them; only vectors and
//! the convolution's taps are turned into f32 here, norms always into plain gains.

mod audit;
mod config;
mod convert;
mod encoding;
mod error;
mod files;
mod fused;
mod header;
mod json;
mod linear;
mod moe;
mod mtp;
mod names;
mod reader;
mod requantize;
mod shards;
mod survey;
mod tensor;
#[cfg(test)]
mod tests;
mod weights;

pub use config::{
    AttentionShape, Family, GdnShape, LayerKind, ModelConfig, MoeShape, MtpConfig, NormEncoding,
    Override, Quantization, Rope, RopeScaling, Scheme, Yarn,
};
pub use convert::{Conversion, Failure, Recipe};
pub use error::Error;
pub use files::{Bytes, Files};
pub use linear::{Format, Linear};
pub use moe::MoeWeights;
pub use mtp::NoHead;
pub use survey::{Head, Survey};
pub use tensor::{Dtype, Tensor};
pub use weights::{AttentionWeights, FeedForward, GdnWeights, Layer, Mixer, Mlp, MtpWeights};

use std::collections::BTreeSet;

use audit::Audit;
use mtp::Place;
use reader::Reader;
use shards::Inventory;

/// The gains of an RMS norm, as they are multiplied.
pub type Norm = Vec<f32>;

/// A model ready to be handed to an engine.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Shapes and settings.
    pub config: ModelConfig,
    /// [vocab, hidden].
    pub embed: Linear,
    /// The trunk, first to last.
    pub layers: Vec<Layer>,
    /// After the last layer [hidden].
    pub norm: Norm,
    /// [vocab, hidden]; `None` where the embedding serves (see [`Self::output_head`]).
    pub head: Option<Linear>,
    /// The head that drafts, or why there is none.
    pub mtp: Result<MtpWeights, String>,
    /// Tensors that nobody asked for, as their files name them, vision left out: worth a warning.
    pub unused: Vec<String>,
    /// The size of all tensors read, trunk and head.
    pub bytes_total: usize,
    /// 32 hexadecimal digits that tell this checkpoint from others.
    pub identity: String,
}

/// A checkpoint, and what its files were.
#[derive(Debug)]
struct Read {
    checkpoint: Checkpoint,
    no_head: Option<NoHead>,
    /// The files that tensors stand in.
    files: BTreeSet<String>,
    /// The tensors of the trunk's files that were read, by inner name.
    taken: BTreeSet<String>,
    /// Those of the head's own file.
    taken_apart: BTreeSet<String>,
}

impl Checkpoint {
    /// Reads the checkpoint in `files`.
    ///
    /// # Errors
    /// The configuration or the trunk cannot be used; the text names the file, setting or tensor
    /// and says how to mend it.
    pub fn load(files: &Files) -> Result<Self, Error> {
        Ok(Self::read(files)?.checkpoint)
    }

    /// The same, and what the files were besides.
    fn read(files: &Files) -> Result<Read, Error> {
        let (mut config, tied) = config::read(files)?;
        let trunk = Inventory::of_trunk(files, &mtp::sidecars(&config))?;
        let has_head = || trunk.iter().any(|(name, _)| name.starts_with("lm_head."));
        config.tied = tied.unwrap_or_else(|| !has_head());
        let encoding = encoding::of_trunk(&trunk, &config)?;
        let reader = Reader::of_trunk(&trunk, &config.quantization, encoding);

        let (vocab, hidden) = (config.vocab, config.hidden);
        let embed = reader.linear("embed_tokens", vocab, hidden)?;
        let layer = |(i, &kind): (usize, &LayerKind)| {
            let experts = config.moe.as_ref().filter(|moe| moe.layers[i]);
            weights::layer(&reader, &config, &format!("layers.{i}"), kind, experts)
        };
        let layers = config.layers.iter().enumerate().map(layer).collect::<Result<_, _>>()?;
        let norm = reader.gain("norm.weight", hidden)?;
        let head = match config.tied {
            true => None,
            false => Some(reader.linear("lm_head", vocab, hidden)?),
        };

        let mut audit = Audit::new();
        let mut taken = reader.into_taken();
        let mut names_read = trunk.files.clone();
        let (mut no_head, mut taken_apart) = (None, BTreeSet::new());
        let mtp = match mtp::read(files, &config, &trunk, encoding) {
            Ok((mtp, Place::Trunk(_), names)) => {
                taken.extend(names);
                Ok(mtp)
            }
            Ok((mtp, Place::Sidecar(sidecar), names)) => {
                audit.add(&sidecar, &names);
                names_read.extend(sidecar.files);
                taken_apart = names;
                Ok(mtp)
            }
            Err(reason) => {
                let text = reason.to_string();
                no_head = Some(reason);
                Err(text)
            }
        };
        audit.add(&trunk, &taken);
        if let Some(content) = files.open("config.json")? {
            audit.add_file(&content);
        }
        let (identity, bytes_total, unused) = (audit.identity(), audit.bytes_total, audit.unused);
        let checkpoint =
            Self { config, embed, layers, norm, head, mtp, unused, bytes_total, identity };
        Ok(Read { checkpoint, no_head, files: names_read, taken, taken_apart })
    }

    /// The matrix that turns hiddens into logits [vocab, hidden].
    #[must_use]
    pub fn output_head(&self) -> &Linear {
        self.head.as_ref().unwrap_or(&self.embed)
    }
}

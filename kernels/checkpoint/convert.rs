//! Writes a checkpoint anew, in the layout that MLX and this server read: MLX's names, norms as
//! plain gains, experts stacked, matrices as affine codes where that is wanted, the MTP head in a
//! file of its own.
//!
//! It is planned by headers alone, so that the size is known before a byte is written; then
//! matrices pass through in pieces of some rows, so that memory does not grow with the model.

mod codes;
mod layout;
mod modules;
mod settings;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::config::Family;
use super::mtp::{self, NoHead, Place};
use super::shards::{INDEX, Inventory};
use super::tensor::{Dtype, Tensor};
use super::{Checkpoint, Error, Files, encoding, json};
use layout::Shard;
use modules::{Group, Module};

/// Of the numbers of one piece, as they stand in the source.
const PIECE_BYTES: usize = 32 << 20;

/// The file of the MTP head.
const HEAD: &str = "mtp.safetensors";

/// How a checkpoint is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// Bits of the trunk's codes; `None` leaves its matrices as numbers.
    pub bits: Option<usize>,
    /// Bits of the head's.
    pub head_bits: Option<usize>,
    /// Columns that share a scale: 32, 64 or 128.
    pub group: usize,
    /// The type of what stays numbers, scales included; that of config.json without it.
    pub dtype: Option<Dtype>,
    /// A shard that would be larger is the last but one; a larger matrix has one for itself.
    pub shard_bytes_max: u64,
}

impl Default for Recipe {
    fn default() -> Self {
        Self { bits: None, head_bits: None, group: 64, dtype: None, shard_bytes_max: 5 << 30 }
    }
}

/// A checkpoint that can be written, and what that takes.
#[derive(Debug)]
pub struct Conversion {
    /// Which architecture it is.
    pub family: Family,
    /// Why there is no MTP head; `None` where there is one.
    pub headless: Option<String>,
    /// Matrices that stay numbers although codes were asked for: no whole groups fit their rows.
    pub uncoded: Vec<String>,
    /// Tensors of the source that nobody reads: they are left behind, as those for images are.
    pub unused: Vec<String>,
    /// The size of the source's tensors.
    pub bytes_read: u64,
    config: String,
    index: String,
    shards: Vec<Shard>,
}

/// Why a conversion ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The source cannot be converted.
    #[error(transparent)]
    Source(#[from] Error),
    /// What was made cannot be written.
    #[error("cannot write {file}: {error}")]
    Write {
        /// Its name in the new folder.
        file: String,
        /// What the system said.
        error: io::Error,
    },
    /// MLX could not make codes.
    #[error("cannot quantise {tensor}: {problem}")]
    Codes {
        /// The matrix, by its new name.
        tensor: String,
        /// What MLX said.
        problem: String,
    },
    /// Whoever is told how far it is wanted no more of it.
    #[error("stopped")]
    Stopped,
}

impl Conversion {
    /// Plans the conversion of `files`, of which configuration, headers and vectors are read.
    ///
    /// # Errors
    /// They are no checkpoint that could be served, or one that is quantised already.
    pub fn plan(files: &Files, recipe: &Recipe) -> Result<Self, Error> {
        let read = Checkpoint::read(files)?;
        let checkpoint = read.checkpoint;
        let headless = match (read.no_head, checkpoint.mtp) {
            (Some(NoHead::Unusable(error)), _) => return Err(error),
            (Some(absent @ NoHead::Absent(_)), _) => Some(absent.to_string()),
            (None, mtp) => mtp.err(),
        };
        let config = checkpoint.config;
        let trunk = Inventory::of_trunk(files, &mtp::sidecars(&config))?;
        let trunk_encoding = encoding::of_trunk(&trunk, &config)?;
        let dtype = recipe.dtype.or_else(|| settings::dtype(files));
        let recipe = Recipe { dtype, ..recipe.clone() };
        let group = Group::of_trunk(&recipe, config.family, trunk_encoding);
        let of_trunk = |name: &str| read.taken.contains(name) && !name.starts_with(mtp::PREFIX);
        let modules = group.modules(&trunk, of_trunk)?;
        let mut shards = layout::shards(modules, recipe.shard_bytes_max);
        let index = layout::index(&shards);
        if headless.is_none()
            && let Some(place) = mtp::find(files, &config, &trunk)?
        {
            let encoding = encoding::of_head(config.mtp.encoding, &place, trunk_encoding);
            let group = Group::of_head(&recipe, place.prefix(), encoding);
            let of_head = |name: &str| match &place {
                Place::Trunk(_) => read.taken.contains(name) && name.starts_with(mtp::PREFIX),
                Place::Sidecar(_) => read.taken_apart.contains(name),
            };
            let head = group.modules(place.inventory(), of_head)?;
            shards.push(Shard::new(HEAD.to_owned(), head));
        }
        let uncoded = shards.iter().flat_map(|shard| shard.uncoded(&recipe)).collect();
        let overrides = settings::overrides(&shards, &recipe);
        let has_head = headless.is_none();
        let config_text = match json::read(files, "config.json")? {
            Some(value) => settings::write(value, &recipe, (config.tied, has_head), overrides),
            None => String::new(),
        };
        Ok(Self {
            family: config.family,
            headless,
            uncoded,
            unused: checkpoint.unused,
            bytes_read: checkpoint.bytes_total as u64,
            config: config_text,
            index,
            shards,
        })
    }

    /// The size of all files that [`Self::write`] writes.
    #[must_use]
    pub fn bytes_total(&self) -> u64 {
        let texts = (self.config.len() + self.index.len()) as u64;
        texts + self.shards.iter().map(Shard::bytes_total).sum::<u64>()
    }

    /// The names of the files with weights.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.shards.iter().map(|shard| shard.name.as_str())
    }

    /// The tensors that they will hold.
    #[must_use]
    pub fn tensors(&self) -> usize {
        self.shards.iter().map(Shard::tensors).sum()
    }

    /// Writes the files into `folder`. `told` hears of every stretch of bytes that was written, and
    /// says whether to go on.
    ///
    /// # Errors
    /// Numbers are not finite, the disk is full, or `told` wanted no more.
    pub fn write(&self, folder: &Path, told: &mut dyn FnMut(u64) -> bool) -> Result<(), Failure> {
        for shard in &self.shards {
            let failed = |error| Failure::Write { file: shard.name.clone(), error };
            let file = File::create_new(folder.join(&shard.name)).map_err(failed)?;
            file.write_all_at(&shard.header, 0).map_err(failed)?;
            if !told(shard.header.len() as u64) {
                return Err(Failure::Stopped);
            }
            for (module, places) in shard.modules() {
                write_module(&file, &shard.name, module, places, told)?;
            }
            file.sync_all().map_err(failed)?;
        }
        for (name, text) in [("config.json", &self.config), (INDEX, &self.index)] {
            let failed = |error| Failure::Write { file: name.to_owned(), error };
            let path = folder.join(name);
            let written = std::fs::write(&path, text).and_then(|()| File::open(&path)?.sync_all());
            written.map_err(failed)?;
            told(text.len() as u64);
        }
        Ok(())
    }
}

/// Writes each of the module's tensors from its place on, piece by piece.
fn write_module(
    file: &File,
    name: &str,
    module: &Module,
    places: &[u64],
    told: &mut dyn FnMut(u64) -> bool,
) -> Result<(), Failure> {
    let mut places = places.to_vec();
    for piece in module.pieces(PIECE_BYTES) {
        let numbers = module.numbers(&piece)?;
        let coded;
        let parts: Vec<&[u8]> = match module.scheme {
            None => vec![numbers.bytes()],
            Some(scheme) => {
                coded = codes::of(&numbers, scheme).map_err(|error| Failure::Codes {
                    tensor: module.name.clone(),
                    problem: error.to_string(),
                })?;
                coded.iter().map(Vec::as_slice).collect()
            }
        };
        for (part, place) in parts.into_iter().zip(&mut places) {
            let failed = |error| Failure::Write { file: name.to_owned(), error };
            file.write_all_at(part, *place).map_err(failed)?;
            *place += part.len() as u64;
            if !told(part.len() as u64) {
                return Err(Failure::Stopped);
            }
        }
    }
    Ok(())
}

/// The error that a tensor's numbers do not fit `dtype`, or are none.
fn not_finite(source: &Tensor, row: usize, dtype: Dtype) -> Error {
    let mend = match (source.not_finite(), dtype) {
        (None, Dtype::F16) => "its numbers are too large for f16: choose bf16",
        _ => super::error::DOWNLOAD,
    };
    Error::Tensor {
        tensor: super::error::shown(source.name()),
        found: format!("has a number in row {row} that is not finite as {dtype}"),
        expected: "finite numbers".to_owned(),
        mend: mend.to_owned(),
    }
}

//! What a checkpoint is, by its configuration and the headers of its weights alone: found by the
//! very code that loads it, on files whose elements are not there.

use super::{Checkpoint, Error, Files, ModelConfig, NoHead};

/// A checkpoint that could be loaded: everything but the elements was looked at.
#[derive(Clone, Debug)]
pub struct Survey {
    /// Shapes and settings.
    pub config: ModelConfig,
    /// The head that drafts, or why there is none.
    pub mtp: Result<Head, NoHead>,
    /// The size of all tensors that would be read.
    pub bytes_total: usize,
    /// Tensors that nobody would read, vision left out.
    pub unused: Vec<String>,
    /// The safetensors files that the others stand in, sorted.
    pub files: Vec<String>,
}

/// An MTP head that fits its trunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The files that it stands in.
    pub source: String,
    /// Its layers.
    pub layers: usize,
}

impl Checkpoint {
    /// What [`Self::load`] would make of `files`. Of [`Files::headers`] no element is read, and so
    /// none is found to be no number.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn survey(files: &Files) -> Result<Survey, Error> {
        let read = Self::read(files)?;
        let Self { config, mtp, bytes_total, unused, .. } = read.checkpoint;
        let mtp = match (read.no_head, mtp) {
            (None, Ok(mtp)) => Ok(Head { source: mtp.source, layers: mtp.layers.len() }),
            (Some(reason), _) => Err(reason),
            (None, Err(reason)) => Err(NoHead::Absent(reason)),
        };
        let files = read.files.into_iter().collect();
        Ok(Survey { config, mtp, bytes_total, unused, files })
    }
}

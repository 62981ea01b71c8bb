//! What of a request is not honoured: fields that nobody here knows are refused, or left out and
//! told to the client in a header, as are hints that change nothing.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::openai::ApiError;
use super::openai::tools::hosted;

/// Bytes of names that are told: many clients take no longer line of a head than 8 KiB.
const NAMES_BYTES_MAX: usize = 4000;
/// Longest name that is told.
const NAME_CHARS_MAX: usize = 200;

/// What becomes of a field that is not known here.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownFields {
    /// The request is refused with its name.
    #[default]
    Refuse,
    /// It is left out, and named in the header `x-mtplx-warning`.
    Warn,
}

/// What of one request is not honoured.
#[derive(Debug, Default)]
pub(crate) struct Ignored {
    policy: UnknownFields,
    /// By their paths without indices, as hashes: a body may hold a million.
    seen: HashSet<blake3::Hash>,
    bytes: usize,
    names: Vec<String>,
}

impl Ignored {
    pub(crate) fn new(policy: UnknownFields) -> Self {
        Self { policy, ..Self::default() }
    }

    /// A known one whose silence does no harm: it asks for less or faster work, or what is so
    /// anyway.
    pub(crate) fn hint(&mut self, name: impl Into<String>) {
        let name: String = name.into();
        // A long history says the same at each of its messages: the first place speaks for all.
        if !self.seen.insert(blake3::hash(erased(&name).as_bytes())) {
            return;
        }
        let name: String = name.chars().take(NAME_CHARS_MAX).collect();
        // As long as it will stand in the header.
        let length = name.escape_default().count();
        if self.bytes + length <= NAMES_BYTES_MAX {
            self.bytes += length + 2;
            self.names.push(name);
        }
    }

    /// One that nobody knows, by its path in the body.
    pub(crate) fn field(&mut self, path: String) -> Result<(), ApiError> {
        if !self.leaves_out() {
            return Err(ApiError::unknown(path));
        }
        self.hint(path);
        Ok(())
    }

    /// What of an object is left: all of it unknown.
    pub(crate) fn rest<'a>(
        &mut self,
        keys: impl Iterator<Item = &'a String>,
        path: &str,
    ) -> Result<(), ApiError> {
        keys.into_iter().try_for_each(|key| self.field(format!("{path}.{key}")))
    }

    /// A tool that would have to run here.
    pub(crate) fn tool(&mut self, path: &str, kind: &str) -> Result<(), ApiError> {
        if !self.leaves_out() {
            return Err(hosted(path, kind));
        }
        self.hint(format!("{path} {kind}"));
        Ok(())
    }

    fn leaves_out(&self) -> bool {
        self.policy == UnknownFields::Warn
    }

    /// Those that are told, and how many there are besides.
    pub(crate) fn into_names(mut self) -> Vec<String> {
        let more = self.seen.len() - self.names.len();
        if more > 0 {
            self.names.push(format!("... and {more} more"));
        }
        self.names
    }
}

/// A path without its indices: `messages[].colour`.
fn erased(path: &str) -> String {
    let mut within = false;
    path.chars()
        .filter(|c| {
            within = *c == '[' || within && c.is_ascii_digit();
            !(within && c.is_ascii_digit())
        })
        .collect()
}

/// A path as clients write it: `messages[0].colour`.
pub(crate) fn shown(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", shown(parent)),
        Path::Map { parent, key } => match shown(parent) {
            parent if parent.is_empty() => key.clone(),
            parent => format!("{parent}.{key}"),
        },
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => shown(parent),
    }
}

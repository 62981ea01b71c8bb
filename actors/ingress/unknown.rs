//! What of a request is not honoured: fields that nobody here knows are refused, or left out and
//! told to the client in a header, as are hints that change nothing.

use serde::{Deserialize, Serialize};

use super::openai::ApiError;
use super::openai::tools::hosted;

/// More unknown fields than this are no oversight.
const UNKNOWN_MAX: usize = 64;
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
    unknown: usize,
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
        self.names.push(name.chars().take(NAME_CHARS_MAX).collect());
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

    fn leaves_out(&mut self) -> bool {
        self.unknown += 1;
        self.policy == UnknownFields::Warn && self.unknown <= UNKNOWN_MAX
    }

    pub(crate) fn into_names(self) -> Vec<String> {
        self.names
    }
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

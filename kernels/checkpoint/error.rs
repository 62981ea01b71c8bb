//! What can be wrong with a checkpoint.

use std::fmt::Display;

/// What is wrong, where, and how to mend it. Its text is meant for the person who started the
/// server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A file or folder that is missing, unreadable, cut short or malformed.
    #[error("{file}: {problem}; {mend}")]
    File {
        /// Its path.
        file: String,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        mend: String,
    },
    /// A setting that is missing or makes no sense.
    #[error("{file}: {key} {problem}; {mend}")]
    Config {
        /// The file the setting stands in, or should.
        file: String,
        /// Its path inside the file, with dots.
        key: String,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        mend: String,
    },
    /// A tensor that is missing or has another shape, type or content than the model needs.
    #[error("tensor {tensor} {found}, expected {expected}; {mend}")]
    Tensor {
        /// Its name: as in the file, or as the model calls it when there is none.
        tensor: String,
        /// What was found: file, type and shape.
        found: String,
        /// What the model needs.
        expected: String,
        /// What to do about it.
        mend: String,
    },
    /// A sound checkpoint of a kind that this version cannot run.
    #[error("{file}: {found} is not supported; {supported}")]
    Unsupported {
        /// The file that says so.
        file: String,
        /// The setting and its value.
        found: String,
        /// What is supported instead.
        supported: String,
    },
}

/// The advice for files that do not hold what they should.
pub(super) const DOWNLOAD: &str = "download or copy the checkpoint again";

impl Error {
    pub(super) fn file(file: &str, problem: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::File { file: file.to_owned(), problem: problem.into(), mend: mend.into() }
    }
}

/// `text` fit for a message: short, and with its control characters escaped.
pub(super) fn shown(text: impl Display) -> String {
    const CHARS_MAX: usize = 160;
    let text = text.to_string();
    let mut short = String::new();
    for c in text.chars().take(CHARS_MAX) {
        match c.is_control() {
            true => short.extend(c.escape_default()),
            false => short.push(c),
        }
    }
    if text.chars().nth(CHARS_MAX).is_some() {
        short.push('…');
    }
    short
}

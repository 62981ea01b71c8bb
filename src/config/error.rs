//! What is wrong with settings, in words, with the line where a person wrote it.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml_edit::{Document, Item, Table};

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {reason}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: std::io::Error,
    },
    /// The file is not TOML, or holds keys or types that are not settings.
    #[error("{origin}: {reason}")]
    Parse {
        /// The file, "the command line" or "defaults".
        origin: String,
        /// What is wrong, with the key, and with line and column where known.
        reason: String,
    },
    /// An actor's settings contradict themselves or each other.
    #[error("{0}")]
    Part(String),
    /// A value is outside its domain.
    #[error("{key} = {value}: {expected}")]
    Value {
        /// The setting.
        key: &'static str,
        /// What was written.
        value: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// The same, and where it is written.
    #[error("{0}: {1}")]
    At(Place, Box<ConfigError>),
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    path: PathBuf,
    line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, line {}", self.path.display(), self.line)
    }
}

impl ConfigError {
    /// The same with the line of the setting that it names, if the file sets it.
    pub(super) fn at(self, path: &Path, text: &str) -> Self {
        let said = match &self {
            Self::Parse { reason, .. } => reason.clone(),
            Self::Part(_) | Self::Value { .. } => self.to_string(),
            Self::Read { .. } | Self::At(..) => return self,
        };
        let Some(line) = line_of(text, &said) else { return self };
        // The file is named with the line.
        let error = if let Self::Parse { reason, .. } = self { Self::Part(reason) } else { self };
        Self::At(Place { path: path.to_owned(), line }, Box::new(error))
    }
}

/// The line of the setting that words name as `section.key`, or else as `` `key` ``.
fn line_of(text: &str, said: &str) -> Option<usize> {
    let document = Document::parse(text).ok()?;
    let mut known = Vec::new();
    collect(document.as_table(), "", &mut known);
    let is_part = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let words: Vec<&str> = said.split(|c: char| !is_part(c)).collect();
    let whole = known.iter().filter(|(name, _)| words.contains(&name.as_str()));
    // The first one that is named is the one that is wrong.
    let first = whole.min_by_key(|(name, _)| words.iter().position(|word| word == name));
    let quoted = |(name, _): &&(String, Range<usize>)| {
        let leaf = name.rsplit('.').next().unwrap_or(name);
        said.contains(&format!("unknown field `{leaf}`"))
    };
    let (_, span) = known.iter().find(quoted).or(first)?;
    Some(text[..span.start].matches('\n').count() + 1)
}

/// All settings and sections of a table by their names, with their places.
fn collect(table: &Table, above: &str, known: &mut Vec<(String, Range<usize>)>) {
    for (key, item) in table {
        let name = if above.is_empty() { key.to_owned() } else { format!("{above}.{key}") };
        let span = table.key(key).and_then(toml_edit::Key::span).or_else(|| item.span());
        known.extend(span.map(|span| (name.clone(), span)));
        if let Item::Table(inner) = item {
            collect(inner, &name, known);
        }
    }
}

//! A parked state outside the engine: bytes with names, types and shapes, which whoever keeps them
//! need not understand. Only the engine that gave an image, or one of the same identity, takes it.

use std::fmt;

/// A state, as bytes. Which tokens it covers is known to whoever keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Its tensors, in the engine's order.
    pub parts: Vec<Part>,
}

impl Image {
    /// Bytes of all parts.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes.len() as u64).sum()
    }
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it is, in the engine's words.
    pub name: String,
    /// The type of its elements, in the engine's words.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements, little endian, row by row.
    pub bytes: Vec<u8>,
}

/// Why an engine does not give or take an image. It goes on without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit(pub String);

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a parked state cannot be carried over: {}", self.0)
    }
}

impl std::error::Error for Unfit {}

//! The file of one parked state, version 1. All numbers are little endian.
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | `mtplxbnk` |
//! | 4 | the version |
//! | 4 | h: bytes of the head |
//! | 8 | p: bytes of the body |
//! | h | the head, JSON: identity, tenant, kind, tokens (number, hash), parts (name, type, shape) |
//! | 32 | BLAKE3 of all before |
//! | p | the body: the tokens, 4 bytes each, then the parts' elements |
//! | 32 | BLAKE3 of the checksum before the body, and the body |
//!
//! A file has exactly this length. Nothing in it is trusted: who reads it checks the head before
//! believing a size, the body before using a byte, and the tokens before starting a request.

use std::io::{self, Read, Write};
use std::sync::Arc;

use mtplx_core::batch::Kind;
use mtplx_core::image::{Image, Part};
use mtplx_core::prefix::{Prefix, chain};
use mtplx_core::{Tenant, Token};
use serde::{Deserialize, Serialize};

const MAGIC: &[u8; 8] = b"mtplxbnk";
const VERSION: u32 = 1;
const FRONT: usize = 24;
const SUM: usize = 32;
/// A head is some KiB: hundreds of parts with short names.
const HEAD_MAX: usize = 1 << 20;

/// Names a state by what it is: identity, tenant and tokens.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id([u8; 16]);

impl Id {
    /// The name as it is written.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let number = digits.then(|| u128::from_str_radix(text, 16).ok())??;
        Some(Self(number.to_be_bytes()))
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl std::fmt::Debug for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// What a state is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Of the engine that made it.
    pub identity: Arc<str>,
    /// What it covers.
    pub prefix: Prefix,
    /// Why it was kept.
    pub kind: Kind,
}

impl Label {
    /// Its name.
    #[must_use]
    pub fn id(&self) -> Id {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(self.identity.len() as u64).to_le_bytes());
        hasher.update(self.identity.as_bytes());
        hasher.update(&self.prefix.tenant.0.to_le_bytes());
        hasher.update(&token_bytes(&self.prefix.tokens));
        let mut id = [0; 16];
        id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Id(id)
    }
}

fn token_bytes(tokens: &[Token]) -> Vec<u8> {
    tokens.iter().flat_map(|token| token.to_le_bytes()).collect()
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The system failed; the file may be good.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It is not what this server wrote.
    #[error("is damaged or foreign: {0}")]
    Damaged(&'static str),
}

/// What the head says.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Head {
    pub(super) identity: String,
    pub(super) tenant: u64,
    kind: String,
    pub(super) tokens: usize,
    /// The chained hash of the tokens, as text: JSON's numbers are too short for it.
    hash: String,
    parts: Vec<Shape>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct Shape {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    bytes: usize,
}

const KINDS: [(&str, Kind); 4] = [
    ("root", Kind::Root),
    ("boundary", Kind::Boundary),
    ("prompt", Kind::Prompt),
    ("reply", Kind::Reply),
];

/// A kind, for people and files.
pub(in crate::bank) fn kind_name(kind: Kind) -> &'static str {
    KINDS.iter().find(|(_, k)| *k == kind).map_or("", |(name, _)| name)
}

impl Head {
    fn of(label: &Label, image: &Image) -> Self {
        let tokens = &label.prefix.tokens;
        let shape = |part: &Part| Shape {
            name: part.name.clone(),
            dtype: part.dtype.clone(),
            shape: part.shape.clone(),
            bytes: part.bytes.len(),
        };
        Self {
            identity: label.identity.to_string(),
            tenant: label.prefix.tenant.0,
            kind: kind_name(label.kind).into(),
            tokens: tokens.len(),
            hash: format!("{:016x}", chain(tokens)[tokens.len()]),
            parts: image.parts.iter().map(shape).collect(),
        }
    }

    pub(super) fn kind(&self) -> Option<Kind> {
        KINDS.iter().find(|(name, _)| *name == self.kind).map(|&(_, kind)| kind)
    }

    pub(super) fn hash(&self) -> Option<u64> {
        u64::from_str_radix(&self.hash, 16).ok()
    }

    /// Bytes of the body, if they can be counted.
    fn body(&self) -> Option<u64> {
        let tokens = (self.tokens as u64).checked_mul(4)?;
        self.parts.iter().try_fold(tokens, |all, part| all.checked_add(part.bytes as u64))
    }
}

/// Bytes of the file of such a state.
#[must_use]
pub(in crate::bank) fn size(label: &Label, image: &Image) -> u64 {
    // The head's own size is close enough: it is what a queue is bounded by.
    1024 + 4 * label.prefix.tokens.len() as u64 + image.bytes()
}

/// Writes a state.
///
/// # Errors
/// When the writer fails.
pub(in crate::bank) fn write(to: &mut impl Write, label: &Label, image: &Image) -> io::Result<()> {
    let front = front(&Head::of(label, image))?;
    let sum = blake3::hash(&front);
    to.write_all(&front)?;
    to.write_all(sum.as_bytes())?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(sum.as_bytes());
    let tokens = token_bytes(&label.prefix.tokens);
    for bytes in std::iter::once(&tokens).chain(image.parts.iter().map(|part| &part.bytes)) {
        hasher.update(bytes);
        to.write_all(bytes)?;
    }
    to.write_all(hasher.finalize().as_bytes())
}

/// All that comes before the first checksum.
fn front(head: &Head) -> io::Result<Vec<u8>> {
    let body = head.body().ok_or_else(|| io::Error::other("too large"))?;
    let json = serde_json::to_vec(head)?;
    let mut front = Vec::with_capacity(FRONT + json.len());
    front.extend_from_slice(MAGIC);
    front.extend_from_slice(&VERSION.to_le_bytes());
    front.extend_from_slice(&u32::try_from(json.len()).map_err(io::Error::other)?.to_le_bytes());
    front.extend_from_slice(&body.to_le_bytes());
    front.extend_from_slice(&json);
    Ok(front)
}

/// Reads and checks the head of a file of `len` bytes.
///
/// # Errors
/// [`Refused`]; only `Damaged` is the file's fault.
pub(super) fn read_head(from: &mut impl Read, len: u64) -> Result<Head, Refused> {
    Ok(open(from, len)?.0)
}

/// The head, its checksum, the size of the body.
fn open(from: &mut impl Read, len: u64) -> Result<(Head, blake3::Hash, usize), Refused> {
    const SHORT: Refused = Refused::Damaged("it is too short");
    if len < (FRONT + 2 * SUM) as u64 {
        return Err(SHORT);
    }
    let mut front = vec![0; FRONT];
    from.read_exact(&mut front)?;
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| front[at + i]));
    let body = u64::from(word(16)) | u64::from(word(20)) << 32;
    let (version, head) = (word(8), word(12) as usize);
    if front[..8] != *MAGIC {
        return Err(Refused::Damaged("it is no parked state"));
    }
    if version != VERSION {
        return Err(Refused::Damaged("it is of another version"));
    }
    let around = (FRONT + head + 2 * SUM) as u64;
    if head > HEAD_MAX || around.checked_add(body) != Some(len) {
        return Err(Refused::Damaged("its length is not what it says"));
    }
    front.resize(FRONT + head, 0);
    from.read_exact(&mut front[FRONT..])?;
    let sum = blake3::hash(&front);
    if sum != read_sum(from)? {
        return Err(Refused::Damaged("the checksum of its head is wrong"));
    }
    let parsed: Head = serde_json::from_slice(&front[FRONT..])
        .map_err(|_| Refused::Damaged("its head is not understood"))?;
    if parsed.body() != Some(body) || parsed.kind().is_none() || parsed.hash().is_none() {
        return Err(Refused::Damaged("its head contradicts itself"));
    }
    let body = usize::try_from(body).map_err(|_| Refused::Damaged("it is too large"))?;
    Ok((parsed, sum, body))
}

fn read_sum(from: &mut impl Read) -> io::Result<blake3::Hash> {
    let mut sum = [0; SUM];
    from.read_exact(&mut sum)?;
    Ok(blake3::Hash::from_bytes(sum))
}

/// Reads and checks a whole file of `len` bytes.
///
/// # Errors
/// [`Refused`]; only `Damaged` is the file's fault.
pub(in crate::bank) fn read(from: &mut impl Read, len: u64) -> Result<(Label, Image), Refused> {
    let (head, sum, _) = open(from, len)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(sum.as_bytes());
    // All sizes together are the file's, so not larger than somebody's disk.
    let mut next = |bytes: usize| -> io::Result<Vec<u8>> {
        let mut own = vec![0; bytes];
        from.read_exact(&mut own)?;
        hasher.update(&own);
        Ok(own)
    };
    let tokens = next(4 * head.tokens)?;
    let words = tokens.chunks_exact(4).map(|w| [w[0], w[1], w[2], w[3]]);
    let tokens: Arc<[Token]> = words.map(Token::from_le_bytes).collect();
    let mut parts = Vec::with_capacity(head.parts.len());
    for Shape { name, dtype, shape, bytes } in &head.parts {
        let (name, dtype, shape) = (name.clone(), dtype.clone(), shape.clone());
        parts.push(Part { name, dtype, shape, bytes: next(*bytes)? });
    }
    if hasher.finalize() != read_sum(from)? {
        return Err(Refused::Damaged("the checksum of its body is wrong"));
    }
    let kind = head.kind().ok_or(Refused::Damaged("its kind is unknown"))?;
    if head.hash() != chain(&tokens).last().copied() || tokens.is_empty() {
        return Err(Refused::Damaged("its head speaks of other tokens"));
    }
    let prefix = Prefix { tenant: Tenant(head.tenant), tokens };
    Ok((Label { identity: head.identity.into(), prefix, kind }, Image { parts }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_may_be_larger_than_four_gigabytes() {
        let prefix = Prefix { tenant: Tenant(0), tokens: [1, 2, 3].into() };
        let label = Label { identity: "a model".into(), prefix, kind: Kind::Reply };
        let mut head = Head::of(&label, &Image::default());
        let part = |bytes| Shape { name: "kv".into(), dtype: "bf16".into(), shape: vec![], bytes };
        head.parts = vec![part(5 << 30), part(7 << 30)];
        let mut file = front(&head).unwrap();
        file.extend(blake3::hash(&file).as_bytes());
        let body = 3 * 4 + (12_u64 << 30);
        let len = file.len() as u64 + body + SUM as u64;
        let (read, _, bytes) = open(&mut &*file, len).unwrap();
        assert_eq!((read, bytes as u64), (head, body));
        for len in [len - 1, len + 1, len & 0xffff_ffff] {
            assert!(matches!(open(&mut &*file, len), Err(Refused::Damaged(_))), "{len}");
        }
    }
}

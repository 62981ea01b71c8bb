//! Tokens to text, as they come: byte-level BPE, so that a token may end within a character.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use mtplx_core::Token;
use tokenizers::AddedToken;

/// A token on paper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spelt {
    /// With U+FFFD for parts of characters.
    pub(crate) text: String,
    /// None if it is no text.
    pub(crate) bytes: Option<Vec<u8>>,
}

/// The bytes of every token, in one allocation.
pub(super) struct Pieces {
    /// How tokens are written that are no text.
    special: BTreeMap<Token, String>,
    /// The tokens in use, in order.
    ids: Vec<Token>,
    bytes: Vec<u8>,
    /// Where each token's bytes end; they begin where the previous token's end.
    ends: Vec<usize>,
}

impl Pieces {
    /// Special tokens have no bytes: they are never text. Other added tokens are themselves.
    pub(super) fn new(
        vocabulary: &HashMap<String, Token>,
        added: &BTreeMap<Token, AddedToken>,
    ) -> Self {
        let byte_of = byte_of_char();
        let mut words: BTreeMap<Token, Vec<u8>> = BTreeMap::new();
        for (word, &id) in vocabulary {
            let bytes: Option<Vec<u8>> = word.chars().map(|c| byte_of.get(&c).copied()).collect();
            words.insert(id, bytes.unwrap_or_else(|| word.clone().into_bytes()));
        }
        for (&id, token) in added {
            let text = if token.special { "" } else { &token.content };
            words.insert(id, text.as_bytes().to_vec());
        }
        let special = added.iter().filter(|(_, token)| token.special);
        let special = special.map(|(&id, token)| (id, token.content.clone())).collect();
        // Only the ids in use are kept: a file may number its tokens with any holes.
        let ids = words.keys().copied().collect();
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for word in words.into_values() {
            bytes.extend_from_slice(&word);
            ends.push(bytes.len());
        }
        Self { special, ids, bytes, ends }
    }

    /// How a token is written.
    pub(super) fn spelt(&self, token: Token) -> Spelt {
        if let Some(text) = self.special.get(&token) {
            return Spelt { text: text.clone(), bytes: None };
        }
        let bytes = self.get(token).to_vec();
        Spelt { text: String::from_utf8_lossy(&bytes).into_owned(), bytes: Some(bytes) }
    }

    /// One more than the largest id.
    pub(super) fn len(&self) -> usize {
        self.ids.last().map_or(0, |&last| last as usize + 1)
    }

    /// The bytes of a token; none of a special one.
    pub(super) fn get(&self, token: Token) -> &[u8] {
        let Ok(i) = self.ids.binary_search(&token) else { return &[] };
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.bytes[start..self.ends[i]]
    }
}

/// GPT-2's alphabet: printable bytes stand for themselves, the others for characters from U+0100.
fn byte_of_char() -> HashMap<char, u8> {
    let mut map = HashMap::new();
    let mut next = 0x100;
    for byte in 0..=u8::MAX {
        let printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let c = if printable {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).unwrap_or_default()
        };
        map.insert(c, byte);
    }
    map
}

/// The text of one answer in the making.
pub(crate) struct Detokenizer {
    pieces: Arc<Pieces>,
    /// The beginning of a character whose end has not come: at most three bytes.
    pending: Vec<u8>,
}

impl Detokenizer {
    pub(super) fn new(pieces: Arc<Pieces>) -> Self {
        Self { pieces, pending: Vec::new() }
    }

    /// How a token is written.
    pub(crate) fn spelt(&self, token: Token) -> Spelt {
        self.pieces.spelt(token)
    }

    /// Appends to `out` all characters that are complete with this token. What can never become
    /// a character turns into U+FFFD, as Python's decoder does; what ends the answer unfinished is
    /// not shown.
    pub(crate) fn push(&mut self, token: Token, out: &mut String) {
        self.pending.extend_from_slice(self.pieces.get(token));
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (good, bad) = rest.split_at(error.valid_up_to());
                    out.push_str(std::str::from_utf8(good).unwrap_or_default());
                    let Some(len) = error.error_len() else {
                        rest = bad;
                        break;
                    };
                    out.push(char::REPLACEMENT_CHARACTER);
                    rest = &bad[len..];
                }
            }
        }
        let kept = rest.len();
        self.pending.drain(..self.pending.len() - kept);
    }

    /// What was begun will not be completed: other tokens follow.
    pub(crate) fn forget(&mut self) {
        self.pending.clear();
    }
}

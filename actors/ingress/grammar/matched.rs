//! The grammar of one sequence: a parser that is moved to whatever text it is asked about. The core
//! sees a function of the text; that the parser goes forth and back is known here alone.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::Matcher;
use mtplx_core::Token;
use mtplx_core::grammar::{Broken, Grammar, Mask};

/// Masks kept of the last places: those of a cycle's rows, which are asked for more than once.
const KEPT: usize = 16;

/// A parser and where it stands.
pub(crate) struct Matched {
    place: Mutex<Place>,
    ends: Arc<BTreeSet<Token>>,
    /// Why it gave up, if it did: its row then ends like one whose device failed, and who reads
    /// the row must be able to tell.
    gave_up: Arc<OnceLock<String>>,
    /// What it was compiled from, for machines that compile it anew.
    source: Arc<str>,
}

struct Place {
    matcher: Matcher,
    /// What it was told.
    text: Vec<Token>,
    /// By the length of the text before them, all of them beginnings of `text`.
    masks: VecDeque<(usize, Mask)>,
}

impl Matched {
    pub(super) fn new(matcher: Matcher, ends: Arc<BTreeSet<Token>>, source: Arc<str>) -> Self {
        let place = Place { matcher, text: Vec::new(), masks: VecDeque::new() };
        Self { place: Mutex::new(place), ends, gave_up: Arc::default(), source }
    }

    /// Why it gave up, once it does.
    pub(super) fn gave_up(&self) -> Arc<OnceLock<String>> {
        Arc::clone(&self.gave_up)
    }
}

impl Grammar for Matched {
    fn allowed(&self, text: &[Token]) -> Result<Mask, Broken> {
        // A thread that panicked left a parser that says so itself.
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        place.mask(text, &self.ends).map_err(|reason| {
            if self.gave_up.set(reason.clone()).is_ok() {
                tracing::warn!(reason, tokens = text.len(), "a grammar gave up");
            }
            Broken
        })
    }

    fn source(&self) -> Option<&str> {
        Some(&self.source)
    }

    fn gave_up(&self, reason: &str) {
        // Once is enough.
        let _ = self.gave_up.set(reason.to_owned());
    }
}

impl Place {
    fn mask(&mut self, text: &[Token], ends: &BTreeSet<Token>) -> Result<Mask, String> {
        let same = self.text.iter().zip(text).take_while(|(a, b)| a == b).count();
        // The parser is told of no end, so none is in what it knows.
        if text[same..].iter().any(|token| ends.contains(token)) {
            return Ok(ends.iter().copied().collect());
        }
        // Beginnings that both texts have in common need no move.
        let known = self.masks.iter().find(|&&(len, _)| len == text.len() && len <= same);
        if let Some((_, mask)) = known {
            return Ok(mask.clone());
        }
        if same < self.text.len() {
            self.matcher.rollback(self.text.len() - same).map_err(|e| e.to_string())?;
            self.text.truncate(same);
            self.masks.retain(|&(len, _)| len <= same);
        }
        for &token in &text[same..] {
            if self.matcher.try_consume_tokens(&[token]).map_err(|e| e.to_string())? == 0 {
                return Err(format!("token {token} is not allowed here"));
            }
            self.text.push(token);
        }
        let mask = self.matcher.compute_mask_or_eos().map_err(|e| e.to_string())?;
        let mask = mask_of(mask.as_slice());
        if self.masks.len() == KEPT {
            self.masks.pop_front();
        }
        self.masks.push_back((text.len(), mask.clone()));
        Ok(mask)
    }
}

/// Words of 32 bits to words of 64.
fn mask_of(bits: &[u32]) -> Mask {
    let word = |pair: &[u32]| pair.iter().rev().fold(0, |word, &half| word << 32 | u64::from(half));
    Mask::from_bits(bits.chunks(2).map(word).collect())
}

impl fmt::Debug for Matched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Matched").finish_non_exhaustive()
    }
}

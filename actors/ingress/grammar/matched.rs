//! The grammar of one sequence: a parser that is moved to whatever text it is asked about. The core
//! sees a function of the text; that the parser goes forth and back is known here alone.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::Matcher;
use mtplx_core::Token;
use mtplx_core::grammar::{Broken, Grammar, Mask};

/// Masks kept of the last places: those of a cycle's rows, which are asked for more than once.
const KEPT: usize = 16;

/// A parser and where it stands.
pub(crate) struct Matched {
    place: Mutex<Place>,
    ends: Arc<BTreeSet<Token>>,
}

struct Place {
    matcher: Matcher,
    /// What it was told.
    text: Vec<Token>,
    /// By the length of the text before them, all of them beginnings of `text`.
    masks: VecDeque<(usize, Mask)>,
    /// Whether it was said already that it gave up.
    broken: bool,
}

impl Matched {
    pub(super) fn new(matcher: Matcher, ends: Arc<BTreeSet<Token>>) -> Self {
        let place = Place { matcher, text: Vec::new(), masks: VecDeque::new(), broken: false };
        Self { place: Mutex::new(place), ends }
    }
}

impl Grammar for Matched {
    fn allowed(&self, text: &[Token]) -> Result<Mask, Broken> {
        if text.iter().any(|token| self.ends.contains(token)) {
            return Ok(self.ends.iter().copied().collect());
        }
        // A thread that panicked left a parser that says so itself.
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        place.mask(text).map_err(|reason| {
            if !std::mem::replace(&mut place.broken, true) {
                tracing::warn!(reason, tokens = text.len(), "a grammar gave up");
            }
            Broken
        })
    }
}

impl Place {
    fn mask(&mut self, text: &[Token]) -> Result<Mask, String> {
        let same = self.text.iter().zip(text).take_while(|(a, b)| a == b).count();
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

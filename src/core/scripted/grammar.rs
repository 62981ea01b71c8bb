//! A grammar without a language: what may come next is a hash of the text, so that everything a
//! grammar can do to a row happens to it soon.

use crate::Token;
use crate::grammar::{Broken, Grammar, Mask};
use crate::prefix::chain;
use crate::random::{Purpose, uniform};

/// Allows a third of the tokens, and after two texts of five one token alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScriptedGrammar {
    /// Names one language among many.
    pub seed: u64,
    /// Size of the vocabulary.
    pub vocab: usize,
    /// The token that ends a text, allowed where the hash says so and alone after itself.
    pub end: Token,
}

impl Grammar for ScriptedGrammar {
    fn allowed(&self, text: &[Token]) -> Result<Mask, Broken> {
        if text.last() == Some(&self.end) {
            return Ok([self.end].into_iter().collect());
        }
        let context = self.seed ^ chain(text)[text.len()];
        let chance = |index: usize| uniform(context, index as u64, Purpose::Draft);
        let one = (chance(self.vocab) * self.vocab as f64) as Token;
        if chance(self.vocab + 1) < 0.4 {
            return Ok([one].into_iter().collect());
        }
        let may = |&token: &Token| token == one || chance(token as usize) < 0.33;
        Ok((0..self.vocab as Token).filter(may).collect())
    }
}

//! What a text may be: at every place the set of tokens that may come next. Whoever makes such sets
//! knows texts and languages; here they are bits.
//!
//! A mask is applied before anything else that looks at a whole row of logits (temperature, top-k,
//! top-p, min-p), to the target's row and to the head's: p is the target's distribution over the
//! allowed tokens, renormalised, and q the head's. So the law of acceptance is what it is without a
//! grammar. Where one token alone may come, p and q both are certain of it: it is a draft that is
//! always accepted, and needs no head to propose it.

use std::fmt;
use std::sync::Arc;

use crate::Token;

/// A set of tokens, one bit for each id.
#[derive(Clone, PartialEq, Eq)]
pub struct Mask {
    bits: Arc<[u64]>,
}

impl Mask {
    /// From words of 64 ids, the lowest id in the lowest bit.
    #[must_use]
    pub fn from_bits(mut bits: Vec<u64>) -> Self {
        // So that equal sets are equal values.
        bits.truncate(bits.iter().rposition(|&word| word != 0).map_or(0, |last| last + 1));
        Self { bits: bits.into() }
    }

    /// All of `vocab` tokens but these.
    #[must_use]
    pub fn all_but(vocab: usize, tokens: impl IntoIterator<Item = Token>) -> Self {
        let mut bits = vec![u64::MAX; vocab.div_ceil(64)];
        if let Some(last) = bits.last_mut().filter(|_| !vocab.is_multiple_of(64)) {
            *last = (1 << (vocab % 64)) - 1;
        }
        for token in tokens {
            if let Some(word) = bits.get_mut(token as usize / 64) {
                *word &= !(1 << (token % 64));
            }
        }
        Self::from_bits(bits)
    }

    /// Whether it holds this token.
    #[must_use]
    pub fn allows(&self, token: Token) -> bool {
        self.bits.get(token as usize / 64).is_some_and(|word| word >> (token % 64) & 1 == 1)
    }

    /// Its tokens, ascending.
    pub fn tokens(&self) -> impl Iterator<Item = Token> + '_ {
        (0..).step_by(64).zip(self.bits.iter()).flat_map(|(first, &word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros())?;
                rest &= rest - 1;
                Some(first + bit)
            })
        })
    }

    /// Those of a row of numbers that belong to its tokens. Most masks hold nearly all or nearly
    /// none, so whole words are taken or passed over at once.
    pub(crate) fn gather(&self, row: &[f32]) -> Vec<f32> {
        let mut few = Vec::with_capacity(self.len().min(row.len()));
        for (&word, part) in self.bits.iter().zip(row.chunks(64)) {
            if word == u64::MAX {
                few.extend_from_slice(part);
                continue;
            }
            let mut rest = word;
            while rest != 0 {
                few.extend(part.get(rest.trailing_zeros() as usize));
                rest &= rest - 1;
            }
        }
        few
    }

    /// Its tokens at these places, both ascending.
    pub(crate) fn at(&self, places: &[Token]) -> Vec<Token> {
        let (mut tokens, mut before) = (Vec::with_capacity(places.len()), 0);
        let mut places = places.iter().peekable();
        for (first, &word) in (0..).step_by(64).zip(self.bits.iter()) {
            let count = word.count_ones();
            while let Some(place) = places.next_if(|&&place| place < before + count) {
                let mut rest = word;
                for _ in before..*place {
                    rest &= rest - 1;
                }
                tokens.push(first + rest.trailing_zeros());
            }
            before += count;
        }
        tokens
    }

    /// How many tokens it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bits.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bits.iter().all(|&word| word == 0)
    }

    /// Its token, if there is just one.
    #[must_use]
    pub fn only(&self) -> Option<Token> {
        let mut tokens = self.tokens();
        tokens.next().filter(|_| tokens.next().is_none())
    }
}

impl FromIterator<Token> for Mask {
    fn from_iter<I: IntoIterator<Item = Token>>(tokens: I) -> Self {
        let mut bits = Vec::new();
        for token in tokens {
            let at = token as usize / 64;
            bits.resize(bits.len().max(at + 1), 0);
            bits[at] |= 1 << (token % 64);
        }
        Self::from_bits(bits)
    }
}

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mask({} tokens)", self.len())
    }
}

/// A language of token sequences.
pub trait Grammar: fmt::Debug + Send + Sync {
    /// The tokens that may follow `text`, which it allowed token by token: a function of `text`
    /// alone. Tokens that end a text are among them where it is complete, and only they after one
    /// of them.
    ///
    /// # Errors
    /// [`Broken`] if it cannot tell.
    fn allowed(&self, text: &[Token]) -> Result<Mask, Broken>;

    /// By what its like can be made elsewhere, if there is such.
    fn source(&self) -> Option<&str> {
        None
    }

    /// Its like elsewhere gave up, for this reason.
    fn gave_up(&self, reason: &str) {
        let _ = reason;
    }
}

/// A grammar gave up: what it had to look at was more than it may. The row ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// The grammar of one sequence, and where in its text it begins.
#[derive(Clone, Debug)]
pub struct Constraint {
    grammar: Arc<dyn Grammar>,
    opening: Option<Opening>,
}

#[derive(Clone, Debug)]
struct Opening {
    tokens: Arc<[Token]>,
    before: Mask,
}

impl Constraint {
    /// A grammar of the whole text.
    #[must_use]
    pub fn new(grammar: Arc<dyn Grammar>) -> Self {
        Self { grammar, opening: None }
    }

    /// A grammar of what follows the first occurrence of `tokens` in the text; until then `before`
    /// is allowed, which had better be without tokens that end it.
    #[must_use]
    pub fn after(self, tokens: Arc<[Token]>, before: Mask) -> Self {
        Self { opening: (!tokens.is_empty()).then_some(Opening { tokens, before }), ..self }
    }

    /// The tokens that may follow `text`.
    ///
    /// # Errors
    /// As [`Grammar::allowed`].
    pub fn allowed(&self, text: &[Token]) -> Result<Mask, Broken> {
        let Some(Opening { tokens, before }) = &self.opening else {
            return self.grammar.allowed(text);
        };
        // The first of them is sought alone: the text may be long, and it is looked at often.
        let mut from = 0;
        let mut begins = std::iter::from_fn(|| {
            let at = from + text[from..].iter().position(|&token| token == tokens[0])?;
            from = at + 1;
            Some(at)
        });
        match begins.find(|&at| text[at..].starts_with(tokens)) {
            Some(at) => self.grammar.allowed(&text[at + tokens.len()..]),
            None => Ok(before.clone()),
        }
    }

    /// By what its like can be made elsewhere, and whether it holds of what follows some tokens.
    #[must_use]
    pub fn source(&self) -> Option<(&str, bool)> {
        Some((self.grammar.source()?, self.opening.is_some()))
    }

    /// Its like elsewhere gave up, for this reason.
    pub fn gave_up(&self, reason: &str) {
        self.grammar.gave_up(reason);
    }

    /// The tokens that must follow `text` one after another, at most `most`.
    #[must_use]
    pub fn forced(&self, text: &[Token], most: usize) -> Vec<Token> {
        let mut all = text.to_vec();
        while all.len() < text.len() + most {
            let Some(token) = self.allowed(&all).ok().and_then(|mask| mask.only()) else { break };
            all.push(token);
        }
        all.split_off(text.len())
    }
}

/// By identity: two compiled grammars cannot be compared.
impl PartialEq for Constraint {
    fn eq(&self, other: &Self) -> bool {
        let opening = |c: &Self| c.opening.as_ref().map(|o| Arc::clone(&o.tokens));
        Arc::ptr_eq(&self.grammar, &other.grammar) && opening(self) == opening(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_a_set_of_tokens() {
        let tokens = [0, 5, 63, 64, 130];
        let mask: Mask = tokens.into_iter().collect();
        assert_eq!(mask.tokens().collect::<Vec<_>>(), tokens);
        assert_eq!((mask.len(), mask.only()), (5, None));
        assert!(mask.allows(64) && !mask.allows(65) && !mask.allows(9999));
        assert_eq!([70].into_iter().collect::<Mask>().only(), Some(70));
        assert!([].into_iter().collect::<Mask>().is_empty());
        for vocab in [64, 70, 128] {
            let all = Mask::all_but(vocab, [3, 69, 500]);
            let want = (0..vocab as Token).filter(|t| ![3, 69].contains(t)).collect::<Vec<_>>();
            assert_eq!(all.tokens().collect::<Vec<_>>(), want);
        }
    }

    #[test]
    fn numbers_are_gathered_and_their_places_are_tokens() {
        let row: Vec<f32> = (0..200).map(|i| i as f32).collect();
        let sparse: Mask = [3, 64, 70, 190, 199, 500].into_iter().collect();
        for mask in [sparse, Mask::all_but(300, [0, 65, 130]), Mask::all_but(150, [])] {
            let tokens: Vec<Token> = mask.tokens().filter(|&token| token < 200).collect();
            let numbers: Vec<f32> = tokens.iter().map(|&token| token as f32).collect();
            assert_eq!(mask.gather(&row), numbers);
            let all: Vec<Token> = (0..tokens.len() as Token).collect();
            assert_eq!(mask.at(&all), tokens);
            let some: Vec<Token> = all.iter().copied().filter(|i| i % 3 == 1).collect();
            assert_eq!(
                mask.at(&some),
                some.iter().map(|&i| tokens[i as usize]).collect::<Vec<_>>()
            );
        }
    }

    /// Counts up from the length of the text; two tokens are allowed at every third place.
    #[derive(Debug)]
    struct Counting;

    impl Grammar for Counting {
        fn allowed(&self, text: &[Token]) -> Result<Mask, Broken> {
            let next = text.len() as Token;
            Ok([next].into_iter().chain((next % 3 == 2).then_some(50)).collect())
        }
    }

    #[test]
    fn what_must_follow_is_forced_as_far_as_wanted() {
        let constraint = Constraint::new(Arc::new(Counting));
        assert_eq!(constraint.forced(&[], 9), [0, 1]);
        assert_eq!(constraint.forced(&[], 1), [0]);
        assert_eq!(constraint.forced(&[0, 1], 9), []);
        assert_eq!(constraint.forced(&[0, 1, 50], 9), [3, 4]);
    }

    #[test]
    fn a_grammar_may_begin_after_some_tokens() {
        let before = Mask::all_but(60, [59]);
        let whole = Constraint::new(Arc::new(Counting));
        let late = whole.clone().after([7, 8].into(), before.clone());
        for text in [&[][..], &[7], &[8, 7], &[7, 7]] {
            assert_eq!(late.allowed(text), Ok(before.clone()), "{text:?}");
        }
        assert_eq!(late.allowed(&[7, 7, 8]), whole.allowed(&[]));
        assert_eq!(late.allowed(&[7, 8, 0, 1]), whole.allowed(&[0, 1]));
        assert_eq!(late.allowed(&[7, 8, 7, 8]), whole.allowed(&[7, 8]), "the first counts");
        assert_ne!(late, whole);
        assert_eq!(whole.clone().after([].into(), before), whole);
    }
}

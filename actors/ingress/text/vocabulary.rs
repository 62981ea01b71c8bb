//! The tokenizer as grammars see it: every token as bytes, and what text is cut into.

use llguidance::toktrie::{TokRxInfo, TokTrie, TokenizerEnv};
use mtplx_core::Token;
use tokenizers::Tokenizer;

use super::Text;
use crate::ingress::grammar::{Grammars, Unusable};

/// Tokens by their bytes, and the way back.
struct Vocabulary {
    tokenizer: Tokenizer,
    trie: TokTrie,
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<Token> {
        let ids = self.trie.tokenize_with_greedy_fallback(bytes, |text| self.encode(text));
        // Text may spell a control token, or be normalised on the way: then it is not what the
        // grammar asked for.
        if self.trie.decode_raw(&ids) == bytes { ids } else { self.trie.greedy_tokenize(bytes) }
    }

    fn tokenize_bytes_special(&self, bytes: &[u8]) -> Vec<Token> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| self.encode(text))
    }
}

impl Vocabulary {
    fn encode(&self, text: &str) -> Vec<Token> {
        let encoding = self.tokenizer.encode_fast(text, false);
        encoding.map_or(Vec::new(), |encoding| encoding.get_ids().to_vec())
    }
}

impl Text {
    /// Compiles grammars for a model of `vocab` tokens; takes a while the first time.
    pub(crate) fn grammars(&self, vocab: usize) -> Result<&Grammars, Unusable> {
        let make = || {
            let env = std::sync::Arc::new(self.vocabulary(vocab)?);
            Grammars::new(env, &self.stop_tokens)
        };
        self.grammars.get_or_init(make).as_ref().map_err(Clone::clone)
    }

    /// How a token is written.
    pub(crate) fn spelt(&self, token: Token) -> super::Spelt {
        self.pieces.spelt(token)
    }

    /// The token that is written so.
    #[cfg(test)]
    pub(crate) fn tokens_spelt(&self, text: &str) -> Option<Token> {
        let ids = 0..Token::try_from(self.pieces.len()).ok()?;
        ids.into_iter().find(|&id| self.pieces.spelt(id).text == text)
    }

    /// Whether the tokenizer has this token.
    pub(crate) fn knows(&self, token: Token) -> bool {
        self.tokenizer.id_to_token(token).is_some()
    }

    /// Tokens as text, special ones as they are written.
    pub(crate) fn decode(&self, tokens: &[Token]) -> String {
        // It fails for tokens that nobody knows only.
        self.tokenizer.decode(tokens, false).unwrap_or_default()
    }

    fn vocabulary(&self, vocab: usize) -> Result<Vocabulary, Unusable> {
        let len = self.pieces.len().min(vocab);
        let ids = 0..Token::try_from(len).unwrap_or(Token::MAX);
        let words: Vec<Vec<u8>> = ids.map(|id| self.word(id)).collect();
        let ends: Vec<Token> =
            self.stop_tokens.iter().copied().filter(|&id| (id as usize) < len).collect();
        let first = *ends.first().ok_or_else(|| Unusable("no token ends a text".into()))?;
        let size = u32::try_from(len).map_err(|_| Unusable("it has too many tokens".into()))?;
        let trie = TokTrie::from(&TokRxInfo::new(size, first), &words).with_eos_tokens(&ends);
        Ok(Vocabulary { tokenizer: self.tokenizer.clone(), trie })
    }

    /// A token's bytes. Tokens that are no text, or are markup by their looks as Qwen's `<think>`
    /// and `<tool_call>` are, stand apart: a grammar has them only where it names them.
    fn word(&self, id: Token) -> Vec<u8> {
        match self.added.get(&id) {
            Some(token) if is_control(token) => {
                [&[TokTrie::SPECIAL_TOKEN_MARKER], token.content.as_bytes()].concat()
            }
            Some(_) | None => self.pieces.get(id).to_vec(),
        }
    }

    /// The token that ends thinking, if there is one.
    pub(crate) fn thinking_ends(&self) -> Option<Token> {
        self.added.iter().find(|(_, token)| token.content == "</think>").map(|(&id, _)| id)
    }
}

fn is_control(token: &tokenizers::AddedToken) -> bool {
    token.special || token.content.starts_with('<') && token.content.ends_with('>')
}

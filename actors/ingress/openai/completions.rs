//! `POST /v1/completions`: the body's own parameters.

use std::fmt;

use mtplx_core::Token;
use mtplx_core::sample::Sampling;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Unexpected, Visitor};

use super::error::ApiError;
use super::one_or_many::OneOrMany;
use super::{CompletionsBody, Reading, Source, Wanted, logprobs, neutral};
use crate::ingress::unknown::Ignored;

/// Most tokens of an answer where the client does not say, as OpenAI documents it.
const NEW_TOKENS_DEFAULT: usize = 16;

/// An element of `prompt`, or all of it where it is a string.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Item {
    /// A prompt as text.
    Text(String),
    /// A token of the only prompt.
    Token(Token),
    /// A prompt as tokens.
    Tokens(Vec<Token>),
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ItemVisitor)
    }
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a token id or an array of token ids")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Item, E> {
        Ok(Item::Text(text.to_owned()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Item, E> {
        Ok(Item::Text(text))
    }

    fn visit_u64<E: Error>(self, id: u64) -> Result<Item, E> {
        let token = Token::try_from(id);
        token.map(Item::Token).map_err(|_| E::invalid_value(Unexpected::Unsigned(id), &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Item, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(seq)).map(Item::Tokens)
    }
}

impl CompletionsBody {
    /// Checks and maps the body.
    pub(crate) fn wanted(
        mut self,
        defaults: &Sampling,
        ignored: &mut Ignored,
    ) -> Result<Wanted, ApiError> {
        self.refuse_what_is_not_supported()?;
        let shared = self.shared();
        let best_of = self.best_of.unwrap_or(1);
        if best_of != 1 && best_of != shared.n.unwrap_or(1) {
            return Err(ApiError::unsupported("best_of", "not supported; leave it out"));
        }
        let prompt = self.prompt.take().ok_or_else(|| {
            ApiError::invalid("prompt", "must be given: a string, an array of strings or of tokens")
        })?;
        let mut wanted = shared.wanted(sources(prompt)?, defaults, ignored)?;
        let most = self.logprobs.map(|most| logprobs::bounded("logprobs", most));
        wanted.sampling.logprobs = most.transpose()?;
        wanted.echo = self.echo.unwrap_or(false);
        if wanted.echo && wanted.sampling.logprobs.is_some() {
            let reason = "cannot be had together with echo: what the model thinks of a prompt is \
                          not computed";
            return Err(ApiError::unsupported("logprobs", reason));
        }
        let reading = Reading { plain: true, ..Reading::default() };
        Ok(Wanted { new_tokens_default: Some(NEW_TOKENS_DEFAULT), reading, ..wanted })
    }

    fn refuse_what_is_not_supported(&self) -> Result<(), ApiError> {
        let suffix = "this server does not fill in text; leave it out";
        neutral("suffix", self.suffix.as_ref(), |v| *v == "", suffix)
    }
}

fn sources(prompt: OneOrMany<Item>) -> Result<Vec<Source>, ApiError> {
    let items = prompt.into_vec();
    if items.is_empty() {
        return Err(ApiError::invalid("prompt", "must not be empty"));
    }
    if let Some(tokens) = as_tokens(&items) {
        return Ok(vec![Source::Tokens(tokens)]);
    }
    let sources = items.into_iter().map(|item| match item {
        Item::Text(text) => Ok(Source::Text(text)),
        Item::Tokens(tokens) => Ok(Source::Tokens(tokens)),
        Item::Token(_) => {
            Err(ApiError::invalid("prompt", "must not mix token ids with other prompts"))
        }
    });
    sources.collect()
}

/// The only prompt, written as an array of token ids.
fn as_tokens(items: &[Item]) -> Option<Vec<Token>> {
    let token = |item: &Item| match item {
        Item::Token(id) => Some(*id),
        Item::Text(_) | Item::Tokens(_) => None,
    };
    items.iter().map(token).collect()
}

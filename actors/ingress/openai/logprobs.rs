//! What the model thought of each token, in OpenAI's two shapes. It is the plain softmax of the
//! model's own logits, before temperature, penalties, bias, truncation and grammars.

use mtplx_core::Token;
use mtplx_core::logprobs::{ALTERNATIVES_MAX, Logprobs};
use serde_json::{Map, Value, json};

use super::ApiError;
use crate::ingress::text::{Detokenizer, Spelt};

/// One token of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Told {
    token: Spelt,
    logprob: f32,
    likeliest: Vec<(Spelt, f32)>,
    /// Characters of the answer before it.
    offset: usize,
}

impl Told {
    /// `None` for a token that is no text, such as the one that ends an answer.
    pub(crate) fn new(
        token: Token,
        logprobs: &Logprobs,
        detokenizer: &Detokenizer,
        offset: usize,
    ) -> Option<Self> {
        let spelt = detokenizer.spelt(token);
        spelt.bytes.as_ref()?;
        let likeliest = logprobs.likeliest.iter();
        let likeliest = likeliest.map(|&(token, log)| (detokenizer.spelt(token), log)).collect();
        Some(Self { token: spelt, logprob: logprobs.chosen, likeliest, offset })
    }
}

/// The parameters of chat.
pub(super) fn of_chat(logprobs: Option<bool>, top: Option<u64>) -> Result<Option<u8>, ApiError> {
    match (logprobs.unwrap_or(false), top) {
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => {
            Err(ApiError::invalid("top_logprobs", "only allowed with \"logprobs\": true"))
        }
        (true, top) => bounded("top_logprobs", top.unwrap_or(0)).map(Some),
    }
}

/// A number of alternatives.
pub(super) fn bounded(field: &'static str, most: u64) -> Result<u8, ApiError> {
    let bounded = u8::try_from(most).ok().filter(|&most| most <= ALTERNATIVES_MAX);
    bounded.ok_or_else(|| {
        ApiError::invalid(field, &format!("must be from 0 to {ALTERNATIVES_MAX}, got {most}"))
    })
}

/// As chat tells it.
pub(super) fn chat(told: &[Told]) -> Value {
    let one = |token: &Spelt, log: f32| json!({"token": token.text, "logprob": log, "bytes": token.bytes});
    let content = told.iter().map(|told| {
        let mut all = one(&told.token, told.logprob);
        all["top_logprobs"] = told.likeliest.iter().map(|(t, log)| one(t, *log)).collect();
        all
    });
    json!({"content": content.collect::<Vec<_>>(), "refusal": null})
}

/// As completions tell it: a table by columns.
pub(super) fn completions(told: &[Told]) -> Value {
    let likeliest = |told: &Told| {
        // Two tokens may be written alike where they are parts of characters; the likelier counts.
        let mut all = Map::new();
        for (token, log) in &told.likeliest {
            all.entry(token.text.clone()).or_insert_with(|| json!(log));
        }
        Value::Object(all)
    };
    json!({
        "tokens": told.iter().map(|told| told.token.text.as_str()).collect::<Vec<_>>(),
        "token_logprobs": told.iter().map(|told| told.logprob).collect::<Vec<_>>(),
        "top_logprobs": told.iter().map(likeliest).collect::<Vec<_>>(),
        "text_offset": told.iter().map(|told| told.offset).collect::<Vec<_>>(),
    })
}

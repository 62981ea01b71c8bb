//! `POST /tokenize` and `POST /detokenize`, as vLLM has them.

use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{ApiError, Source, message};
use crate::ingress::text::{Chat, RESERVED};
use crate::ingress::unknown::Ignored;

/// A text or a conversation.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(expecting = "an object")]
pub(crate) struct TokenizeBody {
    pub(crate) model: Option<String>,
    prompt: Option<String>,
    messages: Option<Vec<message::Message>>,
    tools: Option<Vec<Value>>,
    chat_template_kwargs: Option<Map<String, Value>>,
    add_generation_prompt: Option<bool>,
    add_special_tokens: Option<bool>,
    return_token_strs: Option<bool>,
}

/// Tokens.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(expecting = "an object")]
pub(crate) struct DetokenizeBody {
    pub(crate) model: Option<String>,
    #[schema(value_type = Vec<u32>)]
    pub(crate) tokens: Vec<mtplx_core::Token>,
}

/// What is to be tokenized, and how it is to be shown.
pub(crate) struct Tokenize {
    pub(crate) source: Source,
    /// Whether special tokens that the tokenizer puts around a text are wanted.
    pub(crate) special: bool,
    pub(crate) strings: bool,
}

impl TokenizeBody {
    /// Checks and maps the body.
    pub(crate) fn wanted(self, ignored: &mut Ignored) -> Result<Tokenize, ApiError> {
        let strings = self.return_token_strs.unwrap_or(false);
        let source = match (self.prompt, self.messages) {
            (Some(prompt), None) => Source::Text(prompt),
            (None, Some(messages)) => {
                if self.add_generation_prompt == Some(false) {
                    let reason = "must be true: this server counts what it would answer";
                    return Err(ApiError::unsupported("add_generation_prompt", reason));
                }
                let kwargs = self.chat_template_kwargs.unwrap_or_default();
                if let Some(name) = RESERVED.iter().find(|name| kwargs.contains_key(**name)) {
                    let path = format!("chat_template_kwargs.{name}");
                    return Err(ApiError::invalid(path, "this variable is set by the server"));
                }
                let messages = message::into_template(messages, ignored)?;
                let tools = self.tools.unwrap_or_default();
                Source::Chat(Chat { messages, tools, kwargs, ..Chat::default() })
            }
            (Some(_), Some(_)) => {
                return Err(ApiError::invalid("messages", "cannot be had together with prompt"));
            }
            (None, None) => {
                return Err(ApiError::invalid("prompt", "must be given, or messages"));
            }
        };
        let special = self.add_special_tokens.unwrap_or(true);
        Ok(Tokenize { source, special, strings })
    }
}

//! What a client wants answered.

use mtplx_core::Token;
use serde_json::Value;

use crate::ingress::text::Chat;

/// A prompt before it is tokens.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Source {
    /// A conversation, to be rendered.
    Chat(Chat),
    /// Text as it is.
    Text(String),
    /// Tokens already.
    Tokens(Vec<Token>),
}

impl Source {
    /// The parameter that holds it.
    pub(crate) fn field(&self) -> &'static str {
        match self {
            Self::Chat(_) => "messages",
            Self::Text(_) | Self::Tokens(_) => "prompt",
        }
    }

    /// Roughly its bytes.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Chat(chat) => {
                let texts = chat.messages.iter().chain(&chat.tools).chain(chat.kwargs.values());
                texts.map(size_of_json).sum()
            }
            Self::Text(text) => text.len(),
            // Nothing is to be done to them.
            Self::Tokens(_) => 0,
        }
    }
}

fn size_of_json(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 1,
        Value::String(text) => text.len(),
        Value::Array(items) => 1 + items.iter().map(size_of_json).sum::<usize>(),
        Value::Object(map) => map.iter().map(|(key, value)| key.len() + size_of_json(value)).sum(),
    }
}

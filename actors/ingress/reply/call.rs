//! A call in the making, in one of the two formats that models of this family write.

use std::sync::Arc;

use serde_json::{Value, json};

use super::hermes::Hermes;
use super::schema::Tools;
use super::xml::Xml;
use super::{Delta, emit};

/// What reading on came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// More text is needed.
    More,
    /// There may be more to read.
    Again,
    /// The call has ended.
    End,
}

/// A call in the making.
#[derive(Debug)]
pub(super) enum Call {
    /// `<function=name><parameter=key>value</parameter></function>`, from after `<function=`.
    Xml(Xml),
    /// `{"name": …, "arguments": {…}}`, from its first brace.
    Hermes(Hermes),
}

impl Call {
    pub(super) fn xml() -> Self {
        Self::Xml(Xml::default())
    }

    pub(super) fn hermes() -> Self {
        Self::Hermes(Hermes::default())
    }

    /// What is known of the tools.
    pub(super) fn learn(&mut self, tools: Option<Arc<Tools>>) {
        match self {
            Self::Xml(xml) => xml.tools = tools,
            // JSON says itself of which type a value is.
            Self::Hermes(_) => {}
        }
    }

    pub(super) fn step(&mut self, held: &mut String, out: &mut Vec<Delta>) -> Step {
        match self {
            Self::Xml(xml) => xml.step(held, out),
            Self::Hermes(hermes) => hermes.step(held, out),
        }
    }

    /// The text ended with what is held, for whatever reason.
    pub(super) fn cut(&mut self, held: &str, out: &mut Vec<Delta>) {
        match self {
            Self::Xml(xml) => xml.cut(held, out),
            // A brace says at once what it closes.
            Self::Hermes(_) => {}
        }
    }

    /// That was the model's will.
    pub(super) fn finish(&mut self, out: &mut Vec<Delta>) {
        match self {
            Self::Xml(xml) => xml.finish(out),
            Self::Hermes(hermes) => hermes.finish(out),
        }
    }
}

/// Adds to the arguments.
pub(super) fn argue(out: &mut Vec<Delta>, json: &str) {
    if !json.is_empty() {
        emit(out, Delta::Arguments(json.to_owned()));
    }
}

/// Arguments as an object: text that is none, as of a call that was cut off, becomes the only value
/// of one.
pub(crate) fn object(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => value,
        Ok(Value::Null) => json!({}),
        Ok(_) | Err(_) if text.trim().is_empty() => json!({}),
        Ok(_) | Err(_) => json!({"arguments": text}),
    }
}

/// The same of calls in a conversation so far; none where the text is whole, and of another type.
pub(crate) fn recalled(text: &str) -> Option<Value> {
    let said = serde_json::from_str(text).unwrap_or(Value::Null);
    (said.is_object() || said.is_null()).then(|| object(text))
}

//! How much a client wants to have thought, by the words of any API.

use serde_json::{Map, Value};

use super::openai::ApiError;

/// Tokens of thought where a client asks for little, or for some.
const LOW: usize = 1024;
const MEDIUM: usize = 8192;

/// What a client says of thinking.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Effort {
    /// Whether to think; as the template has it, if nobody said.
    thinks: Option<bool>,
    /// The word, for templates that read it.
    word: Option<String>,
    /// Most tokens of thought.
    tokens_max: Option<usize>,
}

impl Effort {
    /// OpenAI's `reasoning_effort`.
    pub(crate) fn named(word: &str) -> Result<Self, ApiError> {
        let (thinks, tokens_max) = match word {
            "none" => (false, None),
            "minimal" | "low" => (true, Some(LOW)),
            "medium" => (true, Some(MEDIUM)),
            "high" | "xhigh" | "max" => (true, None),
            _ => {
                let reason = "must be \"none\", \"minimal\", \"low\", \"medium\", \"high\" or \
                              \"xhigh\"";
                return Err(ApiError::invalid("reasoning_effort", reason));
            }
        };
        Ok(Self { thinks: Some(thinks), word: Some(word.to_owned()), tokens_max })
    }

    /// Thinking on or off, with so many tokens at most.
    pub(crate) fn budget(thinks: bool, tokens_max: Option<usize>) -> Self {
        Self { thinks: Some(thinks), word: None, tokens_max }
    }

    /// The same, where another field says whether to think at all.
    pub(crate) fn with(mut self, thinks: Option<bool>, field: &str) -> Result<Self, ApiError> {
        match (self.thinks, thinks) {
            (Some(one), Some(other)) if one != other => {
                let reason = "contradicts reasoning_effort; send one of them";
                Err(ApiError::invalid(field, reason))
            }
            (one, other) => {
                self.thinks = one.or(other);
                Ok(self)
            }
        }
    }

    /// Tells the template, as Qwen's and others' read it.
    pub(crate) fn tell(
        &self,
        kwargs: &mut Map<String, Value>,
        field: &str,
    ) -> Result<(), ApiError> {
        let variables = [
            ("enable_thinking", self.thinks.map(Value::from)),
            ("reasoning_effort", self.word.clone().map(Value::from)),
        ];
        for (name, value) in variables {
            let Some(value) = value else { continue };
            let told = kwargs.entry(name).or_insert_with(|| value.clone());
            if *told != value {
                let reason = format!("contradicts chat_template_kwargs.{name}; send one of them");
                return Err(ApiError::invalid(field, &reason));
            }
        }
        Ok(())
    }

    /// Most tokens of thought, where `said` goes before what the word means.
    pub(crate) fn bound(&self, said: Option<usize>) -> Option<usize> {
        said.or(self.tokens_max)
    }
}

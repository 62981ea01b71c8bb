//! Answers in OpenAI's shape, whole or in chunks.

use serde::Serialize;
use serde_json::{Value, json};

use super::logprobs::{self, Told};
use crate::ingress::stream::End;
use crate::ingress::{random, unix_s};

/// Which endpoint's words are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FinishReason {
    /// By a stop token or a stop string.
    Stop,
    /// By the most tokens that were wanted or that the context holds.
    Length,
}

/// What every chunk of one answer has in common.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    shape: Shape,
    id: String,
    created: u64,
    model: String,
    /// Tokens of each prompt.
    prompts: Vec<usize>,
    /// Choices of each prompt.
    choices: usize,
    /// Whether it says what the model thought of each token.
    tells: bool,
    /// The prompts, where texts begin with them.
    echo: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Envelope<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtp: Option<Mtp>,
}

/// What speculation gave: an extension of ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Mtp {
    drafted: usize,
    accepted: usize,
}

impl Answer {
    /// An answer to prompts of these lengths.
    pub(crate) fn new(shape: Shape, model: &str, prompts: Vec<usize>, choices: usize) -> Self {
        let prefix = match shape {
            Shape::Chat => "chatcmpl",
            Shape::Completions => "cmpl",
        };
        let id = format!("{prefix}-{:016x}{:016x}", random(), random());
        let (created, model) = (unix_s(), model.to_owned());
        Self { shape, id, created, model, prompts, choices, tells: false, echo: Vec::new() }
    }

    /// The same with what the model thought, and with prompts that are echoed.
    pub(crate) fn with(self, tells: bool, echo: Vec<String>) -> Self {
        Self { tells, echo, ..self }
    }

    fn echo(&self, index: usize) -> &str {
        self.echo.get(index / self.choices.max(1)).map_or("", String::as_str)
    }

    /// What the model thought, if that was asked for.
    fn logprobs(&self, told: &[Told]) -> Value {
        match (self.tells, self.shape) {
            (false, _) => Value::Null,
            (true, Shape::Chat) => logprobs::chat(told),
            (true, Shape::Completions) => logprobs::completions(told),
        }
    }

    /// What opens a choice in a stream, if anything does.
    pub(crate) fn opening(&self, index: usize, null_usage: bool) -> Option<String> {
        match self.shape {
            Shape::Chat => {
                let delta = json!({"role": "assistant", "content": ""});
                Some(self.chunk(chat_chunk(index, &delta, None), null_usage))
            }
            Shape::Completions if self.echo.is_empty() => None,
            Shape::Completions => {
                Some(self.chunk(completion(index, self.echo(index), None), null_usage))
            }
        }
    }

    /// A piece of text.
    pub(crate) fn text(
        &self,
        index: usize,
        (text, told): (&str, &[Told]),
        null_usage: bool,
    ) -> String {
        let mut choice = match self.shape {
            Shape::Chat => chat_chunk(index, &json!({"content": text}), None),
            Shape::Completions => completion(index, text, None),
        };
        choice["logprobs"] = self.logprobs(told);
        self.chunk(choice, null_usage)
    }

    /// The end of a choice.
    pub(crate) fn finish(&self, index: usize, reason: FinishReason, null_usage: bool) -> String {
        let choice = match self.shape {
            Shape::Chat => chat_chunk(index, &json!({}), Some(reason)),
            Shape::Completions => completion(index, "", Some(reason)),
        };
        self.chunk(choice, null_usage)
    }

    /// The last chunk of a stream whose client asked for the usage.
    pub(crate) fn closing(&self, ends: &[End]) -> String {
        let mut envelope = self.envelope(self.chunk_object());
        envelope.usage = Some(self.usage(ends));
        envelope.mtp = Some(mtp(ends));
        json_of(&envelope)
    }

    /// The whole answer at once: texts and ends of all choices, in order.
    pub(crate) fn whole(&self, texts: &[String], told: &[Vec<Told>], ends: &[End]) -> String {
        let object = match self.shape {
            Shape::Chat => "chat.completion",
            Shape::Completions => "text_completion",
        };
        let mut envelope = self.envelope(object);
        let choices = texts.iter().zip(ends).zip(told).enumerate();
        envelope.choices = choices
            .map(|(index, ((text, end), told))| {
                let mut choice = match self.shape {
                    Shape::Chat => json!({
                        "index": index,
                        "message": {"role": "assistant", "content": text, "refusal": null},
                        "logprobs": null,
                        "finish_reason": end.reason,
                    }),
                    Shape::Completions => {
                        let text = [self.echo(index), text].concat();
                        completion(index, &text, Some(end.reason))
                    }
                };
                choice["logprobs"] = self.logprobs(told);
                choice
            })
            .collect();
        envelope.usage = Some(self.usage(ends));
        envelope.mtp = Some(mtp(ends));
        json_of(&envelope)
    }

    fn chunk(&self, choice: Value, null_usage: bool) -> String {
        let mut envelope = self.envelope(self.chunk_object());
        envelope.choices.push(choice);
        envelope.usage = null_usage.then_some(Value::Null);
        json_of(&envelope)
    }

    fn chunk_object(&self) -> &'static str {
        match self.shape {
            Shape::Chat => "chat.completion.chunk",
            Shape::Completions => "text_completion",
        }
    }

    fn envelope(&self, object: &'static str) -> Envelope<'_> {
        let (id, model, created) = (self.id.as_str(), self.model.as_str(), self.created);
        Envelope { id, object, created, model, choices: Vec::new(), usage: None, mtp: None }
    }

    /// A prompt counts once, however many choices it has; what was cached is what its first choice
    /// found.
    fn usage(&self, ends: &[End]) -> Value {
        let prompt: usize = self.prompts.iter().sum();
        let completion: usize = ends.iter().map(|end| end.generated).sum();
        let firsts = ends.iter().step_by(self.choices.max(1));
        let cached: usize = firsts.map(|end| end.cost.cached).sum();
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            // No `completion_tokens_details`: reasoning is not told apart from the answer yet.
            "prompt_tokens_details": {"cached_tokens": cached},
        })
    }
}

fn mtp(ends: &[End]) -> Mtp {
    ends.iter().fold(Mtp::default(), |sum, End { cost, .. }| Mtp {
        drafted: sum.drafted + cost.drafted,
        accepted: sum.accepted + cost.accepted,
    })
}

fn chat_chunk(index: usize, delta: &Value, reason: Option<FinishReason>) -> Value {
    json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": reason})
}

fn completion(index: usize, text: &str, reason: Option<FinishReason>) -> Value {
    json!({"index": index, "text": text, "logprobs": null, "finish_reason": reason})
}

fn json_of(value: &Envelope<'_>) -> String {
    serde_json::to_string(value).expect("an envelope has string keys and finite numbers only")
}

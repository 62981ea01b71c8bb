//! Answers in OpenAI's shape, whole or in chunks.

use serde::Serialize;
use serde_json::{Value, json};

use super::logprobs::{self, Told};
use super::{ApiError, Delivery};
use crate::ingress::reply::{Delta, Reply};
use crate::ingress::stream::{Cost, End, FinishReason, Piece};
use crate::ingress::wire::{self, Frames, Wire};
use crate::ingress::{random, unix_s};

/// Which endpoint's words are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
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
    /// Whether a stream ends with the usage, and each chunk says what was used so far.
    delivery: Delivery,
    /// Whether it says what the model thought of each token.
    tells: bool,
    /// The prompts, where texts begin with them.
    echo: Vec<String>,
    /// What each choice said last, in a stream.
    last: Vec<Said>,
    /// Tokens of each choice so far, and what they cost.
    so_far: Vec<(usize, Cost)>,
}

/// Where a choice of a stream stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Said {
    #[default]
    Nothing,
    Reasoning,
    /// Text, after so many calls.
    Text(usize),
    /// The call of this index.
    Call(usize),
    /// It has ended, and must not be heard of again.
    Over,
}

impl Said {
    /// Calls so far.
    fn calls(self) -> usize {
        match self {
            Self::Nothing | Self::Reasoning | Self::Over => 0,
            Self::Text(calls) => calls,
            Self::Call(index) => index + 1,
        }
    }
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
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<Value>,
}

/// What speculation gave: an extension of ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Mtp {
    drafted: usize,
    accepted: usize,
}

impl Answer {
    /// An answer to prompts of these lengths, so many choices each.
    pub(crate) fn new(
        shape: Shape,
        model: &str,
        prompts: Vec<usize>,
        (choices, delivery): (usize, Delivery),
    ) -> Self {
        let prefix = match shape {
            Shape::Chat => "chatcmpl",
            Shape::Completions => "cmpl",
        };
        let id = format!("{prefix}-{:016x}{:016x}", random(), random());
        let last = vec![Said::Nothing; prompts.len() * choices];
        let so_far = vec![(0, Cost::default()); last.len()];
        let (created, model, tells, echo) = (unix_s(), model.to_owned(), false, Vec::new());
        Self { shape, id, created, model, prompts, choices, delivery, tells, echo, last, so_far }
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

    fn choice(&self, index: usize, delta: &Value, reason: Option<FinishReason>) -> Value {
        match self.shape {
            Shape::Chat => {
                json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": reason})
            }
            Shape::Completions => {
                let text = delta["content"].as_str().unwrap_or_default();
                completion(index, text, reason)
            }
        }
    }

    /// What a delta adds to a message.
    fn delta(&mut self, index: usize, delta: &Delta) -> Option<Value> {
        let last = &mut self.last[index];
        match delta {
            Delta::Reasoning(text) => {
                *last = Said::Reasoning;
                Some(json!({"reasoning_content": text}))
            }
            Delta::Text(text) => {
                *last = Said::Text(last.calls());
                Some(json!({"content": text}))
            }
            Delta::Call(name) => {
                let call = last.calls();
                *last = Said::Call(call);
                let function = json!({"name": name, "arguments": ""});
                let id = call_id();
                Some(json!({"tool_calls": [
                    {"index": call, "id": id, "type": "function", "function": function}]}))
            }
            Delta::Arguments(json) => Some(more_arguments(last.calls().saturating_sub(1), json)),
            Delta::Called => None,
        }
    }

    fn chunk(&self, choice: Value) -> Envelope<'_> {
        let mut envelope = self.envelope(self.chunk_object());
        envelope.choices.push(choice);
        envelope.usage = self.delivery.include_usage.then_some(Value::Null);
        if self.delivery.continuous_usage {
            envelope.usage = Some(self.used(self.so_far.iter().map(|(tokens, _)| tokens).sum()));
            envelope.mtp = Some(mtp(self.so_far.iter().map(|(_, cost)| cost)));
        }
        envelope
    }

    fn chunk_object(&self) -> &'static str {
        match self.shape {
            Shape::Chat => "chat.completion.chunk",
            Shape::Completions => "text_completion",
        }
    }

    fn envelope(&self, object: &'static str) -> Envelope<'_> {
        let (id, model, created) = (self.id.as_str(), self.model.as_str(), self.created);
        let (choices, usage, mtp, timings) = (Vec::new(), None, None, None);
        Envelope { id, object, created, model, choices, usage, mtp, timings }
    }

    /// A prompt counts once, however many choices it has; what was cached is what its first choice
    /// found.
    fn usage(&self, ends: &[End]) -> Value {
        let mut usage = self.used(ends.iter().map(|end| end.generated).sum());
        usage["prompt_tokens_details"] = json!({"cached_tokens": self.cached(ends)});
        if self.shape == Shape::Chat {
            let reasoning: usize = ends.iter().map(|end| end.reasoning).sum();
            usage["completion_tokens_details"] = json!({"reasoning_tokens": reasoning});
        }
        usage
    }

    fn used(&self, completion: usize) -> Value {
        let prompt: usize = self.prompts.iter().sum();
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        })
    }

    fn cached(&self, ends: &[End]) -> usize {
        let firsts = ends.iter().step_by(self.choices.max(1));
        firsts.map(|end| end.cost.cached).sum()
    }

    /// As llama.cpp's server tells them, and Open WebUI shows them. Choices run side by side: their
    /// time is that of the slowest.
    fn timings(&self, ends: &[End]) -> Value {
        let slowest = |of: fn(&End) -> f64| ends.iter().map(of).fold(0.0, f64::max);
        let prompt_ms = slowest(|end| end.pace.prompt.as_secs_f64() * 1e3);
        let predicted_ms = slowest(|end| end.pace.predicted.as_secs_f64() * 1e3);
        let cached = self.cached(ends);
        let prompt = self.prompts.iter().sum::<usize>().saturating_sub(cached);
        let predicted: usize = ends.iter().map(|end| end.generated).sum();
        let Mtp { drafted, accepted } = mtp(costs(ends));
        json!({
            "prompt_n": prompt, "prompt_ms": prompt_ms,
            "prompt_per_token_ms": ratio(prompt_ms, prompt as f64),
            "prompt_per_second": ratio(1e3 * prompt as f64, prompt_ms),
            "predicted_n": predicted, "predicted_ms": predicted_ms,
            "predicted_per_token_ms": ratio(predicted_ms, predicted as f64),
            "predicted_per_second": ratio(1e3 * predicted as f64, predicted_ms),
            "cache_n": cached, "draft_n": drafted, "draft_n_accepted": accepted,
        })
    }
}

impl Wire for Answer {
    fn begin(&mut self, out: &mut Frames) {
        for index in 0..self.last.len() {
            let delta = match self.shape {
                Shape::Chat => json!({"role": "assistant", "content": ""}),
                Shape::Completions if self.echo.is_empty() => continue,
                Shape::Completions => json!({"content": self.echo(index)}),
            };
            out.push_back(wire::data(&self.chunk(self.choice(index, &delta, None))));
        }
    }

    fn piece(&mut self, index: usize, piece: &Piece, out: &mut Frames) {
        self.so_far[index] = (piece.generated, piece.cost);
        let mut told = piece.told.as_slice();
        let deltas: Vec<Value> = piece.deltas.iter().filter_map(|d| self.delta(index, d)).collect();
        // Of tokens whose text is held back, what the model thought of them is told at once.
        let alone = (deltas.is_empty() && !told.is_empty()).then(|| json!({"content": ""}));
        for delta in deltas.into_iter().chain(alone) {
            let mut choice = self.choice(index, &delta, None);
            choice["logprobs"] = self.logprobs(std::mem::take(&mut told));
            out.push_back(wire::data(&self.chunk(choice)));
        }
    }

    fn end(&mut self, index: usize, end: &End, out: &mut Frames) {
        self.last[index] = Said::Over;
        let mut last = self.chunk(self.choice(index, &json!({}), Some(end.reason)));
        // Who asked for the usage finds them there.
        if self.last.len() == 1 && !self.delivery.include_usage {
            last.timings = Some(self.timings(std::slice::from_ref(end)));
        }
        out.push_back(wire::data(&last));
    }

    fn close(&mut self, ends: &[End], out: &mut Frames) {
        if self.delivery.include_usage {
            let mut envelope = self.envelope(self.chunk_object());
            envelope.usage = Some(self.usage(ends));
            envelope.mtp = Some(mtp(costs(ends)));
            envelope.timings = Some(self.timings(ends));
            out.push_back(wire::data(&envelope));
        }
        out.push_back(axum::response::sse::Event::default().data("[DONE]"));
    }

    fn fail(&mut self, error: &ApiError, out: &mut Frames) {
        out.push_back(wire::data(&error.body()));
    }

    fn alive(&mut self, out: &mut Frames) {
        let talks = |said: &Said| !matches!(said, Said::Nothing | Said::Over);
        let talking = self.last.iter().position(talks);
        let delta = match talking.map(|index| (index, self.last[index])) {
            _ if self.shape == Shape::Completions => None,
            None | Some((_, Said::Nothing | Said::Over)) => None,
            Some((index, Said::Reasoning)) => Some((index, json!({"reasoning_content": ""}))),
            Some((index, Said::Text(_))) => Some((index, json!({"content": ""}))),
            Some((index, Said::Call(call))) => Some((index, more_arguments(call, ""))),
        };
        out.push_back(match delta {
            Some((index, delta)) => wire::data(&self.chunk(self.choice(index, &delta, None))),
            None => wire::comment(),
        });
    }

    fn whole(&mut self, replies: &[Reply], told: &[Vec<Told>], ends: &[End]) -> String {
        let object = match self.shape {
            Shape::Chat => "chat.completion",
            Shape::Completions => "text_completion",
        };
        let mut envelope = self.envelope(object);
        let choices = replies.iter().zip(ends).zip(told).enumerate();
        envelope.choices = choices
            .map(|(index, ((reply, end), told))| {
                let mut choice = match self.shape {
                    Shape::Chat => json!({
                        "index": index,
                        "message": message(reply),
                        "logprobs": null,
                        "finish_reason": end.reason,
                    }),
                    Shape::Completions => {
                        let text = [self.echo(index), &reply.text()].concat();
                        completion(index, &text, Some(end.reason))
                    }
                };
                choice["logprobs"] = self.logprobs(told);
                choice
            })
            .collect();
        envelope.usage = Some(self.usage(ends));
        envelope.mtp = Some(mtp(costs(ends)));
        envelope.timings = Some(self.timings(ends));
        wire::json(&envelope)
    }
}

fn message(reply: &Reply) -> Value {
    let text = reply.text();
    let calls: Vec<Value> = reply
        .calls()
        .map(|(name, arguments)| {
            let function = json!({"name": name, "arguments": arguments});
            json!({"id": call_id(), "type": "function", "function": function})
        })
        .collect();
    let content = if text.is_empty() && !calls.is_empty() { Value::Null } else { text.into() };
    let mut message = json!({"role": "assistant", "content": content, "refusal": null});
    if let Some(thought) = reply.reasoning() {
        message["reasoning_content"] = thought.into();
    }
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    message
}

fn call_id() -> String {
    format!("call_{:016x}", random())
}

fn more_arguments(call: usize, json: &str) -> Value {
    json!({"tool_calls": [{"index": call, "function": {"arguments": json}}]})
}

fn ratio(of: f64, to: f64) -> f64 {
    if to > 0.0 { of / to } else { 0.0 }
}

fn costs(ends: &[End]) -> impl Iterator<Item = &Cost> {
    ends.iter().map(|end| &end.cost)
}

fn mtp<'a>(costs: impl Iterator<Item = &'a Cost>) -> Mtp {
    costs.fold(Mtp::default(), |sum, cost| Mtp {
        drafted: sum.drafted + cost.drafted,
        accepted: sum.accepted + cost.accepted,
    })
}

fn completion(index: usize, text: &str, reason: Option<FinishReason>) -> Value {
    json!({"index": index, "text": text, "logprobs": null, "finish_reason": reason})
}

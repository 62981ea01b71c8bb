//! Answers as Anthropic's Messages API gives them.

use serde_json::{Value, json};

use super::error::error_body;
use crate::ingress::openai::ApiError;
use crate::ingress::openai::logprobs::Told;
use crate::ingress::random;
use crate::ingress::reply::{Block, Delta, Reply};
use crate::ingress::stream::{Cost, End, FinishReason, Piece};
use crate::ingress::wire::{self, Frames, Wire};

/// Thinking is signed by its maker's servers, which check it when it comes back. Here nothing is
/// checked, but clients want to see something.
const SIGNATURE: &str = "unsigned";

/// An answer in the making.
#[derive(Debug)]
pub(crate) struct Answer {
    id: String,
    model: String,
    prompt: usize,
    /// Whether the prompt ends within thinking.
    thinking: bool,
    started: bool,
    /// Blocks begun.
    blocks: usize,
    open: Option<Kind>,
}

/// What an open block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Thinking,
    Text,
    Call,
}

impl Answer {
    /// An answer to a prompt of so many tokens.
    pub(crate) fn new(model: &str, prompt: usize, thinking: bool) -> Self {
        let (id, model) = (format!("msg_{:016x}{:016x}", random(), random()), model.to_owned());
        Self { id, model, prompt, thinking, started: false, blocks: 0, open: None }
    }

    /// What is warm is known with the first tokens; a client that waited long is told without.
    fn start(&mut self, cost: Cost, out: &mut Frames) {
        if std::mem::replace(&mut self.started, true) {
            return;
        }
        let message = self.message(Vec::new(), None, self.usage(cost, 0));
        let start = json!({"type": "message_start", "message": message});
        out.push_back(wire::named("message_start", &start));
        ping(out);
    }

    fn message(&self, content: Vec<Value>, end: Option<&End>, usage: Value) -> Value {
        json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.model,
            "content": content,
            "stop_reason": end.map(reason),
            "stop_sequence": end.and_then(|end| end.stopped_by.as_deref()),
            "usage": usage,
        })
    }

    /// What is read from the cache is not counted among the input.
    fn usage(&self, cost: Cost, generated: usize) -> Value {
        json!({
            "input_tokens": self.prompt.saturating_sub(cost.cached),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cost.cached,
            "output_tokens": generated,
        })
    }

    /// Makes sure that a block of this kind is open.
    fn open(&mut self, kind: Kind, out: &mut Frames) {
        if self.open == Some(kind) {
            return;
        }
        let block = match kind {
            Kind::Thinking => json!({"type": "thinking", "thinking": "", "signature": ""}),
            Kind::Text | Kind::Call => json!({"type": "text", "text": ""}),
        };
        self.begin(kind, &block, out);
    }

    fn begin(&mut self, kind: Kind, block: &Value, out: &mut Frames) {
        self.close_block(out);
        let start =
            json!({"type": "content_block_start", "index": self.blocks, "content_block": block});
        out.push_back(wire::named("content_block_start", &start));
        (self.open, self.blocks) = (Some(kind), self.blocks + 1);
    }

    fn more(&self, text: &str, out: &mut Frames) {
        let delta = match self.open {
            None => return,
            Some(Kind::Thinking) => json!({"type": "thinking_delta", "thinking": text}),
            Some(Kind::Text) => json!({"type": "text_delta", "text": text}),
            Some(Kind::Call) => json!({"type": "input_json_delta", "partial_json": text}),
        };
        self.delta(&delta, out);
    }

    fn delta(&self, delta: &Value, out: &mut Frames) {
        let index = self.blocks.saturating_sub(1);
        let event = json!({"type": "content_block_delta", "index": index, "delta": delta});
        out.push_back(wire::named("content_block_delta", &event));
    }

    fn close_block(&mut self, out: &mut Frames) {
        let Some(kind) = self.open.take() else { return };
        if kind == Kind::Thinking {
            self.delta(&json!({"type": "signature_delta", "signature": SIGNATURE}), out);
        }
        let stop = json!({"type": "content_block_stop", "index": self.blocks.saturating_sub(1)});
        out.push_back(wire::named("content_block_stop", &stop));
    }
}

impl Wire for Answer {
    fn begin(&mut self, _: &mut Frames) {}

    fn piece(&mut self, _: usize, piece: &Piece, out: &mut Frames) {
        if matches!(piece.end, Some(Err(_))) && !self.started {
            return;
        }
        self.start(piece.cost, out);
        for delta in &piece.deltas {
            match delta {
                Delta::Reasoning(text) => {
                    self.open(Kind::Thinking, out);
                    self.more(text, out);
                }
                Delta::Text(text) => {
                    self.open(Kind::Text, out);
                    self.more(text, out);
                }
                Delta::Call(name) => {
                    let id = tool_use_id();
                    let block = json!({"type": "tool_use", "id": id, "name": name, "input": {}});
                    self.begin(Kind::Call, &block, out);
                }
                Delta::Arguments(json) => self.more(json, out),
                Delta::Called => self.close_block(out),
            }
        }
    }

    fn end(&mut self, _: usize, end: &End, out: &mut Frames) {
        self.close_block(out);
        let delta = json!({"stop_reason": reason(end), "stop_sequence": end.stopped_by});
        let usage = self.usage(end.cost, end.generated);
        let event = json!({"type": "message_delta", "delta": delta, "usage": usage});
        out.push_back(wire::named("message_delta", &event));
    }

    fn close(&mut self, _: &[End], out: &mut Frames) {
        out.push_back(wire::named("message_stop", &json!({"type": "message_stop"})));
    }

    fn fail(&mut self, error: &ApiError, out: &mut Frames) {
        out.push_back(wire::named("error", &error_body(error, None)));
    }

    fn alive(&mut self, out: &mut Frames) {
        if !self.started {
            return self.start(Cost::default(), out);
        }
        if self.open.is_none() && self.blocks == 0 {
            // Some clients give a stream up that shows nothing but pings for minutes.
            self.open(if self.thinking { Kind::Thinking } else { Kind::Text }, out);
        }
        if self.open.is_some() { self.more("", out) } else { ping(out) }
    }

    fn whole(&mut self, replies: &[Reply], _: &[Vec<Told>], ends: &[End]) -> String {
        let blocks = replies.iter().flat_map(|reply| &reply.0).filter_map(block).collect();
        let end = ends.first();
        let usage = end.map_or(Value::Null, |end| self.usage(end.cost, end.generated));
        wire::json(&self.message(blocks, end, usage))
    }
}

/// A block of a whole answer; none where a call was cut off: nobody should run the half of it.
fn block(block: &Block) -> Option<Value> {
    Some(match block {
        Block::Reasoning(text) => {
            json!({"type": "thinking", "thinking": text, "signature": SIGNATURE})
        }
        Block::Text(text) => json!({"type": "text", "text": text}),
        Block::Call { complete: false, .. } => return None,
        Block::Call { name, arguments, complete: true } => {
            let input = input(arguments);
            json!({"type": "tool_use", "id": tool_use_id(), "name": name, "input": input})
        }
    })
}

/// Arguments as the object that they must be. What is broken is handed over under the name that
/// Anthropic's guide has for it, which no tool takes for its own. In a stream it stands as it is:
/// clients of eager streams have to expect that, too.
fn input(arguments: &str) -> Value {
    match serde_json::from_str(arguments) {
        Ok(input @ Value::Object(_)) => input,
        Ok(_) | Err(_) => json!({"INVALID_JSON": arguments}),
    }
}

fn reason(end: &End) -> &'static str {
    match end.reason {
        FinishReason::Stop if end.stopped_by.is_some() => "stop_sequence",
        FinishReason::Stop => "end_turn",
        FinishReason::Length => "max_tokens",
        FinishReason::ToolCalls => "tool_use",
    }
}

fn tool_use_id() -> String {
    format!("toolu_{:016x}", random())
}

fn ping(out: &mut Frames) {
    out.push_back(wire::named("ping", &json!({"type": "ping"})));
}

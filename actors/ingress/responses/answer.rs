//! Answers as the Responses API gives them: a list of items, or events that build it.

use serde_json::{Map, Value, json};

use super::{Echo, Kept, Store};
use crate::ingress::openai::ApiError;
use crate::ingress::openai::logprobs::Told;
use crate::ingress::reply::{self, Block, Delta, Reply};
use crate::ingress::stream::{End, FinishReason, Piece};
use crate::ingress::wire::{self, Frames, Wire};
use crate::ingress::{random, unix_s};

/// An answer in the making.
#[derive(Debug)]
pub(crate) struct Answer {
    id: String,
    created: u64,
    model: String,
    prompt: usize,
    echo: Echo,
    store: Store,
    /// What was said so far, and the names of its items.
    reply: Reply,
    names: Vec<Name>,
    /// Whether the last item is still being written.
    open: bool,
    /// The number of the next event.
    sequence: u64,
}

/// What an item is called.
#[derive(Clone, Debug)]
struct Name {
    id: String,
    /// Of a call, what its output refers to.
    call_id: String,
}

impl Name {
    fn new(block: &Block) -> Self {
        let kind = match block {
            Block::Reasoning(_) => "rs",
            Block::Text(_) => "msg",
            Block::Call { .. } => "fc",
        };
        let id = format!("{kind}_{:016x}{:016x}", random(), random());
        Self { id, call_id: format!("call_{:016x}", random()) }
    }
}

impl Answer {
    /// An answer to a prompt of so many tokens.
    pub(crate) fn new(model: &str, prompt: usize, echo: Echo, store: Store) -> Self {
        let (id, model) = (format!("resp_{:016x}{:016x}", random(), random()), model.to_owned());
        let (created, reply, names) = (unix_s(), Reply::default(), Vec::new());
        Self { id, created, model, prompt, echo, store, reply, names, open: false, sequence: 0 }
    }

    fn send(&mut self, kind: &str, fields: Value, out: &mut Frames) {
        let mut event = json!({"type": kind, "sequence_number": self.sequence});
        if let (Value::Object(event), Value::Object(fields)) = (&mut event, fields) {
            event.extend(fields);
        }
        self.sequence += 1;
        out.push_back(wire::named(kind, &event));
    }

    /// An event about the last item.
    fn tell(&mut self, kind: &str, mut fields: Value, out: &mut Frames) {
        let Some(name) = self.names.last() else { return };
        fields["item_id"] = name.id.clone().into();
        fields["output_index"] = (self.names.len() - 1).into();
        self.send(kind, fields, out);
    }

    /// The whole answer as it stands.
    fn response(&self, end: Option<&End>, failed: Option<&ApiError>) -> Value {
        let cut = end.is_some_and(|end| end.reason == FinishReason::Length);
        let status = match (end, failed) {
            (_, Some(_)) => "failed",
            (None, None) => "in_progress",
            (Some(_), None) if cut => "incomplete",
            (Some(_), None) => "completed",
        };
        let error = failed.map(|e| json!({"code": "server_error", "message": e.message()}));
        let mut response = json!({
            "id": self.id, "object": "response", "created_at": self.created, "status": status,
            "background": false,
            "error": error,
            "incomplete_details": cut.then(|| json!({"reason": "max_output_tokens"})),
            "model": self.model,
            "output": self.items(cut),
            "usage": end.map(|end| self.usage(end)),
        });
        if let Value::Object(response) = &mut response {
            response.extend(self.echo.fields.clone());
        }
        response
    }

    fn items(&self, cut: bool) -> Vec<Value> {
        let last = self.names.len().saturating_sub(1);
        let items = self.reply.0.iter().zip(&self.names).enumerate();
        items
            .map(|(i, (block, name))| {
                let cut = i == last && (cut || self.open);
                item(block, name, if cut { "incomplete" } else { "completed" })
            })
            .collect()
    }

    fn usage(&self, end: &End) -> Value {
        json!({
            "input_tokens": self.prompt,
            "input_tokens_details": {"cached_tokens": end.cost.cached},
            "output_tokens": end.generated,
            "output_tokens_details": {"reasoning_tokens": end.reasoning},
            "total_tokens": self.prompt + end.generated,
        })
    }

    fn take(&mut self, delta: &Delta, out: &mut Frames) {
        let is_new = match (self.reply.0.last(), delta) {
            (Some(Block::Reasoning(_)), Delta::Reasoning(_))
            | (Some(Block::Text(_)), Delta::Text(_)) => !self.open,
            (_, Delta::Reasoning(_) | Delta::Text(_) | Delta::Call(_)) => true,
            (_, Delta::Arguments(_) | Delta::Called) => false,
        };
        if is_new {
            self.close_item("completed", out);
            self.reply.take(delta);
            self.open_item(delta, out);
        } else {
            self.reply.take(delta);
        }
        match delta {
            Delta::Reasoning(text) => {
                let fields = json!({"content_index": 0, "delta": text});
                self.tell("response.reasoning_text.delta", fields, out);
            }
            Delta::Text(text) => {
                let fields = json!({"content_index": 0, "delta": text, "logprobs": []});
                self.tell("response.output_text.delta", fields, out);
            }
            Delta::Arguments(json) => {
                let fields = json!({"delta": json});
                self.tell("response.function_call_arguments.delta", fields, out);
            }
            Delta::Call(_) => {}
            Delta::Called => self.close_item("completed", out),
        }
    }

    fn open_item(&mut self, delta: &Delta, out: &mut Frames) {
        let empty = match delta {
            Delta::Reasoning(_) => Block::Reasoning(String::new()),
            Delta::Call(name) => {
                Block::Call { name: name.clone(), arguments: String::new(), complete: false }
            }
            Delta::Text(_) | Delta::Arguments(_) | Delta::Called => Block::Text(String::new()),
        };
        self.names.push(Name::new(&empty));
        self.open = true;
        let Some(name) = self.names.last() else { return };
        let mut item = item(&empty, name, "in_progress");
        if let Some(content) = item.get_mut("content") {
            *content = json!([]);
        }
        let fields = json!({"output_index": self.names.len() - 1, "item": item});
        self.send("response.output_item.added", fields, out);
        if let Some(part) = part(&empty) {
            let fields = json!({"content_index": 0, "part": part});
            self.tell("response.content_part.added", fields, out);
        }
    }

    fn close_item(&mut self, status: &str, out: &mut Frames) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        let (Some(block), Some(name)) = (self.reply.0.last().cloned(), self.names.last().cloned())
        else {
            return;
        };
        match &block {
            Block::Reasoning(text) => {
                let fields = json!({"content_index": 0, "text": text});
                self.tell("response.reasoning_text.done", fields, out);
            }
            Block::Text(text) => {
                let fields = json!({"content_index": 0, "text": text, "logprobs": []});
                self.tell("response.output_text.done", fields, out);
            }
            Block::Call { name, arguments, .. } => {
                let fields = json!({"name": name, "arguments": arguments});
                self.tell("response.function_call_arguments.done", fields, out);
            }
        }
        if let Some(part) = part(&block) {
            let fields = json!({"content_index": 0, "part": part});
            self.tell("response.content_part.done", fields, out);
        }
        let item = item(&block, &name, status);
        let fields = json!({"output_index": self.names.len() - 1, "item": item});
        self.send("response.output_item.done", fields, out);
    }

    /// Keeps the answer, if its client wants to come back to it.
    fn keep(&mut self, response: &Value) {
        let Some(mut messages) = self.echo.keeps.take() else { return };
        let mut said = Map::from_iter([
            ("role".to_owned(), Value::from("assistant")),
            ("content".to_owned(), self.reply.text().into()),
        ]);
        if let Some(thought) = self.reply.reasoning() {
            said.insert("reasoning_content".into(), thought.into());
        }
        let calls = self.reply.0.iter().zip(&self.names).filter_map(|(block, name)| match block {
            // One that was cut off cannot be shown to a template; it was not run either.
            Block::Call { complete: false, .. } => None,
            Block::Call { name: tool, arguments, complete: true } => {
                let arguments = reply::object(arguments);
                let function = json!({"name": tool, "arguments": arguments});
                Some(json!({"id": name.call_id, "type": "function", "function": function}))
            }
            Block::Reasoning(_) | Block::Text(_) => None,
        });
        let calls: Vec<Value> = calls.collect();
        if !calls.is_empty() {
            said.insert("tool_calls".into(), calls.into());
        }
        messages.push(Value::Object(said));
        self.store.keep(&self.id, Kept::new(messages, response));
    }
}

impl Wire for Answer {
    fn begin(&mut self, out: &mut Frames) {
        for kind in ["response.created", "response.in_progress"] {
            let response = self.response(None, None);
            self.send(kind, json!({"response": response}), out);
        }
    }

    fn piece(&mut self, _: usize, piece: &Piece, out: &mut Frames) {
        for delta in &piece.deltas {
            self.take(delta, out);
        }
    }

    fn end(&mut self, _: usize, end: &End, out: &mut Frames) {
        let cut = end.reason == FinishReason::Length;
        self.close_item(if cut { "incomplete" } else { "completed" }, out);
        let response = self.response(Some(end), None);
        self.keep(&response);
        let kind = if cut { "response.incomplete" } else { "response.completed" };
        self.send(kind, json!({"response": response}), out);
    }

    fn close(&mut self, _: &[End], _: &mut Frames) {}

    fn fail(&mut self, error: &ApiError, out: &mut Frames) {
        let response = self.response(None, Some(error));
        self.send("response.failed", json!({"response": response}), out);
    }

    fn alive(&mut self, out: &mut Frames) {
        // An event that says nothing new. Clients put pieces together, so an empty one would do,
        // but there need not be any to add to.
        let response = self.response(None, None);
        self.send("response.in_progress", json!({"response": response}), out);
    }

    fn whole(&mut self, replies: &[Reply], _: &[Vec<Told>], ends: &[End]) -> String {
        self.reply = replies.first().cloned().unwrap_or_default();
        self.names = self.reply.0.iter().map(Name::new).collect();
        let response = self.response(ends.first(), None);
        self.keep(&response);
        wire::json(&response)
    }
}

/// The only part of an item that has parts.
fn part(block: &Block) -> Option<Value> {
    match block {
        Block::Reasoning(text) => Some(json!({"type": "reasoning_text", "text": text})),
        Block::Text(text) => {
            Some(json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []}))
        }
        Block::Call { .. } => None,
    }
}

fn item(block: &Block, Name { id, call_id }: &Name, status: &str) -> Value {
    let content = part(block);
    match block {
        Block::Reasoning(_) => json!({
            "id": id, "type": "reasoning", "status": status, "summary": [], "content": [content],
        }),
        Block::Text(_) => json!({
            "id": id, "type": "message", "status": status, "role": "assistant",
            "content": [content],
        }),
        Block::Call { name, arguments, complete } => json!({
            "id": id, "type": "function_call", "call_id": call_id, "name": name,
            "arguments": arguments,
            "status": if *complete || status == "in_progress" { status } else { "incomplete" },
        }),
    }
}

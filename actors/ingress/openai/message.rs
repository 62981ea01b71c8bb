//! Messages of a conversation, made into what chat templates read.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::error::ApiError;
use super::one_or_many::OneOrMany;
use crate::ingress::openapi::asked;
use crate::ingress::reply::recalled;
use crate::ingress::unknown::Ignored;

/// A message as a client writes it.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ChatMessageAsked)]
pub(crate) struct Message {
    role: Role,
    #[schema(schema_with = asked::content)]
    content: Option<OneOrMany<Part>>,
    name: Option<String>,
    tool_calls: Option<Vec<ToolCall>>,
    tool_call_id: Option<String>,
    /// What an assistant thought, by the two names that clients use.
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    // What the official clients' helpers add to a message they hand out: the same once more.
    #[serde(rename = "parsed")]
    _parsed: Option<Value>,
    // Clients send back what they were sent; only empty values ask for nothing.
    refusal: Option<Value>,
    annotations: Option<Value>,
    audio: Option<Value>,
    function_call: Option<Value>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = ChatRole)]
enum Role {
    System,
    /// OpenAI's newer name of system.
    Developer,
    User,
    Assistant,
    Tool,
}

impl Role {
    /// As templates call it.
    fn name(self) -> &'static str {
        match self {
            Self::System | Self::Developer => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// A part of a message's content; a plain string is a part of its own.
#[derive(Debug, Deserialize)]
#[serde(from = "Value")]
struct Part(Value);

impl From<Value> for Part {
    fn from(value: Value) -> Self {
        Self(value)
    }
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = AskedToolCall)]
struct ToolCall {
    id: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    function: Function,
    /// Streamed calls carry it; the order of the array says the same.
    #[serde(rename = "index")]
    _index: Option<u64>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = AskedFunction)]
struct Function {
    name: String,
    arguments: Option<Value>,
    /// As of messages.
    #[serde(rename = "parsed_arguments")]
    _parsed_arguments: Option<Value>,
}

/// Makes messages what templates read.
pub(super) fn into_template(
    messages: Vec<Message>,
    ignored: &mut Ignored,
) -> Result<Vec<Value>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "must hold at least one message"));
    }
    let numbered = messages.into_iter().enumerate();
    let templates = numbered
        .map(|(i, message)| message.into_template(&format!("messages[{i}]"), &mut *ignored));
    templates.collect()
}

impl Message {
    fn into_template(self, path: &str, ignored: &mut Ignored) -> Result<Value, ApiError> {
        self.refuse_what_is_not_supported(path)?;
        let mut out = Map::new();
        out.insert("role".into(), self.role.name().into());
        let content = match self.content {
            Some(content) => Some(join(content, path, ignored)?),
            None => None,
        };
        if content.is_none() && self.role != Role::Assistant {
            return Err(ApiError::invalid(format!("{path}.content"), "must be given"));
        }
        out.insert("content".into(), content.unwrap_or_default().into());
        // Names go to the template as they are: some show them to the model, others do not look
        // at them, and which this one does is known to it alone.
        let optional = [
            ("name", self.name),
            ("tool_call_id", self.tool_call_id),
            ("reasoning_content", self.reasoning_content.or(self.reasoning)),
        ];
        for (key, value) in optional {
            if let Some(value) = value {
                out.insert(key.into(), value.into());
            }
        }
        let calls = self.tool_calls.unwrap_or_default();
        if !calls.is_empty() {
            let path = format!("{path}.tool_calls");
            if self.role != Role::Assistant {
                return Err(ApiError::invalid(path, "only an assistant calls tools"));
            }
            let calls = calls.into_iter().enumerate();
            let calls = calls.map(|(i, call)| call.into_template(&format!("{path}[{i}]")));
            out.insert("tool_calls".into(), calls.collect::<Result<_, _>>()?);
        }
        Ok(Value::Object(out))
    }

    fn refuse_what_is_not_supported(&self, path: &str) -> Result<(), ApiError> {
        let values = [
            ("refusal", &self.refusal),
            ("annotations", &self.annotations),
            ("audio", &self.audio),
            ("function_call", &self.function_call),
        ];
        for (name, value) in values {
            let empty = value.as_ref().is_none_or(|v| *v == json!([]) || *v == json!(""));
            if !empty {
                let reason = "not supported; leave it out";
                return Err(ApiError::unsupported(format!("{path}.{name}"), reason));
            }
        }
        Ok(())
    }
}

/// The text of all parts together, with nothing between them, as the models' own templates do it.
fn join(content: OneOrMany<Part>, path: &str, ignored: &mut Ignored) -> Result<String, ApiError> {
    let mut text = String::new();
    let parts = match content {
        OneOrMany::One(Part(part)) => vec![part],
        OneOrMany::Many(parts) => {
            let numbered = parts.into_iter().enumerate();
            let texts = numbered.map(|(i, Part(part))| {
                let path = format!("{path}.content[{i}]");
                text_of(part, &path, &mut *ignored)
            });
            texts.collect::<Result<_, _>>()?
        }
    };
    for part in parts {
        text.push_str(part.as_str().unwrap_or_default());
    }
    Ok(text)
}

/// The text of one part.
fn text_of(mut part: Value, path: &str, ignored: &mut Ignored) -> Result<Value, ApiError> {
    let Some(part) = part.as_object_mut() else {
        return Err(ApiError::invalid(path, "must be an object with type \"text\""));
    };
    match part.remove("type").as_ref().and_then(Value::as_str) {
        Some("text") => {}
        Some(kind @ ("image_url" | "input_audio" | "file" | "video_url" | "refusal")) => {
            let reason = format!("parts of type {kind} are not supported: this server reads text");
            return Err(ApiError::unsupported(format!("{path}.type"), &reason));
        }
        Some(_) | None => {
            return Err(ApiError::invalid(format!("{path}.type"), "must be \"text\""));
        }
    }
    // Hints for caches; ours finds what is warm by itself.
    part.remove("cache_control");
    part.remove("prompt_cache_breakpoint");
    let text = part.remove("text").filter(Value::is_string);
    let text = text.ok_or_else(|| ApiError::invalid(format!("{path}.text"), "must be a string"))?;
    ignored.rest(part.keys(), path)?;
    Ok(text)
}

impl ToolCall {
    /// Clients send arguments as a string of JSON; templates walk through a map.
    fn into_template(self, path: &str) -> Result<Value, ApiError> {
        if self.kind.is_some_and(|kind| kind != "function") {
            return Err(ApiError::invalid(format!("{path}.type"), "must be \"function\""));
        }
        let arguments = match self.function.arguments {
            // One that was cut off is shown as it is: it would be in the way for ever otherwise.
            Some(Value::String(text)) => recalled(&text).unwrap_or_default(),
            Some(value) => value,
            None => json!({}),
        };
        if !arguments.is_object() {
            let path = format!("{path}.function.arguments");
            return Err(ApiError::invalid(path, "must be a JSON object, written as a string"));
        }
        let function = json!({"name": self.function.name, "arguments": arguments});
        Ok(match self.id {
            Some(id) => json!({"id": id, "type": "function", "function": function}),
            None => json!({"type": "function", "function": function}),
        })
    }
}

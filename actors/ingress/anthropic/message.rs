//! Messages as Anthropic's clients write them, made into what chat templates read.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::ingress::openai::ApiError;
use crate::ingress::openapi::asked;
use crate::ingress::unknown::Ignored;

/// Claude Code puts a line before its system prompt that changes with every request. It tells its
/// maker's servers whom to bill, says nothing to a model, and would end the warm prefix before it
/// has begun.
const BILLING: &str = "x-anthropic-billing-header";

/// A message as a client writes it.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = MessagesMessage)]
pub(super) struct Message {
    role: Role,
    #[schema(schema_with = asked::blocks)]
    content: Value,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, ToSchema)]
#[schema(as = MessagesRole)]
#[serde(rename_all = "lowercase")]
enum Role {
    User,
    Assistant,
    /// Newer clients may say something in the middle of a conversation.
    System,
}

/// Makes messages what templates read.
pub(super) fn into_template(
    system: Option<Value>,
    messages: Vec<Message>,
    ignored: &mut Ignored,
) -> Result<Vec<Value>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "must hold at least one message"));
    }
    let mut out = Vec::new();
    if let Some(system) = system {
        let texts = texts(system, "system", ignored)?;
        let texts: Vec<_> = texts.into_iter().filter(|text| !text.starts_with(BILLING)).collect();
        if !texts.is_empty() {
            out.push(json!({"role": "system", "content": texts.join("\n")}));
        }
    }
    for (i, Message { role, content }) in messages.into_iter().enumerate() {
        let path = format!("messages[{i}].content");
        match role {
            Role::User => user(content, &path, &mut out, ignored)?,
            Role::Assistant => out.push(assistant(content, &path, ignored)?),
            Role::System => {
                let text = texts(content, &path, ignored)?.join("\n");
                out.push(json!({"role": "system", "content": text}));
            }
        }
    }
    Ok(out)
}

/// A block, and its path in the body.
type Block = (String, Map<String, Value>);

/// The blocks of a content; a string is a block of text.
fn blocks(content: Value, path: &str) -> Result<Vec<Block>, ApiError> {
    match content {
        Value::String(text) => {
            let block =
                Map::from_iter([("type".into(), "text".into()), ("text".into(), text.into())]);
            Ok(vec![(path.to_owned(), block)])
        }
        Value::Array(blocks) => {
            let numbered = blocks.into_iter().enumerate();
            let blocks = numbered.map(|(i, block)| {
                let path = format!("{path}[{i}]");
                let Value::Object(mut block) = block else {
                    return Err(ApiError::invalid(path, "must be an object with a type"));
                };
                // Hints: what is warm is found without them, and there is nothing to cite.
                block.remove("cache_control");
                block.remove("citations");
                Ok((path, block))
            });
            blocks.collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
            Err(ApiError::invalid(path, "must be a string or an array of blocks"))
        }
    }
}

fn texts(content: Value, path: &str, ignored: &mut Ignored) -> Result<Vec<String>, ApiError> {
    let blocks = blocks(content, path)?.into_iter();
    blocks.map(|(path, block)| text_of(block, &path, &mut *ignored)).collect()
}

/// Text of a block that must be text.
fn text_of(
    mut block: Map<String, Value>,
    path: &str,
    ignored: &mut Ignored,
) -> Result<String, ApiError> {
    let kind = kind_of(&block, path)?;
    let text = match kind.as_str() {
        "text" => take(&mut block, "text", path)?,
        "document" => document(&mut block, path)?,
        "image" | "container_upload" => {
            let reason = format!("blocks of type {kind} are not supported: this server reads text");
            return Err(ApiError::unsupported(format!("{path}.type"), &reason));
        }
        _ => {
            let reason = format!("a block of type {kind} is not allowed here");
            return Err(ApiError::unsupported(format!("{path}.type"), &reason));
        }
    };
    nothing_else(&block, path, ignored)?;
    Ok(text)
}

/// Documents of plain text are text.
fn document(block: &mut Map<String, Value>, path: &str) -> Result<String, ApiError> {
    let source = block.remove("source").unwrap_or_default();
    let text = source["data"].as_str().filter(|_| source["type"] == "text");
    let text = text.ok_or_else(|| {
        let reason = "only documents of plain text are supported: this server reads text";
        ApiError::unsupported(format!("{path}.source"), reason)
    })?;
    let named = |key: &str, block: &mut Map<String, Value>| {
        let value = block.remove(key).and_then(|v| v.as_str().map(str::to_owned));
        value.map(|value| format!("{value}\n")).unwrap_or_default()
    };
    Ok(named("title", block) + &named("context", block) + text)
}

fn user(
    content: Value,
    path: &str,
    out: &mut Vec<Value>,
    ignored: &mut Ignored,
) -> Result<(), ApiError> {
    let mut said: Option<Vec<String>> = None;
    let flush = |said: &mut Option<Vec<String>>, out: &mut Vec<Value>| {
        if let Some(texts) = said.take() {
            out.push(json!({"role": "user", "content": texts.join("\n")}));
        }
    };
    for (path, mut block) in blocks(content, path)? {
        if kind_of(&block, &path)? != "tool_result" {
            said.get_or_insert_default().push(text_of(block, &path, ignored)?);
            continue;
        }
        flush(&mut said, out);
        let id = take(&mut block, "tool_use_id", &path)?;
        let failed = block.remove("is_error") == Some(json!(true));
        let content = block.remove("content").filter(|content| !content.is_null());
        let texts = content.map(|content| texts(content, &format!("{path}.content"), ignored));
        let mut text = texts.transpose()?.unwrap_or_default().join("\n");
        // Templates know no flag for it, and the model has to know.
        if failed && !text.to_ascii_lowercase().contains("error") {
            text.insert_str(0, "Error: ");
        }
        block.remove("type");
        nothing_else(&block, &path, ignored)?;
        out.push(json!({"role": "tool", "tool_call_id": id, "content": text}));
    }
    flush(&mut said, out);
    Ok(())
}

fn assistant(content: Value, path: &str, ignored: &mut Ignored) -> Result<Value, ApiError> {
    let (mut texts, mut thoughts, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    for (path, mut block) in blocks(content, path)? {
        match kind_of(&block, &path)?.as_str() {
            "thinking" => thoughts.push(take(&mut block, "thinking", &path)?),
            // What its maker's servers alone can read.
            "redacted_thinking" => {}
            "tool_use" => {
                let id = take(&mut block, "id", &path)?;
                let name = take(&mut block, "name", &path)?;
                let input = block.remove("input").filter(Value::is_object);
                let input = input.ok_or_else(|| {
                    ApiError::invalid(format!("{path}.input"), "must be an object")
                })?;
                let function = json!({"name": name, "arguments": input});
                calls.push(json!({"id": id, "type": "function", "function": function}));
            }
            _ => texts.push(text_of(block, &path, ignored)?),
        }
    }
    let mut message = json!({"role": "assistant", "content": texts.join("\n")});
    if !thoughts.is_empty() {
        message["reasoning_content"] = thoughts.join("\n").into();
    }
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    Ok(message)
}

fn kind_of(block: &Map<String, Value>, path: &str) -> Result<String, ApiError> {
    let kind = block.get("type").and_then(Value::as_str).map(str::to_owned);
    kind.ok_or_else(|| ApiError::invalid(format!("{path}.type"), "must be given"))
}

fn take(block: &mut Map<String, Value>, key: &str, path: &str) -> Result<String, ApiError> {
    match block.remove(key) {
        Some(Value::String(text)) => Ok(text),
        _ => Err(ApiError::invalid(format!("{path}.{key}"), "must be a string")),
    }
}

fn nothing_else(
    block: &Map<String, Value>,
    path: &str,
    ignored: &mut Ignored,
) -> Result<(), ApiError> {
    ignored.rest(block.keys().filter(|key| *key != "type"), path)
}

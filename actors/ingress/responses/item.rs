//! Items of a conversation, made into messages that chat templates read.

use serde_json::{Map, Value, json};

use crate::ingress::openai::ApiError;
use crate::ingress::reply::recalled;
use crate::ingress::unknown::Ignored;

/// Adds items to the messages of a conversation. What an assistant thought, said and called one
/// after the other is one message of it.
pub(super) fn into_template(
    input: Value,
    out: &mut Vec<Value>,
    ignored: &mut Ignored,
) -> Result<(), ApiError> {
    let items = match input {
        Value::String(text) => {
            out.push(json!({"role": "user", "content": text}));
            return Ok(());
        }
        Value::Array(items) => items,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
            return Err(ApiError::invalid("input", "must be a string or an array of items"));
        }
    };
    if items.is_empty() {
        return Err(ApiError::invalid("input", "must hold at least one item"));
    }
    for (i, item) in items.into_iter().enumerate() {
        let path = format!("input[{i}]");
        let Value::Object(item) = item else {
            return Err(ApiError::invalid(path, "must be an object"));
        };
        add(item, &path, out, ignored)?;
    }
    Ok(())
}

/// The conversation with its instructions. Many templates take one system message only, and that
/// at the beginning, so all that stand there become one.
pub(super) fn instructed(instructions: Option<String>, messages: Vec<Value>) -> Vec<Value> {
    let is_system = |message: &Value| message["role"] == "system";
    let leading = messages.iter().take_while(|m| is_system(m)).count();
    let said = messages[..leading].iter().filter_map(|m| m["content"].as_str());
    let texts: Vec<&str> = instructions.iter().map(String::as_str).chain(said).collect();
    let system =
        (!texts.is_empty()).then(|| json!({"role": "system", "content": texts.join("\n\n")}));
    system.into_iter().chain(messages.into_iter().skip(leading)).collect()
}

fn add(
    mut item: Map<String, Value>,
    path: &str,
    out: &mut Vec<Value>,
    ignored: &mut Ignored,
) -> Result<(), ApiError> {
    // Names of items are for stores; their state says nothing about the text.
    item.remove("id");
    item.remove("status");
    let kind = item.remove("type");
    let kind = kind.as_ref().map_or(Some("message"), Value::as_str).unwrap_or_default();
    match kind {
        "message" => message(&mut item, path, out, ignored)?,
        "function_call" => {
            let name = string(&mut item, "name", path)?;
            let id = string(&mut item, "call_id", path)?;
            // One that was cut off is shown as it is: it would be in the way for ever otherwise.
            let arguments = recalled(&string(&mut item, "arguments", path)?);
            let arguments = arguments.ok_or_else(|| {
                let reason = "must be a JSON object, written as a string";
                ApiError::invalid(format!("{path}.arguments"), reason)
            })?;
            let function = json!({"name": name, "arguments": arguments});
            let call = json!({"id": id, "type": "function", "function": function});
            let calls = turn(out).entry("tool_calls").or_insert_with(|| json!([]));
            calls.as_array_mut().into_iter().for_each(|calls| calls.push(call.clone()));
        }
        "function_call_output" => {
            let id = string(&mut item, "call_id", path)?;
            let output = item.remove("output").unwrap_or_default();
            let text = text_of(output, &format!("{path}.output"), ignored)?;
            out.push(json!({"role": "tool", "tool_call_id": id, "content": text}));
        }
        "reasoning" => {
            item.remove("encrypted_content");
            let parts = [item.remove("content"), item.remove("summary")];
            let mut texts = parts.into_iter().flatten().filter(|part| !part.is_null());
            let path = format!("{path}.content");
            // A summary says the same once more.
            let first = texts.find(|part| *part != json!([]));
            let text =
                first.map(|part| text_of(part, &path, ignored)).transpose()?.unwrap_or_default();
            if !text.is_empty() {
                append(turn(out), "reasoning_content", &text);
            }
        }
        other => {
            let reason = format!(
                "items of type {} are not supported: this server keeps no items and runs no tools",
                other.escape_default()
            );
            return Err(ApiError::unsupported(format!("{path}.type"), &reason));
        }
    }
    ignored.rest(item.keys(), path)
}

fn message(
    item: &mut Map<String, Value>,
    path: &str,
    out: &mut Vec<Value>,
    ignored: &mut Ignored,
) -> Result<(), ApiError> {
    // Whether it was a preamble or the answer.
    item.remove("phase");
    let role = string(item, "role", path)?;
    let content = item.remove("content").unwrap_or_default();
    let text = text_of(content, &format!("{path}.content"), ignored)?;
    match role.as_str() {
        "user" => out.push(json!({"role": "user", "content": text})),
        "system" | "developer" => out.push(json!({"role": "system", "content": text})),
        "assistant" => append(turn(out), "content", &text),
        _ => {
            let reason = "must be \"user\", \"assistant\", \"system\" or \"developer\"";
            return Err(ApiError::invalid(format!("{path}.role"), reason));
        }
    }
    Ok(())
}

/// The assistant's turn at the end of the conversation, begun if there is none.
fn turn(out: &mut Vec<Value>) -> &mut Map<String, Value> {
    if out.last().is_none_or(|last| last["role"] != "assistant") {
        out.push(json!({"role": "assistant", "content": ""}));
    }
    let last = out.last_mut().and_then(Value::as_object_mut);
    last.expect("messages are objects, and there is one")
}

fn append(turn: &mut Map<String, Value>, key: &str, text: &str) {
    let before = turn.get(key).and_then(Value::as_str).unwrap_or_default();
    let text = if before.is_empty() { text.to_owned() } else { format!("{before}\n{text}") };
    turn.insert(key.to_owned(), text.into());
}

/// What parts hold; all but the text is told by servers, not by clients, or a hint for caches.
const OF_PARTS: [&str; 6] =
    ["type", "text", "refusal", "annotations", "logprobs", "prompt_cache_breakpoint"];

/// The text of a string, or of all parts together.
fn text_of(content: Value, path: &str, ignored: &mut Ignored) -> Result<String, ApiError> {
    let parts = match content {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
            return Err(ApiError::invalid(path, "must be a string or an array of parts"));
        }
    };
    let mut out = String::new();
    for (i, part) in parts.iter().enumerate() {
        let path = format!("{path}[{i}]");
        let text = match part["type"].as_str() {
            Some("input_text" | "output_text" | "text" | "reasoning_text" | "summary_text") => {
                part["text"].as_str()
            }
            Some("refusal") => part["refusal"].as_str(),
            Some(kind) => {
                let kind = kind.escape_default();
                let reason =
                    format!("parts of type {kind} are not supported: this server reads text");
                return Err(ApiError::unsupported(format!("{path}.type"), &reason));
            }
            None => return Err(ApiError::invalid(format!("{path}.type"), "must be given")),
        };
        let invalid = || ApiError::invalid(format!("{path}.text"), "must be a string");
        out.push_str(text.ok_or_else(invalid)?);
        let others = part.as_object().into_iter().flat_map(|part| part.keys());
        ignored.rest(others.filter(|key| !OF_PARTS.contains(&key.as_str())), &path)?;
    }
    Ok(out)
}

fn string(item: &mut Map<String, Value>, key: &str, path: &str) -> Result<String, ApiError> {
    match item.remove(key) {
        Some(Value::String(text)) => Ok(text),
        _ => Err(ApiError::invalid(format!("{path}.{key}"), "must be a string")),
    }
}

//! What clients send, written by us from their documentation: all of it is served by a house as
//! strict as it is by default (but for tools that only OpenAI's servers can run), and answered in
//! the shape that the client reads.

use mtplx_core::request::Finish;
use serde_json::{Value, json};

use super::harness::*;
use crate::ingress::UnknownFields;

const CHAT: &str = "/v1/chat/completions";

fn file_tool() -> Value {
    json!({"type": "function", "function": {"name": "read_file", "description": "Reads.",
        "strict": false, "parameters": {"$schema": "http://json-schema.org/draft-07/schema#",
            "type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"],
            "additionalProperties": false}}})
}

/// Name, path and body.
type Request = (&'static str, &'static str, Value);

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn chat_clients() -> Vec<Request> {
    vec![
        (
            "Open WebUI, a chat",
            CHAT,
            json!({"stream": true, "model": "tiny",
            "messages": [{"role": "system", "content": "Be kind."}, user("Hi")],
            "temperature": 0.7, "top_p": 0.9, "min_p": 0.05, "max_tokens": 100,
            "frequency_penalty": 0.1, "presence_penalty": 0.1, "seed": 5, "stop": ["###"],
            "logit_bias": {"5": -100}, "reasoning_effort": "low",
            "stream_options": {"include_usage": true}}),
        ),
        (
            "Open WebUI, a title",
            CHAT,
            json!({"model": "tiny", "stream": false,
            "messages": [user("### Task:\nGenerate a title as JSON.")],
            "max_completion_tokens": 1000}),
        ),
        (
            "Open WebUI, continue",
            CHAT,
            json!({"model": "tiny", "stream": true,
            "messages": [user("Hi"), {"role": "assistant", "content": "Once",
                "reasoning_content": "Hm."}], "continue_final_message": true,
            "add_generation_prompt": false}),
        ),
        (
            "opencode, two text parts",
            CHAT,
            json!({"model": "tiny", "stream": true,
            "max_tokens": 32, "messages": [{"role": "system", "content": "You are opencode."},
                {"role": "user", "content": [{"type": "text", "text": "Plan"},
                    {"type": "text", "text": "<system-reminder>x</system-reminder>"}]}],
            "tools": [file_tool()], "tool_choice": "auto",
            "stream_options": {"include_usage": true}}),
        ),
        (
            "Pi",
            CHAT,
            json!({"model": "tiny", "stream": true, "store": false,
            "stream_options": {"include_usage": true}, "max_completion_tokens": 100,
            "prompt_cache_key": "s", "prompt_cache_retention": "24h",
            "messages": [{"role": "developer", "content": "Be kind."}, user("Hi")],
            "chat_template_kwargs": {"enable_thinking": true}, "tools": [file_tool()]}),
        ),
        (
            "Open WebUI, follow-ups held to JSON",
            CHAT,
            json!({"model": "tiny", "stream": false,
            "messages": [user("### Task:\nSuggest follow-up questions as JSON.")],
            "response_format": {"type": "json_schema", "json_schema": {"name": "task",
                "schema": {"type": "object", "properties": {"follow_ups": {"type": "array",
                    "items": {"type": "string"}}}}}}}),
        ),
        (
            "Pi, another way of thinking",
            CHAT,
            json!({"model": "tiny", "stream": true,
            "messages": [user("Hi")], "enable_thinking": false}),
        ),
    ]
}

fn editors() -> Vec<Request> {
    vec![
        (
            "Cline, native tools",
            CHAT,
            json!({"model": "tiny", "temperature": 0, "stream": true,
            "stream_options": {"include_usage": true}, "parallel_tool_calls": false,
            "messages": [{"role": "system", "content": "You are Cline."}, user("Go"),
                {"role": "assistant", "content": "", "tool_calls": [{"id": "c1",
                    "type": "function", "function": {"name": "read_file",
                        "arguments": "{\"path\": \"a\"}"}}]},
                {"role": "tool", "tool_call_id": "c1", "content": "text"},
                {"role": "user", "content": [{"type": "text", "text": "more"}]}],
            "tools": [file_tool()], "tool_choice": "auto"}),
        ),
        (
            "Continue, a chat",
            CHAT,
            json!({"model": "tiny", "stream": true, "max_tokens": 50,
            "messages": [user("Hi")], "tools": [file_tool()], "parallel_tool_calls": false}),
        ),
        (
            "Continue, autocomplete",
            "/v1/completions",
            json!({"model": "tiny", "stream": true,
            "prompt": "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>", "max_tokens": 20,
            "temperature": 0.01, "stop": ["<|endoftext|>", "\n\n"]}),
        ),
        (
            "aider",
            CHAT,
            json!({"model": "tiny", "stream": true, "temperature": 0,
            "messages": [{"role": "system", "content": "Act as an expert."}, user("Edit"),
                {"role": "assistant", "content": "Ok."}, user("a.py\n```\nx\n```")]}),
        ),
        (
            "aider, a commit message",
            CHAT,
            json!({"model": "tiny", "stream": false, "temperature": 0,
            "messages": [{"role": "system", "content": "Write a commit message."},
                user("diff --git a/a.py b/a.py")]}),
        ),
        ("curl", CHAT, json!({"messages": [user("Hi")]})),
        ("curl, a prompt", "/v1/completions", json!({"prompt": "Hi", "max_tokens": 9})),
    ]
}

fn agents() -> Vec<Request> {
    vec![
        (
            "Claude Code",
            "/v1/messages?beta=true",
            json!({"model": "claude-opus-5", "stream": true,
            "max_tokens": 64, "temperature": 1, "metadata": {"user_id": "{\"device_id\":\"x\"}"},
            "system": [{"type": "text", "text": "x-anthropic-billing-header: cch=1;"},
                {"type": "text", "text": "You are Claude Code.",
                    "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Go",
                "cache_control": {"type": "ephemeral"}}]}],
            "tools": [{"name": "Read", "description": "Reads.", "eager_input_streaming": true,
                "input_schema": file_tool()["function"]["parameters"]}],
            "thinking": {"type": "adaptive"}, "output_config": {"effort": "high"},
            "context_management": {"edits": [
                {"type": "clear_thinking_20251015", "keep": "all"}]}}),
        ),
        (
            "Claude Code, with what a tool said",
            "/v1/messages?beta=true",
            json!({"model": "claude-opus-5", "stream": true, "max_tokens": 64,
            "system": [{"type": "text", "text": "You are Claude Code."}],
            "messages": [user("Go"),
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "unsigned"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "toolu_1", "name": "Read",
                        "input": {"path": "a"}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "is_error": false,
                        "content": [{"type": "text", "text": "x"}],
                        "cache_control": {"type": "ephemeral"}},
                    {"type": "text", "text": "<system-reminder>y</system-reminder>"}]}],
            "tools": [{"name": "Read", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "auto", "disable_parallel_tool_use": false}}),
        ),
        (
            "Claude Code, a probe",
            "/v1/messages?beta=true",
            json!({"model": "claude-haiku-5", "max_tokens": 1,
            "messages": [{"role": "user", "content": "quota"}],
            "metadata": {"user_id": "x"}}),
        ),
        (
            "Claude Code, counting",
            "/v1/messages/count_tokens",
            json!({"model": "claude-haiku-5",
            "messages": [{"role": "user", "content": "foo"}],
            "tools": [{"name": "Read", "input_schema": {"type": "object"}}]}),
        ),
        (
            "Codex CLI, its own tools off",
            "/v1/responses",
            json!({"model": "tiny",
            "instructions": "You are Codex.", "stream": true, "store": false,
            "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k",
            "parallel_tool_calls": true, "tool_choice": "auto",
            "reasoning": {"effort": "medium", "summary": "auto"}, "text": {"verbosity": "medium"},
            "client_metadata": {"x-codex-installation-id": "x"},
            "input": [{"type": "message", "role": "developer", "content": [
                    {"type": "input_text", "text": "<permissions>"}]},
                {"type": "message", "role": "user", "content": [
                    {"type": "input_text", "text": "Go"}]}],
            "tools": [{"type": "function", "name": "exec_command", "strict": false,
                "parameters": {"type": "object", "properties": {"cmd": {"type": "string"}}}}]}),
        ),
    ]
}

/// Codex as it comes: with tools of OpenAI's, and what its own said. Served where unknown fields
/// are left out with a warning.
fn codex() -> Request {
    let body = json!({"model": "tiny", "instructions": "You are Codex.", "stream": true,
        "store": false, "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k",
        "parallel_tool_calls": false, "tool_choice": "auto",
        "reasoning": {"effort": "medium", "summary": "auto"},
        "input": [{"type": "message", "role": "user", "content": [
                {"type": "input_text", "text": "Go"}]},
            {"type": "reasoning", "summary": [], "content": [
                {"type": "reasoning_text", "text": "Hm."}], "encrypted_content": null},
            {"type": "function_call", "name": "exec_command", "call_id": "c1",
                "arguments": "{\"cmd\": \"ls\"}"},
            {"type": "function_call_output", "call_id": "c1", "output": "a.py"}],
        "tools": [{"type": "web_search", "external_web_access": false},
            {"type": "custom", "name": "apply_patch", "description": "Patches.",
                "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"}},
            {"type": "function", "name": "exec_command", "strict": false,
                "parameters": {"type": "object", "properties": {"cmd": {"type": "string"}}}}]});
    ("Codex CLI, as it comes", "/v1/responses", body)
}

/// Events by name, which is also within their data, or by their object.
fn named(reply: &Reply) -> Vec<(String, Value)> {
    let events = reply.events();
    let parsed = events.iter().filter_map(|data| serde_json::from_str(data).ok());
    let named = parsed.map(|event: Value| {
        let name = event.get("type").unwrap_or(&event["object"]);
        (name.as_str().unwrap().to_owned(), event)
    });
    named.collect()
}

/// A stream of OpenAI's chunks: one beginning, one end, the usage where it was asked for, `[DONE]`.
fn is_chunked(body: &Value, reply: &Reply) {
    assert_eq!(reply.events().last().unwrap(), "[DONE]");
    let chunks: Vec<Value> = named(reply).into_iter().map(|(_, chunk)| chunk).collect();
    let id = &chunks[0]["id"];
    assert!(chunks.iter().all(|chunk| chunk["id"] == *id && chunk["created"].is_u64()));
    let choices = chunks.iter().filter_map(|chunk| chunk["choices"].get(0));
    let ends: Vec<&Value> =
        choices.map(|c| &c["finish_reason"]).filter(|reason| !reason.is_null()).collect();
    assert_eq!(ends, ["stop"]);
    let last = chunks.last().unwrap();
    let asked = body["stream_options"]["include_usage"] == true;
    assert_eq!(last["usage"]["total_tokens"].is_u64(), asked, "{last}");
    assert_eq!(last["choices"].as_array().unwrap().is_empty(), asked, "{last}");
}

/// What a client of this path reads.
fn is_readable(path: &str, body: &Value, reply: &Reply) {
    if body["stream"] == true {
        assert_eq!(reply.header("cache-control"), Some("no-cache"));
        let events = named(reply);
        let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
        let (first, last) = (names[0], *names.last().unwrap());
        match path {
            "/v1/responses" => {
                assert_eq!((first, last), ("response.created", "response.completed"));
                let numbers = events.iter().map(|(_, event)| event["sequence_number"].as_u64());
                assert!(numbers.eq((0..).map(Some).take(names.len())), "{names:?}");
                let kind = &events.last().unwrap().1["response"]["output"][0]["type"];
                assert!(kind == "message" || kind == "reasoning", "{kind}");
            }
            "/v1/messages?beta=true" => {
                assert_eq!((first, last), ("message_start", "message_stop"));
                let count = |name: &str| names.iter().filter(|n| **n == name).count();
                assert_eq!(count("content_block_start"), count("content_block_stop"));
                assert_eq!(count("message_delta"), 1);
            }
            _ => is_chunked(body, reply),
        }
        return;
    }
    let answer = reply.json();
    match path {
        "/v1/messages/count_tokens" => assert!(answer["input_tokens"].as_u64().unwrap() > 3),
        "/v1/messages?beta=true" => {
            assert_eq!(
                (&answer["type"], &answer["role"]),
                (&json!("message"), &json!("assistant"))
            );
            assert!(answer["content"].is_array() && answer["usage"]["output_tokens"].is_u64());
        }
        _ => {
            let choice = &answer["choices"][0];
            let text = if path == CHAT { &choice["message"]["content"] } else { &choice["text"] };
            assert!(text.is_string() && choice["finish_reason"].is_string(), "{answer}");
            assert!(answer["usage"]["prompt_tokens"].as_u64().unwrap() > 0, "{answer}");
        }
    }
}

#[tokio::test]
async fn what_clients_send_is_served_and_answered_as_they_read_it() {
    let handle = open(config(), roomy(), speaks("Yes.", Finish::Stop)).await;
    for (name, path, body) in [chat_clients(), editors(), agents()].concat() {
        let line = format!("POST {path}");
        let reply = exchange(&handle, &line, JSON, body.to_string().as_bytes()).await;
        assert_eq!(reply.status, 200, "{name}: {reply:?}");
        let said = reply.body.contains("Yes") || path.ends_with("count_tokens");
        assert!(said, "{name}: {reply:?}");
        println!("{name}: served");
        is_readable(path, &body, &reply);
    }
}

#[tokio::test]
async fn codex_is_served_where_tools_of_others_are_left_out() {
    let (name, path, body) = codex();
    let ask = async |unknown_fields| {
        let config = crate::ingress::Config { unknown_fields, ..config() };
        let handle = open(config, roomy(), speaks("Yes.", Finish::Stop)).await;
        exchange(&handle, &format!("POST {path}"), JSON, body.to_string().as_bytes()).await
    };
    let reply = ask(UnknownFields::Warn).await;
    assert_eq!(reply.status, 200, "{name}: {reply:?}");
    let warning = reply.header("x-mtplx-warning").unwrap_or_default();
    assert!(warning.contains("web_search"), "{warning}");
    is_readable(path, &body, &reply);
    let reply = ask(UnknownFields::Refuse).await;
    assert_eq!(reply.status, 400, "{name}: {reply:?}");
    assert!(reply.error()["message"].as_str().unwrap().contains("web_search"), "{reply:?}");
}

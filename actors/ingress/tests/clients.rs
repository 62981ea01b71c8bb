//! What clients send, written by us from their documentation: all of it is served by a house as
//! strict as it is by default.

use mtplx_core::request::Finish;
use serde_json::{Value, json};

use super::harness::*;

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

#[tokio::test]
async fn what_clients_send_is_served() {
    let handle = open(config(), roomy(), speaks("Yes.", Finish::Stop)).await;
    for (name, path, body) in [chat_clients(), editors(), agents()].concat() {
        let line = format!("POST {path}");
        let reply = exchange(&handle, &line, JSON, body.to_string().as_bytes()).await;
        assert_eq!(reply.status, 200, "{name}: {reply:?}");
        let said = reply.body.contains("Yes") || path.ends_with("count_tokens");
        assert!(said, "{name}: {reply:?}");
    }
}

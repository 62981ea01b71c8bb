//! Whatever is sent, said by a model, or stands in a tokenizer's file: nothing panics, and nothing
//! takes more memory than its length allows. Long work leaves the thread whose memory is counted;
//! the inputs here are short enough to stay on it mostly.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::Request as HttpRequest;
use mtplx_core::request::Finish;
use mtplx_fuzz::{Bound, Corpus, fuzz};
use ractor::Actor;
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::ServiceExt;

use super::harness::*;
use crate::ingress::admission::{House, Readiness};
use crate::ingress::reply::{Manner, Parser};
use crate::ingress::text::tests::{files, published, tiny};
use crate::ingress::text::{Chat, Files, Text};
use crate::ingress::{UnknownFields, routes};

const BOUND: Bound = Bound { fixed: 8 << 20, each: 2048 };

const ROUTES: [&str; 8] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/responses",
    "/v1/embeddings",
    "/tokenize",
    "/detokenize",
];

fn bodies() -> Vec<String> {
    let tool = json!({"type": "function", "function": {"name": "f", "description": "d",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}});
    let said = json!([{"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function",
            "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "7"}]);
    let bodies = [
        json!({"messages": said, "tools": [tool], "max_tokens": 9, "temperature": 0.5, "n": 2}),
        json!({"messages": [{"role": "user", "content": "Hi"}], "stream": true, "stop": ["a"],
            "stream_options": {"include_usage": true}, "logprobs": true, "top_logprobs": 2,
            "logit_bias": {"5": -100}, "max_completion_tokens": 5, "seed": 7, "top_p": 0.9}),
        json!({"prompt": ["Once", "upon"], "max_tokens": 3, "echo": true, "logprobs": 1}),
        json!({"prompt": [1, 2, 3], "max_tokens": 3, "stop_token_ids": [9], "min_p": 0.1}),
        json!({"model": "claude-x", "max_tokens": 8, "system": [{"type": "text", "text": "s"}],
            "messages": [{"role": "user", "content": "Hi"},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f",
                    "input": {}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t",
                    "content": "7"}]}],
            "tools": [{"name": "f", "input_schema": {"type": "object"}}],
            "thinking": {"type": "enabled", "budget_tokens": 1024}, "stop_sequences": ["x"]}),
        json!({"input": [{"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "Hi"}]}, {"type": "function_call", "call_id": "c",
            "name": "f", "arguments": "{}"}, {"type": "function_call_output", "call_id": "c",
            "output": "7"}], "instructions": "i", "max_output_tokens": 16, "store": false,
            "reasoning": {"effort": "low"}, "text": {"format": {"type": "text"}}}),
        json!({"input": "Hi", "previous_response_id": "resp_1", "stream": true}),
        json!({"prompt": "text", "add_special_tokens": true}),
        json!({"messages": [{"role": "user", "content": "Hi"}], "add_generation_prompt": true}),
        json!({"tokens": [1, 2, 300]}),
    ];
    bodies.iter().map(Value::to_string).collect()
}

/// A house whose model always says the same.
async fn house() -> Router {
    let says: Play = Arc::new(speaks("Well, <tool_call>", Finish::Stop));
    let bank = Actor::spawn(None, FakeBank, says).await.unwrap().0;
    let (_, readiness) = watch::channel(Readiness::Serving(served(bank, info())));
    let config = crate::ingress::Config {
        unknown_fields: UnknownFields::Warn,
        requests_max: 64.try_into().unwrap(),
        ..config()
    };
    let house = Arc::new(House::new(config, tiny(), readiness));
    routes::router(house, Arc::new(String::new))
}

#[test]
fn fuzz_bodies_of_all_routes() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let app = runtime.block_on(house());
    let words = ["role", "assistant", "image_url", "thinking", "tool_choice", "required", "n"];
    let corpus = Corpus::new(bodies(), &words);
    fuzz("bodies", &corpus, (BOUND, 20), |input| {
        let path = ROUTES[input.iter().map(|&b| usize::from(b)).sum::<usize>() % ROUTES.len()];
        for path in [path, ROUTES[input.len() % ROUTES.len()]] {
            let request = HttpRequest::post(path)
                .header("host", "test")
                .header("content-type", "application/json")
                .body(Body::from(input.to_vec()));
            let status = runtime.block_on(async {
                let answer = app.clone().oneshot(request.unwrap()).await.unwrap();
                let status = answer.status();
                axum::body::to_bytes(answer.into_body(), 16 << 20).await.unwrap();
                status
            });
            // What panicked was caught and answered so.
            assert_ne!(status.as_u16(), 500, "{path}");
        }
    });
}

#[test]
fn fuzz_tool_calls_of_all_dialects() {
    let texts = [
        "Well.\n<tool_call>\n<function=write>\n<parameter=path>\na\n</parameter>\n\
         <parameter=line>\n7\n</parameter>\n</function>\n</tool_call>\nDone.",
        "<tool_call>\n{\"name\": \"read\", \"arguments\": {\"path\": \"a\\\"b\", \"n\": [1, {}]}}\n\
         </tool_call><tool_call>{\"name\": \"write\", \"arguments\": \"{}\"}</tool_call>",
        "I think\n</think>\n\n<tool_call><function=read><parameter=map>{'a': True,}</parameter>",
        "<tool_call>{'name': 'read', 'arguments': {'path': 'x\ny', 'line': None,}",
        "<think>\nno\n</think>\n<function=a><parameter=b></function></tool_call>é😀",
    ];
    let words = [
        "<tool_call>",
        "</tool_call>",
        "<function=",
        "</function>",
        "<parameter=",
        "</parameter>",
        "<think>",
        "</think>",
        "write",
        "path",
        "arguments",
        "\\u12",
        "'",
    ];
    let tool = |name: &str| {
        let properties = json!({"path": {"type": "string"}, "line": {"type": "integer"},
            "map": {"type": "object"}, "list": {"type": "array"}});
        let parameters = json!({"type": "object", "properties": properties});
        json!({"type": "function", "function": {"name": name, "parameters": parameters}})
    };
    let tools = Arc::new(crate::ingress::reply::Tools::new(&[tool("write"), tool("read")]));
    let bound = Bound { fixed: 1 << 20, each: 4096 };
    fuzz("tool calls", &Corpus::new(texts, &words), (bound, 1), |input| {
        let text = String::from_utf8_lossy(input);
        let begins_thinking = input.len() % 3 == 0;
        let tools = Some(Arc::clone(&tools));
        let manner = Manner { begins_thinking, thinks: true, tools, ..Manner::default() };
        let (mut parser, _) = Parser::new(&manner);
        // Pieces of lengths that follow from the text.
        let mut rest = &*text;
        while !rest.is_empty() {
            let most = 1 + usize::from(rest.as_bytes()[0]) % 23;
            let cut = rest.char_indices().map(|(i, _)| i).find(|&i| i >= most);
            let (piece, left) = rest.split_at(cut.unwrap_or(rest.len()));
            drop(parser.push(piece));
            rest = left;
        }
        drop(parser.finish(input.len() % 2 == 0));
    });
}

#[test]
fn fuzz_conversations_in_templates() {
    let words = ["<|im_start|>", "<|im_end|>", "<think>", "content", "reasoning_content", "tool"];
    let corpus = Corpus::new(bodies(), &words);
    let texts = [tiny(), published()];
    fuzz("templates", &corpus, (BOUND, 10), |input| {
        let Ok(body) = serde_json::from_slice::<Value>(input) else { return };
        let list = |name: &str| body[name].as_array().cloned().unwrap_or_default();
        let kwargs = body.as_object().cloned().unwrap_or_default();
        let chat =
            Chat { messages: list("messages"), tools: list("tools"), kwargs, ..Chat::default() };
        let _ = texts[input.len() % 2].chat(&chat);
    });
}

/// A tokenizer with few of its words.
fn small_tokenizer() -> String {
    let mut whole: Value = serde_json::from_slice(files().tokenizer).unwrap();
    let vocab = whole["model"]["vocab"].as_object_mut().unwrap();
    vocab.retain(|_, id| id.as_u64().unwrap() < 300);
    let vocab = vocab.clone();
    let known = |merge: &Value| {
        let parts: Vec<String> = match merge.as_str() {
            Some(text) => text.split(' ').map(str::to_owned).collect(),
            None => serde_json::from_value(merge.clone()).unwrap(),
        };
        parts.iter().chain([&parts.concat()]).all(|part| vocab.contains_key(part))
    };
    whole["model"]["merges"].as_array_mut().unwrap().retain(known);
    whole.to_string()
}

#[test]
fn fuzz_files_of_a_tokenizer() {
    let small = small_tokenizer();
    let corpus = Corpus::new([&small], &["merges", "vocab", "ByteLevel", "added_tokens", "id"]);
    // Its pieces are kept as a trie, and the template of the model beside it is compiled.
    fuzz("tokenizer.json", &corpus, (BOUND, 40), |input| {
        if let Ok(text) = Text::new(&Files { tokenizer: input, ..files() }) {
            let _ = text.raw("Hello, \u{1f600} world 123");
        }
    });
}

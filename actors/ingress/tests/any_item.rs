//! No body breaks the APIs of messages and responses either, whatever blocks and items it holds.

use std::cell::Cell;

use mtplx_core::request::Finish;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::any_body::any_json;
use super::harness::*;

const FIELDS: [&str; 36] = [
    "messages",
    "system",
    "model",
    "max_tokens",
    "stop_sequences",
    "stream",
    "temperature",
    "top_p",
    "top_k",
    "tools",
    "tool_choice",
    "thinking",
    "output_config",
    "metadata",
    "service_tier",
    "context_management",
    "mcp_servers",
    "input",
    "instructions",
    "previous_response_id",
    "store",
    "stream_options",
    "max_output_tokens",
    "parallel_tool_calls",
    "reasoning",
    "text",
    "include",
    "truncation",
    "background",
    "conversation",
    "prompt",
    "top_logprobs",
    "user",
    "max_tool_calls",
    "client_metadata",
    "colour",
];

/// A block or an item, often one that is meant.
fn item() -> impl Strategy<Value = Value> {
    let kinds = vec![
        "text",
        "thinking",
        "redacted_thinking",
        "tool_use",
        "tool_result",
        "image",
        "document",
        "message",
        "function_call",
        "function_call_output",
        "reasoning",
        "input_text",
        "output_text",
        "function",
        "custom",
        "web_search",
        "enabled",
        "auto",
    ];
    let keys = vec![
        "text",
        "thinking",
        "signature",
        "id",
        "name",
        "input",
        "tool_use_id",
        "content",
        "role",
        "call_id",
        "arguments",
        "output",
        "summary",
        "input_schema",
        "parameters",
        "is_error",
        "cache_control",
        "source",
        "budget_tokens",
    ];
    let value = prop_oneof![
        Just(json!("user")),
        Just(json!("assistant")),
        Just(json!("{}")),
        Just(json!({"type": "object", "properties": {"a": {"type": "string"}}})),
        Just(json!([{"type": "text", "text": "Hi"}])),
        Just(json!([{"type": "input_text", "text": "Hi"}])),
        any_json(),
    ];
    let fields = prop::collection::vec((prop::sample::select(keys), value), 0..5);
    (prop::sample::select(kinds), fields).prop_map(|(kind, fields)| {
        let mut item = Map::from_iter([("type".to_owned(), json!(kind))]);
        item.extend(fields.into_iter().map(|(key, value)| (key.to_owned(), value)));
        Value::Object(item)
    })
}

fn body() -> impl Strategy<Value = Value> {
    let items = || prop::collection::vec(item(), 0..3).prop_map(Value::from);
    let said = items().prop_map(|items| json!([{"role": "user", "content": items}]));
    let value = prop_oneof![any_json(), items(), item(), said, Just(json!(true)), Just(json!(5))];
    let field = (prop::sample::select(FIELDS.to_vec()), value);
    (prop::collection::vec(field, 0..4), any::<bool>()).prop_map(|(fields, valid)| {
        let mut body = Map::new();
        if valid {
            body.insert("max_tokens".into(), json!(9));
            body.insert("messages".into(), json!([{"role": "user", "content": "Hi"}]));
            body.insert("input".into(), json!("Hi"));
        }
        body.extend(fields.into_iter().map(|(key, value)| (key.to_owned(), value)));
        Value::Object(body)
    })
}

#[test]
fn no_item_breaks_the_server() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let lenient =
        crate::ingress::Config { unknown_fields: crate::ingress::UnknownFields::Warn, ..config() };
    let said = "Hm.\n<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n";
    let handle = runtime.block_on(open(lenient, roomy(), speaks(said, Finish::Stop)));
    let paths = vec!["/v1/messages", "/v1/messages/count_tokens", "/v1/responses"];
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 1500,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let answered = Cell::new(0);
    let result = runner.run(&(body(), prop::sample::select(paths)), |(mut body, path)| {
        // What belongs to the other API would be refused as unknown, again and again.
        let foreign = if path == "/v1/responses" { "max_tokens" } else { "input" };
        body.as_object_mut().unwrap().remove(foreign);
        let body = body.to_string();
        let line = format!("POST {path}");
        let reply = runtime.block_on(exchange(&handle, &line, JSON, body.as_bytes()));
        let fine = [200, 400, 404].contains(&reply.status);
        prop_assert!(fine, "{reply:?} to {body}");
        answered.set(answered.get() + u32::from(reply.status == 200));
        if reply.status != 200 {
            prop_assert!(reply.error()["message"].is_string());
        } else if reply.body.starts_with("event: ") {
            let whole = reply.body.contains("event: message_stop\n")
                || reply.body.contains("event: response.completed\n")
                || reply.body.contains("event: response.incomplete\n");
            prop_assert!(whole, "{reply:?}");
        }
        Ok(())
    });
    result.unwrap();
    assert!(answered.get() > 50, "only {} bodies were answered", answered.get());
}

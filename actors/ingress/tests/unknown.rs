//! Fields that nobody here knows, and hints that change nothing.

use mtplx_core::request::Finish;
use serde_json::{Value, json};

use super::harness::*;
use crate::ingress::{Config, Handle, UnknownFields};

async fn door(unknown_fields: UnknownFields) -> Handle {
    let config = Config { unknown_fields, ..config() };
    open(config, roomy(), speaks("Yes.", Finish::Stop)).await
}

fn with(mut body: Value, field: &str, value: &Value) -> Value {
    body[field] = value.clone();
    body
}

fn chat_body() -> Value {
    json!({"messages": [{"role": "user", "content": "Hi"}]})
}

#[tokio::test]
async fn hints_of_real_clients_are_accepted_and_named() {
    let handle = door(UnknownFields::Refuse).await;
    let messages = json!({"max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]});
    let items = json!({"input": "Hi"});
    let function = |more: Value| {
        let mut function = json!({"name": "f"});
        function.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        function
    };
    let of_chat = json!([{"type": "function", "function": function(json!({"strict": true}))}]);
    let mut of_items = function(json!({"defer_loading": true, "output_schema": {}}));
    of_items["type"] = json!("function");
    let of_messages = function(json!({"input_schema": {}, "defer_loading": true,
        "input_examples": [{}], "allowed_callers": ["direct"]}));
    for (path, body, field, value, named) in [
        ("/v1/chat/completions", chat_body(), "service_tier", json!("flex"), "service_tier"),
        (
            "/v1/chat/completions",
            chat_body(),
            "prediction",
            json!({"type": "content", "content": "x"}),
            "prediction",
        ),
        (
            "/v1/chat/completions",
            chat_body(),
            "prompt_cache_options",
            json!({"mode": "explicit"}),
            "prompt_cache_options",
        ),
        ("/v1/chat/completions", chat_body(), "tools", of_chat, "tools[0].function.strict"),
        (
            "/v1/responses",
            items.clone(),
            "tools",
            json!([of_items]),
            "tools[0].defer_loading, tools[0].output_schema",
        ),
        ("/v1/responses", items.clone(), "prompt_cache_options", json!({}), "prompt_cache_options"),
        ("/v1/responses", items, "context_management", json!([{}]), "context_management"),
        (
            "/v1/messages",
            messages.clone(),
            "cache_control",
            json!({"type": "ephemeral"}),
            "cache_control",
        ),
        (
            "/v1/messages",
            messages,
            "tools",
            json!([of_messages]),
            "tools[0].defer_loading, tools[0].input_examples",
        ),
    ] {
        let reply = post(&handle, path, &with(body, field, &value)).await;
        assert_eq!(reply.status, 200, "{path} {field}: {reply:?}");
        let warning = format!("ignored: {named}");
        assert_eq!(reply.header("x-mtplx-warning"), Some(warning.as_str()), "{path} {field}");
    }
}

#[tokio::test]
async fn what_would_lie_if_it_were_ignored_is_refused() {
    let handle = door(UnknownFields::Refuse).await;
    for (path, body, field, value) in [
        ("/v1/chat/completions", chat_body(), "moderation", json!({"model": "x"})),
        ("/v1/chat/completions", chat_body(), "store", json!(true)),
        ("/v1/chat/completions", chat_body(), "web_search_options", json!({})),
        ("/v1/responses", json!({"input": "Hi"}), "moderation", json!({"model": "x"})),
        ("/v1/responses", json!({"input": "Hi"}), "background", json!(true)),
    ] {
        let reply = post(&handle, path, &with(body, field, &value)).await;
        assert_eq!((reply.status, &reply.error()["param"]), (400, &json!(field)), "{reply:?}");
    }
}

#[tokio::test]
async fn unknown_fields_at_every_depth_are_left_out_in_one_pass_and_named_where_they_stood() {
    let body = json!({
        "colour": 1,
        "stream_options": null,
        "messages": [
            {"role": "user", "shape": 2, "content": [{"type": "text", "text": "Hi", "font": 3}]},
        ],
        "tools": [
            {"type": "web_search"},
            {"type": "function", "size": 4, "function": {"name": "f", "taste": 5}},
        ],
        "response_format": {"type": "text", "sound": 6},
    });
    let strict = post(&door(UnknownFields::Refuse).await, "/v1/chat/completions", &body).await;
    assert_eq!((strict.status, &strict.error()["param"]), (400, &json!("colour")));
    let handle = door(UnknownFields::Warn).await;
    let reply = post(&handle, "/v1/chat/completions", &body).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let warning = reply.header("x-mtplx-warning").unwrap();
    for named in [
        "colour",
        "messages[0].shape",
        "messages[0].content[0].font",
        "tools[0] web_search",
        "tools[1].size",
        "tools[1].function.taste",
        "response_format.sound",
    ] {
        assert!(warning.contains(named), "{named} in {warning}");
    }
}

#[tokio::test]
async fn any_number_of_unknown_fields_is_left_out_and_what_is_told_stays_short() {
    let handle = door(UnknownFields::Warn).await;
    let mut body = chat_body();
    (0..90).for_each(|i| body[format!("{i}{}", "x".repeat(500))] = json!(1));
    let reply = post(&handle, "/v1/chat/completions", &body).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let warning = reply.header("x-mtplx-warning").unwrap();
    assert!(warning.len() < 4200 && warning.ends_with("... and 71 more"), "{warning}");
}

#[tokio::test]
async fn names_that_are_no_ascii_are_told_within_the_same_bound() {
    let handle = door(UnknownFields::Warn).await;
    let mut body = chat_body();
    (0..90).for_each(|i| body[format!("{i}{}", "\u{1f600}\n".repeat(60))] = json!(1));
    let reply = post(&handle, "/v1/chat/completions", &body).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let warning = reply.header("x-mtplx-warning").unwrap();
    assert!(warning.is_ascii() && warning.len() < 4200, "{}", warning.len());
    assert!(warning.contains("\\u{1f600}\\n") && warning.ends_with(" more"), "{warning}");
}

#[tokio::test]
async fn the_same_unknown_field_of_a_long_history_is_told_once() {
    let handle = door(UnknownFields::Warn).await;
    let said = |i: usize| json!({"role": (["user", "assistant"][i % 2]), "content": "Hi", "id": i});
    let messages: Vec<Value> = (0..101).map(said).collect();
    let reply = post(&handle, "/v1/chat/completions", &json!({"messages": messages})).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.header("x-mtplx-warning"), Some("ignored: messages[0].id"));
}

#[tokio::test]
async fn tokens_are_counted_of_bodies_with_unknown_fields_too() {
    let body = json!({"prompt": "Hi", "colour": 1});
    let strict = post(&door(UnknownFields::Refuse).await, "/tokenize", &body).await;
    assert_eq!((strict.status, &strict.error()["param"]), (400, &json!("colour")));
    let reply = post(&door(UnknownFields::Warn).await, "/tokenize", &body).await;
    assert_eq!(reply.header("x-mtplx-warning"), Some("ignored: colour"), "{reply:?}");
}

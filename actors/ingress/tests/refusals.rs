//! What is refused, and in which words.

use std::sync::Arc;

use mtplx_core::request::Finish;
use serde_json::{Value, json};

use super::harness::*;
use crate::ingress::text::tests::tiny;
use crate::ingress::{Config, start};

async fn tiny_house() -> crate::ingress::Handle {
    open(config(), info(), says(&[&[464]], Some(Finish::Stop))).await
}

fn assert_names(reply: &Reply, param: &str) {
    assert_eq!(reply.status, 400, "{param}: {reply:?}");
    let error = reply.error();
    assert_eq!(error["param"], param, "{error}");
    assert_eq!(error["type"], "invalid_request_error");
    assert!(error["code"].is_string());
    assert!(error["message"].as_str().unwrap().starts_with(param), "{error}");
}

#[tokio::test]
async fn every_refused_parameter_is_named() {
    let handle = tiny_house().await;
    let hi = json!([{"role": "user", "content": "Hi"}]);
    for (param, value) in [
        ("temperature", json!(2.5)),
        ("temperature", json!("hot")),
        ("temperature", json!(1e300)),
        ("top_p", json!(0)),
        ("top_k", json!(-2)),
        ("min_p", json!(2)),
        ("presence_penalty", json!(-3)),
        ("frequency_penalty", json!(3)),
        ("frequency_penalty", json!(-2.000_000_000_000_000_4)),
        ("repetition_penalty", json!(0)),
        ("logit_bias", json!({"x": 1})),
        ("logit_bias", json!({"8192": 1})),
        ("logit_bias", json!({"1": 101})),
        ("n", json!(0)),
        ("n", json!(9)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(-1)),
        ("max_completion_tokens", json!(0)),
        ("seed", json!("x")),
        ("stop", json!("")),
        ("stop", json!(5)),
        ("stop", json!(vec!["a"; 17])),
        ("stop", json!("x".repeat(1025))),
        ("stop_token_ids", json!([8192])),
        ("draft_tokens", json!(5)),
        ("draft_tokens", json!(4)),
        ("generation_mode", json!("fast")),
    ] {
        let mut body = json!({"messages": hi});
        body[param] = value;
        assert_names(&chat(&handle, body).await, param);
    }
}

#[tokio::test]
async fn every_parameter_that_is_not_served_is_named() {
    let handle = tiny_house().await;
    for (param, value) in [
        ("tools[0].type", json!([{"type": "web_search"}])),
        ("tools[0].function", json!([{"type": "function", "name": "f"}])),
        ("tools[0].function.name", json!([{"type": "function", "function": {"name": "a b"}}])),
        (
            "tools[0].function.parameters",
            json!([{"type": "function", "function": {"name": "f", "parameters": 1}}]),
        ),
        ("tools[0].x", json!([{"type": "function", "function": {"name": "f"}, "x": 1}])),
        (
            "tools",
            json!([{"type": "function", "function": {"name": "f"}},
            {"type": "function", "function": {"name": "f"}}]),
        ),
        ("tool_choice", json!("required")),
        ("tool_choice", json!("always")),
        ("tool_choice", json!({"type": "function", "function": {"name": "g"}})),
        ("tool_choice", json!({"type": "allowed_tools"})),
        ("continue_final_message", json!(true)),
        ("max_thinking_tokens", json!(-1)),
        ("functions", json!([{"name": "f"}])),
        ("function_call", json!({"name": "f"})),
        ("top_logprobs", json!(2)),
        ("reasoning_effort", json!("some")),
        ("modalities", json!(["text", "audio"])),
        ("audio", json!({"voice": "x"})),
        ("verbosity", json!("low")),
        ("web_search_options", json!({})),
        ("store", json!(true)),
        ("stream_options", json!({"include_usage": true})),
        ("stream_options", json!({})),
        ("stream_options.include_obfuscation", json!(true)),
        ("stream_options.other", json!(true)),
        ("chat_template_kwargs.messages", json!([])),
        ("guided_decoding_backend", json!("outlines")),
        ("best_of", json!(2)),
    ] {
        let mut body = json!({"messages": [{"role": "user", "content": "Hi"}]});
        match param.split_once('.').filter(|_| !param.contains('[')) {
            None if param.contains('[') => body["tools"] = value,
            Some((outer, inner)) => body[outer] = json!({inner: value}),
            None => body[param] = value,
        }
        assert_names(&chat(&handle, body).await, param);
    }
}

#[tokio::test]
async fn every_refused_parameter_of_completions_is_named() {
    let handle = tiny_house().await;
    for (param, value) in [
        ("logprobs", json!(21)),
        ("suffix", json!("end")),
        ("best_of", json!(2)),
        ("messages", json!([])),
        ("prompt", json!("")),
        ("prompt", json!([])),
        ("prompt", json!([1, "x"])),
        ("prompt", json!([[1], []])),
        ("prompt", json!([8192])),
        ("prompt", json!(vec!["x"; 9])),
        ("prompt[1]", json!([1, -1])),
        ("prompt[0].a", json!([{"a": 1}])),
    ] {
        let mut body = json!({"prompt": "x"});
        body[param.split(['[', '.']).next().unwrap()] = value;
        let reply = complete(&handle, body).await;
        assert_names(&reply, param.trim_end_matches(".a"));
    }
}

#[tokio::test]
async fn every_refused_part_of_a_message_is_named() {
    let handle = tiny_house().await;
    for (path, messages) in [
        ("messages", json!([])),
        ("messages[0]", json!([{}])),
        ("messages[0].role", json!([{"role": "robot", "content": ""}])),
        ("messages[1].content", json!([{"role": "user", "content": "a"}, {"role": "user"}])),
        ("messages[0].content", json!([{"role": "user", "content": 5}])),
        ("messages[0].content[0]", json!([{"role": "user", "content": ["a"]}])),
        (
            "messages[0].content[1].type",
            json!([{"role": "user", "content": [
            {"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "x"}}]}]),
        ),
        ("messages[0].content[0].text", json!([{"role": "user", "content": [{"type": "text"}]}])),
        (
            "messages[0].content[0].x",
            json!([{"role": "user", "content": [
            {"type": "text", "text": "a", "x": 1}]}]),
        ),
        ("messages[0].colour", json!([{"role": "user", "content": "a", "colour": "red"}])),
        ("messages[0].audio", json!([{"role": "assistant", "audio": {"id": "x"}}])),
        (
            "messages[0].tool_calls",
            json!([{"role": "user", "content": "a", "tool_calls": [
            {"function": {"name": "f"}}]}]),
        ),
        (
            "messages[0].tool_calls[0].function.arguments",
            json!([{"role": "assistant",
            "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]),
        ),
        (
            "messages[0].tool_calls[0].type",
            json!([{"role": "assistant",
            "tool_calls": [{"type": "custom", "function": {"name": "f"}}]}]),
        ),
    ] {
        let reply = chat(&handle, json!({"messages": messages})).await;
        assert_names(&reply, path);
    }
}

#[tokio::test]
async fn what_asks_for_nothing_is_accepted() {
    let handle = tiny_house().await;
    let body = r#"{
        "model": "tiny", "n": 1, "user": "me", "metadata": {"a": "b"}, "store": false,
        "service_tier": "auto", "stream_options": null, "seed": null,
        "safety_identifier": "x", "prompt_cache_key": "y", "prompt_cache_retention": "24h",
        "tools": [], "tool_choice": "none", "parallel_tool_calls": true, "logprobs": false,
        "top_logprobs": 0, "response_format": {"type": "text"}, "modalities": ["text"],
        "reasoning_effort": null, "verbosity": "medium", "stop": null, "logit_bias": {},
        "max_tokens": 5, "max_completion_tokens": 5, "chat_template_kwargs": {"a": 1},
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "Be ",
                "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "kind."}]},
            {"role": "user", "content": "Hi", "name": "Ann"},
            {"role": "assistant", "content": null, "refusal": null, "annotations": [],
                "reasoning_content": "hm", "tool_calls": [{"id": "1", "type": "function",
                "index": 0, "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "2"}
        ]
    }"#;
    let body: Value = serde_json::from_str(body).unwrap();
    let reply = chat(&handle, body).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let body = json!({"prompt": "x", "n": 2, "best_of": 2, "echo": false, "logprobs": null,
        "suffix": null, "user": "me"});
    let reply = complete(&handle, body).await;
    assert_eq!(reply.status, 200, "{reply:?}");
}

#[tokio::test]
async fn what_does_not_fit_is_told_in_numbers() {
    let held = Held::new();
    let handle = open(config(), info(), held.keep()).await;
    let reply = complete(&handle, json!({"prompt": vec![5; 256]})).await;
    assert_names(&reply, "prompt");
    let error = reply.error();
    assert_eq!(error["code"], "context_length_exceeded");
    let message = error["message"].as_str().unwrap();
    assert!(message.matches("256").count() == 2, "{message}");
    assert!(!message.contains("more") && !message.contains("messages"), "{message}");
    let greedy = json!({"prompt": vec![5; 200], "max_tokens": 57});
    let message = complete(&handle, greedy).await.error()["message"].to_string();
    assert!(message.contains("200") && message.contains("57 more"), "{message}");
    let talk = json!([{"role": "user", "content": "Hi"}]);
    let reply = chat(&handle, json!({"messages": talk, "max_completion_tokens": 250})).await;
    assert_names(&reply, "messages");
    assert!(reply.body.contains("lower max_completion_tokens"), "{reply:?}");
    let few_pages = mtplx_core::engine::EngineInfo { pages_max: 10, ..info() };
    let handle = open(config(), few_pages, held.keep()).await;
    let message =
        complete(&handle, json!({"prompt": vec![5; 160]})).await.error()["message"].to_string();
    assert!(message.contains("holds 160"), "{message}");
    let limited = Config { new_tokens_max: 10.try_into().ok(), ..config() };
    let handle = open(limited, info(), held.keep()).await;
    assert_names(&complete(&handle, json!({"prompt": "x", "max_tokens": 11})).await, "max_tokens");
    assert!(held.take().is_empty());
}

#[tokio::test]
async fn speculation_that_cannot_be_had_is_refused() {
    let plain = mtplx_core::engine::EngineInfo {
        depth_max: 0,
        mtp_absent: Some("/models/secret has no mtp tensors".into()),
        ..info()
    };
    let unwanted = mtplx_core::engine::EngineInfo { mtp_absent: None, ..plain.clone() };
    let handle = open(config(), unwanted, says(&[&[464]], Some(Finish::Stop))).await;
    let mtp = json!({"prompt": "x", "generation_mode": "mtp"});
    assert_names(&complete(&handle, mtp).await, "generation_mode");
    let handle = open(config(), plain, says(&[&[464]], Some(Finish::Stop))).await;
    let ask = |extra: Value| {
        let mut body = json!({"prompt": "x"});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        complete(&handle, body)
    };
    let reply = ask(json!({"generation_mode": "mtp"})).await;
    assert_names(&reply, "generation_mode");
    assert!(reply.body.contains("this model is served without an MTP head"), "{reply:?}");
    assert!(!reply.body.contains("secret"), "the server's files are its own affair");
    assert_names(&ask(json!({"draft_tokens": 1})).await, "draft_tokens");
    assert_eq!(ask(json!({"generation_mode": "ar", "draft_tokens": 0})).await.status, 200);
    let handle = tiny_house().await;
    let both = json!({"prompt": "x", "generation_mode": "ar", "draft_tokens": 1});
    assert_names(&complete(&handle, both).await, "draft_tokens");
    let neither = json!({"prompt": "x", "generation_mode": "mtp", "draft_tokens": 0});
    assert_names(&complete(&handle, neither).await, "draft_tokens");
}

#[tokio::test]
async fn what_is_no_json_is_refused_as_such() {
    let handle = tiny_house().await;
    let long = format!("{{\"messages\": \"{}\"}}", "x".repeat(70_000));
    for (headers, body, status, code) in [
        (JSON, "", 400, "invalid_json"),
        (JSON, "{", 400, "invalid_json"),
        (JSON, "[]", 400, "invalid_json"),
        (JSON, "\"x\"", 400, "invalid_json"),
        (JSON, "{}", 400, "invalid_value"),
        (JSON, "{} {}", 400, "invalid_json"),
        (JSON, "{\"n\": 1} x", 400, "invalid_json"),
        (JSON, "{\"n\": 1, \"n\": 1}", 400, "invalid_json"),
        (JSON, "\u{feff}{}", 400, "invalid_json"),
        ("content-type: text/plain\r\n", "{}", 415, "unsupported_content_type"),
        // What a web page of strangers can send without asking first.
        ("", "{}", 415, "unsupported_content_type"),
        ("content-type: \r\n", "{}", 415, "unsupported_content_type"),
        ("content-type: text/plain;a=+json\r\n", "{}", 415, "unsupported_content_type"),
        ("content-type: Application/JSON; charset=utf-8\r\n", "{}", 400, "invalid_value"),
        ("content-type: application/problem+json\r\n", "{}", 400, "invalid_value"),
        (JSON, long.as_str(), 413, "body_too_large"),
    ] {
        let line = "POST /v1/chat/completions";
        let reply = exchange(&handle, line, headers, body.as_bytes()).await;
        assert_eq!(reply.status, status, "{body:.40}: {reply:?}");
        assert_eq!(reply.error()["code"], code, "{body:.40}: {reply:?}");
    }
    let reply = exchange(&handle, "POST /v1/chat/completions", JSON, long.as_bytes()).await;
    assert!(reply.body.contains("65536"), "the limit is named: {reply:?}");
    let bare = json!({"messages": [{"role": "user", "content": "Hi"}]}).to_string();
    let reply = exchange(&handle, "POST /v1/chat/completions", "", bare.as_bytes()).await;
    assert_eq!(reply.status, 415);
    let message = reply.error()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("missing"), "{message}");
    assert!(message.contains("-H 'content-type: application/json'"), "{message}");
}

#[tokio::test]
async fn paths_methods_and_models_are_told_apart() {
    let handle = tiny_house().await;
    let reply = get(&handle, "/v1/nothing").await;
    assert_eq!((reply.status, reply.error()["code"].as_str()), (404, Some("unknown_path")));
    let reply = get(&handle, "/v1/chat/completions").await;
    assert_eq!((reply.status, reply.header("allow")), (405, Some("POST")));
    assert_eq!(reply.error()["code"], "method_not_allowed");
    let unknown = json!({"model": "gpt-9", "messages": [{"role": "user", "content": "Hi"}]});
    let reply = chat(&handle, unknown).await;
    assert_eq!((reply.status, reply.error()["param"].as_str()), (404, Some("model")));
    assert!(reply.body.contains("tiny"));
    let list = get(&handle, "/v1/models").await.json();
    assert_eq!(list["data"][0]["id"], "tiny");
    assert_eq!(
        list["data"][0]["meta"],
        json!({"context_length": 256, "mtp": true, "tier": "verified"})
    );
    assert_eq!(get(&handle, "/v1/models/tiny").await.json()["object"], "model");
    let reply = get(&handle, "/v1/models/a%2Fb").await;
    assert_eq!((reply.status, reply.error()["code"].as_str()), (404, Some("model_not_found")));
    let reply = get(&handle, "/metrics").await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "# metrics"));
}

#[tokio::test]
async fn a_model_may_have_slashes_in_its_name() {
    let named = Config { model: "org/tiny".into(), ..config() };
    let handle = open(named, info(), says(&[&[464]], Some(Finish::Stop))).await;
    for path in ["/v1/models/org/tiny", "/v1/models/org%2Ftiny"] {
        assert_eq!(get(&handle, path).await.json()["id"], "org/tiny");
    }
}

#[tokio::test]
async fn a_request_id_is_kept_or_given() {
    let handle = tiny_house().await;
    let reply = exchange(&handle, "GET /health", "x-request-id: mine\r\n", b"").await;
    assert_eq!(reply.header("x-request-id"), Some("mine"));
    let reply = get(&handle, "/nowhere").await;
    assert_eq!(reply.header("x-request-id").unwrap().len(), 16);
}

#[tokio::test]
async fn a_panic_is_an_answer_too() {
    let render = Arc::new(|| panic!("metrics are broken"));
    let (handle, _) = start(config(), tiny(), render).await.unwrap();
    let reply = get(&handle, "/metrics").await;
    assert_eq!((reply.status, reply.error()["code"].as_str()), (500, Some("internal_error")));
    assert!(!reply.body.contains("broken"), "what went wrong is for the log");
    assert!(reply.header("x-request-id").is_some());
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let handle = closed(config()).await;
    let taken = Config { bind: handle.address, ..config() };
    let error = start(taken, tiny(), Arc::new(String::new)).await.unwrap_err();
    assert!(error.to_string().contains(&handle.address.to_string()));
}

//! Anthropic's Messages API: shapes, order of events, errors.

use mtplx_core::request::Finish;
use serde_json::{Value, json};

use super::harness::*;
use crate::ingress::text::tests::shown;

const CALL: &str = "I look.\n\n<tool_call>\n<function=weather>\n<parameter=city>\nParis\n\
    </parameter>\n</function>\n</tool_call>";

async fn send(handle: &crate::ingress::Handle, body: &Value) -> Reply {
    exchange(handle, "POST /v1/messages", JSON, body.to_string().as_bytes()).await
}

fn ask(extra: &Value) -> Value {
    let mut body = json!({"model": "claude-test", "max_tokens": 200,
        "messages": [{"role": "user", "content": "Hi"}]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn weather() -> Value {
    json!([{"name": "weather", "description": "Tells it.", "cache_control": {"type": "ephemeral"},
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}])
}

/// Names and data of all events.
fn events(reply: &Reply) -> Vec<(String, Value)> {
    assert_eq!(reply.header("content-type"), Some("text/event-stream"), "{reply:?}");
    let blocks = reply.body.split("\n\n").filter(|block| block.starts_with("event: "));
    let pairs = blocks.map(|block| {
        let (name, data) = block.split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        let name = name.strip_prefix("event: ").unwrap().to_owned();
        assert_eq!(data["type"], name, "the name is told twice");
        (name, data)
    });
    pairs.collect()
}

/// What the official SDK makes of the events.
fn together(events: &[(String, Value)]) -> Value {
    let mut message = events[0].1["message"].clone();
    let mut json = String::new();
    for (name, event) in &events[1..] {
        let index = usize::try_from(event["index"].as_u64().unwrap_or(0)).unwrap();
        let delta = &event["delta"];
        match name.as_str() {
            "content_block_start" => {
                let content = message["content"].as_array_mut().unwrap();
                assert_eq!(content.len(), index);
                content.push(event["content_block"].clone());
                json.clear();
            }
            "content_block_delta" => {
                let block = &mut message["content"][index];
                for key in ["text", "thinking", "signature"] {
                    if let Some(more) = delta[key].as_str() {
                        block[key] = (block[key].as_str().unwrap().to_owned() + more).into();
                    }
                }
                if let Some(more) = delta["partial_json"].as_str() {
                    json.push_str(more);
                    block["input"] = serde_json::from_str(&json).unwrap_or_default();
                }
            }
            "message_delta" => {
                message["stop_reason"] = delta["stop_reason"].clone();
                message["stop_sequence"] = delta["stop_sequence"].clone();
                message["usage"] = event["usage"].clone();
            }
            "content_block_stop" | "message_stop" | "ping" => {}
            other => panic!("{other}"),
        }
    }
    message
}

/// The same without what is drawn at random.
fn nameless(mut message: Value) -> Value {
    message["id"] = Value::Null;
    for block in message["content"].as_array_mut().unwrap() {
        if block["type"] == "tool_use" {
            assert!(block["id"].as_str().unwrap().starts_with("toolu_"));
            block["id"] = Value::Null;
        }
    }
    message
}

#[tokio::test]
async fn thinking_text_and_calls_are_blocks_whole_and_streamed() {
    let said = format!("I think.\n</think>\n\n{CALL}");
    let handle = open(config(), roomy(), speaks(&said, Finish::Stop)).await;
    let thinking = json!({"type": "enabled", "budget_tokens": 1024});
    let mut body = ask(&json!({"tools": weather(), "thinking": thinking}));
    let reply = send(&handle, &body).await;
    assert!(reply.header("request-id").is_some());
    let whole = nameless(reply.json());
    assert_eq!(whole["type"], "message");
    assert_eq!(whole["stop_reason"], "tool_use");
    let content = json!([
        {"type": "thinking", "thinking": "I think.", "signature": "unsigned"},
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": null, "name": "weather", "input": {"city": "Paris"}},
    ]);
    assert_eq!(whole["content"], content);
    assert_eq!(whole["usage"]["cache_read_input_tokens"], 5);
    assert_eq!(whole["usage"]["cache_creation_input_tokens"], 0);
    body["stream"] = json!(true);
    let events = events(&send(&handle, &body).await);
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names[..3], ["message_start", "ping", "content_block_start"]);
    assert_eq!(names[names.len() - 3..], ["content_block_stop", "message_delta", "message_stop"]);
    let start = &events[0].1["message"];
    assert_eq!(start["usage"]["cache_read_input_tokens"], 5, "known with the first tokens");
    assert_eq!(nameless(together(&events)), whole);
}

#[tokio::test]
async fn every_end_has_its_reason() {
    for (said, end, extra, reason, stop) in [
        ("One two.", Finish::Stop, json!({}), "end_turn", Value::Null),
        ("One two.", Finish::Length, json!({}), "max_tokens", Value::Null),
        (
            "One two.",
            Finish::Stop,
            json!({"stop_sequences": ["two"]}),
            "stop_sequence",
            json!("two"),
        ),
    ] {
        let handle = open(config(), roomy(), speaks(said, end)).await;
        let whole = send(&handle, &ask(&extra)).await.json();
        assert_eq!((&whole["stop_reason"], &whole["stop_sequence"]), (&json!(reason), &stop));
        let mut streamed = ask(&extra);
        streamed["stream"] = json!(true);
        let message = together(&events(&send(&handle, &streamed).await));
        assert_eq!(nameless(message), nameless(whole));
    }
}

/// The prompt that the engine was given.
async fn prompt_of(body: Value) -> String {
    let held = Held::new();
    let handle = open(config(), roomy(), held.keep()).await;
    let body = body.to_string();
    let _open = begin(&handle, "POST /v1/messages?beta=true", JSON, body.as_bytes()).await;
    shown(&held.requests(1).await[0].prompt)
}

#[tokio::test]
async fn conversations_are_shown_to_the_model() {
    let prompt = prompt_of(ask(&json!({"tools": weather(), "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=1; cch=0f3a;"},
        {"type": "text", "text": "You are kind.", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "Be short."}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "<hint>x</hint>"},
            {"type": "text", "text": "Weather?"}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Look.", "signature": "s"},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "toolu_1", "name": "weather",
             "input": {"city": "Paris"}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "is_error": true,
             "content": [{"type": "text", "text": "no"}, {"type": "text", "text": "wire"}]},
            {"type": "text", "text": "Go on."}]},
    ]})))
    .await;
    assert!(!prompt.contains("billing"), "{prompt}");
    for part in [
        "</IMPORTANT>\n\nYou are kind.\nBe short.<|im_end|>",
        "<|im_start|>user\n<hint>x</hint>\nWeather?<|im_end|>",
        "I look.\n\n<tool_call>\n<function=weather>\n<parameter=city>\nParis\n",
        "<tool_response>\nError: no\nwire\n</tool_response>",
        "<|im_start|>user\nGo on.<|im_end|>",
        "{\"type\": \"function\", \"function\": {\"name\": \"weather\", \"description\"",
    ] {
        assert!(prompt.contains(part), "{part} in {prompt}");
    }
}

#[tokio::test]
async fn a_begun_answer_is_gone_on_with() {
    let messages = json!([{"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Once upon"}]);
    let prompt = prompt_of(ask(&json!({"messages": messages}))).await;
    assert!(prompt.ends_with("<|im_start|>assistant\nOnce upon"), "{prompt}");
}

#[tokio::test]
async fn thinking_that_nobody_asked_for_is_off() {
    let closed = "<think>\n\n</think>\n\n";
    assert!(prompt_of(ask(&json!({}))).await.ends_with(closed));
    for extra in [
        json!({"thinking": {"type": "enabled", "budget_tokens": 1024}}),
        json!({"thinking": {"type": "adaptive"}}),
        json!({"output_config": {"effort": "high"}}),
    ] {
        assert!(prompt_of(ask(&extra)).await.ends_with("<think>\n"), "{extra}");
    }
}

#[tokio::test]
async fn a_call_that_was_cut_off_is_left_out_of_a_whole_answer() {
    let half = &CALL[..CALL.find("ris\n").unwrap()];
    let handle = open(config(), roomy(), speaks(half, Finish::Length)).await;
    let whole = send(&handle, &ask(&json!({"tools": weather()}))).await.json();
    assert_eq!(whole["stop_reason"], "max_tokens");
    assert_eq!(whole["content"], json!([{"type": "text", "text": "I look."}]));
}

#[tokio::test]
async fn tokens_are_counted_without_an_engine() {
    let handle = closed(config()).await;
    let body = json!({"model": "claude-x", "tools": weather(),
        "messages": [{"role": "user", "content": "Hi"}]});
    let line = "POST /v1/messages/count_tokens";
    let reply = exchange(&handle, line, JSON, body.to_string().as_bytes()).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(reply.json()["input_tokens"].as_u64().unwrap() > 100);
}

#[tokio::test]
async fn errors_are_in_the_shape_of_this_api() {
    let handle = open(config(), info(), speaks("Hi", Finish::Stop)).await;
    let long = "word ".repeat(300);
    for (body, status, kind, says) in [
        (json!({"messages": []}), 400, "invalid_request_error", "max_tokens"),
        (ask(&json!({"messages": []})), 400, "invalid_request_error", "messages"),
        (ask(&json!({"colour": 1})), 400, "invalid_request_error", "colour"),
        (ask(&json!({"model": "gpt-9"})), 404, "not_found_error", "gpt-9"),
        (ask(&json!({"stop_sequences": [""]})), 400, "invalid_request_error", "stop_sequences"),
        (
            ask(&json!({"tools": [{"type": "web_search_20250305", "name": "web_search"}]})),
            400,
            "invalid_request_error",
            "tools[0].type",
        ),
        (
            ask(&json!({"messages": [{"role": "user", "content": [{"type": "image"}]}]})),
            400,
            "invalid_request_error",
            "messages[0].content[0].type",
        ),
        (
            ask(&json!({"messages": [{"role": "user", "content": long}]})),
            400,
            "invalid_request_error",
            "prompt is too long: ",
        ),
        (
            ask(&json!({"max_tokens": 255})),
            400,
            "invalid_request_error",
            "input length and `max_tokens` exceed context limit: 13 + 255 > 256",
        ),
    ] {
        let reply = send(&handle, &body).await;
        assert_eq!(reply.status, status, "{reply:?}");
        let error = reply.json();
        assert_eq!((&error["type"], &error["error"]["type"]), (&json!("error"), &json!(kind)));
        assert_eq!(error["request_id"], reply.header("request-id").unwrap());
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.contains(says), "{says} in {message}");
    }
    let theirs = "anthropic-version: 2023-06-01\r\n";
    let reply = exchange(&handle, "GET /v1/nothing", theirs, b"").await;
    assert_eq!((reply.status, reply.json()["type"].as_str()), (404, Some("error")));
    let reply = get(&handle, "/v1/messages").await;
    assert_eq!((reply.status, reply.json()["type"].as_str()), (405, Some("error")));
    let reply = get(&handle, "/v1/nothing").await;
    assert_eq!(reply.error()["code"], "unknown_path");
    let closed = closed(config()).await;
    let reply = send(&closed, &ask(&json!({}))).await;
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("2")));
    assert_eq!(reply.json()["error"]["type"], "overloaded_error");
}

#[tokio::test]
async fn a_stream_that_breaks_off_ends_with_an_error() {
    let handle = open(config(), roomy(), says(&[&[464, 3181]], Some(Finish::Fault))).await;
    let events = events(&send(&handle, &ask(&json!({"stream": true}))).await);
    let (name, last) = events.last().unwrap();
    assert_eq!(
        (name.as_str(), last["error"]["type"].as_str()),
        ("error", Some("overloaded_error"))
    );
}

#[tokio::test]
async fn what_is_only_a_hint_is_named_in_a_warning() {
    let handle = open(config(), roomy(), speaks("Hi", Finish::Stop)).await;
    let body = ask(&json!({"metadata": {"user_id": "x"}, "service_tier": "auto",
        "thinking": {"type": "adaptive"}, "output_config": {"effort": "low"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}}));
    let reply = send(&handle, &body).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.header("x-mtplx-warning"), Some("ignored: context_management"));
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_shows_pings_and_then_real_events() {
    use tokio::io::AsyncReadExt;
    let held = Held::new();
    let handle = open(config(), roomy(), held.keep()).await;
    let body = ask(&json!({"stream": true, "thinking": {"type": "adaptive"}})).to_string();
    let mut client = begin(&handle, "POST /v1/messages", JSON, body.as_bytes()).await;
    held.requests(1).await;
    let mut heard = String::new();
    while heard.matches("{\"type\":\"thinking_delta\",\"thinking\":\"\"}").count() < 2 {
        let mut bytes = [0; 1024];
        let n = client.read(&mut bytes).await.unwrap();
        assert!(n > 0, "the stream goes on: {heard}");
        heard.push_str(std::str::from_utf8(&bytes[..n]).unwrap());
    }
    let place = |name: &str| heard.find(name).unwrap();
    assert!(place("message_start") < place("event: ping"));
    assert!(place("event: ping") < place("content_block_start"));
    drop(held.take());
}

#[tokio::test]
async fn arguments_that_are_no_json_are_not_taken_for_an_input() {
    let broken = "{'city': 1}";
    let said = format!("<tool_call>{{\"name\": \"weather\", \"arguments\": {broken}}}</tool_call>");
    let handle = open(config(), roomy(), speaks(&said, Finish::Stop)).await;
    let mut body = ask(&json!({"tools": weather(), "thinking": {"type": "disabled"}}));
    let whole = send(&handle, &body).await.json();
    assert_eq!(whole["content"][0]["input"], json!({"INVALID_JSON": broken}));
    body["stream"] = json!(true);
    let events = events(&send(&handle, &body).await);
    let pieces = events.iter().filter_map(|(_, event)| event["delta"]["partial_json"].as_str());
    assert_eq!(pieces.collect::<String>(), broken);
}

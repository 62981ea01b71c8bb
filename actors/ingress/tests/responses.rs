//! OpenAI's Responses API: items, events, and going on from an earlier answer.

use mtplx_core::request::Finish;
use serde_json::{Value, json};

use super::harness::*;
use crate::ingress::text::tests::shown;

const CALL: &str = "I look.\n\n<tool_call>\n<function=weather>\n<parameter=city>\nParis\n\
    </parameter>\n</function>\n</tool_call>";

async fn send(handle: &crate::ingress::Handle, body: &Value) -> Reply {
    exchange(handle, "POST /v1/responses", JSON, body.to_string().as_bytes()).await
}

fn ask(extra: &Value) -> Value {
    let mut body = json!({"model": "tiny", "input": "Hi"});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn weather() -> Value {
    json!([{"type": "function", "name": "weather", "strict": false,
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}])
}

fn events(reply: &Reply) -> Vec<Value> {
    let events: Vec<Value> =
        reply.events().iter().map(|data| serde_json::from_str(data).unwrap()).collect();
    for (i, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], i);
        let name = event["type"].as_str().unwrap();
        assert!(reply.body.contains(&format!("event: {name}\n")));
    }
    events
}

/// The kinds and contents of items, without their names.
fn said(response: &Value) -> Vec<Value> {
    let items = response["output"].as_array().unwrap().iter();
    let said = items.map(|item| match item["type"].as_str().unwrap() {
        "function_call" => json!([item["name"], item["arguments"], item["status"]]),
        kind => json!([kind, item["content"][0]["text"], item["status"]]),
    });
    said.collect()
}

#[tokio::test]
async fn items_are_answered_whole_and_streamed() {
    let text = format!("I think.\n</think>\n\n{CALL}");
    let handle = open(config(), roomy(), speaks(&text, Finish::Stop)).await;
    let mut body = ask(&json!({"tools": weather(), "reasoning": {"effort": "high"}}));
    let whole = send(&handle, &body).await.json();
    assert_eq!((&whole["object"], &whole["status"]), (&json!("response"), &json!("completed")));
    let expected = [
        json!(["reasoning", "I think.", "completed"]),
        json!(["message", "I look.", "completed"]),
        json!(["weather", "{\"city\": \"Paris\"}", "completed"]),
    ];
    assert_eq!(said(&whole), expected);
    assert_eq!(whole["usage"]["input_tokens_details"]["cached_tokens"], 5);
    assert_eq!(whole["temperature"].as_f64().unwrap() as f32, 0.6);
    body["stream"] = json!(true);
    let events = events(&send(&handle, &body).await);
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(
        kinds[..3],
        ["response.created", "response.in_progress", "response.output_item.added"]
    );
    let last = events.last().unwrap();
    assert_eq!(last["type"], "response.completed");
    assert_eq!(said(&last["response"]), expected);
    let mut calls = String::new();
    for event in &events {
        if event["type"] == "response.function_call_arguments.delta" {
            assert_eq!(event["output_index"], 2);
            calls.push_str(event["delta"].as_str().unwrap());
        }
    }
    assert_eq!(calls, "{\"city\": \"Paris\"}");
    let done: Vec<&Value> =
        events.iter().filter(|e| e["type"] == "response.output_item.done").collect();
    assert_eq!(done.len(), 3);
    for (i, event) in done.iter().enumerate() {
        assert_eq!(event["item"], last["response"]["output"][i]);
    }
}

#[tokio::test]
async fn what_was_cut_off_is_incomplete() {
    let handle = open(config(), roomy(), speaks("One two", Finish::Length)).await;
    let whole = send(&handle, &ask(&json!({"max_output_tokens": 16}))).await.json();
    assert_eq!(whole["status"], "incomplete");
    assert_eq!(whole["incomplete_details"]["reason"], "max_output_tokens");
    let events = events(&send(&handle, &ask(&json!({"stream": true}))).await);
    assert_eq!(events.last().unwrap()["type"], "response.incomplete");
}

#[tokio::test]
async fn a_conversation_goes_on_from_an_answer() {
    let handle = open(config(), roomy(), speaks(CALL, Finish::Stop)).await;
    let first = send(&handle, &ask(&json!({"tools": weather(), "instructions": "Be kind."}))).await;
    let first = first.json();
    let id = first["id"].as_str().unwrap().to_owned();
    assert_eq!(get(&handle, &format!("/v1/responses/{id}")).await.json(), first);
    let held = Held::new();
    serve(&handle, roomy(), held.keep()).await;
    let call_id = &first["output"][1]["call_id"];
    let body = json!({"previous_response_id": id, "tools": weather(), "instructions": "Be short.",
        "input": [{"type": "function_call_output", "call_id": call_id, "output": "sunny"}]});
    let body = body.to_string();
    let open = begin(&handle, "POST /v1/responses", JSON, body.as_bytes()).await;
    let prompt = shown(&held.requests(1).await[0].prompt);
    for part in ["Be short.", "user\nHi<", "I look.\n\n<tool_call>", "sunny\n</tool_response>"] {
        assert!(prompt.contains(part), "{part} in {prompt}");
    }
    assert!(!prompt.contains("Be kind."), "instructions are not inherited");
    drop(open);
    let line = format!("DELETE /v1/responses/{id}");
    assert_eq!(exchange(&handle, &line, "", b"").await.json()["deleted"], true);
    assert_eq!(get(&handle, &format!("/v1/responses/{id}")).await.status, 404);
    let reply = send(&handle, &ask(&json!({"previous_response_id": id}))).await;
    assert_eq!(
        (reply.status, reply.error()["param"].as_str()),
        (400, Some("previous_response_id"))
    );
    assert_eq!(reply.error()["code"], "previous_response_not_found");
}

#[tokio::test]
async fn what_is_not_to_be_kept_is_not() {
    let handle = open(config(), roomy(), speaks("Hi", Finish::Stop)).await;
    for stream in [false, true] {
        let reply = send(&handle, &ask(&json!({"store": false, "stream": stream}))).await;
        let response =
            if stream { events(&reply).pop().unwrap()["response"].clone() } else { reply.json() };
        let path = format!("/v1/responses/{}", response["id"].as_str().unwrap());
        assert_eq!(get(&handle, &path).await.status, 404);
    }
}

#[tokio::test]
async fn items_of_all_kinds_are_shown_to_the_model() {
    let held = Held::new();
    let handle = open(config(), roomy(), held.keep()).await;
    let body = json!({"instructions": "Base.", "tools": weather(), "store": false, "stream": true,
    "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k",
    "input": [
        {"type": "message", "role": "developer",
         "content": [{"type": "input_text", "text": "Rules."}]},
        {"role": "user", "content": [{"type": "input_text", "text": "A"},
            {"type": "input_text", "text": "B"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": null,
         "content": [{"type": "reasoning_text", "text": "Look."}]},
        {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [
            {"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}]},
        {"type": "function_call", "id": "fc", "call_id": "c1", "name": "weather",
         "arguments": "{\"city\":\"Paris\"}"},
        {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        {"type": "function_call_output", "call_id": "c2",
         "output": [{"type": "input_text", "text": "rain"}]},
    ]});
    let body = body.to_string();
    let _open = begin(&handle, "POST /v1/responses", JSON, body.as_bytes()).await;
    let prompt = shown(&held.requests(1).await[0].prompt);
    for part in [
        "\n\nBase.\n\nRules.<|im_end|>",
        "user\nAB<|im_end|>",
        "<think>\nLook.\n</think>\n\nI look.\n\n<tool_call>\n<function=weather>\n<parameter=city>",
        "</tool_call>\n<tool_call>\n<function=weather>\n</function>",
        "<tool_response>\nsunny\n</tool_response>\n<tool_response>\nrain\n</tool_response>",
    ] {
        assert!(prompt.contains(part), "{part} in {prompt}");
    }
}

#[tokio::test]
async fn what_openai_runs_itself_is_refused_by_name() {
    let handle = open(config(), roomy(), speaks("Hi", Finish::Stop)).await;
    for (param, extra) in [
        ("tools[0].type", json!({"tools": [{"type": "web_search"}]})),
        ("tools[0].type", json!({"tools": [{"type": "custom", "name": "x"}]})),
        ("input[0].type", json!({"input": [{"type": "item_reference", "id": "x"}]})),
        (
            "input[0].content[0].type",
            json!({"input": [{"role": "user", "content": [
            {"type": "input_image", "image_url": "x"}]}]}),
        ),
        ("input[0].role", json!({"input": [{"role": "robot", "content": ""}]})),
        ("input", json!({"input": []})),
        ("background", json!({"background": true})),
        ("truncation", json!({"truncation": "auto"})),
        ("conversation", json!({"conversation": "c"})),
        ("reasoning.effort", json!({"reasoning": {"effort": "some"}})),
        ("max_output_tokens", json!({"max_output_tokens": 0})),
        ("input", json!({"max_output_tokens": 5000})),
        ("text.format.schema", json!({"text": {"format": {"type": "json_schema"}}})),
        ("colour", json!({"colour": 1})),
    ] {
        let reply = send(&handle, &ask(&extra)).await;
        assert_eq!(
            (reply.status, reply.error()["param"].as_str()),
            (400, Some(param)),
            "{reply:?}"
        );
    }
}

#[tokio::test]
async fn numbers_come_back_as_they_were_written() {
    let handle = open(config(), roomy(), speaks("Hi", Finish::Stop)).await;
    let body = ask(&json!({"temperature": 0.6, "top_p": 0.95}));
    let response = send(&handle, &body).await.json();
    assert_eq!((&response["temperature"], &response["top_p"]), (&json!(0.6), &json!(0.95)));
}

//! Answers of a given structure, over HTTP.

use std::time::{Duration, Instant};

use mtplx_core::engine::EngineInfo;
use mtplx_core::request::Finish;
use serde_json::{Value, json};

use super::harness::*;
use crate::ingress::Handle;

async fn house() -> Handle {
    open(config(), roomy(), scripted_roomy).await
}

fn ask(extra: &Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2000});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

type Is<'a> = &'a dyn Fn(&str) -> bool;

#[tokio::test]
async fn each_way_to_ask_for_a_structure_gives_it() {
    let handle = house().await;
    let schema = person();
    let is_person = |text: &str| {
        let value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
        jsonschema::is_valid(&person(), &value)
    };
    let is_digits = |text: &str| text.len() == 3 && text.bytes().all(|b| b.is_ascii_digit());
    let is_choice = |text: &str| ["red", "green"].contains(&text);
    let compact = |text: &str| is_person(text) && !text.contains('\n');
    let lark = "start: \"<\" /[a-z]{1,5}/ \">\"";
    let is_tag = |text: &str| text.starts_with('<') && text.ends_with('>') && text.len() < 8;
    let ways: [(Value, Is<'_>); 10] = [
        (
            json!({"response_format": {"type": "json_schema",
                "json_schema": {"name": "p", "strict": true, "schema": schema}}}),
            &is_person,
        ),
        (json!({"guided_json": schema}), &is_person),
        (json!({"guided_json": schema.to_string()}), &is_person),
        (json!({"structured_outputs": {"json": schema}}), &is_person),
        (json!({"structured_outputs": {"json": schema, "disable_any_whitespace": true}}), &compact),
        (json!({"guided_regex": "[0-9]{3}"}), &is_digits),
        (json!({"structured_outputs": {"regex": "[0-9]{3}"}}), &is_digits),
        (json!({"guided_choice": ["red", "green"]}), &is_choice),
        (json!({"structured_outputs": {"choice": ["red", "green"]}}), &is_choice),
        (json!({"guided_grammar": lark}), &is_tag),
    ];
    for (extra, is_right) in ways {
        for more in [json!({}), json!({"temperature": 0}), json!({"seed": 7, "draft_tokens": 0})] {
            let mut body = ask(&extra);
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let whole = chat(&handle, body.clone()).await.json();
            let choice = &whole["choices"][0];
            let text = choice["message"]["content"].as_str().unwrap();
            assert!(is_right(text), "{extra}: {text}");
            assert_eq!(choice["finish_reason"], "stop", "{extra}");
            body.as_object_mut().unwrap().remove("messages");
            body["prompt"] = json!("Hi");
            let raw = complete(&handle, body).await.json();
            let text = raw["choices"][0]["text"].as_str().unwrap();
            assert!(is_right(text), "{extra}: {text}");
        }
    }
}

#[tokio::test]
async fn any_object_is_one_or_was_cut_at_the_limit() {
    let handle = house().await;
    for seed in 0..6 {
        let format = json!({"type": "json_object"});
        let body = ask(&json!({"response_format": format, "seed": seed, "max_tokens": 60}));
        let choice = &chat(&handle, body).await.json()["choices"][0];
        let text = choice["message"]["content"].as_str().unwrap();
        match choice["finish_reason"].as_str().unwrap() {
            "stop" => assert!(serde_json::from_str::<Value>(text).unwrap().is_object()),
            "length" => assert!(text.trim_start().starts_with('{'), "{text}"),
            other => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn a_seeded_text_under_a_schema_is_the_same_at_every_depth() {
    let handle = house().await;
    for temperature in [0.0, 0.7, 1.3] {
        let mut texts = Vec::new();
        for depth in 0..=3 {
            let extra = json!({"guided_json": person(), "seed": 5, "draft_tokens": depth,
                "temperature": temperature, "logit_bias": {"17": 3}, "presence_penalty": 0.5});
            let answer = chat(&handle, ask(&extra)).await.json();
            texts.push(answer["choices"][0]["message"]["content"].clone());
        }
        assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
    }
}

#[tokio::test]
async fn a_stop_string_ends_a_structure_too() {
    let handle = house().await;
    let extra = json!({"guided_regex": "a{3}XYb{50}", "stop": ["XY"]});
    let choice = &chat(&handle, ask(&extra)).await.json()["choices"][0];
    assert_eq!(
        (&choice["message"]["content"], &choice["finish_reason"]),
        (&json!("aaa"), &json!("stop"))
    );
}

#[tokio::test]
async fn thoughts_are_free_and_only_what_follows_them_is_bound() {
    let handle = house().await;
    // The model thinks first where its template says so; the bank plays noise for thoughts.
    let extra = json!({"guided_choice": ["yes", "no"], "seed": 3, "max_tokens": 30,
        "logit_bias": {"8185": 100},
        "chat_template_kwargs": {"enable_thinking": true}});
    let choice = &chat(&handle, ask(&extra)).await.json()["choices"][0];
    let text = choice["message"]["content"].as_str().unwrap();
    assert!(text == "yes" || text == "no", "thoughts are told apart: {choice}");
    assert_eq!(choice["finish_reason"], "stop");
}

#[tokio::test]
async fn what_somebody_said_of_thinking_does_not_free_the_answer() {
    let handle = house().await;
    let messages = json!([{"role": "user", "content": "What does <think> mean?"}]);
    for kwargs in [json!({"enable_thinking": false}), json!({})] {
        let extra = json!({"guided_choice": ["yes", "no"], "messages": messages, "seed": 3,
            "continue_final_message": false, "max_tokens": 30, "chat_template_kwargs": kwargs});
        let choice = &chat(&handle, ask(&extra)).await.json()["choices"][0];
        let text = choice["message"]["content"].as_str().unwrap();
        assert!(text == "yes" || text == "no", "{choice}");
    }
    let raw = json!({"guided_choice": ["yes", "no"], "prompt": "Say <think>:", "max_tokens": 30});
    let raw = complete(&handle, raw).await.json();
    let text = raw["choices"][0]["text"].as_str().unwrap();
    assert!(text == "yes" || text == "no", "{raw}");
}

#[tokio::test]
async fn what_cannot_be_compiled_is_refused_by_name() {
    let handle = house().await;
    let deep = |n: usize| format!("start: {}\"a\"{}", "(".repeat(n), ")".repeat(n));
    let mut nested = json!({"type": "string"});
    for _ in 0..60 {
        nested = json!({"type": "array", "items": nested});
    }
    let many: Vec<String> = (0..3000).map(|i| format!("word {i}")).collect();
    for (param, value) in [
        ("response_format", json!("json_object")),
        (
            "response_format",
            json!({"type": "json_schema", "json_schema": {"name": "x",
            "schema": {"type": "nonsense"}}}),
        ),
        ("response_format.type", json!({"type": "xml"})),
        ("response_format.json_schema", json!({"type": "json_schema"})),
        (
            "response_format.json_schema.schema",
            json!({"type": "json_schema",
            "json_schema": {"name": "x"}}),
        ),
        ("guided_json", json!("{")),
        ("guided_json", json!(7)),
        ("guided_json", json!({"not": {"type": "string"}})),
        ("guided_json", json!({"$ref": "http://127.0.0.1/schema"})),
        ("guided_json", json!({"type": "integer", "minimum": 5, "maximum": 4})),
        ("guided_regex", json!("(")),
        ("guided_regex", json!("(a{1000}){1000}{1000}")),
        ("guided_regex", json!("(".repeat(60_000))),
        ("guided_choice", json!([])),
        ("guided_choice", json!([""])),
        ("guided_grammar", json!("start: other")),
        ("guided_grammar", json!("")),
        ("guided_grammar", json!("start: start")),
        ("guided_grammar", json!(deep(20_000))),
        ("structured_outputs", json!({"json": {}, "regex": "a"})),
        ("structured_outputs.structural_tag", json!({"structural_tag": "x"})),
    ] {
        let field = param.split('.').next().unwrap();
        let began = Instant::now();
        let reply = chat(&handle, ask(&json!({field: value}))).await;
        assert_eq!(reply.status, 400, "{param}: {}", reply.body);
        assert_eq!(reply.error()["param"], param, "{}", reply.body);
        assert!(reply.body.len() < 2000, "{param}: {}", reply.body.len());
        assert!(began.elapsed() < Duration::from_secs(20), "{param}: {:?}", began.elapsed());
    }
    for (param, extra) in [
        ("guided_regex", json!({"guided_regex": "a", "guided_choice": ["a"]})),
        ("ignore_eos", json!({"guided_choice": ["a"], "ignore_eos": true})),
    ] {
        let reply = chat(&handle, ask(&extra)).await;
        assert_eq!(reply.status, 400, "{}", reply.body);
        assert!(reply.error()["param"] == param || param == "guided_regex", "{}", reply.body);
    }
    // And large ones that are none of these are served.
    for extra in [json!({"guided_choice": many}), json!({"guided_json": nested, "max_tokens": 5})] {
        let reply = chat(&handle, ask(&extra)).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
}

/// A tool whose schema says what grammars cannot.
fn odd_tool() -> Value {
    let names = json!({"type": "object", "propertyNames": {"pattern": "^a"}});
    json!({"type": "function", "function": {"name": "odd", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}, "map": names},
        "required": ["city"]}}})
}

#[tokio::test]
async fn a_tool_that_may_be_called_beside_a_structure_is_read_loosely_where_it_must_and_named() {
    let handle = house().await;
    let plain = json!({"type": "function", "function": {"name": "plain", "parameters": person()}});
    let tools = json!([plain, odd_tool()]);
    let format = json!({"type": "json_schema", "json_schema": {"name": "p", "schema": person()}});
    let body = ask(&json!({"tools": tools, "response_format": format, "seed": 4}));
    let reply = chat(&handle, body).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let warning = "ignored: tools odd (read as any object)";
    assert_eq!(reply.header("x-mtplx-warning"), Some(warning));
    let many = (0..12).map(|i| {
        let mut tool = odd_tool();
        tool["function"]["name"] = json!(format!("odd{i}"));
        tool
    });
    let many: Vec<Value> = many.collect();
    let format = json!({"type": "json_object"});
    let reply = chat(&handle, ask(&json!({"tools": many, "response_format": format}))).await;
    let warning = reply.header("x-mtplx-warning").unwrap();
    assert!(warning.ends_with("tools odd9 (read as any object), ... and 2 more tools"));
    // What is wrong with the structure itself is still said of it.
    let wrong = json!({"type": "json_schema", "json_schema": {"name": "p",
        "schema": {"not": {}}}});
    let reply = chat(&handle, ask(&json!({"tools": tools, "response_format": wrong}))).await;
    assert_eq!((reply.status, &reply.error()["param"]), (400, &json!("response_format")));
}

#[tokio::test]
async fn tools_that_may_be_called_are_read_loosely_where_all_of_them_are_too_long_a_text() {
    let config = crate::ingress::Config { body_bytes_max: 8 << 20, ..config() };
    let long = EngineInfo { context_tokens_max: 400_000, pages_max: 40_000, ..info() };
    let handle = open(config, long, speaks("{}", Finish::Stop)).await;
    let format = json!({"type": "json_schema", "json_schema": {"name": "p", "schema": person()}});
    let tool = |name: &str, bytes: usize| {
        let inner = json!({"type": "object", "description": "x".repeat(bytes)});
        let parameters = json!({"type": "object", "properties": {"map": inner}});
        json!({"type": "function", "function": {"name": name, "parameters": parameters}})
    };
    let hold = |tools: &[Value]| {
        let kwargs = json!({"enable_thinking": false});
        ask(&json!({"tools": tools, "response_format": format, "chat_template_kwargs": kwargs}))
    };
    let huge = [tool("small", 10), tool("huge", 300_000), tool("middle", 10_000)];
    let many: Vec<Value> = (0..40).map(|i| tool(&format!("t{i}"), 8000 + i)).collect();
    for (tools, says) in [
        (&huge[..], "ignored: tools huge (read as any object)"),
        (&many[..], "tools t33 (read as any object), ... and 6 more tools"),
    ] {
        let reply = chat(&handle, hold(tools)).await;
        assert!(
            reply.status == 200,
            "{} {}",
            reply.status,
            &reply.body[..400.min(reply.body.len())]
        );
        let warning = reply.header("x-mtplx-warning").unwrap();
        assert!(warning.ends_with(says), "{warning}");
    }
    // One that must be called is not.
    let mut body = ask(&json!({"tools": huge, "tool_choice": "required"}));
    body["max_tokens"] = json!(9);
    let reply = chat(&handle, body).await;
    assert_eq!((reply.status, &reply.error()["param"]), (400, &json!("tools")));
}

#[tokio::test]
async fn a_demanded_tool_whose_schema_cannot_be_kept_to_is_named() {
    let handle = house().await;
    for choice in [json!("required"), json!({"type": "function", "function": {"name": "odd"}})] {
        let body = ask(&json!({"tools": [odd_tool()], "tool_choice": choice}));
        let reply = chat(&handle, body).await;
        assert_eq!((reply.status, &reply.error()["param"]), (400, &json!("tools")), "{reply:?}");
        let message = reply.error()["message"].as_str().unwrap().to_owned();
        assert!(message.contains("the schema of `odd` cannot be compiled"), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_those_who_ask_at_once_for_what_cannot_be_compiled_each_hears_its_own_parameter() {
    let handle = house().await;
    let wrong = json!({"not": {"type": "string"}, "title": "asked for at once"});
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": wrong}});
    let asked = [
        ("guided_json", ask(&json!({"guided_json": wrong}))),
        ("response_format", ask(&json!({"response_format": format}))),
    ];
    for _ in 0..5 {
        let [(a, first), (b, second)] = asked.clone();
        let (one, two) = tokio::join!(chat(&handle, first), chat(&handle, second));
        for (param, reply) in [(a, one), (b, two)] {
            assert_eq!((reply.status, &reply.error()["param"]), (400, &json!(param)));
        }
    }
}

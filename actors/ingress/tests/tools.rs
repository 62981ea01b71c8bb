//! Tools, thinking, and what else a chat may ask for.

use mtplx_core::batch::RowEvent;
use mtplx_core::request::{Finish, Usage};
use serde_json::{Value, json};

use super::harness::*;
use crate::admission::Admission;
use crate::ingress::text::tests::{shown, tiny};
use crate::ingress::{Config, UnknownFields};

const CALL: &str = "I look.\n\n<tool_call>\n<function=weather>\n<parameter=city>\nParis\n\
    </parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>";

fn ask(extra: &Value) -> Value {
    let mut body = json!({
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}}],
    });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn chunks(reply: &Reply) -> Vec<Value> {
    let events = reply.events();
    events.iter().filter(|e| *e != "[DONE]").map(|e| serde_json::from_str(e).unwrap()).collect()
}

/// What a client puts together from chunks: content, reasoning, calls, reason.
fn together(chunks: &[Value]) -> (String, String, Vec<(String, String)>, String) {
    let (mut content, mut thought, mut reason) = (String::new(), String::new(), String::new());
    let mut calls: Vec<(String, String)> = Vec::new();
    for choice in chunks.iter().flat_map(|c| c["choices"].as_array().unwrap()) {
        let delta = &choice["delta"];
        content.push_str(delta["content"].as_str().unwrap_or_default());
        thought.push_str(delta["reasoning_content"].as_str().unwrap_or_default());
        reason.push_str(choice["finish_reason"].as_str().unwrap_or_default());
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let index = usize::try_from(call["index"].as_u64().unwrap()).unwrap();
            if index == calls.len() {
                assert!(call["id"].as_str().unwrap().starts_with("call_"));
                calls.push((call["function"]["name"].as_str().unwrap().into(), String::new()));
            }
            calls[index].1.push_str(call["function"]["arguments"].as_str().unwrap());
        }
    }
    (content, thought, calls, reason)
}

#[tokio::test]
async fn calls_are_answered_whole_and_streamed() {
    let handle = open(config(), roomy(), speaks(CALL, Finish::Stop)).await;
    let arguments = "{\"city\": \"Paris\", \"days\": 3}";
    let whole = chat(&handle, ask(&json!({}))).await.json();
    let choice = &whole["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], "I look.");
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(call["type"], "function");
    assert_eq!(call["function"], json!({"name": "weather", "arguments": arguments}));
    let streamed = chunks(&chat(&handle, ask(&json!({"stream": true}))).await);
    let (content, _, calls, reason) = together(&streamed);
    assert_eq!((content.as_str(), reason.as_str()), ("I look.", "tool_calls"));
    assert_eq!(calls, [("weather".to_owned(), arguments.to_owned())]);
    assert!(streamed.len() > 8, "arguments come in pieces: {streamed:?}");
}

#[tokio::test]
async fn a_call_that_was_cut_off_is_no_call_to_be_run() {
    let half = &CALL[..CALL.find("ris\n").unwrap()];
    let handle = open(config(), roomy(), speaks(half, Finish::Length)).await;
    let whole = chat(&handle, ask(&json!({}))).await.json();
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    let streamed = chunks(&chat(&handle, ask(&json!({"stream": true}))).await);
    let (_, _, calls, reason) = together(&streamed);
    assert_eq!((reason.as_str(), calls[0].1.as_str()), ("length", "{\"city\": \"Pa"));
    let call = &whole["choices"][0]["message"]["tool_calls"][0]["function"];
    assert_eq!(call["arguments"], calls[0].1, "whole and streamed are the same");
}

#[tokio::test]
async fn without_tools_markup_is_text() {
    let handle = open(config(), roomy(), speaks(CALL, Finish::Stop)).await;
    for extra in [json!({"tools": []}), json!({"tool_choice": "none"})] {
        let whole = chat(&handle, ask(&extra)).await.json();
        assert_eq!(whole["choices"][0]["message"]["content"], CALL);
        assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn one_call_at_a_time_cancels_the_rest() {
    let held = Held::new();
    let keep = held.keep();
    let tokens = tiny().raw(&CALL.repeat(2)).unwrap().tokens;
    let handle = open(config(), roomy(), move |admission| {
        let _ = admission.events.try_send(RowEvent::Tokens(tokens.clone(), Usage::default()));
        keep(admission);
    });
    let handle = handle.await;
    let whole = chat(&handle, ask(&json!({"parallel_tool_calls": false}))).await.json();
    assert_eq!(whole["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!(whole["choices"][0]["message"]["tool_calls"].as_array().unwrap().len(), 1);
    assert!(held.streams()[0].is_closed());
}

/// The prompt that the engine was given.
async fn prompt_of(body: Value) -> String {
    let held = Held::new();
    let handle = open(config(), roomy(), held.keep()).await;
    let body = body.to_string();
    let _open = begin(&handle, "POST /v1/chat/completions", JSON, body.as_bytes()).await;
    let requests = held.requests(1).await;
    shown(&requests[0].prompt)
}

#[tokio::test]
async fn what_must_be_called_is_begun_in_the_prompt() {
    let named = json!({"type": "function", "function": {"name": "weather"}});
    for choice in [named, json!("required")] {
        let prompt = prompt_of(ask(&json!({"tool_choice": choice}))).await;
        let end = "<think>\n\n</think>\n\n<tool_call>\n<function=weather>\n";
        assert!(prompt.ends_with(end), "{prompt}");
        let thinking = json!({"tool_choice": choice, "enable_thinking": true});
        assert!(prompt_of(ask(&thinking)).await.ends_with(end));
    }
    let rest = CALL.split_once("<function=weather>\n").unwrap().1;
    let handle = open(config(), roomy(), speaks(rest, Finish::Stop)).await;
    let body = ask(&json!({"tool_choice": "required", "stream": true}));
    let (content, _, calls, reason) = together(&chunks(&chat(&handle, body).await));
    assert_eq!((content.as_str(), reason.as_str()), ("", "tool_calls"));
    assert_eq!(calls[0].1, "{\"city\": \"Paris\", \"days\": 3}");
}

/// The script's text is noise: only the grammar makes a call of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_must_be_called_is_called_as_it_was_declared() {
    let handle = open(config(), roomy(), |admission| scripted_on(roomy(), 3, admission)).await;
    let parameters = json!({"type": "object", "required": ["kind", "on"], "properties": {
        "kind": {"enum": ["warm", "cold"]}, "on": {"type": "boolean"}}});
    let tool = |name: &str| {
        let function = json!({"name": name, "parameters": parameters});
        json!({"type": "function", "function": function})
    };
    let named = json!({"type": "function", "function": {"name": "second"}});
    for seed in 0..6 {
        for choice in [json!("required"), named.clone()] {
            let body = ask(&json!({"tools": [tool("first"), tool("second")], "seed": seed,
                "tool_choice": choice, "parallel_tool_calls": false, "temperature": 1}));
            let whole = chat(&handle, body).await.json();
            let answer = &whole["choices"][0];
            assert_eq!(answer["finish_reason"], "tool_calls", "{whole}");
            let calls = answer["message"]["tool_calls"].as_array().unwrap();
            assert_eq!(calls.len(), 1);
            let function = &calls[0]["function"];
            let fine = if choice.is_object() { &["second"][..] } else { &["first", "second"] };
            assert!(fine.contains(&function["name"].as_str().unwrap()), "{whole}");
            let arguments: Value =
                serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
            assert!(["warm", "cold"].contains(&arguments["kind"].as_str().unwrap()));
            assert!(arguments["on"].is_boolean(), "{whole}");
        }
    }
    let both = ask(&json!({"tool_choice": "required", "response_format": {"type": "json_object"}}));
    assert_eq!(chat(&handle, both).await.error()["param"], "tool_choice");
}

#[tokio::test]
async fn a_structure_that_leaves_no_room_for_calls_is_refused_beside_tools() {
    let handle = open(config(), roomy(), speaks("{}", Finish::Stop)).await;
    // Not JSON: that could be told from calls.
    let regex = json!("[0-9]+");
    for extra in [json!({}), json!({"tool_choice": "auto"})] {
        let mut extra = extra;
        extra["guided_regex"] = regex.clone();
        let reply = chat(&handle, ask(&extra)).await;
        assert_eq!((reply.status, reply.error()["param"].as_str()), (400, Some("guided_regex")));
        assert!(reply.error()["message"].as_str().unwrap().contains("tool_choice"), "{reply:?}");
    }
    for extra in [json!({"tool_choice": "none"}), json!({"tools": []})] {
        let mut extra = extra;
        extra["guided_regex"] = regex.clone();
        assert_eq!(chat(&handle, ask(&extra)).await.status, 200);
    }
}

#[tokio::test]
async fn what_tools_said_is_shown_to_the_model() {
    let prompt = prompt_of(ask(&json!({"messages": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": null, "reasoning_content": "I must look.", "tool_calls": [
            {"id": "call_1", "type": "function",
             "function": {"name": "weather", "arguments": "{\"city\": \"Paris\", \"days\": 3}"}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": [
            {"type": "text", "text": "sunny, "}, {"type": "text", "text": "20 °C"}]},
    ]})))
    .await;
    for part in [
        "# Tools",
        "{\"name\": \"weather\"",
        "<think>\nI must look.\n</think>",
        "<function=weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n",
        "<tool_response>\nsunny, 20 °C\n</tool_response>",
    ] {
        assert!(prompt.contains(part), "{part} in {prompt}");
    }
}

#[tokio::test]
async fn a_call_that_was_cut_off_is_no_end_of_the_conversation() {
    let half = "{\"city\": \"Pa";
    let prompt = prompt_of(ask(&json!({"messages": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "call_1", "type": "function",
             "function": {"name": "weather", "arguments": half}}]},
        {"role": "user", "content": "Go on."},
    ]})))
    .await;
    let shown = format!("<function=weather>\n<parameter=arguments>\n{half}\n</parameter>");
    assert!(prompt.contains(&shown), "{prompt}");
}

#[tokio::test]
async fn thinking_follows_the_prompt() {
    let said = "Two and two.\n</think>\n\nFour.";
    let handle = open(config(), roomy(), speaks(said, Finish::Stop)).await;
    let body = |extra: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "2+2?"}]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    for extra in [
        json!({"enable_thinking": true}),
        json!({"reasoning_effort": "high"}),
        json!({"chat_template_kwargs": {"enable_thinking": true}}),
    ] {
        let message = &chat(&handle, body(extra.clone())).await.json()["choices"][0]["message"];
        assert_eq!(message["reasoning_content"], "Two and two.", "{extra}");
        assert_eq!(message["content"], "Four.");
        let mut streamed = body(extra);
        streamed["stream"] = json!(true);
        streamed["stream_options"] = json!({"include_usage": true});
        let chunks = chunks(&chat(&handle, streamed).await);
        let (content, thought, _, _) = together(&chunks);
        assert_eq!((content.as_str(), thought.as_str()), ("Four.", "Two and two."));
        let last = chunks.last().unwrap();
        let reasoning = &last["usage"]["completion_tokens_details"]["reasoning_tokens"];
        assert!(reasoning.as_u64().unwrap() > 2);
        assert_eq!(last["timings"]["cache_n"], 5);
    }
    let none = chat(&handle, body(json!({"reasoning_effort": "none"}))).await.json();
    assert!(none["choices"][0]["message"].get("reasoning_content").is_none());
    let both = body(json!({"reasoning_effort": "none", "enable_thinking": true}));
    assert_eq!(chat(&handle, both).await.error()["param"], "enable_thinking");
}

#[tokio::test]
async fn an_end_of_thinking_after_closed_thinking_is_text() {
    let said = "Write </think> at its end.";
    let handle = open(config(), roomy(), speaks(said, Finish::Stop)).await;
    let body = json!({"messages": [{"role": "user", "content": "?"}], "enable_thinking": false});
    let message = &chat(&handle, body).await.json()["choices"][0]["message"];
    assert_eq!(message["content"], said);
}

#[tokio::test]
async fn thinking_that_was_cut_off_stays_thinking() {
    let handle = open(config(), roomy(), speaks("Let me see, two", Finish::Length)).await;
    let body = json!({"messages": [{"role": "user", "content": "2+2?"}], "enable_thinking": true});
    let choice = &chat(&handle, body).await.json()["choices"][0];
    assert_eq!(choice["message"]["content"], "");
    assert_eq!(choice["message"]["reasoning_content"], "Let me see, two");
    assert_eq!(choice["finish_reason"], "length");
}

#[tokio::test]
async fn thinking_is_closed_at_its_bound_and_the_answer_goes_on_from_there() {
    let bounded = Config { thinking_tokens_max: 4.try_into().ok(), ..config() };
    for (config, extra) in [(config(), json!({"max_thinking_tokens": 4})), (bounded, json!({}))] {
        let held = Held::new();
        let keep = held.keep();
        let thought = tiny().raw(" one two three four five six").unwrap().tokens;
        let first = thought.clone();
        let answer = tiny().raw("Yes.").unwrap().tokens;
        let handle = open(config, roomy(), move |admission| {
            let second = admission.request.prompt.len() > 20;
            let tokens = if second { answer.clone() } else { first.clone() };
            let usage = Usage { prompt: 13, cached: 7, drafted: 2, accepted: 1, generated: 9 };
            let _ = admission.events.try_send(RowEvent::Tokens(tokens, usage));
            if second {
                let _ = admission.events.try_send(RowEvent::Finished(Finish::Stop, usage));
            }
            keep(admission);
        });
        let handle = handle.await;
        let mut body = json!({"messages": [{"role": "user", "content": "2+2?"}],
            "enable_thinking": true, "max_tokens": 60});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let answer = chat(&handle, body).await.json();
        let choice = &answer["choices"][0];
        assert_eq!(choice["message"]["content"], "Yes.");
        assert_eq!(choice["finish_reason"], "stop");
        let requests = held.requests(2).await;
        assert_eq!(requests[0].prompt[..], requests[1].prompt[..requests[0].prompt.len()]);
        let added = &requests[1].prompt[requests[0].prompt.len()..];
        assert_eq!(added[..4], thought[..4], "no more than the bound");
        assert!(shown(added).ends_with("\n</think>\n\n"));
        assert_eq!(requests[1].limits.new_tokens_max, 60 - added.len());
        let usage = &answer["usage"];
        assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 7);
        assert_eq!(answer["mtp"], json!({"drafted": 4, "accepted": 2}));
        assert_eq!(usage["completion_tokens_details"]["reasoning_tokens"], added.len());
    }
}

#[tokio::test]
async fn no_tokens_of_thought_are_kept_by_the_prompt() {
    let body = json!({"messages": [{"role": "user", "content": "Hi"}], "enable_thinking": true,
        "max_thinking_tokens": 0});
    assert!(prompt_of(body).await.ends_with("<think>\n\n</think>\n\n"));
}

#[tokio::test]
async fn an_answer_can_be_gone_on_with() {
    let messages = json!([{"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Once upon a "}]);
    for extra in ["continue_final_message", "add_generation_prompt"] {
        let mut body = json!({"messages": messages});
        body[extra] = json!(extra.starts_with('c'));
        let prompt = prompt_of(body).await;
        assert!(prompt.ends_with("<|im_start|>assistant\nOnce upon a"), "{prompt}");
    }
}

#[tokio::test]
async fn unknown_fields_are_named_in_a_header_where_the_house_says_so() {
    let lenient = Config { unknown_fields: UnknownFields::Warn, ..config() };
    let handle = open(lenient, info(), speaks("Hi", Finish::Stop)).await;
    let body = json!({"colour": "red", "messages": [{"role": "user", "mood": 1, "content": [
        {"type": "text", "text": "a", "size": 2}]}]});
    let reply = chat(&handle, body).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let warning = reply.header("x-mtplx-warning").unwrap();
    for name in ["colour", "messages[0].mood", "messages[0].content[0].size"] {
        assert!(warning.contains(name), "{warning}");
    }
    let wrong = chat(&handle, json!({"colour": "red", "messages": []})).await;
    assert_eq!((wrong.status, wrong.error()["param"].as_str()), (400, Some("messages")));
}

#[tokio::test]
async fn the_model_answers_to_its_aliases() {
    let handle = open(config(), info(), speaks("Hi", Finish::Stop)).await;
    for (name, status) in [("tiny", 200), ("claude-x-1", 200), ("alias", 200), ("aliases", 404)] {
        let body = json!({"model": name, "messages": [{"role": "user", "content": "Hi"}]});
        let reply = chat(&handle, body).await;
        assert_eq!(reply.status, status);
        assert!(status == 404 || reply.json()["model"] == "tiny");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_call_shows_real_events() {
    use tokio::io::AsyncReadExt;
    let held = Held::new();
    let keep = held.keep();
    let half = "<tool_call>\n<function=weather>\n<parameter=days>\n1";
    let tokens = tiny().raw(half).unwrap().tokens;
    let handle = open(config(), roomy(), move |admission| {
        let _ = admission.events.try_send(RowEvent::Tokens(tokens.clone(), Usage::default()));
        keep(admission);
    });
    let handle = handle.await;
    let body = ask(&json!({"stream": true})).to_string();
    let mut client = begin(&handle, "POST /v1/chat/completions", JSON, body.as_bytes()).await;
    let mut heard = String::new();
    while heard.matches("{\"arguments\":\"\"}").count() < 2 {
        let mut bytes = [0; 1024];
        let n = client.read(&mut bytes).await.unwrap();
        assert!(n > 0, "the stream goes on: {heard}");
        heard.push_str(std::str::from_utf8(&bytes[..n]).unwrap());
    }
    drop(held.take());
}

/// Says this token by token, slower than the door stays silent by far when taken together.
fn murmurs(text: &str) -> impl Fn(Admission) + Send + Sync + 'static {
    let tokens = tiny().raw(text).unwrap().tokens;
    move |admission| {
        let (Admission { events, permit, .. }, tokens) = (admission, tokens.clone());
        tokio::spawn(async move {
            for token in tokens {
                tokio::time::sleep(std::time::Duration::from_millis(300)).await;
                let _ = events.send(RowEvent::Tokens(vec![token], Usage::default())).await;
            }
            let _ = events.send(RowEvent::Finished(Finish::Stop, Usage::default())).await;
            drop(permit);
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_shows_life_while_an_argument_is_held_back() {
    // What type the value is can be told at its end only.
    let number = "1".repeat(60);
    let call = format!(
        "<tool_call>\n<function=weather>\n<parameter=days>\n{number}\n</parameter>\n</function>\n\
         </tool_call>"
    );
    let handle = open(config(), roomy(), murmurs(&call)).await;
    let schema = ask(&json!({}))["tools"][0]["function"]["parameters"].clone();
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let chat = ask(&json!({"stream": true, "enable_thinking": false}));
    let responses = json!({"input": "Hi", "stream": true, "reasoning": {"effort": "none"},
        "tools": [{"type": "function", "name": "weather", "parameters": schema}]});
    let anthropic = json!({"model": "claude-x", "max_tokens": 500, "messages": messages,
        "thinking": {"type": "disabled"}, "stream": true,
        "tools": [{"name": "weather", "input_schema": schema}]});
    for (path, body, sign) in [
        ("chat/completions", chat, "{\"index\":0,\"function\":{\"arguments\":\"\"}}"),
        ("responses", responses, "event: response.in_progress"),
        ("messages", anthropic, "{\"type\":\"input_json_delta\",\"partial_json\":\"\"}"),
    ] {
        let line = format!("POST /v1/{path}");
        let reply = exchange(&handle, &line, JSON, body.to_string().as_bytes()).await;
        let signs = reply.body.matches(sign).count();
        assert!(signs > 5, "{path}: {signs} in {}", reply.body);
        assert!(reply.body.contains(&number), "{path}: {}", reply.body);
    }
}

#[tokio::test(start_paused = true)]
async fn a_choice_that_has_ended_is_not_heard_of_again() {
    let held = Held::new();
    let handle = open(config(), roomy(), held.keep()).await;
    let body = ask(&json!({"stream": true, "n": 2})).to_string();
    let client = begin(&handle, "POST /v1/chat/completions", JSON, body.as_bytes()).await;
    held.requests(2).await;
    let mut choices = held.take();
    speaks("Yes.", Finish::Stop)(choices.remove(0));
    murmurs(" ".repeat(9).as_str())(choices.remove(0));
    let reply = end(client).await;
    let mut over = false;
    for chunk in chunks(&reply) {
        let choice = &chunk["choices"][0];
        assert!(!over || choice["index"] == 1, "{chunk}");
        over |= choice["finish_reason"].is_string();
    }
}

//! Structures in the words of each API, beside tools, and grammars that give up.

use mtplx_core::batch::RowEvent;
use mtplx_core::request::{Finish, Usage};
use serde_json::{Value, json};

use super::harness::*;
use crate::admission::Admission;

fn is_person(text: &str) -> bool {
    let value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    jsonschema::is_valid(&person(), &value)
}

#[tokio::test]
async fn responses_and_messages_have_structures_in_their_own_words() {
    let handle = open(config(), roomy(), scripted_roomy).await;
    for seed in 0..4 {
        // Neither API has a seed; the temperature makes the texts differ.
        let temperature = f64::from(seed) * 0.4;
        let format = json!({"type": "json_schema", "name": "p", "strict": true,
            "schema": person()});
        let body = json!({"input": "Hi", "text": {"format": format}, "temperature": temperature});
        let answer = post(&handle, "/v1/responses", &body).await.json();
        assert_eq!(answer["status"], "completed", "{answer}");
        assert_eq!(answer["text"]["format"], format, "what was asked for is repeated");
        let text = answer["output"][0]["content"][0]["text"].as_str().unwrap();
        assert!(is_person(text), "{text}");
        let format = json!({"type": "json_schema", "schema": person()});
        for (field, value) in
            [("output_config", json!({"format": format})), ("output_format", format.clone())]
        {
            let mut body = json!({"max_tokens": 2000, "temperature": temperature.min(1.0),
                "messages": [{"role": "user", "content": "Hi"}]});
            body[field] = value;
            let answer = post(&handle, "/v1/messages", &body).await.json();
            let text = answer["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"));
            assert!(is_person(text), "{text}");
            assert_eq!(answer["stop_reason"], "end_turn");
        }
    }
}

#[tokio::test]
async fn a_format_that_is_none_is_refused_by_the_name_its_client_used() {
    let handle = open(config(), roomy(), scripted_roomy).await;
    let talk = json!([{"role": "user", "content": "Hi"}]);
    for (path, body, param) in [
        (
            "/v1/responses",
            json!({"input": "Hi", "text": {"format": {"type": "xml"}}}),
            "text.format.type",
        ),
        (
            "/v1/responses",
            json!({"input": "Hi", "text": {"format": {"type": "json_schema", "name": "x"}}}),
            "text.format.schema",
        ),
        (
            "/v1/responses",
            json!({"input": "Hi", "text": {"format": {"type": "json_schema",
                "schema": {"type": "nonsense"}}}}),
            "text.format",
        ),
        (
            "/v1/messages",
            json!({"messages": talk, "max_tokens": 9, "output_config": {"format": 7}}),
            "output_config.format",
        ),
    ] {
        let reply = post(&handle, path, &body).await;
        assert_eq!(reply.status, 400, "{reply:?}");
        assert!(reply.body.contains(param), "{param}: {reply:?}");
    }
}

fn weather() -> Value {
    json!({"type": "function", "function": {"name": "weather", "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}},
        "required": ["city"]}}})
}

#[tokio::test]
async fn beside_tools_a_structure_is_one_of_two_things_an_answer_or_calls() {
    let handle = open(config(), roomy(), scripted_roomy).await;
    let (mut answered, mut called) = (0, 0);
    for seed in 0..12 {
        let mut body = json!({
            "messages": [{"role": "user", "content": "Hi"}],
            "tools": [weather()],
            "response_format": {"type": "json_schema",
                "json_schema": {"name": "p", "schema": person()}},
            "seed": seed, "max_tokens": 2000, "parallel_tool_calls": false,
        });
        if seed % 2 == 0 {
            // The script is a model without taste: half of the time it is told to call.
            body["logit_bias"] = json!({"8174": 100});
        }
        let answer = chat(&handle, body).await.json();
        let choice = &answer["choices"][0];
        if choice["finish_reason"] == "tool_calls" {
            called += 1;
            let arguments = &choice["message"]["tool_calls"][0]["function"]["arguments"];
            let arguments: Value = serde_json::from_str(arguments.as_str().unwrap()).unwrap();
            assert!(["Rome", "Oslo"].contains(&arguments["city"].as_str().unwrap()), "{answer}");
        } else {
            answered += 1;
            assert_eq!(choice["finish_reason"], "stop", "{answer}");
            assert!(is_person(choice["message"]["content"].as_str().unwrap()), "{answer}");
        }
    }
    assert!(answered > 0 && called > 0, "{answered} answers, {called} calls");
}

#[tokio::test]
async fn a_structure_that_cannot_stand_beside_calls_is_refused() {
    let handle = open(config(), roomy(), scripted_roomy).await;
    let body = json!({"messages": [{"role": "user", "content": "Hi"}], "tools": [weather()],
        "guided_regex": "[a/b]+"});
    let reply = chat(&handle, body).await;
    assert_eq!((reply.status, &reply.error()["param"]), (400, &json!("guided_regex")));
}

#[tokio::test]
async fn one_of_is_said_to_be_read_as_any_of_where_it_is() {
    let handle = open(config(), roomy(), scripted_roomy).await;
    let ask = |schema: Value| {
        chat(
            &handle,
            json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 200,
                "response_format": {"type": "json_schema",
                    "json_schema": {"name": "x", "schema": schema}}}),
        )
    };
    let told = |reply: &Reply| reply.header("x-mtplx-warning").map(str::to_owned);
    let apart = ask(json!({"oneOf": [{"type": "integer"}, {"type": "string", "maxLength": 3}]}));
    let apart = apart.await;
    assert_eq!((apart.status, told(&apart)), (200, None), "they exclude each other");
    for _ in 0..2 {
        let alike = ask(json!({"oneOf": [
            {"type": "integer", "minimum": 5, "maximum": 90},
            {"type": "integer", "minimum": 50, "maximum": 200}]}));
        let alike = alike.await;
        assert_eq!(alike.status, 200, "{alike:?}");
        let warning = "ignored: response_format oneOf (read as anyOf)";
        assert_eq!(told(&alike).as_deref(), Some(warning), "also of a grammar that was kept");
    }
}

/// A bank whose rows end as they do where a grammar gives up: it was asked about a text that it
/// does not allow, then the row fails.
fn gives_up(admission: Admission) {
    let Admission { request, events, .. } = admission;
    let usage = Usage { prompt: request.prompt.len(), ..Usage::default() };
    if let Some(grammar) = &request.sampling.grammar {
        assert!(grammar.allowed(&[17, 17, 17]).is_err());
    }
    let _ = events.try_send(RowEvent::Finished(Finish::Fault, usage));
}

#[tokio::test]
async fn a_grammar_that_gives_up_is_named_and_is_no_fault_of_the_engine() {
    let handle = open(config(), roomy(), gives_up).await;
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let ask = json!({"messages": messages, "guided_choice": ["yes", "no"]});
    let reply = chat(&handle, ask.clone()).await;
    let error = reply.error();
    assert_eq!((reply.status, &error["code"]), (400, &json!("grammar_too_complex")), "{error}");
    assert_eq!(error["param"], "guided_choice");
    let mut streamed = ask;
    streamed["stream"] = json!(true);
    let reply = chat(&handle, streamed).await;
    assert!(reply.body.contains("grammar_too_complex"), "{reply:?}");
    // The same end without a grammar is the engine's.
    let reply = chat(&handle, json!({"messages": messages})).await;
    assert_eq!(reply.error()["code"], "generation_interrupted");
}

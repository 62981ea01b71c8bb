//! No body breaks the server: neither a 5xx nor a panic, whatever is sent.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::harness::*;
use super::refusals::tiny_house;

const FIELDS: [&str; 44] = [
    "messages",
    "prompt",
    "model",
    "max_tokens",
    "max_completion_tokens",
    "n",
    "stream",
    "stream_options",
    "stop",
    "seed",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "user",
    "stop_token_ids",
    "ignore_eos",
    "generation_mode",
    "draft_tokens",
    "chat_template_kwargs",
    "tools",
    "tool_choice",
    "logprobs",
    "top_logprobs",
    "response_format",
    "modalities",
    "best_of",
    "echo",
    "suffix",
    "store",
    "metadata",
    "service_tier",
    "functions",
    "audio",
    "reasoning_effort",
    "verbosity",
    "parallel_tool_calls",
    "prediction",
    "colour",
    "",
];

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3i64..12).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0.0..2.0).prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        prop::sample::select(vec!["user", "system", "text", "ar", "mtp", "tiny", "auto", "1", "5"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let key = prop_oneof![
            "\\PC{0,6}",
            prop::sample::select(vec!["role", "content", "type", "text", "name", "include_usage"])
                .prop_map(str::to_owned),
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

fn known_fields() -> impl Strategy<Value = Vec<u8>> {
    let field = (prop::sample::select(FIELDS.to_vec()), any_json());
    (prop::collection::vec(field, 0..8), any::<bool>()).prop_map(|(fields, valid)| {
        let mut body = Map::new();
        if valid {
            body.insert("messages".into(), json!([{"role": "user", "content": "Hi"}]));
        }
        body.extend(fields.into_iter().map(|(name, value)| (name.to_owned(), value)));
        Value::Object(body).to_string().into_bytes()
    })
}

fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4);
    (known_fields(), edits).prop_map(|(mut body, edits)| {
        for (at, byte) in edits {
            let at = at.index(body.len());
            body[at] = byte;
        }
        body
    })
}

#[test]
fn no_body_breaks_the_server() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let handle = runtime.block_on(tiny_house());
    let bodies = prop_oneof![
        3 => known_fields(),
        1 => any_json().prop_map(|v| v.to_string().into_bytes()),
        2 => mutated(),
        1 => prop::collection::vec(any::<u8>(), 0..64),
    ];
    let paths = prop::sample::select(vec!["POST /v1/chat/completions", "POST /v1/completions"]);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let result = runner.run(&(bodies, paths), |(body, path)| {
        let reply = runtime.block_on(exchange(&handle, path, JSON, &body));
        let fine = [200, 400, 404].contains(&reply.status);
        prop_assert!(fine, "{reply:?} to {}", String::from_utf8_lossy(&body));
        if reply.status != 200 {
            let error = reply.error();
            prop_assert!(error["message"].is_string() && error["code"].is_string());
        } else if reply.body.starts_with("data: ") {
            prop_assert!(reply.body.ends_with("data: [DONE]\n\n"), "{reply:?}");
        }
        Ok(())
    });
    result.unwrap();
}

//! No body breaks the server, nor the engine behind it: neither a 5xx nor a panic, whatever is
//! sent.

use std::cell::Cell;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::harness::*;
use crate::ingress::Config;

const FIELDS: [&str; 49] = [
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
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
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

pub(super) fn any_json() -> impl Strategy<Value = Value> {
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

/// A body that is mostly fine, up to the very edges of what is allowed, so that it reaches the
/// engine.
fn plausible() -> impl Strategy<Value = Vec<u8>> {
    let unit = || prop_oneof![Just(0.0), Just(1e-30), Just(1.0), 0.0..=1.0];
    let penalty = || prop_oneof![Just(-2.0), Just(2.0), -2.0..=2.0];
    let one = |name: &'static str, values: BoxedStrategy<Value>| (Just(name), values);
    let token = || prop_oneof![Just(0u32), Just(8191), 0u32..8192];
    let bias = prop::collection::btree_map(
        token().prop_map(|t| t.to_string()),
        prop_oneof![Just(-100), Just(100), -100..=100],
        0..4,
    );
    let field = prop_oneof![
        one("temperature", unit().prop_map(|v| json!(2.0 * v)).boxed()),
        one("top_p", unit().prop_map(Value::from).boxed()),
        one("min_p", unit().prop_map(Value::from).boxed()),
        one("top_k", (-1i64..9000).prop_map(Value::from).boxed()),
        one("presence_penalty", penalty().prop_map(Value::from).boxed()),
        one("frequency_penalty", penalty().prop_map(Value::from).boxed()),
        one("repetition_penalty", unit().prop_map(|v| json!(1e-3 + 1.9 * v)).boxed()),
        one("logit_bias", bias.prop_map(|bias| json!(bias)).boxed()),
        one("seed", any::<i64>().prop_map(Value::from).boxed()),
        one("n", (1..3).prop_map(Value::from).boxed()),
        one("max_tokens", (1..=8).prop_map(Value::from).boxed()),
        one("stop", "[a-z ]{1,2}".prop_map(Value::from).boxed()),
        one("stop_token_ids", prop::collection::vec(token(), 0..3).prop_map(Value::from).boxed()),
        one("ignore_eos", any::<bool>().prop_map(Value::from).boxed()),
        one("generation_mode", Just(json!("mtp")).boxed()),
        one("draft_tokens", (0..=3).prop_map(Value::from).boxed()),
        one("stream", Just(json!(true)).boxed()),
    ];
    let prompt =
        prop::collection::vec(token(), 1..250).prop_map(|tokens| ("prompt", json!(tokens)));
    let talk =
        "\\PC{0,20}".prop_map(|text| ("messages", json!([{"role": "user", "content": text}])));
    (prop_oneof![prompt, talk], prop::collection::vec(field, 0..7)).prop_map(|(source, fields)| {
        let fields = fields.into_iter().chain([source]);
        let body = fields.map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>();
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
    // Short answers, so that many bodies can be tried.
    let short = Config { new_tokens_max: 8.try_into().ok(), ..config() };
    let handle = runtime.block_on(open(short, info(), scripted));
    let bodies = prop_oneof![
        3 => known_fields(),
        4 => plausible(),
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
    let answered = Cell::new(0);
    let result = runner.run(&(bodies, paths), |(body, path)| {
        let reply = runtime.block_on(exchange(&handle, path, JSON, &body));
        let fine = [200, 400, 404].contains(&reply.status);
        prop_assert!(fine, "{reply:?} to {}", String::from_utf8_lossy(&body));
        answered.set(answered.get() + u32::from(reply.status == 200));
        if reply.status != 200 {
            let error = reply.error();
            prop_assert!(error["message"].is_string() && error["code"].is_string());
        } else if reply.body.starts_with("data: ") {
            prop_assert!(reply.body.ends_with("data: [DONE]\n\n"), "{reply:?}");
        }
        Ok(())
    });
    result.unwrap();
    assert!(answered.get() > 50, "only {} bodies reached the engine", answered.get());
}

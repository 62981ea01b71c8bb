//! What the model thought of its tokens, echoes, and texts as tokens, over HTTP.

use mtplx_core::logprobs::Logprobs;
use mtplx_core::scripted::{Script, Scripted};
use serde_json::{Value, json};

use super::harness::*;
use crate::ingress::text::tests::tiny;

fn ask(extra: &Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 40});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

/// All events of a stream but the last, as JSON.
fn chunks(reply: &Reply) -> Vec<Value> {
    let events = reply.events();
    events[..events.len() - 1].iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

#[tokio::test]
async fn logprobs_are_those_of_the_model_whatever_is_drafted() {
    let handle = open(config(), info(), scripted).await;
    let engine = Scripted::new(info(), Script::default());
    let prompt = tiny().raw("Once upon").unwrap().tokens;
    for (depth, grammar) in [(0, false), (3, false), (3, true)] {
        let mut body = json!({"prompt": "Once upon", "max_tokens": 12, "logprobs": 3, "seed": 4,
            "temperature": 0.3, "top_k": 5, "presence_penalty": 1.0, "draft_tokens": depth});
        if grammar {
            body["guided_regex"] = json!("[a-z]{3,9}( [a-z]{3,9}){40}");
        }
        let answer = complete(&handle, body).await.json();
        let told = &answer["choices"][0]["logprobs"];
        let text = answer["choices"][0]["text"].as_str().unwrap();
        let tokens = told["tokens"].as_array().unwrap();
        assert_eq!(tokens.iter().map(|t| t.as_str().unwrap()).collect::<String>(), text);
        let ids: Vec<u32> = tokens
            .iter()
            .map(|t| tiny().tokens_spelt(t.as_str().unwrap()))
            .collect::<Option<_>>()
            .unwrap();
        let mut before = prompt.clone();
        for (i, &id) in ids.iter().enumerate() {
            let want = Logprobs::of(&engine.logits(&before), id, 3);
            let got = told["token_logprobs"][i].as_f64().unwrap() as f32;
            assert!((got - want.chosen).abs() < 1e-5, "{i}: {got} and {want:?}");
            assert_eq!(told["top_logprobs"][i].as_object().unwrap().len(), 3);
            before.push(id);
        }
    }
}

#[tokio::test]
async fn streamed_logprobs_are_the_whole_ones() {
    let handle = open(config(), info(), scripted).await;
    for extra in [
        json!({"logprobs": true, "top_logprobs": 2, "seed": 1}),
        json!({"logprobs": true, "seed": 2, "stop": ["e"]}),
        json!({"logprobs": true, "top_logprobs": 20, "temperature": 0, "n": 2}),
    ] {
        let whole = chat(&handle, ask(&extra)).await.json();
        let mut streamed = ask(&extra);
        streamed["stream"] = json!(true);
        let chunks = chunks(&chat(&handle, streamed).await);
        for (index, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
            let mine = chunks.iter().map(|c| &c["choices"][0]).filter(|c| c["index"] == index);
            let (mut text, mut content) = (String::new(), Vec::new());
            for chunk in mine {
                text.push_str(chunk["delta"]["content"].as_str().unwrap_or_default());
                content
                    .extend(chunk["logprobs"]["content"].as_array().cloned().unwrap_or_default());
            }
            assert_eq!(choice["message"]["content"], text);
            assert_eq!(choice["logprobs"]["content"], json!(content));
            assert!(!content.is_empty());
            let top = extra["top_logprobs"].as_u64().unwrap_or(0);
            for told in &content {
                assert_eq!(told["top_logprobs"].as_array().unwrap().len() as u64, top);
                let bytes: Vec<u8> = serde_json::from_value(told["bytes"].clone()).unwrap();
                assert_eq!(String::from_utf8_lossy(&bytes), told["token"].as_str().unwrap());
            }
        }
    }
    let none = chat(&handle, ask(&json!({}))).await.json();
    assert!(none["choices"][0]["logprobs"].is_null());
}

#[tokio::test]
async fn an_echo_is_the_prompt_in_front_of_the_text() {
    let handle = open(config(), info(), scripted).await;
    let body = |extra: Value| {
        let mut body = json!({"prompt": ["One ", "Two "], "max_tokens": 5, "seed": 1, "n": 2});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    let plain = complete(&handle, body(json!({}))).await.json();
    let echoed = complete(&handle, body(json!({"echo": true}))).await.json();
    let chunks = chunks(&complete(&handle, body(json!({"echo": true, "stream": true}))).await);
    for (i, prompt) in ["One ", "One ", "Two ", "Two "].into_iter().enumerate() {
        let text = plain["choices"][i]["text"].as_str().unwrap();
        let want = format!("{prompt}{text}");
        assert_eq!(echoed["choices"][i]["text"], want);
        let mine = chunks.iter().map(|c| &c["choices"][0]).filter(|c| c["index"] == i);
        let streamed: String = mine.filter_map(|c| c["text"].as_str()).collect();
        assert_eq!(streamed, want);
    }
    let reply = complete(&handle, body(json!({"echo": true, "logprobs": 1}))).await;
    assert_eq!((reply.status, &reply.error()["param"]), (400, &json!("logprobs")));
}

#[tokio::test]
async fn a_text_is_tokens_and_tokens_are_a_text() {
    let handle = closed(config()).await;
    let post = async |path: &str, body: Value| {
        exchange(&handle, &format!("POST {path}"), JSON, body.to_string().as_bytes()).await
    };
    let text = "The capital of France is Paris.";
    let want = tiny().raw(text).unwrap().tokens;
    let answer = post("/tokenize", json!({"model": "tiny", "prompt": text})).await.json();
    assert_eq!(answer["tokens"], json!(want));
    assert_eq!((&answer["count"], &answer["token_strs"]), (&json!(want.len()), &Value::Null));
    let strings = post("/tokenize", json!({"prompt": text, "return_token_strs": true})).await;
    let strings: Vec<String> =
        serde_json::from_value(strings.json()["token_strs"].clone()).unwrap();
    assert_eq!(strings.concat(), text);
    let back = post("/detokenize", json!({"tokens": want})).await.json();
    assert_eq!(back, json!({"prompt": text}));
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let rendered = post("/tokenize", json!({"messages": messages})).await.json();
    let back = post("/detokenize", json!({"tokens": rendered["tokens"]})).await.json();
    let shown = back["prompt"].as_str().unwrap();
    assert!(shown.starts_with("<|im_start|>user\nHi<|im_end|>"), "{shown}");
    for (path, body, param) in [
        ("/tokenize", json!({}), "prompt"),
        ("/tokenize", json!({"prompt": "a", "messages": messages}), "messages"),
        ("/tokenize", json!({"prompt": "a", "colour": 1}), "colour"),
        ("/detokenize", json!({"tokens": [999_999]}), "tokens"),
        ("/detokenize", json!({"tokens": "a"}), "tokens"),
    ] {
        let reply = post(path, body).await;
        assert_eq!((reply.status, &reply.error()["param"]), (400, &json!(param)), "{}", reply.body);
    }
    assert_eq!(post("/tokenize", json!({"model": "other", "prompt": "a"})).await.status, 404);
    let embeddings = post("/v1/embeddings", json!({"input": "a"})).await;
    assert_eq!((embeddings.status, &embeddings.error()["code"]), (501, &json!("not_implemented")));
}

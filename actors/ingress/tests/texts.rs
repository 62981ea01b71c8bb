//! What is answered, whole and streamed.

use mtplx_core::accept::Rule;
use mtplx_core::batch::RowEvent;
use mtplx_core::random::derive;
use mtplx_core::request::{Drafts, Finish, Usage};
use serde_json::{Value, json};

use super::harness::*;
use crate::ingress::Handle;

fn ask(extra: &Value) -> Value {
    let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

/// "The capital of France is Paris." in three events, then `<|im_end|>`.
const PARIS: &[&[u32]] = &[&[464, 3181], &[308, 454, 6944, 316], &[2539, 271, 13, 8162]];
const PARIS_TEXT: &str = "The capital of France is Paris.";

#[tokio::test]
async fn a_whole_answer_has_text_reason_and_usage() {
    let handle = open(config(), info(), says(PARIS, Some(Finish::Stop))).await;
    let reply = chat(&handle, ask(&json!({}))).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), Some("application/json"));
    let answer = reply.json();
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "tiny");
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["message"]["content"], PARIS_TEXT);
    assert_eq!(choice["finish_reason"], "stop");
    let usage = json!({
        "prompt_tokens": 13, "completion_tokens": 10, "total_tokens": 23,
        "prompt_tokens_details": {"cached_tokens": 5},
        "completion_tokens_details": {"reasoning_tokens": 0},
    });
    assert_eq!(answer["usage"], usage);
    assert_eq!(answer["mtp"], json!({"drafted": 4, "accepted": 3}));
}

#[tokio::test]
async fn a_stream_has_role_text_reason_and_done() {
    let handle = open(config(), info(), says(PARIS, Some(Finish::Length))).await;
    let events = chat(&handle, ask(&json!({"stream": true}))).await.events();
    let (last, chunks) = events.split_last().unwrap();
    assert_eq!(last, "[DONE]");
    let chunks: Vec<Value> = chunks.iter().map(|c| serde_json::from_str(c).unwrap()).collect();
    let deltas: Vec<&Value> = chunks.iter().map(|c| &c["choices"][0]["delta"]).collect();
    assert_eq!(*deltas[0], json!({"role": "assistant", "content": ""}));
    assert_eq!(deltas[1]["content"], "The capital");
    assert_eq!(**deltas.last().unwrap(), json!({}));
    for (i, chunk) in chunks.iter().enumerate() {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["id"], chunks[0]["id"]);
        assert!(chunk.get("usage").is_none());
        let reason = if i + 1 == chunks.len() { json!("length") } else { Value::Null };
        assert_eq!(chunk["choices"][0]["finish_reason"], reason);
    }
}

#[tokio::test]
async fn usage_is_streamed_if_asked_for() {
    let handle = open(config(), info(), says(PARIS, Some(Finish::Stop))).await;
    let extra = json!({"stream": true, "stream_options": {"include_usage": true}});
    let events = chat(&handle, ask(&extra)).await.events();
    let chunks: Vec<Value> =
        events[..events.len() - 1].iter().map(|c| serde_json::from_str(c).unwrap()).collect();
    let (last, others) = chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 10);
    assert_eq!(last["usage"]["prompt_tokens_details"]["cached_tokens"], 5);
    assert_eq!(last["mtp"]["drafted"], 4);
    assert!(others.iter().all(|c| c["usage"].is_null() && c.get("usage").is_some()));
}

#[tokio::test]
async fn each_chunk_says_what_was_used_so_far_if_asked_for() {
    let handle = open(config(), info(), says(PARIS, Some(Finish::Stop))).await;
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let extra = json!({"stream": true, "stream_options": options});
    let events = chat(&handle, ask(&extra)).await.events();
    let chunks: Vec<Value> =
        events[..events.len() - 1].iter().map(|c| serde_json::from_str(c).unwrap()).collect();
    let told = |key: &str, of: &str| {
        chunks.iter().map(|c| c[key][of].as_u64().unwrap()).collect::<Vec<_>>()
    };
    let tokens = told("usage", "completion_tokens");
    assert!(tokens.is_sorted() && tokens[0] == 0 && tokens[1] > 0, "{tokens:?}");
    assert_eq!(tokens.last(), Some(&10));
    assert!(told("mtp", "drafted").is_sorted(), "{chunks:?}");
    let prompt = &chunks[0]["usage"]["prompt_tokens"];
    assert!(chunks.iter().all(|c| c["usage"]["prompt_tokens"] == *prompt), "{chunks:?}");
}

#[tokio::test]
async fn completions_answer_in_their_own_shape() {
    let handle = open(config(), info(), says(PARIS, Some(Finish::Stop))).await;
    let answer = complete(&handle, json!({"prompt": "What?"})).await.json();
    assert_eq!(answer["object"], "text_completion");
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(answer["choices"][0]["text"], PARIS_TEXT);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let events = complete(&handle, json!({"prompt": "What?", "stream": true})).await.events();
    let first: Value = serde_json::from_str(&events[0]).unwrap();
    assert_eq!(first["object"], "text_completion");
    assert_eq!(first["choices"][0]["text"], "The capital");
    assert_eq!(events.last().unwrap(), "[DONE]");
}

/// What a client puts together from a reply: text and reason of each choice.
fn collected(reply: &Reply, choices: usize) -> Vec<(String, String)> {
    let text = |choice: &Value| {
        let text = [&choice["message"]["content"], &choice["delta"]["content"], &choice["text"]];
        text.iter().find_map(|t| t.as_str()).unwrap_or_default().to_owned()
    };
    let answers: Vec<Value> = if reply.body.starts_with("data: ") {
        let events = reply.events();
        assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
        events[..events.len() - 1].iter().map(|e| serde_json::from_str(e).unwrap()).collect()
    } else {
        vec![reply.json()]
    };
    let mut out = vec![(String::new(), String::new()); choices];
    for choice in answers.iter().flat_map(|a| a["choices"].as_array().unwrap()) {
        let index = usize::try_from(choice["index"].as_u64().unwrap()).unwrap();
        out[index].0.push_str(&text(choice));
        out[index].1.push_str(choice["finish_reason"].as_str().unwrap_or_default());
    }
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streamed_and_whole_texts_are_the_same() {
    let handle = open(config(), info(), scripted).await;
    for seed in 0..8 {
        // The script's text is noise: bytes that are no characters, and many stops.
        for stop in [json!(null), json!("e"), json!(["\u{fffd}", "th", " a"])] {
            let mut body = ask(&json!({
                "seed": seed, "n": 3, "stop": stop, "max_tokens": 60, "temperature": 1.3,
                "top_k": 0, "top_p": 1.0,
            }));
            let whole = collected(&chat(&handle, body.clone()).await, 3);
            body["stream"] = json!(true);
            let streamed = collected(&chat(&handle, body.clone()).await, 3);
            assert_eq!(whole, streamed);
            assert!(whole[0] != whole[1] && whole[1] != whole[2], "choices differ");
            body["draft_tokens"] = json!(0);
            let plain = collected(&chat(&handle, body).await, 3);
            assert_eq!(plain, streamed, "a seed's text does not depend on drafts");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_prompt_of_a_completion_is_answered_in_order() {
    let handle = open(config(), info(), scripted).await;
    let alone = |prompt: Value| {
        let handle = handle.clone();
        async move {
            let body = json!({"prompt": prompt, "seed": 7, "n": 2, "max_tokens": 12});
            collected(&complete(&handle, body).await, 2)
        }
    };
    let (one, two) = (alone(json!("One")).await, alone(json!([5, 6])).await);
    let body = json!({"prompt": ["One", [5, 6]], "seed": 7, "n": 2, "max_tokens": 12});
    assert_eq!(collected(&complete(&handle, body).await, 4), [one, two].concat());
}

#[tokio::test]
async fn a_stop_string_ends_the_text_and_cancels_the_row() {
    let held = Held::new();
    let keep = held.keep();
    let handle = open(config(), info(), move |admission| {
        let tokens = PARIS.concat();
        let usage = Usage { cached: 5, drafted: 4, accepted: 3, ..Usage::default() };
        admission.events.try_send(RowEvent::Tokens(tokens, usage)).unwrap();
        keep(admission);
    });
    let handle = handle.await;
    let answer = chat(&handle, ask(&json!({"stop": [" is P", "zz"]}))).await.json();
    assert_eq!(answer["choices"][0]["message"]["content"], "The capital of France");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert!(answer["usage"]["completion_tokens"].as_u64().unwrap() < 10);
    assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 5);
    assert_eq!(answer["mtp"], json!({"drafted": 4, "accepted": 3}));
    assert!(held.streams()[0].is_closed());
}

#[tokio::test]
async fn what_a_stop_string_might_begin_with_is_shown_in_the_end() {
    let handle = open(config(), info(), says(PARIS, Some(Finish::Stop))).await;
    for stream in [false, true] {
        let reply = chat(&handle, ask(&json!({"stop": "s.!", "stream": stream}))).await;
        assert_eq!(collected(&reply, 1)[0].0, PARIS_TEXT);
    }
}

/// Thoughts, content, arguments and reason of an answer to a request for tools, whole or streamed.
async fn said(handle: &Handle, extra: &Value) -> [String; 4] {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    let function = json!({"name": "weather", "parameters": parameters});
    let mut body = ask(&json!({"tools": [{"type": "function", "function": function}]}));
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let reply = chat(handle, body).await;
    let answers: Vec<Value> = match extra["stream"].as_bool() {
        Some(true) => reply.events().iter().filter_map(|e| serde_json::from_str(e).ok()).collect(),
        Some(false) | None => vec![reply.json()],
    };
    let mut all: [String; 4] = Default::default();
    for choice in answers.iter().flat_map(|answer| answer["choices"].as_array().unwrap()) {
        let part = choice.get("message").unwrap_or(&choice["delta"]);
        let arguments = &part["tool_calls"][0]["function"]["arguments"];
        let parts =
            [&part["reasoning_content"], &part["content"], arguments, &choice["finish_reason"]];
        for (all, part) in all.iter_mut().zip(parts) {
            all.push_str(part.as_str().unwrap_or_default());
        }
    }
    all
}

#[tokio::test]
async fn stop_strings_are_looked_for_in_the_answer_only() {
    const CALL: &str = "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n\
        </function>\n</tool_call>";
    let arguments = "{\"city\": \"Paris\"}";
    let text = format!("Is it Paris?\n\nYes.\n</think>\n\nIt is Paris, now. {CALL}");
    for (text, stop, content, arguments, reason) in [
        (text.replace("It is Paris, now. ", ""), "Paris", "", arguments, "tool_calls"),
        (text.clone(), "Paris", "It is ", "", "stop"),
        (text.clone(), "\n\n", "It is Paris, now.", arguments, "tool_calls"),
        (format!("{text} In Rome, too."), "Rome", "It is Paris, now.In ", arguments, "tool_calls"),
        // Neither do they reach from one part into another.
        (text.clone(), ".It", "It is Paris, now.", arguments, "tool_calls"),
        (format!("{text}x y"), "now.x", "It is Paris, now.x y", arguments, "tool_calls"),
        (format!("{text}x y"), "w.\n", "It is Paris, now.x y", arguments, "tool_calls"),
    ] {
        let handle = open(config(), roomy(), speaks(&text, Finish::Stop)).await;
        let expected = ["Is it Paris?\n\nYes.", content, arguments, reason];
        let mut extra = json!({"stop": stop, "enable_thinking": true});
        assert_eq!(said(&handle, &extra).await, expected, "{text}");
        extra["stream"] = json!(true);
        assert_eq!(said(&handle, &extra).await, expected, "{text}");
    }
}

#[tokio::test]
async fn the_engine_is_asked_for_what_the_client_asked_for() {
    let held = Held::new();
    let handle = open(config(), info(), held.keep()).await;
    let body = ask(&json!({
        "n": 2, "seed": -1, "max_completion_tokens": 9, "temperature": 0.25, "top_p": 0.5,
        "top_k": -1, "min_p": 0.125, "presence_penalty": 1, "frequency_penalty": -1,
        "repetition_penalty": 1.5, "logit_bias": {"5": -100, "6": 2.5}, "draft_tokens": 2,
        "stop": "<|object_ref_start|>", "stop_token_ids": [77],
    }));
    let body = body.to_string();
    let _open = begin(&handle, "POST /v1/chat/completions", JSON, body.as_bytes()).await;
    let requests = held.requests(2).await;
    let first = &requests[0];
    assert_eq!(first.prompt.len(), 13);
    assert_eq!(first.boundaries, [6]);
    assert_eq!(first.draft_tokens, Drafts::Exactly(2));
    assert_eq!(first.limits.new_tokens_max, 9);
    assert_eq!(
        first.limits.stop_tokens.iter().copied().collect::<Vec<_>>(),
        [77, 8160, 8162, 8163]
    );
    let s = &first.sampling;
    assert_eq!((s.temperature, s.top_p, s.top_k, s.min_p), (0.25, 0.5, 0, 0.125));
    assert_eq!((s.presence_penalty, s.frequency_penalty, s.repetition_penalty), (1.0, -1.0, 1.5));
    assert_eq!(s.logit_bias.iter().collect::<Vec<_>>(), [(&5, &-100.0), (&6, &2.5)]);
    assert_eq!((s.seed, s.rule), (u64::MAX, Rule::Coupled));
    assert_eq!(requests[1].sampling.seed, derive(u64::MAX, 1));
    assert_ne!(requests[0].id, requests[1].id);
}

#[tokio::test]
async fn without_a_word_the_models_defaults_hold() {
    let held = Held::new();
    let limited = crate::ingress::Config { new_tokens_max: 100.try_into().ok(), ..config() };
    let handle = open(limited, info(), held.keep()).await;
    let mut open = Vec::new();
    for body in [ask(&json!({})), ask(&json!({"ignore_eos": true, "generation_mode": "ar"}))] {
        let body = body.to_string();
        open.push(begin(&handle, "POST /v1/chat/completions", JSON, body.as_bytes()).await);
        held.requests(open.len()).await;
    }
    let requests = held.requests(2).await;
    let s = &requests[0].sampling;
    assert_eq!((s.temperature, s.top_p, s.top_k, s.rule), (0.6, 0.95, 20, Rule::Ratio));
    assert_ne!(s.seed, requests[1].sampling.seed);
    assert_eq!(requests[0].limits.new_tokens_max, 100);
    assert_eq!(requests[0].limits.stop_tokens.len(), 2);
    assert_eq!(requests[0].draft_tokens, Drafts::Tuned);
    assert_eq!(requests[1].draft_tokens, Drafts::Exactly(0));
    assert!(requests[1].limits.stop_tokens.is_empty());
}

#[tokio::test]
async fn completions_are_short_unless_asked_for_more() {
    let held = Held::new();
    let handle = open(config(), info(), held.keep()).await;
    let mut open = Vec::new();
    // The default gives way to a prompt that leaves less room than that.
    for body in [
        json!({"prompt": "x"}),
        json!({"prompt": "x", "max_tokens": 40}),
        json!({"prompt": vec![5; 250]}),
    ] {
        let body = body.to_string();
        open.push(begin(&handle, "POST /v1/completions", JSON, body.as_bytes()).await);
        held.requests(open.len()).await;
    }
    let requests = held.requests(3).await;
    let limits: Vec<usize> = requests.iter().map(|r| r.limits.new_tokens_max).collect();
    assert_eq!(limits, [16, 40, 6]);
}

#[tokio::test]
async fn whoever_asks_for_drafts_gets_them_whatever_the_tuner_says() {
    let handle = open(config(), info(), |admission| scripted_at(0, admission)).await;
    let body = ask(&json!({"max_tokens": 20, "ignore_eos": true}));
    assert_eq!(chat(&handle, body.clone()).await.json()["mtp"]["drafted"], 0);
    let mut mtp = body;
    mtp["generation_mode"] = json!("mtp");
    let drafted = chat(&handle, mtp).await.json()["mtp"]["drafted"].as_u64();
    assert!(drafted.unwrap() > 0);
}

#[tokio::test]
async fn a_stop_string_does_not_hide_what_was_drafted() {
    let handle = open(config(), info(), scripted).await;
    let body = json!({
        "prompt": "One", "max_tokens": 100, "ignore_eos": true, "seed": 3, "stop": [" s", "th"],
        "stream": true, "stream_options": {"include_usage": true},
    });
    let reply = complete(&handle, body).await;
    assert_eq!(collected(&reply, 1)[0].1, "stop");
    let events = reply.events();
    let last: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
    assert!(last["mtp"]["drafted"].as_u64().unwrap() > 0, "{last}");
    assert_eq!(last["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    assert!(last["usage"].get("completion_tokens_details").is_none());
}

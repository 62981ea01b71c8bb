//! The document says what the router does, and what is sent is what the document says.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::harness::*;
use crate::ingress::{Config, Handle, Secret, UnknownFields, admin, routes};

const TOKEN: &str = "authorization: Bearer open sesame\r\n";

async fn whole_house() -> Handle {
    let config = Config { admin: Secret::new("open sesame"), ..config() };
    open(config, roomy(), |admission| answers(admission, "Hm.", "Hello.")).await
}

async fn document(handle: &Handle) -> Value {
    let reply = get(handle, "/openapi.json").await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
    reply.json()
}

#[tokio::test]
async fn the_document_and_the_router_have_the_same_routes() {
    let handle = whole_house().await;
    let mut routed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let paths = routes::table().into_iter().map(|(path, _)| path);
    for path in paths.chain(admin::table().into_iter().map(|(path, _)| path)) {
        let path = path.replace("{*", "{");
        let asked = path.replace("{id}", "00000000000000000000000000000000");
        // Who asks in a way that no route answers is told the ways that do.
        let reply = exchange(&handle, &format!("TRACE {asked}"), TOKEN, b"").await;
        assert_eq!(reply.status, 405, "{path}: {reply:?}");
        let allowed = reply.header("allow").unwrap().to_ascii_lowercase();
        let methods = allowed.split(',').filter(|method| *method != "head");
        routed.insert(path, methods.map(str::to_owned).collect());
    }
    let document = document(&handle).await;
    let told = document["paths"].as_object().unwrap().iter().map(|(path, item)| {
        (path.clone(), item.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>())
    });
    assert_eq!(routed, told.collect::<BTreeMap<_, _>>());
}

#[tokio::test]
async fn every_reference_of_the_document_leads_somewhere() {
    let document = document(&whole_house().await).await;
    fn references<'a>(value: &'a Value, out: &mut Vec<&'a str>) {
        match value {
            Value::Object(map) => {
                out.extend(map.get("$ref").and_then(Value::as_str));
                map.values().for_each(|value| references(value, out));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, out)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let mut all = Vec::new();
    references(&document, &mut all);
    assert!(all.len() > 50, "{}", all.len());
    for reference in all {
        let place = reference.strip_prefix('#').and_then(|path| document.pointer(path));
        assert!(place.is_some(), "{reference}");
    }
}

/// The schema of a component, with all others in reach.
fn schema_of(document: &Value, name: &str) -> Value {
    let text = json!({
        "$ref": format!("#/components/schemas/{name}"),
        "components": document["components"],
    });
    text
}

#[tokio::test]
async fn what_is_answered_is_what_the_document_says() {
    let handle = whole_house().await;
    let document = document(&handle).await;
    let talk = json!([{"role": "user", "content": "Hi"}]);
    let thinks = json!({"enable_thinking": true});
    for (line, body, name) in [
        ("/v1/chat/completions", json!({"messages": talk, "n": 2}), "ChatCompletion"),
        (
            "/v1/chat/completions",
            json!({"messages": talk, "chat_template_kwargs": thinks}),
            "ChatCompletion",
        ),
        ("/v1/completions", json!({"prompt": "Hi"}), "TextCompletion"),
        ("/v1/responses", json!({"input": "Hi"}), "ResponseObject"),
        ("/v1/messages", json!({"messages": talk, "max_tokens": 99}), "MessageObject"),
        ("/v1/messages/count_tokens", json!({"messages": talk}), "TokenCount"),
        ("/tokenize", json!({"prompt": "Hi", "return_token_strs": true}), "Tokenized"),
        ("/detokenize", json!({"tokens": [1, 2]}), "Detokenized"),
        ("/v1/chat/completions", json!({"messages": 7}), "OpenAiError"),
        ("/v1/embeddings", json!({}), "OpenAiError"),
        ("/v1/messages", json!({"messages": 7}), "AnthropicError"),
    ] {
        let body = body.to_string();
        let reply = exchange(&handle, &format!("POST {line}"), JSON, body.as_bytes()).await;
        assert_eq!(reply.status < 300, !name.ends_with("Error"), "{line}: {reply:?}");
        let judge = jsonschema::validator_for(&schema_of(&document, name)).unwrap();
        let errors: Vec<String> =
            judge.iter_errors(&reply.json()).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{line}: {errors:?} in {}", reply.body);
    }
    for (path, name) in [
        ("/v1/models", "ModelList"),
        ("/v1/models/tiny", "Model"),
        ("/health", "Health"),
        ("/livez", "Health"),
        ("/readyz", "Health"),
        ("/v1/models/gpt", "OpenAiError"),
        ("/v1/responses/none", "OpenAiError"),
    ] {
        let answer = get(&handle, path).await.json();
        let judge = jsonschema::validator_for(&schema_of(&document, name)).unwrap();
        assert!(judge.is_valid(&answer), "{path}: {answer}");
    }
}

#[tokio::test]
async fn bodies_are_closed_only_where_unknown_fields_are_refused() {
    let closed = |document: &Value| {
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let closed = schemas.iter().filter(|(_, s)| s["additionalProperties"] == json!(false));
        closed.map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    let strict = document(&whole_house().await).await;
    assert_eq!(closed(&strict).len(), 6, "{:?}", closed(&strict));
    let warns = Config { unknown_fields: UnknownFields::Warn, ..config() };
    let handle = open(warns, roomy(), drop).await;
    assert!(closed(&document(&handle).await).is_empty());
}

#[tokio::test]
async fn the_page_needs_nothing_but_the_document() {
    let reply = get(&whole_house().await, "/docs").await;
    assert_eq!(reply.status, 200);
    assert!(reply.header("content-type").unwrap().starts_with("text/html"));
    assert!(reply.header("content-security-policy").unwrap().contains("default-src 'none'"));
    for elsewhere in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!reply.body.contains(elsewhere), "{elsewhere}");
    }
}

#[tokio::test]
async fn the_document_says_who_wants_a_key_and_who_the_admin_token() {
    let document = document(&whole_house().await).await;
    let security = |path: &str, method: &str| document["paths"][path][method]["security"].clone();
    assert_eq!(security("/v1/chat/completions", "post"), json!([{"key": []}, {}]));
    assert_eq!(security("/tokenize", "post"), json!([{"key": []}, {}]));
    assert_eq!(security("/admin/usage", "get"), json!([{"admin": []}]));
    assert_eq!(security("/health", "get"), json!(null));
    assert_eq!(security("/v1/models", "get"), json!(null));
}

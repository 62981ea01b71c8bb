//! What is whose: nothing that one tenant said or was answered is another's to find.

use mtplx_core::Tenant;
use mtplx_core::request::Finish;
use serde_json::{Value, json};

use super::harness::*;
use super::team::{bearer, entry, with};
use crate::ingress::Handle;
use crate::ingress::keys::{Entry, number};
use crate::ingress::text::tests::tiny;

async fn send(door: &Handle, line: &str, key: &str, body: &Value) -> Reply {
    exchange(door, line, &bearer(key), body.to_string().as_bytes()).await
}

#[tokio::test]
async fn texts_that_are_only_counted_are_remembered_for_their_tenant_alone() {
    let (key, ann) = entry("ann", 1);
    let door = open(with(vec![ann]), roomy(), speaks("Yes.", Finish::Stop)).await;
    let hers = Tenant(number(&["tenant", "ann"]));
    for (path, text) in
        [("/tokenize", "a text of /tokenize"), ("/v1/messages/count_tokens", "a text counted")]
    {
        let body = json!({"messages": [{"role": "user", "content": text}]});
        let reply = send(&door, &format!("POST {path}"), &key, &body).await;
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
        let piece = format!("<|im_start|>user\n{text}<|im_end|>\n");
        assert!(tiny().remembers(hers, &piece), "{path}");
        assert!(!tiny().remembers(Tenant::default(), &piece), "{path}");
    }
}

/// The same of an answer that never was.
fn other(body: &Value) -> Value {
    let mut body = body.clone();
    if let Some(id) = body.get_mut("previous_response_id") {
        *id = json!("resp_0");
    }
    body
}

#[tokio::test]
async fn an_answer_that_is_kept_is_there_for_its_own_tenant_only() {
    let ((ann, a), (bob, b), (eve, c)) = (entry("ann", 1), entry("bob", 2), entry("eve", 3));
    let b = Entry { tenant: Some("ann".into()), ..b };
    let door = open(with(vec![a, b, c]), roomy(), speaks("Yes.", Finish::Stop)).await;
    let first = send(&door, "POST /v1/responses", &ann, &json!({"input": "Hi"})).await.json();
    let id = first["id"].as_str().unwrap();
    let path = format!("/v1/responses/{id}");
    let more = json!({"input": "And?", "previous_response_id": id});
    let nothing = json!({});
    let ways = [
        (format!("GET {path}"), &nothing),
        ("POST /v1/responses".into(), &more),
        (format!("DELETE {path}"), &nothing),
    ];
    // As though there were none.
    for (line, body) in &ways {
        let reply = send(&door, line, &eve, body).await;
        let never = send(&door, &line.replace(id, "resp_0"), &eve, &other(body)).await;
        assert!([400, 404].contains(&reply.status), "{line}: {reply:?}");
        let (had, not) = (reply.body.replace(id, "resp_0"), never.body);
        assert_eq!((reply.status, had), (never.status, not), "{line}");
    }
    // A key of the same tenant may do all of it.
    for (line, body) in &ways {
        assert_eq!(send(&door, line, &bob, body).await.status, 200, "{line}");
    }
    assert_eq!(send(&door, &format!("GET {path}"), &ann, &nothing).await.status, 404);
}

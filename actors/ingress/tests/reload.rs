//! New settings while requests run and connections stay open.

use std::num::NonZeroUsize;
use std::sync::Arc;

use mtplx_core::batch::RowEvent;
use mtplx_core::request::{Finish, Usage};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::harness::*;
use crate::ingress::reload::{Changed, Reloaded};
use crate::ingress::{Config, Secret};

const CHAT: &str = "POST /v1/chat/completions";
const HELLO: &[u8] = br#"{"messages": [{"role": "user", "content": "Hi"}]}"#;

#[tokio::test]
async fn fewer_places_hold_at_once_and_nobody_inside_is_sent_away() {
    let held = Held::new();
    let door = open(config(), info(), held.keep()).await;
    let mut running = Vec::new();
    for _ in 0..3 {
        running.push(begin(&door, CHAT, JSON, HELLO).await);
    }
    held.requests(3).await;
    let two = Config { requests_max: 2.try_into().unwrap(), ..config() };
    door.go_by(two, Vec::new()).await;
    assert_eq!(exchange(&door, CHAT, JSON, HELLO).await.status, 503);
    for (i, admission) in held.take().into_iter().enumerate() {
        let usage = Usage { prompt: 3, generated: 1, ..Usage::default() };
        admission.events.try_send(RowEvent::Tokens(vec![464], usage)).unwrap();
        admission.events.try_send(RowEvent::Finished(Finish::Stop, usage)).unwrap();
        drop(admission);
        assert_eq!(end(running.remove(0)).await.status, 200, "the answer of one from before");
        let left = 2 - i;
        if left == 2 {
            assert_eq!(exchange(&door, CHAT, JSON, HELLO).await.status, 503, "two are inside");
        }
    }
    let again = begin(&door, CHAT, JSON, HELLO).await;
    held.requests(1).await;
    drop(again);
}

#[tokio::test]
async fn a_connection_that_stays_open_finds_what_holds_now() {
    let door = open(config(), info(), |admission| answers(admission, "", "Hello.")).await;
    let mut stream = TcpStream::connect(door.address).await.unwrap();
    let body = br#"{"model": "new name", "messages": [{"role": "user", "content": "Hi"}]}"#;
    let mut ask = async |status: &str| {
        let bytes = body.len();
        let head =
            format!("{CHAT} HTTP/1.1\r\nhost: test\r\n{JSON}content-length: {bytes}\r\n\r\n");
        stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
        let mut answer = vec![0; 1 << 16];
        let n = stream.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..n]).into_owned();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    };
    ask("404").await;
    let new = Config { aliases: vec!["new name".into()], ..config() };
    door.go_by(new, Vec::new()).await;
    ask("200").await;
    let narrow = Config { tokens_max: NonZeroUsize::new(1), body_bytes_max: 20, ..config() };
    door.go_by(narrow, Vec::new()).await;
    ask("413").await;
}

#[tokio::test]
async fn who_has_the_token_reads_the_settings_anew_and_hears_what_came_of_it() {
    let config = Config { admin: Secret::new("open sesame"), ..config() };
    let door = open(config.clone(), info(), drop).await;
    let token = "authorization: Bearer open sesame\r\n";
    let reload = async || exchange(&door, "POST /admin/reload", token, b"").await;
    assert_eq!(reload().await.status, 503, "nothing reads them");
    assert_eq!(exchange(&door, "POST /admin/reload", "", b"").await.status, 401);
    let told = Reloaded {
        changed: vec![Changed { setting: "a.b".into(), from: "1".into(), to: "2".into() }],
        ..Reloaded::default()
    };
    let (good, bad) = (told.clone(), "my.toml, line 7: server.queue_s: wrong".to_owned());
    door.let_reload(Arc::new(move || {
        let told = good.clone();
        Box::pin(async { Ok(told) })
    }));
    door.observe().await;
    let reply = reload().await;
    assert_eq!((reply.status, reply.json()), (200, json!(told)));
    let said = bad.clone();
    door.let_reload(Arc::new(move || {
        let bad = said.clone();
        Box::pin(async { Err(bad) })
    }));
    door.observe().await;
    let reply = reload().await;
    assert_eq!((reply.status, &reply.error()["message"]), (422, &json!(bad)));
    // Another token holds at once, and what waits is said.
    let other = Config { admin: Secret::new("other"), ..config };
    door.go_by(other, vec!["engine.slots".into()]).await;
    assert_eq!(reload().await.status, 401);
    let health = get(&door, "/health").await.json();
    assert_eq!(health["restart_needed"], json!(["engine.slots"]));
}

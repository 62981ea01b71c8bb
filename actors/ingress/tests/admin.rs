//! Who may manage the server, and what headers say of how a request meets the bank.

use mtplx_core::request::Sharing;
use serde_json::json;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::harness::{Held, JSON, closed, config, end, exchange, get, info, open};
use crate::ingress::{Config, Secret};

const ROUTES: [&str; 6] = [
    "GET /admin/tuner",
    "GET /admin/bank",
    "POST /admin/bank",
    "GET /admin/bank/00000000000000000000000000000000",
    "DELETE /admin/bank/00000000000000000000000000000000",
    "PUT /admin/bank/00000000000000000000000000000000/pin",
];

#[tokio::test]
async fn without_a_token_the_routes_do_not_exist() {
    let door = closed(config()).await;
    for route in ROUTES {
        let reply = exchange(&door, route, "authorization: Bearer \r\n", b"").await;
        assert_eq!(reply.status, 404, "{route}");
    }
}

#[tokio::test]
async fn only_who_sends_the_token_gets_further_than_the_door() {
    let door = closed(Config { admin: Secret::new("open sesame"), ..config() }).await;
    for route in ROUTES {
        for sent in ["", "Bearer ", "Bearer open", "Bearer open sesame!", "Basic open sesame"] {
            let header = match sent {
                "" => String::new(),
                sent => format!("authorization: {sent}\r\n"),
            };
            let reply = exchange(&door, route, &header, b"").await;
            assert_eq!(reply.status, 401, "{route} with {sent:?}");
            assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
            assert_eq!(reply.error()["type"], "authentication_error");
        }
        let header = "authorization: Bearer open sesame\r\n";
        // Nobody serves yet, and that is what it hears.
        assert_eq!(exchange(&door, route, header, b"").await.status, 503, "{route}");
    }
    let wrong =
        exchange(&door, "GET /admin/bank/no-id", "authorization: Bearer open sesame\r\n", b"");
    assert_eq!(wrong.await.status, 404);
    assert_eq!(get(&door, "/admin").await.status, 404);
}

// The clock jumps ahead whenever everybody waits, so minutes pass at once.
#[tokio::test(start_paused = true)]
async fn an_upload_that_died_lets_the_next_one_pass() {
    let door = open(Config { admin: Secret::new("open sesame"), ..config() }, info(), drop).await;
    let head = "POST /admin/bank HTTP/1.1\r\nhost: test\r\nauthorization: Bearer open sesame\r\n\
        connection: close\r\ncontent-length: 1000\r\n\r\nhalf of";
    let mut dead = TcpStream::connect(door.address).await.unwrap();
    dead.write_all(head.as_bytes()).await.unwrap();
    let mut next = TcpStream::connect(door.address).await.unwrap();
    next.write_all(head.as_bytes()).await.unwrap();
    for stream in [dead, next] {
        let reply = end(stream).await;
        assert_eq!((reply.status, &reply.error()["code"]), (408, &json!("body_too_slow")));
    }
}

#[test]
fn a_secret_is_printed_by_nobody_and_the_empty_one_opens_nothing() {
    let secret = Secret::new("open sesame");
    assert!(secret.opens(b"open sesame") && !secret.opens(b"open sesam") && !secret.opens(b""));
    assert!(!format!("{secret:?}").contains("sesame"));
    assert!(!Secret::new("").opens(b""));
    let written = serde_json::to_string(&Config { admin: secret, ..config() }).unwrap();
    assert!(!written.contains("admin"), "{written}");
}

#[tokio::test]
async fn a_task_of_open_webui_leaves_nothing_behind_and_a_system_prompt_is_a_root() {
    let held = Held::new();
    let door = open(config(), info(), held.keep()).await;
    let system = "You answer in one word, whatever you are asked. ".repeat(6);
    let body = json!({"max_tokens": 2, "messages": [
        {"role": "system", "content": system}, {"role": "user", "content": "Hi"},
    ]});
    let body = body.to_string();
    let ask = |headers: String| {
        let (door, body) = (door.clone(), body.clone());
        tokio::spawn(async move {
            exchange(&door, "POST /v1/chat/completions", &headers, body.as_bytes()).await
        })
    };
    let asked = ask(JSON.to_owned());
    let first = held.requests(1).await[0].clone();
    assert_eq!(first.sharing, Sharing { root: first.boundaries[0], ..Sharing::default() });
    let task = ask(format!("{JSON}x-openwebui-task: title_generation\r\n"));
    assert!(held.requests(2).await[1].sharing.background);
    // Hints about sessions are taken and change nothing.
    let hints = "x-session-affinity: 7\r\nx-openwebui-chat-id: 9\r\nsession_id: 3\r\n";
    let hinted = ask(format!("{JSON}{hints}"));
    assert_eq!(held.requests(3).await[2].sharing, first.sharing);
    drop(held.take());
    for asked in [asked, task, hinted] {
        asked.await.unwrap();
    }
}

//! Several clients at one door: keys, tenants, people behind a trusted key, quotas, and bounds of
//! the house.

use std::num::NonZeroUsize;
use std::time::Duration;

use mtplx_core::Tenant;
use mtplx_core::batch::RowEvent;
use mtplx_core::fairness::Class;
use mtplx_core::request::{Request, Usage};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;

use super::harness::*;
use crate::ingress::keys::{Bounds, Entry, Keys, Urgency, new_key};
use crate::ingress::{Config, Handle, Secret};

const CHAT: &str = "POST /v1/chat/completions";
const HELLO: &[u8] = br#"{"messages":[{"role":"user","content":"Hi"}],"max_tokens":9}"#;

pub(super) fn entry(name: &str, random: u8) -> (String, Entry) {
    let (key, hash, prefix) = new_key([random; 32]);
    let (soft, hard) = (Bounds::default(), Bounds::default());
    let (class, weight) = (Urgency::default(), 1.try_into().unwrap());
    let (name, tenant, trusted, created) = (name.to_owned(), None, false, String::new());
    (key, Entry { name, tenant, class, weight, trusted, soft, hard, hash, created, prefix })
}

/// A door for these keys.
pub(super) fn with(entries: Vec<Entry>) -> Config {
    Config { keys: Keys::new(entries).unwrap(), admin: Secret::new("root"), ..config() }
}

pub(super) fn bearer(key: &str) -> String {
    format!("{JSON}authorization: Bearer {key}\r\n")
}

/// What arrives at the bank of what is sent with these headers; the answers are not waited for.
async fn arrives(door: &Handle, held: &Held, headers: &[String]) -> Vec<Request> {
    let mut open = Vec::new();
    for (i, headers) in headers.iter().enumerate() {
        open.push(begin(door, CHAT, headers, HELLO).await);
        held.requests(i + 1).await;
    }
    held.requests(headers.len()).await
}

#[tokio::test]
async fn where_there_are_keys_only_who_has_one_gets_further() {
    let (key, ann) = entry("ann", 1);
    let door = open(with(vec![ann]), info(), scripted).await;
    for (sent, says) in
        [("", "a key is wanted"), ("authorization: Bearer mtplx_1\r\n", "not known")]
    {
        for path in ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/tokenize"] {
            let headers = format!("{JSON}{sent}");
            let reply = exchange(&door, &format!("POST {path}"), &headers, HELLO).await;
            assert_eq!(reply.status, 401, "{path} with {sent:?}");
            assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
            let message = reply.error()["message"].as_str().unwrap().to_owned();
            assert!(message.contains(says) && message.contains("mtplx keys add"), "{message}");
            if path == "/v1/messages" {
                assert_eq!(reply.error()["type"], "authentication_error");
            } else {
                assert_eq!(reply.error()["code"], "invalid_api_key");
            }
        }
    }
    for path in ["/health", "/metrics", "/v1/models", "/openapi.json"] {
        assert_eq!(get(&door, path).await.status, 200, "{path}");
    }
    for headers in [bearer(&key), format!("{JSON}x-api-key: {key}\r\n")] {
        assert_eq!(exchange(&door, CHAT, &headers, HELLO).await.status, 200);
    }
    // A key is no admin token.
    assert_eq!(exchange(&door, "GET /admin/usage", &bearer(&key), b"").await.status, 401);
}

#[tokio::test]
async fn without_keys_everybody_is_one_client_whatever_is_sent() {
    let held = Held::new();
    let door = open(config(), info(), held.keep()).await;
    let person = format!("{JSON}x-openwebui-user-id: 7\r\nauthorization: Bearer x\r\n");
    let [a, b] = arrives(&door, &held, &[JSON.into(), person]).await.try_into().unwrap();
    assert_eq!((a.standing, a.sharing.tenant), (b.standing, Tenant::default()));
}

#[tokio::test]
async fn a_key_says_whose_a_request_is_and_how_it_stands() {
    let ((ann, a), (bob, b), (cron, c)) = (entry("ann", 1), entry("bob", 2), entry("cron", 3));
    let b = Entry { tenant: Some("ann".into()), weight: 3.try_into().unwrap(), ..b };
    let c = Entry { class: Urgency::Background, ..c };
    let held = Held::new();
    let door = open(with(vec![a, b, c]), info(), held.keep()).await;
    let sent = [bearer(&ann), bearer(&bob), bearer(&cron)];
    let [a, b, c] = arrives(&door, &held, &sent).await.try_into().unwrap();
    assert!(a.sharing.tenant == b.sharing.tenant && a.sharing.tenant != c.sharing.tenant);
    assert!(a.standing.client != b.standing.client && a.sharing.tenant != Tenant::default());
    assert_eq!((a.standing.weight.get(), b.standing.weight.get()), (1, 3));
    assert_eq!((a.standing.class, c.standing.class), (Class::Interactive, Class::Background));
    assert!(!c.sharing.background, "its prompts may be kept warm all the same");
}

#[tokio::test]
async fn only_a_trusted_key_may_say_for_whom_it_asks() {
    let ((webui, mut a), (ann, b)) = (entry("webui", 1), entry("ann", 2));
    a.trusted = true;
    let held = Held::new();
    let door = open(with(vec![a, b]), info(), held.keep()).await;
    let of = |key: &str, more: &str| format!("{}{more}", bearer(key));
    let sent = [
        of(&webui, "x-openwebui-user-id: 1\r\n"),
        of(&webui, "x-openwebui-user-id: 2\r\n"),
        of(&webui, "x-openwebui-user-id: 1\r\nx-openwebui-task: title_generation\r\n"),
        of(&ann, "x-openwebui-user-id: 1\r\nx-openwebui-task: title_generation\r\n"),
        of(&ann, ""),
    ];
    let [one, two, task, ann, plain] = arrives(&door, &held, &sent).await.try_into().unwrap();
    assert!(one.standing.client != two.standing.client);
    assert_eq!(one.sharing.tenant, two.sharing.tenant, "what they have in common stays warm");
    assert_eq!(task.standing.client, one.standing.client);
    assert!(task.standing.class == Class::Background && task.sharing.background);
    assert_eq!(ann.standing, plain.standing);
    assert!(!ann.sharing.background, "what it says of its work counts as little");
    assert_eq!(one.standing.group, two.standing.group);
    assert_ne!(one.standing.group, plain.standing.group);
}

#[tokio::test]
async fn beyond_its_quota_a_key_is_told_which_one_and_when_to_ask_again() {
    let ((few, mut a), (poor, mut b), (soft, mut c)) =
        (entry("few", 1), entry("poor", 2), entry("soft", 3));
    a.hard.requests = Some(1);
    b.hard.day_tokens = Some(0);
    c.soft.requests = Some(1);
    let held = Held::new();
    let door = open(with(vec![a, b, c]), info(), held.keep()).await;
    let _running = begin(&door, CHAT, &bearer(&few), HELLO).await;
    held.requests(1).await;
    for (key, says) in [(&few, "1 answers"), (&poor, "0 tokens a day")] {
        let reply = exchange(&door, CHAT, &bearer(key), HELLO).await;
        assert_eq!(reply.status, 429, "{reply:?}");
        let after: u32 = reply.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=120).contains(&after), "{after}");
        assert_eq!(reply.error()["code"], "rate_limit_exceeded");
        assert!(reply.error()["message"].as_str().unwrap().contains(says), "{reply:?}");
    }
    let _first = begin(&door, CHAT, &bearer(&soft), HELLO).await;
    held.requests(2).await;
    let _second = begin(&door, CHAT, &bearer(&soft), HELLO).await;
    let classes: Vec<_> = held.requests(3).await.iter().map(|r| r.standing.class).collect();
    assert_eq!(classes[1..], [Class::Interactive, Class::Background]);
    // The place comes back when the answer ends, however it ends.
    held.take();
    let back = async {
        loop {
            let root = "authorization: Bearer root\r\n";
            let used = exchange(&door, "GET /admin/usage", root, b"").await.json();
            if used["keys"]["few"]["running"] == 0 {
                return used;
            }
        }
    };
    let used = tokio::time::timeout(Duration::from_secs(10), back).await.unwrap();
    assert_eq!(
        (&used["keys"]["few"]["failed"], &used["keys"]["few"]["refused"]),
        (&json!(1), &json!(1))
    );
    let _again = begin(&door, CHAT, &bearer(&few), HELLO).await;
    held.requests(1).await;
}

#[tokio::test]
async fn who_leaves_before_the_first_token_pays_for_the_prompt() {
    let (ann, a) = entry("ann", 1);
    let held = Held::new();
    let door = open(with(vec![a]), info(), held.keep()).await;
    let client = begin(&door, CHAT, &bearer(&ann), HELLO).await;
    let prompt = held.requests(1).await[0].prompt.len();
    held.streams()[0].try_send(RowEvent::Seated).unwrap();
    drop(client);
    let root = "authorization: Bearer root\r\n";
    let left = async {
        loop {
            let used = exchange(&door, "GET /admin/usage", root, b"").await.json();
            if used["keys"]["ann"]["running"] == 0 {
                return used["keys"]["ann"].clone();
            }
        }
    };
    let used = tokio::time::timeout(Duration::from_secs(10), left).await.unwrap();
    assert_eq!((&used["prompt_tokens"], &used["cancelled"]), (&json!(prompt), &json!(1)));
}

#[tokio::test]
async fn what_a_key_used_is_shown_to_whoever_keeps_the_server() {
    let (ann, a) = entry("ann", 1);
    let door = open(with(vec![a]), info(), scripted).await;
    let reply = exchange(&door, CHAT, &bearer(&ann), HELLO).await;
    let usage = &reply.json()["usage"];
    let shown = exchange(&door, "GET /admin/usage", "authorization: Bearer root\r\n", b"").await;
    let shown = &shown.json()["keys"]["ann"];
    assert_eq!(shown["prompt_tokens"], usage["prompt_tokens"]);
    assert_eq!(shown["generated_tokens"], usage["completion_tokens"]);
    assert_eq!((&shown["finished"], &shown["running"]), (&json!(1), &json!(0)));
}

#[tokio::test]
async fn keys_can_be_replaced_while_the_door_is_open() {
    let ((ann, a), (bob, b)) = (entry("ann", 1), entry("bob", 2));
    let door = open(with(vec![a]), info(), scripted).await;
    assert_eq!(exchange(&door, CHAT, &bearer(&bob), HELLO).await.status, 401);
    door.replace_keys(Keys::new(vec![b]).unwrap());
    door.observe().await;
    assert_eq!(exchange(&door, CHAT, &bearer(&bob), HELLO).await.status, 200);
    assert_eq!(exchange(&door, CHAT, &bearer(&ann), HELLO).await.status, 401);
}

#[tokio::test]
async fn a_house_full_of_tokens_or_bytes_says_when_to_come_again() {
    let held = Held::new();
    let tokens_max = NonZeroUsize::new(40);
    let door = open(Config { tokens_max, ..config() }, info(), held.keep()).await;
    let running = begin(&door, CHAT, JSON, HELLO).await;
    held.requests(1).await;
    let asks = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 40});
    let reply = chat(&door, asks).await;
    assert_eq!((reply.status, &reply.error()["code"]), (503, &json!("overloaded")));
    assert!(reply.header("retry-after").is_some());
    drop(running);

    let bytes_max = 64 * 1024;
    let door = open(Config { bytes_max, ..config() }, info(), scripted).await;
    // All of its body has come but the end.
    let mut slow = tokio::net::TcpStream::connect(door.address).await.unwrap();
    let head = format!("{CHAT} HTTP/1.1\r\nhost: test\r\n{JSON}content-length: 65536\r\n\r\n");
    slow.write_all(head.as_bytes()).await.unwrap();
    slow.write_all(&[b' '; 65_535]).await.unwrap();
    let full = async { while exchange(&door, CHAT, JSON, HELLO).await.status != 503 {} };
    tokio::time::timeout(Duration::from_secs(5), full).await.expect("its place is taken");
    for path in ["/health", "/metrics", "/v1/models"] {
        assert_eq!(get(&door, path).await.status, 200, "{path} is never refused");
    }
}

#[tokio::test]
async fn who_waited_for_a_slot_too_long_hears_so() {
    let door = open(config(), info(), |admission| {
        admission.events.try_send(RowEvent::Late).unwrap();
    })
    .await;
    let reply = exchange(&door, CHAT, JSON, HELLO).await;
    assert_eq!((reply.status, &reply.error()["code"]), (503, &json!("queue_timeout")));
    let after: u32 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=120).contains(&after));
}

#[tokio::test]
async fn a_reader_who_takes_nothing_is_let_go_and_its_row_with_it() {
    let held = Held::new();
    let long =
        mtplx_core::engine::EngineInfo { context_tokens_max: 65_536, pages_max: 8192, ..info() };
    let door = open(Config { reader_stall_s: 1, ..config() }, long, held.keep()).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut reader = socket.connect(door.address).await.unwrap();
    let body = br#"{"messages":[{"role":"user","content":"Hi"}],"max_tokens":60000,"stream":true}"#;
    let head =
        format!("{CHAT} HTTP/1.1\r\nhost: test\r\n{JSON}content-length: {}\r\n\r\n", body.len());
    reader.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
    held.requests(1).await;
    let stream = held.streams().remove(0);
    let usage = Usage { prompt: 9, ..Usage::default() };
    for generated in 1..50_000 {
        let usage = Usage { generated, ..usage };
        if stream.try_send(RowEvent::Tokens(vec![40], usage)).is_err() {
            break;
        }
    }
    // That its receiver is gone is what cancels a row.
    let gone = tokio::time::timeout(Duration::from_secs(60), stream.closed()).await;
    assert!(gone.is_ok(), "it was still waited for");
    drop(reader);
}

#[tokio::test]
async fn one_client_leaves_places_to_the_others() {
    let ((many, a), (few, b)) = (entry("many", 1), entry("few", 2));
    let held = Held::new();
    let door = open(with(vec![a, b]), info(), held.keep()).await;
    let mut open = Vec::new();
    for count in 1..=4 {
        open.push(begin(&door, CHAT, &bearer(&many), HELLO).await);
        held.requests(count).await;
    }
    let reply = exchange(&door, CHAT, &bearer(&many), HELLO).await;
    assert_eq!((reply.status, &reply.error()["code"]), (429, &json!("rate_limit_exceeded")));
    assert!(reply.header("retry-after").is_some());
    assert!(reply.error()["message"].as_str().unwrap().contains("for others"), "{reply:?}");
    let _few = begin(&door, CHAT, &bearer(&few), HELLO).await;
    held.requests(5).await;
    // Alone, one may have all of them at once.
    held.take();
    let all = br#"{"messages":[{"role":"user","content":"Hi"}],"max_tokens":9,"n":8}"#;
    let alone = async {
        loop {
            let _all = begin(&door, CHAT, &bearer(&few), all).await;
            let came = tokio::time::timeout(Duration::from_millis(200), held.requests(8));
            if came.await.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), alone).await.unwrap();
}

#[tokio::test]
async fn what_a_key_may_never_have_is_no_matter_of_time() {
    let (few, mut a) = entry("few", 1);
    a.hard.requests = Some(2);
    let door = open(with(vec![a]), info(), scripted).await;
    let asks =
        |n: u32| json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9, "n": n});
    let ask = async |body: serde_json::Value| {
        exchange(&door, CHAT, &bearer(&few), body.to_string().as_bytes()).await
    };
    let reply = ask(asks(3)).await;
    assert_eq!((reply.status, &reply.error()["param"]), (400, &json!("n")));
    assert!(reply.error()["message"].as_str().unwrap().contains("may have 2"), "{reply:?}");
    assert_eq!(ask(asks(2)).await.status, 200);
}

#[tokio::test]
async fn who_is_refused_anyway_hears_so_before_a_long_body_has_come() {
    let held = Held::new();
    let door = open(config(), info(), held.keep()).await;
    let all = br#"{"messages":[{"role":"user","content":"Hi"}],"max_tokens":9,"n":8}"#;
    let _all = begin(&door, CHAT, JSON, all).await;
    held.requests(8).await;
    // Nothing of it comes.
    let mut stream = tokio::net::TcpStream::connect(door.address).await.unwrap();
    let head = format!("{CHAT} HTTP/1.1\r\nhost: test\r\n{JSON}content-length: 60000\r\n");
    stream.write_all(format!("{head}connection: close\r\n\r\n").as_bytes()).await.unwrap();
    let reply = tokio::time::timeout(Duration::from_secs(20), end(stream)).await.unwrap();
    assert_eq!((reply.status, &reply.error()["code"]), (503, &json!("overloaded")));
    // What is wrong with a short one is wrong in a full house, too.
    let reply = exchange(&door, CHAT, JSON, b"{").await;
    assert_eq!(reply.status, 400, "{reply:?}");
}

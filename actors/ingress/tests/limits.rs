//! What the door bounds before anybody reads a word: heads, bodies, connections, turns.

use std::time::Duration;

use mtplx_core::batch::RowEvent;
use mtplx_core::request::Finish;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::harness::*;
use crate::admission::Admission;
use crate::ingress::Config;

const CHAT: &str = "POST /v1/chat/completions";

// The clock jumps ahead whenever everybody waits, so minutes pass at once.
#[tokio::test(start_paused = true)]
async fn who_never_ends_the_head_of_a_request_is_let_go() {
    let handle = closed(config()).await;
    let mut stream = TcpStream::connect(handle.address).await.unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: te").await.unwrap();
    let began = tokio::time::Instant::now();
    let reply = end(stream).await;
    assert!(reply.status == 0 || reply.status == 408, "{reply:?}");
    assert!(began.elapsed() < Duration::from_secs(90), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn who_never_ends_a_body_is_told_so() {
    let handle = closed(config()).await;
    let mut stream = TcpStream::connect(handle.address).await.unwrap();
    let head = format!("{CHAT} HTTP/1.1\r\nhost: test\r\n{JSON}content-length: 100\r\n\r\n{{");
    stream.write_all(head.as_bytes()).await.unwrap();
    let reply = end(stream).await;
    assert_eq!(reply.status, 408, "{reply:?}");
    assert_eq!(reply.error()["code"], "body_too_slow");
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let handle = closed(config()).await;
    let long = format!("x-long: {}\r\n", "x".repeat(70_000));
    assert_eq!(exchange(&handle, "GET /health", &long, b"").await.status, 431);
    let many: String = (0..200).map(|i| format!("x-{i}: 1\r\n")).collect();
    assert_eq!(exchange(&handle, "GET /health", &many, b"").await.status, 431);
    let some: String = (0..40).map(|i| format!("x-{i}: {}\r\n", "x".repeat(500))).collect();
    assert_eq!(exchange(&handle, "GET /health", &some, b"").await.status, 503, "nobody serves");
}

#[tokio::test]
async fn a_body_that_announces_too_much_is_refused_before_it_is_sent() {
    let handle = closed(config()).await;
    let mut stream = TcpStream::connect(handle.address).await.unwrap();
    let head = format!("{CHAT} HTTP/1.1\r\nhost: test\r\n{JSON}content-length: 9999999\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let reply = tokio::time::timeout(Duration::from_secs(20), end(stream)).await.unwrap();
    assert_eq!(reply.status, 413);
    let message = reply.error()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("65536 bytes"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_a_body_that_nobody_wants_hears_why() {
    let handle = closed(config()).await;
    let nine = vec![b' '; 9 << 20];
    for (line, headers, status) in [
        (CHAT, JSON, 413),
        (CHAT, "content-type: text/plain\r\n", 415),
        ("POST /nowhere", JSON, 404),
        ("POST /health", JSON, 405),
    ] {
        let mut stream = TcpStream::connect(handle.address).await.unwrap();
        let length = nine.len();
        let head = format!("{line} HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n");
        let head = format!("{head}connection: close\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&nine).await.unwrap_or_else(|e| panic!("{line}: {e}"));
        let reply = end(stream).await;
        assert_eq!(reply.status, status, "{line}: {reply:?}");
    }
}

#[tokio::test]
async fn a_body_in_chunks_is_bounded_as_well() {
    let handle = closed(config()).await;
    let mut stream = TcpStream::connect(handle.address).await.unwrap();
    let head = format!(
        "{CHAT} HTTP/1.1\r\nhost: test\r\n{JSON}connection: close\r\n\
         transfer-encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..9 {
        let _ = stream.write_all(b"2000\r\n").await;
        let _ = stream.write_all(&[b' '; 0x2000]).await;
        let _ = stream.write_all(b"\r\n").await;
    }
    assert_eq!(end(stream).await.status, 413);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_are_looked_at_in_turns_and_no_more_wait_than_there_are_places() {
    let few = Config { requests_max: 2.try_into().unwrap(), body_bytes_max: 8 << 20, ..config() };
    let handle = open(few, roomy(), speaks("Yes.", Finish::Stop)).await;
    let long = json!({"prompt": "word and word ".repeat(100_000)}).to_string();
    let ask = || exchange(&handle, "POST /tokenize", JSON, long.as_bytes());
    let all = tokio::join!(ask(), ask(), ask(), ask(), ask(), ask());
    let all = [all.0, all.1, all.2, all.3, all.4, all.5];
    let count = |status: u16| all.iter().filter(|reply| reply.status == status).count();
    assert!(count(200) >= 2 && count(200) + count(503) == 6, "{:?}", all.map(|r| r.status));
    let busy = all.iter().find(|reply| reply.status == 503);
    assert!(busy.is_none_or(|reply| reply.header("retry-after").is_some()));
    // Nobody's place was kept.
    assert_eq!(exchange(&handle, "POST /tokenize", JSON, long.as_bytes()).await.status, 200);
}

/// A client of a small window that asks for much and reads none of it.
async fn stopped_reader(handle: &crate::ingress::Handle) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(handle.address).await.unwrap();
    let asked = "GET /openapi.json HTTP/1.1\r\nhost: test\r\n\r\n".repeat(400);
    stream.write_all(asked.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn who_reads_nothing_of_what_it_asked_for_is_let_go() {
    let handle = closed(config()).await;
    let reader = stopped_reader(&handle).await;
    // As much is under way as the system takes.
    tokio::time::sleep(Duration::from_millis(500)).await;
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    handle.drain(Duration::from_secs(3600)).await;
    assert!(began.elapsed() < Duration::from_secs(180), "{:?}", began.elapsed());
    assert!(began.elapsed() > Duration::from_secs(60), "it was stopped: {:?}", began.elapsed());
    drop(reader);
}

#[tokio::test]
async fn idle_connections_do_not_hold_up_the_end() {
    let handle = closed(config()).await;
    let idle = TcpStream::connect(handle.address).await.unwrap();
    assert_eq!(get(&handle, "/openapi.json").await.status, 200);
    let drained = tokio::time::timeout(Duration::from_secs(20), async {
        handle.drain(Duration::from_secs(60)).await
    });
    assert_eq!(drained.await.unwrap(), 0);
    drop(idle);
}

#[tokio::test]
async fn in_a_stream_who_waited_too_long_hears_so_in_the_shape_of_the_api() {
    let late = |admission: Admission| {
        admission.events.try_send(RowEvent::Late).unwrap();
    };
    let handle = open(config(), roomy(), late).await;
    let said = json!([{"role": "user", "content": "Hi"}]);
    for (path, body, at, code) in [
        ("/v1/chat/completions", json!({"messages": said}), "/error/code", "queue_timeout"),
        ("/v1/completions", json!({"prompt": "Hi"}), "/error/code", "queue_timeout"),
        (
            "/v1/messages",
            json!({"messages": said, "max_tokens": 9}),
            "/error/type",
            "overloaded_error",
        ),
        ("/v1/responses", json!({"input": "Hi"}), "/response/error/code", "server_error"),
    ] {
        let mut body = body;
        body["stream"] = json!(true);
        let reply = post(&handle, path, &body).await;
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
        let events = reply.events();
        let parsed = events.iter().filter_map(|data| serde_json::from_str(data).ok());
        let told: Vec<Value> =
            parsed.filter(|e: &Value| e.pointer(at) == Some(&json!(code))).collect();
        assert_eq!(told.len(), 1, "{path}: {events:?}");
        let kind = match path {
            "/v1/messages" => "error",
            "/v1/responses" => "response.failed",
            _ => continue,
        };
        assert_eq!(told[0]["type"], kind, "{path}");
    }
}

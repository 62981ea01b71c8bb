//! Readiness, room, faults, clients that leave, and the end.

use std::time::Duration;

use mtplx_core::batch::RowEvent;
use mtplx_core::engine::{EngineInfo, Kernel};
use mtplx_core::guard::{Budget, Shortage};
use mtplx_core::request::Finish;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::harness::*;
use crate::admission::{Admission, Door};
use crate::ingress::Config;

const LONG: Duration = Duration::from_secs(30);

fn body(stream: bool) -> serde_json::Value {
    json!({"messages": [{"role": "user", "content": "Hi"}], "stream": stream})
}

#[tokio::test]
async fn between_generations_requests_are_told_to_come_back() {
    let handle = closed(config()).await;
    let reply = chat(&handle, body(false)).await;
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("2")));
    assert_eq!(reply.error()["code"], "unavailable");
    let reply = get(&handle, "/health").await;
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("2")));
    serve(&handle, info(), says(&[&[464]], Some(Finish::Stop))).await;
    assert_eq!(chat(&handle, body(false)).await.status, 200);
    assert_eq!(get(&handle, "/health").await.json()["status"], "ok");
    handle.between("the engine failed".into());
    let reply = chat(&handle, body(false)).await;
    assert_eq!(reply.status, 503);
    let message = reply.error()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("the engine failed"), "{message}");
}

#[tokio::test]
async fn alive_ready_and_healthy_are_three_answers() {
    let handle = closed(config()).await;
    let codes = async |handle| {
        let mut codes = Vec::new();
        for path in ["/livez", "/readyz", "/health"] {
            codes.push(get(handle, path).await.status);
        }
        codes
    };
    assert_eq!(codes(&handle).await, [200, 503, 503]);
    let engine = served(fresh_bank().await, info());
    engine.heart.beat();
    handle.serve(engine.clone());
    assert_eq!(codes(&handle).await, [200, 200, 200]);
    let age = |reply: Reply| reply.json()["heartbeat_age_ms"].as_u64().unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(age(get(&handle, "/health").await) >= 50);
    engine.heart.beat();
    assert!(age(get(&handle, "/readyz").await) < 50);
    handle.over("it is done".into());
    assert_eq!(codes(&handle).await, [200, 503, 503]);
}

#[tokio::test]
async fn health_names_the_kernels_that_are_switched_off() {
    let kernel = |name: &str, fault: Option<&str>| Kernel {
        name: name.into(),
        fault: fault.map(Into::into),
    };
    let kernels = vec![kernel("top", None), kernel("gdn_verify", Some("the state is off by 1"))];
    let with = EngineInfo { kernels, ..info() };
    let handle = open(config(), with, says(&[&[464]], Some(Finish::Stop))).await;
    let health = get(&handle, "/health").await.json();
    assert_eq!(health["status"], "ok");
    assert_eq!(health["kernels_switched_off"], json!(["gdn_verify"]));
}

#[tokio::test]
async fn a_bad_request_is_refused_as_such_even_between() {
    let handle = closed(config()).await;
    assert_eq!(chat(&handle, json!({"messages": []})).await.status, 400);
    let unknown = json!({"model": "gpt-9", "messages": [{"role": "user", "content": "Hi"}]});
    assert_eq!(chat(&handle, unknown).await.status, 404);
}

#[tokio::test]
async fn a_bank_that_is_gone_is_no_bank() {
    let handle = closed(config()).await;
    let bank = serve(&handle, info(), says(&[], None)).await;
    bank.stop_and_wait(None, None).await.unwrap();
    let reply = chat(&handle, body(false)).await;
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("2")));
}

#[tokio::test]
async fn a_full_house_refuses_and_room_comes_back() {
    let held = Held::new();
    let small = Config { requests_max: 2.try_into().unwrap(), ..config() };
    let handle = open(small, info(), held.keep()).await;
    let both = json!({"messages": [{"role": "user", "content": "Hi"}], "n": 2}).to_string();
    let first = begin(&handle, "POST /v1/chat/completions", JSON, both.as_bytes()).await;
    held.requests(2).await;
    let reply = chat(&handle, body(false)).await;
    // Nobody has left yet, so no rate is known.
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("5")));
    assert_eq!(reply.error()["code"], "overloaded");
    let three = json!({"messages": [{"role": "user", "content": "Hi"}], "n": 3});
    let reply = chat(&handle, three).await;
    assert_eq!((reply.status, reply.error()["param"].as_str()), (400, Some("n")));
    drop(first);
    drop(held.take());
    assert_eq!(handle.observe().await.unwrap().requests, 0);
}

#[tokio::test]
async fn an_answer_that_breaks_off_never_looks_whole() {
    let ends = [None, Some(Finish::Fault), Some(Finish::Cancelled)];
    for end in ends {
        let handle = open(config(), info(), says(&[&[464, 3181]], end)).await;
        let reply = chat(&handle, body(false)).await;
        assert_eq!((reply.status, reply.header("retry-after")), (503, Some("2")));
        assert_eq!(reply.error()["code"], "generation_interrupted");
        let reply = chat(&handle, body(true)).await;
        assert_eq!(reply.status, 200, "the stream had begun");
        let events = reply.events();
        assert!(events.iter().all(|e| e != "[DONE]"));
        assert!(events[events.len() - 2].contains("The capital"));
        let last: serde_json::Value = serde_json::from_str(events.last().unwrap()).unwrap();
        assert_eq!(last["error"]["code"], "generation_interrupted");
        assert_eq!(last["error"]["type"], "server_error");
    }
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_rows_with_it() {
    for stream in [false, true] {
        let held = Held::new();
        let handle = open(config(), info(), held.keep()).await;
        let body =
            json!({"messages": [{"role": "user", "content": "Hi"}], "n": 2, "stream": stream});
        let body = body.to_string();
        let client = begin(&handle, "POST /v1/chat/completions", JSON, body.as_bytes()).await;
        held.requests(2).await;
        assert!(held.streams().iter().all(|events| !events.is_closed()));
        drop(client);
        for events in held.streams() {
            events.closed().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_says_that_it_is_alive() {
    let held = Held::new();
    let handle = open(config(), info(), held.keep()).await;
    let body = body(true).to_string();
    let mut client = begin(&handle, "POST /v1/chat/completions", JSON, body.as_bytes()).await;
    held.requests(1).await;
    let mut heard = String::new();
    while !heard.contains("\n: keep-alive\n") {
        let mut bytes = [0; 1024];
        let n = client.read(&mut bytes).await.unwrap();
        assert!(n > 0, "the stream goes on: {heard}");
        heard.push_str(std::str::from_utf8(&bytes[..n]).unwrap());
    }
    drop(held.take());
}

#[tokio::test]
async fn draining_lets_what_runs_come_to_its_end() {
    let held = Held::new();
    let handle = open(config(), info(), held.keep()).await;
    let request = body(false).to_string();
    let client = begin(&handle, "POST /v1/chat/completions", JSON, request.as_bytes()).await;
    held.requests(1).await;
    let drained = tokio::spawn({
        let handle = handle.clone();
        async move { handle.drain(LONG).await }
    });
    // Nothing opens the door again.
    while handle.observe().await.unwrap().between.is_none() {}
    handle.serve(served(fresh_bank().await, info()));
    assert!(handle.observe().await.unwrap().between.is_some());
    let admission = held.take().pop().unwrap();
    says(&[&[464]], Some(Finish::Stop))(admission);
    let reply = end(client).await;
    assert_eq!(reply.json()["choices"][0]["message"]["content"], "The");
    assert_eq!(drained.await.unwrap(), 0);
    assert!(tokio::net::TcpStream::connect(handle.address).await.is_err());
    assert!(handle.observe().await.is_none());
    assert_eq!(handle.drain(LONG).await, 0, "a second drain finds nothing to do");
}

#[tokio::test]
async fn draining_does_not_wait_for_ever() {
    let held = Held::new();
    let handle = open(config(), info(), held.keep()).await;
    let request = body(true).to_string();
    let client = begin(&handle, "POST /v1/chat/completions", JSON, request.as_bytes()).await;
    held.requests(1).await;
    assert_eq!(handle.drain(Duration::from_millis(20)).await, 1);
    // The root ends the generation; the client learns that its answer is not whole.
    drop(held.take());
    assert!(end(client).await.events().last().unwrap().contains("generation_interrupted"));
}

#[tokio::test]
async fn idle_connections_do_not_hold_up_the_end() {
    let handle = open(config(), info(), says(&[&[464]], Some(Finish::Stop))).await;
    let silent = tokio::net::TcpStream::connect(handle.address).await.unwrap();
    let mut idle = tokio::net::TcpStream::connect(handle.address).await.unwrap();
    idle.write_all(b"GET /health HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
    let mut first = [0; 12];
    idle.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    let began = std::time::Instant::now();
    assert_eq!(handle.drain(LONG).await, 0);
    assert!(began.elapsed() < LONG / 2);
    drop((silent, idle));
}

#[tokio::test]
async fn what_memory_cannot_hold_is_refused_before_it_waits() {
    // Beside 1 MiB and a state of 4 KiB there are 5 pages of 16 tokens.
    let budget = Budget { bytes: (1 << 20) + (9 << 10), base: 1 << 20, step: 0 };
    let tight = EngineInfo { budget, ..info() };
    let handle = open(config(), tight, says(&[&[464]], Some(Finish::Length))).await;
    for stream in [false, true] {
        let long = json!({"prompt": vec![5; 60], "max_tokens": 30, "stream": stream});
        let reply = complete(&handle, long).await;
        // No retry would help: the same request fits no better later.
        assert_eq!((reply.status, reply.header("retry-after")), (400, None));
        assert_eq!(reply.error()["code"], "context_length_exceeded");
        let message = reply.error()["message"].to_string();
        assert!(message.contains("80") && message.contains("60"), "{message}");
    }
    // Who leaves the length open gets what there is room for.
    assert_eq!(complete(&handle, json!({"prompt": vec![5; 60]})).await.status, 200);
    let all = complete(&handle, json!({"prompt": vec![5; 80]})).await;
    assert_eq!(all.error()["code"], "context_length_exceeded");
    let nothing = Budget { bytes: 1 << 20, ..budget };
    let handle = open(config(), EngineInfo { budget: nothing, ..info() }, says(&[], None)).await;
    let one = complete(&handle, json!({"prompt": vec![5; 1], "max_tokens": 1})).await;
    assert_eq!((one.status, one.error()["code"].as_str()), (503, Some("insufficient_memory")));
}

#[tokio::test]
async fn who_waited_for_memory_in_vain_is_told_what_was_missing() {
    let shortage = Shortage { needed: 7 << 20, left: 2 << 20, budget: 9 << 20 };
    let refuse = move |admission: Admission| {
        admission.events.try_send(RowEvent::Refused(shortage)).unwrap();
    };
    let handle = open(config(), info(), refuse).await;
    let reply = chat(&handle, body(false)).await;
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("2")));
    assert_eq!(reply.error()["code"], "insufficient_memory");
    let events = chat(&handle, body(true)).await.events();
    let last: serde_json::Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "insufficient_memory");
    assert!(last["error"]["message"].as_str().unwrap().contains("needs 7 MiB"), "{last}");
}

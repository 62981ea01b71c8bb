//! Clients who ask again: the later attempt is answered, and the earlier one does not stand beside
//! it.

use std::time::Duration;

use serde_json::json;

use super::harness::*;
use super::team::{bearer, entry, with};
use crate::ingress::Handle;

const CHAT: &str = "POST /v1/chat/completions";
const HELLO: &[u8] = br#"{"messages":[{"role":"user","content":"Hi"}],"max_tokens":9}"#;
const STREAM: &[u8] =
    br#"{"messages":[{"role":"user","content":"Hi"}],"max_tokens":9,"stream":true}"#;

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("in time")
}

/// A door behind which nobody answers, and requests that are kept there.
async fn silent() -> (Handle, Held) {
    let held = Held::new();
    (open(config(), info(), held.keep()).await, held)
}

fn again(count: u32) -> String {
    format!("{JSON}x-stainless-retry-count: {count}\r\n")
}

#[tokio::test]
async fn a_retry_takes_the_place_of_the_attempt_before_it() {
    let (door, held) = silent().await;
    let first = begin(&door, CHAT, &again(0), HELLO).await;
    held.requests(1).await;
    let second = begin(&door, CHAT, &again(1), HELLO).await;
    held.requests(2).await;
    let reply = soon(end(first)).await;
    assert_eq!((reply.status, &reply.error()["code"]), (409, &json!("superseded")));
    assert_eq!(reply.header("x-should-retry"), Some("false"), "or they would chase each other");
    let streams = held.streams();
    soon(streams[0].closed()).await;
    assert!(!streams[1].is_closed(), "one row remains");
    let third = begin(&door, CHAT, &again(2), HELLO).await;
    held.requests(3).await;
    assert_eq!(soon(end(second)).await.status, 409);
    assert!(!held.streams()[2].is_closed());
    drop(third);
}

#[tokio::test]
async fn a_stream_that_is_asked_for_again_ends_with_an_error() {
    let (door, held) = silent().await;
    let first = begin(&door, CHAT, &again(0), STREAM).await;
    held.requests(1).await;
    let _second = begin(&door, CHAT, &again(1), STREAM).await;
    held.requests(2).await;
    let reply = soon(end(first)).await;
    assert!(reply.events().iter().any(|event| event.contains("superseded")), "{reply:?}");
    soon(held.streams()[0].closed()).await;
}

#[tokio::test]
async fn equal_requests_without_a_mark_stand_beside_each_other() {
    let (door, held) = silent().await;
    for (i, headers) in [JSON.to_owned(), JSON.to_owned(), again(0)].iter().enumerate() {
        std::mem::forget(begin(&door, CHAT, headers, HELLO).await);
        held.requests(i + 1).await;
    }
    // Another body is another request, whatever it says of itself.
    let _other = begin(&door, CHAT, &again(1), STREAM).await;
    held.requests(4).await;
    assert!(held.streams().iter().all(|stream| !stream.is_closed()));
}

#[tokio::test]
async fn an_equal_key_is_a_mark_and_nobody_ends_what_is_another_clients() {
    let ((ann, a), (bob, b)) = (entry("ann", 1), entry("bob", 2));
    let held = Held::new();
    let door = open(with(vec![a, b]), info(), held.keep()).await;
    let keyed = |key: &str| format!("{}idempotency-key: 7\r\n", bearer(key));
    let first = begin(&door, CHAT, &keyed(&ann), HELLO).await;
    held.requests(1).await;
    let _bobs = begin(&door, CHAT, &keyed(&bob), HELLO).await;
    held.requests(2).await;
    assert!(!held.streams()[0].is_closed());
    let _second = begin(&door, CHAT, &keyed(&ann), HELLO).await;
    held.requests(3).await;
    assert_eq!(soon(end(first)).await.status, 409);
    assert!(!held.streams()[1].is_closed() && !held.streams()[2].is_closed());
}

#[tokio::test]
async fn a_retry_has_the_place_of_the_attempt_before_it_also_where_there_is_no_other() {
    let (ann, mut a) = entry("ann", 1);
    a.hard.requests = Some(1);
    let held = Held::new();
    let full = crate::ingress::Config { requests_max: 1.try_into().unwrap(), ..with(vec![a]) };
    let door = open(full, info(), held.keep()).await;
    let of = |count: u32| format!("{}x-stainless-retry-count: {count}\r\n", bearer(&ann));
    let first = begin(&door, CHAT, &of(0), HELLO).await;
    held.requests(1).await;
    // Of another: an equal one that was refused would be what is asked for again.
    assert_eq!(exchange(&door, CHAT, &of(0), STREAM).await.status, 429);
    let _second = begin(&door, CHAT, &of(1), HELLO).await;
    assert_eq!(soon(end(first)).await.status, 409);
    // As an engine does that finds a stream closed.
    let gone = held.take().remove(0);
    assert!(gone.events.is_closed());
    drop(gone);
    soon(held.requests(1)).await;
    assert!(!held.streams()[0].is_closed());
}

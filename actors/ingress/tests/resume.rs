//! Answers whose engines are lost: they go on with the next, and nobody can tell by the text.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mtplx_core::batch::RowEvent;
use mtplx_core::request::Usage;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::harness::*;
use crate::admission::{Admission, Door};
use crate::ingress::{Config, Handle};

fn patient() -> Config {
    Config { resume_s: 60, ..config() }
}

/// Plays a request as an undisturbed engine would, and is lost after so many of its events.
fn lost_after(events: usize) -> impl Fn(Admission) + Send + Sync + 'static {
    move |admission: Admission| {
        let told = admission.events.clone();
        let (all, mut heard) = mpsc::channel(10_000);
        scripted_roomy(Admission { events: all, ..admission });
        for _ in 0..events {
            if let Ok(event) = heard.try_recv() {
                let _ = told.try_send(event);
            }
        }
    }
}

/// A door behind which one engine after another is lost after so many events, and the last is not.
async fn losing(events: &[usize]) -> Handle {
    let handle = closed(patient()).await;
    serve_in_turn(&handle, events.to_vec()).await;
    handle
}

/// Serves with the next engine as soon as the last is lost to somebody.
async fn serve_in_turn(handle: &Handle, events: Vec<usize>) {
    let (lost, mut losses) = mpsc::unbounded_channel();
    let losing = |n: usize| {
        let (play, lost) = (lost_after(n), lost.clone());
        move |admission| {
            play(admission);
            let _ = lost.send(());
        }
    };
    let mut rest = events.into_iter();
    match rest.next() {
        Some(n) => drop(serve(handle, roomy(), losing(n)).await),
        None => drop(serve(handle, roomy(), scripted_roomy).await),
    }
    let (handle, rest): (_, Vec<_>) = (handle.clone(), rest.map(losing).collect());
    tokio::spawn(async move {
        for next in rest {
            losses.recv().await;
            handle.between("it is restarting".into());
            serve(&handle, roomy(), next).await;
        }
        losses.recv().await;
        serve(&handle, roomy(), scripted_roomy).await;
    });
}

fn bodies() -> Vec<Value> {
    let ask = |more: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "Who is it?"}],
            "max_tokens": 40, "temperature": 0});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    vec![
        ask(json!({})),
        ask(json!({"temperature": 0.9, "seed": 5})),
        ask(json!({"temperature": 0.9, "seed": 6, "draft_tokens": 0})),
        ask(json!({"temperature": 0.9, "seed": 7, "presence_penalty": 1.5,
            "frequency_penalty": 0.5, "repetition_penalty": 1.3})),
        ask(json!({"seed": 8, "temperature": 1.2, "logprobs": true, "top_logprobs": 3})),
        ask(json!({"seed": 9, "temperature": 0.7, "n": 3, "ignore_eos": true})),
        ask(json!({"seed": 3, "temperature": 1, "max_tokens": 200, "response_format": {
            "type": "json_schema", "json_schema": {"name": "person", "schema": person()}}})),
    ]
}

/// What an answer says, without what only its rows know.
fn said(reply: &Reply) -> Value {
    assert_eq!(reply.status, 200, "{reply:?}");
    let mut answer = reply.json();
    json!({"choices": answer["choices"].take(),
        "tokens": answer["usage"]["completion_tokens"].take()})
}

#[tokio::test]
async fn a_whole_answer_is_the_same_wherever_its_engine_is_lost() {
    for body in bodies() {
        let undisturbed = chat(&losing(&[]).await, body.clone()).await;
        for cuts in [&[0][..], &[1], &[2], &[5], &[9], &[3, 0, 2], &[1, 1, 1]] {
            let reply = chat(&losing(cuts).await, body.clone()).await;
            assert_eq!(said(&reply), said(&undisturbed), "{cuts:?} {body}");
        }
    }
}

#[tokio::test]
async fn a_stream_goes_on_after_a_pause() {
    for mut body in bodies() {
        body["stream"] = true.into();
        let text = |reply: &Reply| -> Vec<String> {
            assert_eq!(reply.events().last().unwrap(), "[DONE]", "{body}");
            let mut texts = vec![String::new(); 3];
            for event in reply.events().iter().filter(|event| *event != "[DONE]") {
                let event: Value = serde_json::from_str(event).unwrap();
                for choice in event["choices"].as_array().unwrap() {
                    let index = choice["index"].as_u64().unwrap() as usize;
                    texts[index] += choice["delta"]["content"].as_str().unwrap_or_default();
                    texts[index] += choice["finish_reason"].as_str().unwrap_or_default();
                }
            }
            texts
        };
        let undisturbed = text(&chat(&losing(&[]).await, body.clone()).await);
        for cuts in [&[0][..], &[4], &[2, 3]] {
            let reply = chat(&losing(cuts).await, body.clone()).await;
            assert_eq!(text(&reply), undisturbed, "{cuts:?}");
        }
    }
}

#[tokio::test]
async fn thinking_that_was_closed_goes_on_too() {
    let body = json!({"messages": [{"role": "user", "content": "Why?"}], "max_tokens": 60,
        "temperature": 0.8, "seed": 11, "max_thinking_tokens": 12,
        "chat_template_kwargs": {"enable_thinking": true}});
    let undisturbed = chat(&losing(&[]).await, body.clone()).await;
    let reasoning = undisturbed.json()["usage"]["completion_tokens_details"].clone();
    assert!(reasoning["reasoning_tokens"].as_u64().is_some_and(|n| n >= 12), "{undisturbed:?}");
    // Its second row is the one after the bound.
    for cuts in [&[2][..], &[100, 1], &[1, 100, 2]] {
        let reply = chat(&losing(cuts).await, body.clone()).await;
        assert_eq!(said(&reply), said(&undisturbed), "{cuts:?}");
    }
}

#[tokio::test]
async fn what_kills_every_engine_is_given_up_and_the_others_are_not() {
    let handle = closed(patient()).await;
    let engines = Arc::new(AtomicUsize::new(0));
    let (lost, mut losses) = mpsc::unbounded_channel();
    let serving = tokio::spawn({
        let (handle, engines) = (handle.clone(), Arc::clone(&engines));
        async move {
            loop {
                let last = engines.fetch_add(1, Ordering::Relaxed) == 4;
                // Whoever is poison takes everybody along who is there. The others make two tokens
                // and wait.
                let (lost, here) = (lost.clone(), Mutex::new(Some(Vec::new())));
                let engine = move |admission: Admission| {
                    let mut lives = here.lock().unwrap();
                    let Some(here) = lives.as_mut() else { return };
                    admission.work.set(true);
                    if admission.request.prompt.contains(&666) {
                        *lives = None;
                        let _ = lost.send(());
                    } else if last {
                        scripted_roomy(admission);
                    } else {
                        let Admission { request, events, .. } = &admission;
                        let tokens = request.prompt.len() as u32;
                        let usage = Usage { prompt: request.prompt.len(), ..Usage::default() };
                        let _ = events.try_send(RowEvent::Tokens(vec![tokens, 5], usage));
                        here.push(admission);
                    }
                };
                serve(&handle, roomy(), engine).await;
                losses.recv().await;
                handle.between("it is restarting".into());
            }
        }
    });
    let ask = |prompt: Vec<u32>| {
        let handle = handle.clone();
        let body = json!({"prompt": prompt, "max_tokens": 30, "temperature": 0});
        tokio::spawn(async move { complete(&handle, body).await })
    };
    let good = ask(vec![5, 6, 7]);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let poison = ask(vec![5, 666, 7]).await.unwrap();
    assert_eq!(poison.status, 503, "{poison:?}");
    assert_eq!(poison.error()["code"], "generation_interrupted");
    let good = good.await.unwrap();
    assert_eq!(good.status, 200, "{good:?}");
    assert_eq!(good.json()["usage"]["completion_tokens"], 30);
    // One more than the poison may take, which is as many as a house bears.
    assert_eq!(engines.load(Ordering::Relaxed), 5);
    // Asked again, it ends no more.
    let again = ask(vec![5, 666, 7]).await.unwrap();
    assert_eq!((again.status, again.error()["param"].as_str()), (400, Some("prompt")));
    assert_eq!(engines.load(Ordering::Relaxed), 5);
    serving.abort();
}

#[tokio::test]
async fn nothing_is_waited_for_that_does_not_come() {
    let handle = closed(patient()).await;
    serve(&handle, roomy(), lost_after(1)).await;
    let body = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20});
    let asked = tokio::spawn({
        let handle = handle.clone();
        async move { chat(&handle, body).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!asked.is_finished(), "it waits");
    handle.over("the engine has failed".into());
    assert_eq!(asked.await.unwrap().error()["code"], "generation_interrupted");
}

//! Two machines behind one door: who ends their engines, and who was merely there.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;

use super::harness::*;
use crate::ingress::{Config, Handle};
use crate::node::tests::town::{POISON, Town};

async fn door() -> Handle {
    closed(Config { resume_s: 600, ..config() }).await
}

fn ask(handle: &Handle, prompt: &[u32]) -> tokio::task::JoinHandle<Reply> {
    let (handle, body) = (handle.clone(), json!({"prompt": prompt, "max_tokens": 30}));
    tokio::spawn(async move { complete(&handle, body).await })
}

/// Waits until so many rows were begun.
async fn begun(town: &Town, rows: usize) {
    while town.begun.load(Ordering::Relaxed) < rows {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_ends_the_engines_of_two_nodes_is_given_up_and_the_others_are_not() {
    let handle = door().await;
    let town = Town::new(handle.clone(), roomy(), &["one", "two"]).await;
    let good: Vec<_> = (0..4).map(|i| ask(&handle, &[5, 6, 7 + i])).collect();
    begun(&town, 4).await;
    let poison = ask(&handle, &[5, POISON, 7]).await.unwrap();
    assert_eq!((poison.status, &poison.error()["code"]), (503, &json!("generation_interrupted")));
    // As many as one text may end, on both together.
    assert_eq!(town.lost.load(Ordering::Relaxed), 4);
    let again = ask(&handle, &[5, POISON, 7]).await.unwrap();
    assert_eq!((again.status, again.error()["param"].as_str()), (400, Some("prompt")));
    assert_eq!(town.lost.load(Ordering::Relaxed), 4);
    town.finish();
    for good in good {
        let good = good.await.unwrap();
        assert_eq!(good.status, 200, "{good:?}");
    }
}

#[tokio::test]
async fn whose_nodes_are_cut_off_again_and_again_is_not_blamed() {
    let handle = door().await;
    let town = Town::new(handle.clone(), roomy(), &["one", "two"]).await;
    let good = ask(&handle, &[5, 6, 7]);
    // More often than a text may end an engine.
    for rows in 1..=6 {
        begun(&town, rows).await;
        town.cut();
    }
    begun(&town, 7).await;
    town.finish();
    let good = good.await.unwrap();
    assert_eq!(good.status, 200, "{good:?}");
    assert_eq!(town.lost.load(Ordering::Relaxed), 0);
}

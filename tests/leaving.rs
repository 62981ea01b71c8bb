//! A client that goes away takes its row along.

use std::time::Duration;

use crate::house::{House, block, question};

#[test]
fn a_client_that_leaves_a_stream_frees_its_row() {
    let house = House::start(&[]);
    let mut body = question("Tell me a short story about a dragon.");
    body["stream"] = true.into();
    body["ignore_eos"] = true.into();
    body["max_tokens"] = 3000.into();
    block(async {
        let post = reqwest::Client::new().post(format!("{}/v1/chat/completions", house.url));
        let mut answer = post.json(&body).send().await.unwrap();
        // Until there is text: the row runs.
        let mut seen = String::new();
        while !seen.contains("\"content\":\"O") && seen.len() < 10_000 {
            seen += &String::from_utf8_lossy(&answer.chunk().await.unwrap().unwrap());
        }
    });
    let left_at = house.metric("mtplx_generated_tokens_total");
    assert!(left_at > 0.0, "it ran");
    house.eventually("empty", |h| h.metric("mtplx_rows_running") == 0.0);
    let after = house.metric("mtplx_generated_tokens_total") - left_at;
    assert!(after < 1000.0, "{after} tokens were generated for nobody");
}

#[test]
fn the_prompt_of_a_client_that_leaves_before_its_first_token_adds_up() {
    let house = House::start(&[]);
    let source = |name: &str| house.metric_of("mtplx_prompt_tokens_total", name);
    let leave_after = |wait: Duration| {
        let words = "Once a dragon went over the sea to a boy. ".repeat(250);
        let body = question(&format!("{} {words}", wait.as_millis()));
        block(async {
            let post = reqwest::Client::new().post(format!("{}/v1/chat/completions", house.url));
            drop(tokio::time::timeout(wait, post.json(&body).send()).await);
        });
        house.eventually("empty", |h| h.metric("mtplx_rows_running") == 0.0);
    };
    // Machines differ: at last one leaves while its prompt is fed.
    let waits = (5..200).map(|n| Duration::from_millis(20 * n));
    waits.take_while(|_| source("unfed") == 0.0).for_each(leave_after);
    assert!(source("unfed") > 0.0, "nobody left in time");
    let seated = house.metric("mtplx_prompt_seated_tokens_total");
    assert_eq!(house.metric("mtplx_prompt_tokens_total"), seated);
    assert_eq!(house.metric("mtplx_prompt_unaccounted_total"), 0.0);
}

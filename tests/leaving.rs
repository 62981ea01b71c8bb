//! A client that goes away takes its row along.

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
        assert!(answer.chunk().await.unwrap().is_some());
    });
    house.eventually("empty", |h| h.metric("mtplx_rows_running") == 0.0);
    let generated = house.metric("mtplx_generated_tokens_total");
    assert!(generated < 3000.0, "{generated} tokens were generated for nobody");
}

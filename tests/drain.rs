//! SIGTERM: nobody new, everybody running to the end, then exit 0.

use std::process::Command;

use crate::house::{House, question};

#[test]
fn sigterm_lets_a_running_request_finish() {
    let mut house = House::start(&[]);
    let mut body = question("Tell me a short story about a dragon.");
    body["ignore_eos"] = true.into();
    body["max_tokens"] = 400.into();
    let pid = house.child.id().to_string();
    let (status, answer) = std::thread::scope(|s| {
        let asking = s.spawn(|| house.post("/v1/chat/completions", &body));
        house.eventually("running", |h| h.metric("mtplx_rows_running") > 0.0);
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        asking.join().unwrap()
    });
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["usage"]["completion_tokens"], 400);
    assert_eq!(house.child.wait().unwrap().code(), Some(0), "{:?}", house.log());
}

//! The page at /dashboard, in a headless Chromium, while the server is at work. Its pictures are
//! written to target/; the one in dashboards/ is one of these.

use std::process::Command;
use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};

use crate::dashboards::mixed;
use crate::house::{House, Over, root};

/// What stands on the page after so many seconds, and whether anything went wrong.
fn seen(house: &House, picture: &str, rest: &[&str]) -> Value {
    let chromium = std::env::var("CHROMIUM").unwrap_or_else(|_| "chromium".into());
    let out = Command::new("node")
        .arg(root().join(".native/judges-js/dashboard.mjs"))
        .args([chromium, format!("{}/dashboard", house.url)])
        .arg(root().join("target").join(picture))
        .args(rest)
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

#[test]
fn the_page_shows_what_is_served_and_keeps_its_own_policy() {
    let chromium = std::env::var_os("CHROMIUM").unwrap_or_else(|| "chromium".into());
    for program in [chromium, "node".into()] {
        if Command::new(&program).arg("--version").output().is_err() {
            println!("NOT JUDGED: there is no {} on this machine", program.display());
            return;
        }
    }
    crate::openai::make("judges-js");
    std::fs::create_dir_all(root().join("target")).unwrap();
    let house = House::start(&[]);
    let over = AtomicBool::new(false);
    let (page, phone) = std::thread::scope(|s| {
        s.spawn(|| mixed(&house, &over));
        let _over = Over(&over);
        let page = seen(&house, "dashboard.png", &["20"]);
        let phone = seen(&house, "dashboard-phone.png", &["8", "390", "800", "dark"]);
        (page, phone)
    });
    for (seen, lines) in [(&page, 12), (&phone, 6)] {
        assert_eq!((&seen["faults"], &seen["wide"]), (&json!([]), &json!(false)), "{seen}");
        assert!(seen["lines"].as_u64().unwrap() >= lines, "{seen}");
        let text = seen["text"].as_str().unwrap();
        for part in ["Serving", "Tokens per second", "Drafts that stand", "anonymous"] {
            assert!(text.contains(part), "{part} is not on the page: {text}");
        }
    }
}

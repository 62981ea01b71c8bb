//! Open WebUI, from PyPI, against the real server: models listed, answers streamed, chats named and
//! followed up, in a headless Chromium. `make openwebui-test` installs what that needs and runs it.

use std::process::Command;

use crate::house::{House, root};

#[test]
#[ignore = "it needs gigabytes from PyPI and a browser: make openwebui-test"]
fn open_webui_shows_answers_as_they_come_and_names_its_chats() {
    let house = House::start(&[]);
    let folder = root().join("target/openwebui-test");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let chromium = std::env::var_os("CHROMIUM").unwrap_or_else(|| "chromium".into());
    let exact = if cfg!(target_os = "linux") { "exact" } else { "near" };
    let out = Command::new(root().join(".native/openwebui/bin/python"))
        .arg(root().join("tests/judges/openwebui/drive.py"))
        .args([house.url.as_ref(), folder.as_os_str(), &chromium, exact.as_ref()])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
    println!("{text}\nscreenshot: {}", folder.join("screenshot.png").display());
    let chats = |code| {
        let label = format!("route=\"/v1/chat/completions\",code=\"{code}\"");
        house.metric_of("mtplx_http_requests_total", &label)
    };
    // Two answers, a title, tags and follow-ups; and two more by which they were checked.
    assert!(chats(200) >= 7.0, "{}", chats(200));
    assert_eq!(chats(400) + chats(422) + chats(500), 0.0, "{:?}", house.log());
}

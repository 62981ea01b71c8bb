//! What is written is the same in every mode: they change how fast, and for how long.

use mtplx::modes::MODES;

use crate::house::{House, question};

#[test]
fn a_text_is_the_same_in_every_mode() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("my.toml");
    // No fans are turned by a test.
    let text = format!("[fans]\nmode = \"auto\"\nfolder = {:?}\n", dir.path());
    std::fs::write(&path, text).unwrap();
    let texts = MODES.map(|(name, _)| {
        let house = House::start(&["--config", path.to_str().unwrap(), "--mode", name]);
        let mut body = question("Tell me about a dragon and its friends.");
        body["max_tokens"] = 60.into();
        let (status, answer) = house.post("/v1/chat/completions", &body);
        assert_eq!(status, 200, "{name}: {answer}");
        answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    });
    assert!(texts.iter().all(|text| *text == texts[0] && !text.is_empty()), "{texts:#?}");
}

//! Several clients with keys on the real binary.

use std::path::Path;

use serde_json::{Value, json};

use crate::house::{House, block, mtplx, question};

/// Says something to `mtplx keys`; what it printed.
fn keys(file: &Path, words: &str) -> String {
    let out = mtplx().arg("keys").arg("--file").arg(file).args(words.split(' ')).output().unwrap();
    assert!(out.status.success(), "{words}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

fn ask(url: &str, key: &str, body: &Value) -> (u16, Value) {
    block(async {
        let post = reqwest::Client::new().post(format!("{url}/v1/chat/completions"));
        let answer = post.bearer_auth(key).json(body).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    })
}

fn text(answer: &Value) -> String {
    answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

fn long(tokens: usize, about: &str) -> Value {
    let mut body = question(&format!("Tell me a long story about {about}."));
    body["max_tokens"] = tokens.into();
    body["ignore_eos"] = true.into();
    body
}

#[test]
fn a_server_is_not_opened_to_others_without_keys() {
    let out = mtplx().args(["serve", "--port", "0", "--host", "0.0.0.0"]).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && said.contains("mtplx keys add"), "{said}");
}

#[test]
fn keys_open_the_door_share_it_and_close_it_again_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys.toml");
    let (heavy, light) = (keys(&file, "add heavy"), keys(&file, "add light"));
    let listed: Value = serde_json::from_str(&keys(&file, "list --json")).unwrap();
    assert_eq!(listed[1]["name"], "light");
    assert!(!listed.to_string().contains(&light), "{listed}");
    let config = dir.path().join("my.toml");
    let text_of = format!("[keys]\nfile = {file:?}\n[engine]\nslots = 2\n[tuner]\nrows_max = 2\n");
    std::fs::write(&config, text_of).unwrap();
    let house = House::start(&["--config", config.to_str().unwrap()]);
    let url = house.url.as_str();
    assert_eq!(ask(url, "mtplx_no", &long(2, "a cat")).0, 401);

    // What each answer is alone; then the heavy client takes all there is, and the light one asks.
    let about = ["a cat", "a dog", "a bird", "a fish"];
    let alone = about.map(|about| text(&ask(url, &heavy, &long(400, about)).1));
    let (together, steps) = std::thread::scope(|scope| {
        let heavy = heavy.as_str();
        let asked = about.map(|about| scope.spawn(move || ask(url, heavy, &long(400, about)).1));
        house.eventually("all seats are taken", |h| h.metric("mtplx_rows_running") >= 2.0);
        let (status, answer) = ask(url, &light, &long(8, "a cow"));
        assert_eq!((status, answer["usage"]["completion_tokens"].as_u64()), (200, Some(8)));
        let steps = house.metric("mtplx_rows_stepped_back_total");
        assert!(asked.iter().any(|asked| !asked.is_finished()), "it came before their end");
        (asked.map(|asked| text(&asked.join().unwrap())), steps)
    });
    assert!(steps >= 1.0, "nobody stepped back");
    assert_eq!(together, alone, "and nobody's text changed");
    let tokens =
        |key: &str| house.metric_of("mtplx_client_tokens_total", &format!("key=\"{key}\""));
    assert!(tokens("heavy") > 8.0 * 400.0 && tokens("light") > 8.0);

    keys(&file, "revoke light");
    house.eventually("the key is gone", |h| ask(&h.url, &light, &long(2, "a cat")).0 == 401);
    assert_eq!(ask(url, &heavy, &long(2, "a cat")).0, 200);
    let page = json!({"model": "x"});
    let stranger = block(async {
        let post = reqwest::Client::new().post(format!("{url}/v1/chat/completions"));
        post.header("origin", "https://evil.example").json(&page).send().await.unwrap().status()
    });
    assert_eq!(stranger.as_u16(), 403);
}

#[test]
fn neither_the_log_nor_the_metrics_hold_what_people_write_or_their_keys() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys.toml");
    let ann = keys(&file, "add ann");
    let config = dir.path().join("my.toml");
    let text_of = format!("[keys]\nfile = {file:?}\n[log]\nfilter = \"debug\"\n");
    std::fs::write(&config, text_of).unwrap();
    let house = House::start(&["--config", config.to_str().unwrap()]);
    let said = "a pomegranate named Wilhelmina";
    assert_eq!(ask(&house.url, &ann, &long(8, said)).0, 200);
    let mut wrong = long(8, said);
    wrong["Wilhelmina's field"] = said.into();
    assert_eq!(ask(&house.url, &ann, &wrong).0, 400);
    assert_eq!(ask(&house.url, "mtplx_pomegranate", &long(8, said)).0, 401);
    let seen = format!("{}{}", house.log().join("\n"), house.get("/metrics").1);
    for secret in ["pomegranate", "Wilhelmina", &ann[6..]] {
        assert!(!seen.contains(secret), "{secret}: {seen}");
    }
}

//! Settings read anew under load: all or none of them, and nobody's answer notices.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::house::{House, Over, block, question};

const ADMIN: &str = "[admin]\ntoken = \"open sesame\"\n";

struct World {
    house: House,
    file: PathBuf,
    _dir: tempfile::TempDir,
}

impl World {
    fn start(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("my.toml");
        std::fs::write(&file, format!("{ADMIN}{text}")).unwrap();
        let house = House::start(&["--config", file.to_str().unwrap()]);
        Self { house, file, _dir: dir }
    }

    /// What comes of these settings.
    fn reload(&self, text: &str) -> (u16, Value) {
        std::fs::write(&self.file, format!("{ADMIN}{text}")).unwrap();
        post(&self.house.url)
    }

    fn hang_up(&self, text: &str) {
        std::fs::write(&self.file, format!("{ADMIN}{text}")).unwrap();
        let pid = self.house.child.id().to_string();
        assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    }

    fn reloads(&self, outcome: &str) -> f64 {
        let label = format!("outcome=\"{outcome}\"");
        self.house.metric_of("mtplx_config_reloads_total", &label)
    }

    fn ask(&self, tokens: usize) -> (u16, Value) {
        self.house.post("/v1/chat/completions", &story(tokens))
    }
}

fn post(url: &str) -> (u16, Value) {
    block(async {
        let post = reqwest::Client::new().post(format!("{url}/admin/reload"));
        let answer = post.bearer_auth("open sesame").send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    })
}

fn story(tokens: usize) -> Value {
    let mut body = question("Tell me a long story about a cat.");
    body["max_tokens"] = tokens.into();
    body["ignore_eos"] = true.into();
    body
}

fn text(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{answer}"))
}

/// What is bad changes nothing, also where part of it is good; and the reason is said.
fn refuses_what_is_bad(world: &World) {
    for (bad, line, named) in [
        ("[server]\nrequests_max = 2\nnew_tokens_max = \"many\"\n", 5, "server.new_tokens_max"),
        ("[server]\nnew_tokens_max = 0\nprot = 9\n", 5, "prot"),
        ("[server]\nnew_tokens_max = 0\n[tuner]\nrows_max = 0\n", 6, "tuner.rows_max"),
        ("[server]\nnew_tokens_max = 0\n[keys]\nfile = \"/none\"\n", 6, "/none"),
        ("[server]\nnew_tokens_max = 0\n[engine]\nslots = 0\n", 6, "engine.slots"),
        ("[server]\nnew_tokens_max = 0\nhost = \"0.0.0.0\"\n", 0, "mtplx keys add"),
        ("[server]\nnew_tokens_max = 0\n[log]\nfilter = \"a=b=c\"\n", 6, "log.filter"),
        ("[server\n", 3, "my.toml"),
    ] {
        let (status, told) = world.reload(bad);
        let message = told["error"]["message"].as_str().unwrap_or_default();
        assert_eq!((status, &told["error"]["type"]), (422, &"invalid_request_error".into()));
        let lined = line == 0 || message.contains(&format!("line {line}"));
        assert!(lined && message.contains(named), "{bad:?}: {message}");
        assert_eq!(world.ask(301).0, 400, "{bad:?} holds in part");
    }
    let refused = world.reloads("refused");
    world.hang_up("[server]\nnew_tokens_max = 0\nrequests_max = 0\n");
    world.house.eventually("refused", |_| world.reloads("refused") == refused + 1.0);
    assert_eq!(world.house.metric("mtplx_permits_max"), 4.0);
    let log = world.house.log();
    let said = |line: &String| line.contains("stay as they were") && line.contains("line 5");
    assert!(log.iter().any(said), "{log:?}");
}

#[test]
fn settings_are_read_anew_under_load_and_nobodys_answer_changes() {
    let world = World::start("[server]\nrequests_max = 8\n");
    let url = world.house.url.as_str();
    let alone = world.ask(300);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut answers = Vec::new();
                    while !over.load(Ordering::Relaxed) {
                        answers.push(world.ask(300));
                    }
                    answers
                })
            })
            .collect();
        let _over = Over(&over);
        world.house.eventually("busy", |h| h.metric("mtplx_rows_running") >= 2.0);

        // What is good holds by the time that the answer is there.
        let (status, told) = world.reload("[server]\nrequests_max = 8\nnew_tokens_max = 300\n");
        assert_eq!(status, 200, "{told}");
        let changed = json!([{"setting": "server.new_tokens_max", "from": "0", "to": "300"}]);
        assert_eq!(told["changed"], changed);
        assert_eq!(world.ask(301).0, 400);
        let tuned = "[tuner]\ndepth_auto = false\ndepth = 1\nrows_max = 2\n[bank]\nidle_s = 60\n\
            [root]\nbackoff_s = 1.0\n[thermal]\ntarget_celsius = 70.0\nwarm_celsius = 80.0\n\
            [log]\nfilter = \"debug\"\n";
        world.hang_up(&format!("[server]\nrequests_max = 4\nnew_tokens_max = 300\n{tuned}"));
        world.house.eventually("read anew", |_| world.reloads("applied") == 2.0);
        world.house.eventually("narrower", |h| h.metric("mtplx_rows_max") == 2.0);
        world.house.eventually("said", |h| h.metric("mtplx_permits_max") == 4.0);

        refuses_what_is_bad(&world);

        // What needs a restart is named until it is as it was.
        let (_, told) = world.reload("[server]\nrequests_max = 8\n[engine]\nslots = 3\n");
        assert_eq!(told["restart_needed"][0]["setting"], "engine.slots");
        let health = || serde_json::from_str::<Value>(&world.house.get("/health").1).unwrap();
        assert_eq!(health()["restart_needed"], json!(["engine.slots"]));
        let (_, told) = world.reload("[server]\nrequests_max = 8\n");
        assert_eq!((told["restart_needed"].clone(), &told["changed"]), (json!([]), &json!([])));
        assert_eq!(health().get("restart_needed"), None);

        // Many at once come one after the other.
        let applied = world.reloads("applied");
        let many: Vec<_> = (0..8).map(|_| scope.spawn(|| post(url))).collect();
        assert!(many.into_iter().all(|one| one.join().unwrap().0 == 200));
        assert_eq!(world.reloads("applied"), applied + 8.0);

        over.store(true, Ordering::Relaxed);
        let answers: Vec<_> = load.into_iter().flat_map(|load| load.join().unwrap()).collect();
        assert!(answers.len() >= 3);
        for (status, answer) in &answers {
            assert_eq!((*status, text(answer)), (200, text(&alone.1)));
        }
    });
    assert_eq!(world.house.metric("mtplx_permits_taken"), 0.0);
    assert!(world.house.metric("mtplx_config_loaded_timestamp_seconds") > 1e9);
}

fn keys(file: &Path, words: &str) -> String {
    let mut mtplx = crate::house::mtplx();
    let out = mtplx.arg("keys").arg("--file").arg(file).args(words.split(' ')).output().unwrap();
    assert!(out.status.success(), "{words}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

#[test]
fn keys_and_the_token_change_with_the_settings() {
    let world = World::start("");
    let file = world.file.with_file_name("keys.toml");
    let ann = keys(&file, "add ann");
    assert_eq!(world.ask(2).0, 200);
    let named = format!("[keys]\nfile = {file:?}\n");
    let (status, told) = world.reload(&named);
    assert_eq!((status, &told["changed"][0]["setting"]), (200, &"keys.file".into()));
    assert_eq!(world.ask(2).0, 401);
    let asks = |key: &str| {
        block(async {
            let post = reqwest::Client::new().post(format!("{}/tokenize", world.house.url));
            let post = post.bearer_auth(key).json(&json!({"prompt": "Hi"}));
            post.send().await.unwrap().status().as_u16()
        })
    };
    assert_eq!(asks(&ann), 200);
    // What is in the file is read with the settings, too, and not only when somebody looks.
    let bob = keys(&file, "add bob");
    let (_, told) = world.reload(&named);
    assert!(told["read_anew"] == json!(["keys.file"]) && told["changed"] == json!([]), "{told}");
    assert_eq!(asks(&bob), 200);
    // A file of settings that is half written keeps nobody's key alive.
    std::fs::write(&world.file, "[server").unwrap();
    keys(&file, "revoke ann");
    world.house.eventually("the key is gone", |_| asks(&ann) == 401);
    std::fs::write(&world.file, "[admin]\ntoken = \"other\"\n").unwrap();
    let (status, told) = post(&world.house.url);
    assert_eq!(status, 200);
    assert!(!told.to_string().contains("sesame") && !told.to_string().contains("other"), "{told}");
    assert_eq!(post(&world.house.url).0, 401, "another token holds now");
}

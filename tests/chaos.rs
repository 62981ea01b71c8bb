//! A whole server whose engine panics again and again while many clients, one of them far too busy
//! and some of them impatient, ask it all at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use mtplx::App;
use mtplx::config::Config;
use mtplx::model::Model;
use mtplx_core::engine::{Engine, EngineInfo, Fault, Outcome, Parcel, Plan, Rows, Stretch};
use mtplx_core::image::{Image, Unfit};
use reqwest::Client;
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// Requests in all.
const REQUESTS: usize = 500;
const CLIENTS: usize = 16;
/// One of them sends so many times what another does, and as many at once as it likes.
const SHARE: usize = 50;
const BUSY: usize = 32;
/// Times that the engine panics.
const PANICS: usize = 20;
/// One request in so many is left alone in the middle.
const LEFT: usize = 10;
/// Different questions.
const QUESTIONS: usize = 40;

/// An engine that panics within its next step when the fuse is lit.
struct Mortal<E> {
    inner: E,
    fuse: Arc<AtomicBool>,
}

impl<E: Engine> Engine for Mortal<E> {
    fn info(&self) -> &EngineInfo {
        self.inner.info()
    }

    fn run(&mut self, plan: &Plan, rows: &Rows) -> Result<Outcome, Fault> {
        let outcome = self.inner.run(plan, rows);
        assert!(!self.fuse.swap(false, Ordering::Relaxed), "the fuse was lit");
        outcome
    }

    fn memory(&self) -> u64 {
        self.inner.memory()
    }

    fn trim(&mut self) {
        self.inner.trim();
    }

    fn export(&mut self, at: Parcel<'_>, image: &mut Image, most: usize) -> Result<bool, Unfit> {
        self.inner.export(at, image, most)
    }

    fn import(&mut self, at: Parcel<'_>, image: &Image, part: Stretch<'_>) -> Result<bool, Unfit> {
        self.inner.import(at, image, part)
    }
}

/// Questions of many kinds, each with one answer only.
fn question(number: usize) -> Value {
    let number = number % QUESTIONS;
    let about = ["a dragon", "the sea", "a clock", "winter", "two foxes"][number % 5];
    let long = "Think of it well, and of all that you know. ".repeat(number % 4 * 8);
    let mut body = json!({
        "messages": [
            {"role": "system", "content": "You are kind and brief."},
            {"role": "user", "content": format!("{long}Tell me about {about}, number {number}.")},
        ],
        "max_tokens": 20 + number * 2,
        "stream": number.is_multiple_of(2),
    });
    match number % 3 {
        0 => body["temperature"] = 0.into(),
        1 => (body["temperature"], body["seed"]) = (0.8.into(), number.into()),
        _ => {
            (body["temperature"], body["seed"]) = (1.0.into(), number.into());
            body["presence_penalty"] = 1.0.into();
        }
    }
    body
}

struct Server {
    url: String,
    client: Client,
    refused: AtomicUsize,
}

impl Server {
    /// Asks until it is answered, and says what was said; `None` where it left in the middle.
    async fn ask(&self, number: usize, leaves: bool) -> Option<String> {
        loop {
            let post = self.client.post(format!("{}/v1/chat/completions", self.url));
            let mut answer = post.json(&question(number)).send().await.unwrap();
            if answer.status() == 503 {
                assert!(answer.headers().contains_key("retry-after"), "{answer:?}");
                self.refused.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
            assert_eq!(answer.status(), 200);
            let mut bytes = Vec::new();
            while let Some(more) = answer.chunk().await.unwrap() {
                bytes.extend(more);
                if leaves {
                    return None;
                }
            }
            return Some(said(&String::from_utf8(bytes).unwrap()));
        }
    }
}

/// The text of an answer, streamed or whole, and how it ended.
fn said(answer: &str) -> String {
    if !answer.contains("data: ") {
        let answer: Value = serde_json::from_str(answer).unwrap();
        let choice = &answer["choices"][0];
        return format!(
            "{}|{}",
            choice["message"]["content"].as_str().unwrap(),
            choice["finish_reason"]
        );
    }
    let (mut text, mut finish) = (String::new(), Value::Null);
    assert!(answer.trim_end().ends_with("data: [DONE]"), "{answer}");
    for event in answer.lines().filter_map(|line| line.strip_prefix("data: ")) {
        let Ok(event) = serde_json::from_str::<Value>(event) else { continue };
        let choice = &event["choices"][0];
        text += choice["delta"]["content"].as_str().unwrap_or_default();
        if !choice["finish_reason"].is_null() {
            finish = choice["finish_reason"].clone();
        }
    }
    format!("{text}|{finish}")
}

/// What each client asks: all of them as much but one.
fn shares() -> Vec<usize> {
    let one = REQUESTS / (CLIENTS - 1 + SHARE);
    let mut shares = vec![one; CLIENTS - 1];
    shares.push(REQUESTS - one * (CLIENTS - 1));
    shares
}

async fn storm(server: &Arc<Server>, texts: &Arc<BTreeMap<usize, String>>, fuse: &Arc<AtomicBool>) {
    let done = Arc::new(AtomicUsize::new(0));
    let mut all = JoinSet::new();
    let mut next = 0;
    for (client, share) in shares().into_iter().enumerate() {
        let at_once = if client == CLIENTS - 1 { BUSY } else { 1 };
        let numbers: Vec<usize> = (next..next + share).collect();
        next += share;
        for part in numbers.chunks(share.div_ceil(at_once)) {
            let (part, server, texts) = (part.to_vec(), Arc::clone(server), Arc::clone(texts));
            let done = Arc::clone(&done);
            all.spawn(async move {
                for number in part {
                    let leaves = number % LEFT == 3;
                    let said = server.ask(number, leaves).await;
                    assert_eq!(said.is_none(), leaves);
                    if let Some(said) = said {
                        assert_eq!(said, texts[&(number % QUESTIONS)], "{number}");
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    }
    let panics = tokio::spawn({
        let fuse = Arc::clone(fuse);
        async move {
            for panic in 1..=PANICS {
                while done.load(Ordering::Relaxed) < panic * REQUESTS / (PANICS + 1) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                fuse.store(true, Ordering::Relaxed);
                while fuse.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
    });
    while let Some(client) = all.join_next().await {
        client.unwrap();
    }
    panics.await.unwrap();
}

#[test]
fn engines_die_and_every_answer_is_what_it_would_have_been() {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let over = |section, key, value: i64| (section, key, toml::Value::Integer(value));
        let mut config = Config::load(None, &[over("server", "port", 0)]).unwrap();
        config.actors.root.failures_max = 2 * PANICS;
        config.actors.root.backoff_s = 0.01;
        config.actors.root.backoff_max_s = 0.02;
        let flights = tempfile::tempdir().unwrap();
        config.flight.path = flights.path().to_owned();
        let files_max = config.flight.files_max;
        let model = Model::open(&config.model).unwrap();
        let metrics = mtplx::telemetry::metrics().unwrap();
        let fuse = Arc::new(AtomicBool::new(false));
        let (opener, lit) = (model.opener(config.engine.clone()), Arc::clone(&fuse));
        let open = move || Ok(Mortal { inner: opener()?, fuse: Arc::clone(&lit) });
        let render = mtplx::telemetry::render(metrics, config.metrics, &model.name);
        let app =
            App::start_on(Arc::new(open), &config, &model, Arc::clone(&render)).await.unwrap();
        let url = format!("http://{}", app.address());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let serving = tokio::spawn(app.run(async { drop(stopped.await) }, || {}));
        let server = Arc::new(Server { url, client: Client::new(), refused: AtomicUsize::new(0) });
        let mut texts = BTreeMap::new();
        for number in 0..QUESTIONS {
            texts.insert(number, server.ask(number, false).await.unwrap());
        }
        storm(&server, &Arc::new(texts), &fuse).await;
        stop.send(()).unwrap();
        serving.await.unwrap().unwrap();
        let figure = |name: &str| -> f64 {
            let text = render();
            let lines = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        assert_eq!(figure("mtplx_integrity_failures_total"), 0.0);
        assert_eq!(figure("mtplx_generations_ended_total"), PANICS as f64);
        assert_eq!((figure("mtplx_rows_running"), figure("mtplx_permits_taken")), (0.0, 0.0));
        // Each panic has its file, of which the last are kept.
        assert_eq!(figure("mtplx_flight_files_total"), PANICS as f64);
        assert_eq!(std::fs::read_dir(flights.path()).unwrap().count(), files_max);
        let resumed = figure("mtplx_requests_resumed_total");
        assert!(resumed > PANICS as f64, "{resumed}");
        println!("{resumed} answers resumed, {:?} times told to come back", server.refused);
    });
}

//! `mtplx pull` against a stand-in hub: the layout that other tools read, downloads that are cut
//! off and taken up, and answers that nobody should believe.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Response, StatusCode};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::house::{mtplx, root};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the hub holds, and what it was asked for.
#[derive(Default)]
struct Shelf {
    listing: Value,
    files: HashMap<String, Bytes>,
    /// The next answers about a file, before it is given in full: a status, or bytes until a cut.
    mishaps: HashMap<String, Vec<Mishap>>,
    /// Path, range and whether a token came along.
    asked: Vec<(String, String, bool)>,
    address: String,
}

#[derive(Clone, Copy)]
enum Mishap {
    Status(u16, &'static str),
    CutAt(usize),
    /// Beyond what was announced.
    Twice,
    WholeFromStart,
}

struct Hub {
    shelf: Arc<Mutex<Shelf>>,
    url: String,
    home: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Hub {
    fn new(files: &[(&str, &[u8])]) -> Self {
        let siblings = files.iter().map(|(name, bytes)| sibling(name, bytes));
        let listing = json!({"sha": COMMIT, "siblings": siblings.collect::<Vec<_>>()});
        let files = files.iter();
        let files = files.map(|(name, bytes)| ((*name).to_owned(), Bytes::copy_from_slice(bytes)));
        let shelf = Shelf { listing, files: files.collect(), ..Shelf::default() };
        let shelf = Arc::new(Mutex::new(shelf));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        shelf.lock().unwrap().address = format!("localhost:{}", address.port());
        let app = axum::Router::new().fallback(answer).with_state(Arc::clone(&shelf));
        runtime.spawn(async move { axum::serve(listener, app).await.unwrap() });
        let home = tempfile::tempdir().unwrap();
        Self { shelf, url: format!("http://{address}"), home, _runtime: runtime }
    }

    /// The small model that is in the binary.
    fn with_model() -> Self {
        let folder = root().join("config/models/tiny-q8");
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let read = |path: PathBuf| {
            (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(path).unwrap())
        };
        let files: Vec<(String, Vec<u8>)> = files.filter(|path| path.is_file()).map(read).collect();
        let files: Vec<(&str, &[u8])> = files.iter().map(|(n, b)| (n.as_str(), &**b)).collect();
        Self::new(&files)
    }

    fn run(&self, args: &[&str]) -> Output {
        mtplx()
            .args(args)
            .env("HF_ENDPOINT", &self.url)
            .env("HF_HOME", self.home.path())
            .env("HF_TOKEN", "hf_secret")
            .env_remove("HF_HUB_CACHE")
            .env_remove("HF_HUB_OFFLINE")
            .output()
            .unwrap()
    }

    /// As if there were any room.
    fn pull(&self, args: &[&str]) -> Output {
        self.run(&[&["pull", "--force-space", "--json"], args].concat())
    }

    fn mishap(&self, file: &str, mishaps: &[Mishap]) {
        self.shelf.lock().unwrap().mishaps.insert(file.into(), mishaps.to_vec());
    }

    fn asked(&self, part: &str) -> Vec<(String, String, bool)> {
        let shelf = self.shelf.lock().unwrap();
        shelf.asked.iter().filter(|(path, ..)| path.contains(part)).cloned().collect()
    }

    fn place(&self) -> PathBuf {
        self.home.path().join("hub/models--team--model")
    }

    fn snapshot(&self, file: &str) -> Vec<u8> {
        std::fs::read(self.place().join("snapshots").join(COMMIT).join(file)).unwrap()
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn sibling(name: &str, bytes: &[u8]) -> Value {
    // Its digest takes the place of git's, which nobody can check here.
    let blob = &hex(bytes)[..40];
    let mut file = json!({"rfilename": name, "size": bytes.len(), "blobId": blob});
    if name.ends_with(".safetensors") {
        file["lfs"] = json!({"sha256": hex(bytes), "size": bytes.len()});
    }
    file
}

async fn answer(State(shelf): State<Arc<Mutex<Shelf>>>, request: Request) -> Response<Body> {
    let mut shelf = shelf.lock().unwrap();
    let path = request.uri().path().to_owned();
    let header = |name| request.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
    let range = header("range").unwrap_or_default();
    shelf.asked.push((path.clone(), range.clone(), header("authorization").is_some()));
    let plain = |status: u16, body: Body| Response::builder().status(status).body(body).unwrap();
    if path.starts_with("/api/models/") {
        if let Some(Mishap::Status(status, code)) = next(&mut shelf, "") {
            let answer = Response::builder().status(status).header("x-error-code", code);
            return answer.body(Body::empty()).unwrap();
        }
        return plain(200, shelf.listing.to_string().into());
    }
    let name = path.rsplit(COMMIT).next().unwrap().trim_start_matches('/').to_owned();
    // Large files lie elsewhere.
    if name.ends_with(".safetensors") && !path.starts_with("/cdn/") {
        let to = format!("http://{}/cdn/{COMMIT}/{name}", shelf.address);
        return Response::builder().status(302).header("location", to).body(Body::empty()).unwrap();
    }
    let Some(bytes) = shelf.files.get(&name).cloned() else { return plain(404, Body::empty()) };
    let from = range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap_or(0);
    give(bytes, from, next(&mut shelf, &name))
}

fn next(shelf: &mut Shelf, name: &str) -> Option<Mishap> {
    shelf.mishaps.get_mut(name).filter(|mishaps| !mishaps.is_empty()).map(|m| m.remove(0))
}

fn give(bytes: Bytes, from: usize, mishap: Option<Mishap>) -> Response<Body> {
    let mut headers = HeaderMap::new();
    let rest = bytes.slice(from..);
    let partial = |headers: &mut HeaderMap| {
        let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
        headers.insert("content-range", range.parse().unwrap());
        if from > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK }
    };
    let (status, body) = match mishap {
        Some(Mishap::Status(status, _)) => (StatusCode::from_u16(status).unwrap(), Body::empty()),
        Some(Mishap::CutAt(at)) => {
            headers.insert("content-length", rest.len().into());
            // What came before is sent while the rest is waited for.
            let cut = async {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                Err(std::io::Error::other("cut"))
            };
            let some = stream::iter([Ok(rest.slice(..at - from))]).chain(stream::once(cut));
            (partial(&mut headers), Body::from_stream(some))
        }
        Some(Mishap::Twice) => (StatusCode::OK, [rest.clone(), rest].concat().into()),
        Some(Mishap::WholeFromStart) => (StatusCode::OK, bytes.clone().into()),
        None => (partial(&mut headers), rest.into()),
    };
    let mut answer = Response::new(body);
    (*answer.status_mut(), *answer.headers_mut()) = (status, headers);
    answer
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

fn told(out: &Output) -> Value {
    assert!(out.status.success(), "{}", said(out));
    serde_json::from_slice(&out.stdout).unwrap()
}

const WEIGHTS: &[u8] = &[7; 300_000];

fn small() -> Hub {
    Hub::new(&[("config.json", b"{}"), ("model.safetensors", WEIGHTS), ("model.gguf", b"no")])
}

#[test]
fn a_model_is_fetched_as_other_tools_expect_it_and_known_by_its_name() {
    let hub = Hub::with_model();
    let report = told(&hub.pull(&["team/model@main"]));
    crate::commands::fits("pull", &report);
    assert_eq!((&report["commit"], &report["missing_bytes"]), (&json!(COMMIT), &json!(0)));
    assert_eq!(std::fs::read_to_string(hub.place().join("refs/main")).unwrap(), COMMIT);
    let link = hub.place().join("snapshots").join(COMMIT).join("model.safetensors");
    let target = std::fs::read_link(&link).unwrap();
    let digest = hex(&std::fs::read(&link).unwrap());
    assert_eq!(target, Path::new("../../blobs").join(digest));
    // The token went to the hub, and not to where it led.
    assert!(hub.asked("/resolve/").iter().all(|(.., token)| *token));
    assert!(hub.asked("/cdn/").iter().all(|(.., token)| !token));
    let plan = told(&hub.run(&["plan", "--model", "team/model", "--context", "512", "--json"]));
    assert!(plan["bytes"]["weights"].as_u64().unwrap() > 1 << 20, "{plan}");
    // Once more: nothing is left to fetch.
    let before = hub.asked("/resolve/").len();
    assert_eq!(told(&hub.pull(&["team/model"]))["fetched_bytes"], 0);
    assert_eq!(hub.asked("/resolve/").len(), before);
}

#[test]
fn what_is_cut_off_goes_on_where_it_ended() {
    let hub = small();
    let cuts = [Mishap::CutAt(1000), Mishap::Status(503, ""), Mishap::CutAt(200_000)];
    hub.mishap("model.safetensors", &cuts);
    told(&hub.pull(&["team/model"]));
    assert_eq!(hub.snapshot("model.safetensors"), WEIGHTS);
    let ranges: Vec<String> = hub.asked("/cdn/").into_iter().map(|(_, range, _)| range).collect();
    assert_eq!(ranges[0], "");
    assert!(ranges.last().unwrap().starts_with("bytes="), "{ranges:?}");
    // Weights for others stay where they are.
    assert!(hub.asked("gguf").is_empty());
}

#[test]
fn a_later_run_goes_on_with_what_an_earlier_one_left_or_begins_anew_where_it_is_spoilt() {
    for (left, mishaps) in [
        (WEIGHTS[..90_000].to_vec(), vec![]),
        (WEIGHTS[..90_000].to_vec(), vec![Mishap::WholeFromStart]),
        (vec![1; 90_000], vec![]),
        (vec![1; 300_001], vec![]),
    ] {
        let hub = small();
        let blobs = hub.place().join("blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(blobs.join(format!("{}.incomplete", hex(WEIGHTS))), &left).unwrap();
        hub.mishap("model.safetensors", &mishaps);
        told(&hub.pull(&["team/model"]));
        assert_eq!(hub.snapshot("model.safetensors"), WEIGHTS);
    }
}

#[test]
fn what_is_not_what_was_announced_is_not_kept() {
    for (mishap, words) in [(None, "sha256"), (Some(Mishap::Twice), "announced")] {
        let hub = small();
        match mishap {
            Some(mishap) => hub.mishap("model.safetensors", &[mishap; 9]),
            None => {
                let other = Bytes::from(vec![8; WEIGHTS.len()]);
                hub.shelf.lock().unwrap().files.insert("model.safetensors".into(), other);
            }
        }
        let out = hub.pull(&["team/model"]);
        assert_eq!(out.status.code(), Some(1), "{}", said(&out));
        assert!(said(&out).contains(words), "{}", said(&out));
        assert!(!hub.place().join("snapshots").exists() && !hub.place().join("refs").exists());
        assert!(!hub.place().join("blobs").join(hex(WEIGHTS)).exists());
    }
}

#[test]
fn who_may_not_have_it_hears_why_and_nobody_there_is_told_apart() {
    for (status, code, exit, words) in [
        (401, "RepoNotFound", 4, "does not know team/model"),
        (403, "GatedRepo", 4, "accept its terms"),
        (403, "", 4, "does not let this token"),
        (404, "RepoNotFound", 1, "does not know"),
        (404, "RevisionNotFound", 1, "no branch, tag or commit \"v9\""),
    ] {
        let hub = small();
        hub.mishap("", &[Mishap::Status(status, code)]);
        let out = hub.pull(&["team/model@v9"]);
        assert_eq!(out.status.code(), Some(exit), "{}", said(&out));
        assert!(said(&out).contains(words) && out.stdout.is_empty(), "{}", said(&out));
        assert!(!said(&out).contains("hf_secret"));
    }
    let out = mtplx().args(["pull", "a/b"]).env("HF_ENDPOINT", "http://127.0.0.1:9").output();
    assert_eq!(out.unwrap().status.code(), Some(5));
}

#[test]
fn a_listing_that_would_leave_the_cache_or_fill_the_disk_is_refused() {
    let blob = "a".repeat(40);
    let of = |name: &str, size: Value| {
        let file = json!({"rfilename": name, "size": size, "blobId": blob});
        let config = json!({"rfilename": "config.json", "size": 2, "blobId": blob});
        json!({"sha": COMMIT, "siblings": [config, file]})
    };
    for (listing, exit, words) in [
        (of("../../../evil.json", json!(1)), 1, "would not stay in its folder"),
        (of("/etc/evil.json", json!(1)), 1, "would not stay in its folder"),
        (of("model.safetensors", Value::Null), 1, "how large"),
        (of("model.safetensors", json!(-1)), 1, "makes no sense"),
        (json!({"sha": "../..", "siblings": []}), 1, "names no commit"),
        (json!({"sha": COMMIT, "siblings": []}), 1, "no config.json"),
        (json!("hello"), 1, "makes no sense"),
    ] {
        let hub = small();
        hub.shelf.lock().unwrap().listing = listing;
        let out = hub.pull(&["team/model"]);
        assert_eq!(out.status.code(), Some(exit), "{}", said(&out));
        assert!(said(&out).contains(words), "{}", said(&out));
        assert!(hub.asked("/resolve/").is_empty() && !hub.place().exists());
    }
    let hub = small();
    let config = json!({"rfilename": "config.json", "size": 2, "blobId": blob});
    let huge = json!({"rfilename": "x.json", "size": 1_u64 << 60, "blobId": "b".repeat(40)});
    hub.shelf.lock().unwrap().listing = json!({"sha": COMMIT, "siblings": [config, huge]});
    let out = hub.run(&["pull", "team/model"]);
    assert_eq!(out.status.code(), Some(3), "{}", said(&out));
    assert!(said(&out).contains("--force-space"), "{}", said(&out));
    assert!(hub.asked("/resolve/").is_empty());
    let plan = told(&hub.run(&["pull", "team/model", "--dry-run", "--json"]));
    assert!(plan["missing_bytes"].as_u64().unwrap() > 1 << 60, "{plan}");
    assert_eq!(hub.run(&["pull", "../etc"]).status.code(), Some(1));
}

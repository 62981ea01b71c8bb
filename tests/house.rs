//! The real binary on a free port, with the embedded model, ended with the test.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The binary under test.
pub fn mtplx() -> Command {
    Command::new(env!("CARGO_BIN_EXE_mtplx"))
}

pub struct House {
    pub url: String,
    pub child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

/// Says that it is over when it is dropped, so that a failed test does not wait for its load.
pub struct Over<'a>(pub &'a std::sync::atomic::AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

impl House {
    /// Starts a server and waits until it serves.
    pub fn start(args: &[&str]) -> Self {
        let house = Self::start_unasked(args);
        house.eventually("ready", |h| h.get("/health").0 == 200);
        house
    }

    /// The same by its own word, where it would not answer everybody.
    pub fn start_unasked(args: &[&str]) -> Self {
        let mut child = mtplx()
            .args(["serve", "--port", "0"])
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let keep = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                keep.lock().unwrap().push(line);
            }
        });
        // The one line on stdout says where it listens.
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let url = line.split_whitespace().find(|w| w.starts_with("http"));
        let url = url.unwrap_or_else(|| panic!("no address in {line:?}: {:?}", log.lock()));
        Self { url: url.to_owned(), child, log }
    }

    /// One server for all tests that leave it as it was; it ends with the last that holds it.
    pub fn shared() -> Arc<Self> {
        static HOUSE: Mutex<Weak<House>> = Mutex::new(Weak::new());
        let mut house = HOUSE.lock().unwrap_or_else(PoisonError::into_inner);
        house.upgrade().unwrap_or_else(|| {
            let new = Arc::new(Self::start(&[]));
            *house = Arc::downgrade(&new);
            new
        })
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        block(async {
            match reqwest::get(format!("{}{path}", self.url)).await {
                Ok(r) => (r.status().as_u16(), r.text().await.unwrap_or_default()),
                Err(e) => (0, e.to_string()),
            }
        })
    }

    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        block(async {
            let post = reqwest::Client::new().post(format!("{}{path}", self.url)).json(body);
            let answer = post.send().await.unwrap();
            let status = answer.status().as_u16();
            (status, answer.json().await.unwrap())
        })
    }

    /// The value of a metric, all its series summed up.
    pub fn metric(&self, name: &str) -> f64 {
        self.metric_of(name, "")
    }

    /// The same of the series whose labels contain `label`.
    pub fn metric_of(&self, name: &str, label: &str) -> f64 {
        let (_, text) = self.get("/metrics");
        let of = |l: &&str| l.split(['{', ' ']).next() == Some(name) && l.contains(label);
        let value = |line: &str| line.rsplit(' ').next().and_then(|v| v.parse::<f64>().ok());
        text.lines().filter(of).filter_map(value).sum()
    }

    /// Waits for something that must come about; fails after a minute.
    pub fn eventually(&self, what: &str, mut fact: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !fact(self) {
            assert!(start.elapsed() < Duration::from_secs(60), "never {what}: {:?}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What it logged.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A chat body with one question.
pub fn question(text: &str) -> Value {
    json!({"messages": [{"role": "user", "content": text}], "temperature": 0})
}

pub fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

//! Several machines, each a process: a gateway without an engine, and nodes that make its rows.
//! They are killed, cut off, drained and refused, and no answer is lost or another than one
//! machine's.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::Client;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::commands::fits;
use crate::house::{House, mtplx, root};

/// Requests of each storm.
const REQUESTS: usize = 40;
const CLIENTS: usize = 8;

/// A folder with all that nodes share.
struct Ground {
    folder: TempDir,
    port: u16,
}

impl Ground {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("secret");
        let made = mtplx().args(["node", "secret"]).arg(&secret).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        Self { folder, port: free_port() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A gateway of these settings; nodes are on their way to it.
    fn gateway(&self, engine: bool) -> House {
        let settings = self.path("gateway.toml");
        let (port, secret) = (self.port, self.path("secret"));
        let text = format!(
            "[admin]\ntoken = \"admin\"\n[root]\ndrain_s = 2.0\n[cluster]\n\
             listen = \"0.0.0.0:{port}\"\nsecret = {secret:?}\nengine = {engine}\n\
             beat_s = 0.2\nsilence_s = 2.0\n"
        );
        std::fs::write(&settings, text).unwrap();
        House::start(&["--config", settings.to_str().unwrap()])
    }

    fn node(&self, name: &str) -> Node {
        Node::start(mtplx(), name, &format!("127.0.0.1:{}", self.port), &self.path("secret"), &[])
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

struct Node {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Node {
    fn start(mut with: Command, name: &str, at: &str, secret: &Path, more: &[&str]) -> Self {
        with.args(["node", "--join", at, "--name", name, "--port", "0", "--secret"]).arg(secret);
        let mut child =
            with.args(more).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (keep, stderr) = (Arc::clone(&log), child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                keep.lock().unwrap().push(line);
            }
        });
        Self { child, log }
    }

    fn said(&self, what: &str) -> bool {
        self.log.lock().unwrap().iter().any(|line| line.contains(what))
    }

    fn terminate(&self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    }

    /// How it ended, all that it said.
    fn ends(&mut self) -> (bool, String) {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "never ended: {:?}", self.log);
            std::thread::sleep(Duration::from_millis(20));
        };
        std::thread::sleep(Duration::from_millis(50));
        (status.success(), self.log.lock().unwrap().join("\n"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn nodes(gateway: &House) -> Vec<Value> {
    let (_, text) = gateway.get("/health");
    let health: Value = serde_json::from_str(&text).unwrap_or_default();
    health["nodes"].as_array().cloned().unwrap_or_default()
}

fn are_ready(gateway: &House, count: usize) {
    gateway.eventually("all nodes are ready", |house| {
        nodes(house).iter().filter(|node| node["state"] == "ready").count() == count
    });
}

/// Questions of many kinds, each with one answer only.
fn question(number: usize) -> Value {
    let about = ["a dragon", "the sea", "a clock", "winter", "two foxes"][number % 5];
    let mut body = json!({
        "messages": [
            {"role": "system", "content": "You are kind and brief."},
            {"role": "user", "content": format!("Tell me about {about}, number {number}.")},
        ],
        "max_tokens": 40 + number * 3,
        "stream": number.is_multiple_of(2),
        "temperature": if number.is_multiple_of(3) { 0.0 } else { 0.8 },
        "seed": number,
    });
    match number % 8 {
        1 => (body["logprobs"], body["top_logprobs"]) = (true.into(), 2.into()),
        3 => {
            body["response_format"] = json!({"type": "json_schema", "json_schema": {
            "name": "it", "schema": {"type": "object", "required": ["name"],
                "properties": {"name": {"type": "string", "maxLength": 40}}}}})
        }
        5 => body["presence_penalty"] = 1.0.into(),
        _ => body["ignore_eos"] = true.into(),
    }
    body
}

/// All that an answer says but for its names and times.
async fn ask(client: &Client, url: &str, body: &Value) -> String {
    let post = client.post(format!("{url}/v1/chat/completions")).json(body);
    let answer = post.send().await.unwrap();
    let (status, text) = (answer.status(), answer.text().await.unwrap());
    assert_eq!(status, 200, "{text}");
    if body["stream"] != true {
        let answer: Value = serde_json::from_str(&text).unwrap();
        return answer["choices"].to_string();
    }
    assert!(text.trim_end().ends_with("data: [DONE]"), "{text}");
    let (mut said, mut finish) = (String::new(), Value::Null);
    for event in text.lines().filter_map(|line| line.strip_prefix("data: ")) {
        let Ok(event) = serde_json::from_str::<Value>(event) else { continue };
        assert!(event.get("error").is_none(), "{event}");
        let choice = &event["choices"][0];
        said += choice["delta"]["content"].as_str().unwrap_or_default();
        said += choice["delta"]["reasoning_content"].as_str().unwrap_or_default();
        if !choice["finish_reason"].is_null() {
            finish = choice["finish_reason"].clone();
        }
    }
    format!("{said}|{finish}")
}

/// The answers to all questions, asked by several at once; `after` hears how many there are.
fn storm(url: &str, mut after: impl FnMut(usize)) -> Vec<String> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (client, next) = (Client::new(), Arc::new(AtomicUsize::new(0)));
        let mut all = JoinSet::new();
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        for _ in 0..CLIENTS {
            let (client, url) = (client.clone(), url.to_owned());
            let (next, tell) = (Arc::clone(&next), tell.clone());
            all.spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= REQUESTS {
                        return;
                    }
                    tell.send((number, ask(&client, &url, &question(number)).await)).unwrap();
                }
            });
        }
        drop(tell);
        let mut answers = vec![String::new(); REQUESTS];
        let mut count = 0;
        while let Some((number, answer)) = told.recv().await {
            answers[number] = answer;
            count += 1;
            after(count);
        }
        while let Some(done) = all.join_next().await {
            done.unwrap();
        }
        answers
    })
}

/// What one machine says, asked once for all tests.
fn alone() -> &'static (Vec<String>, f64) {
    static ALONE: std::sync::OnceLock<(Vec<String>, f64)> = std::sync::OnceLock::new();
    ALONE.get_or_init(|| {
        let house = House::start(&[]);
        (storm(&house.url, |_| {}), talk(&house.url))
    })
}

/// Tokens found warm in conversations of several turns, of all in their prompts.
fn talk(url: &str) -> f64 {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = Client::new();
        let mut all = JoinSet::new();
        for person in 0..4 {
            let (client, url) = (client.clone(), format!("{url}/v1/chat/completions"));
            all.spawn(async move {
                let tale = format!("Person {person} likes stories. ").repeat(12 + person);
                let mut messages = vec![json!({"role": "system", "content": tale})];
                let (mut warm, mut whole) = (0.0, 0.0);
                for turn in 0..5 {
                    let content = format!("Go on with part {turn} of the story of {person}.");
                    messages.push(json!({"role": "user", "content": content}));
                    let body = json!({"messages": messages, "max_tokens": 30, "temperature": 0});
                    let post = client.post(&url).json(&body);
                    let answer: Value = post.send().await.unwrap().json().await.unwrap();
                    let usage = &answer["usage"];
                    whole += usage["prompt_tokens"].as_f64().unwrap();
                    let cached = &usage["prompt_tokens_details"]["cached_tokens"];
                    warm += cached.as_f64().unwrap_or(0.0);
                    messages.push(answer["choices"][0]["message"].clone());
                }
                (warm, whole)
            });
        }
        let parts = all.join_all().await;
        let [warm, whole] = [|p: &(f64, f64)| p.0, |p: &(f64, f64)| p.1]
            .map(|part| parts.iter().map(part).sum::<f64>());
        warm / whole
    })
}

fn equal(answers: &[String]) {
    for (number, (answer, own)) in answers.iter().zip(&alone().0).enumerate() {
        assert_eq!(answer, own, "question {number}");
    }
}

#[test]
fn two_nodes_say_what_one_machine_says_also_where_one_of_them_is_killed() {
    let ground = Ground::new();
    let (mut one, _two) = (ground.node("one"), ground.node("two"));
    let gateway = ground.gateway(false);
    are_ready(&gateway, 2);
    let share = talk(&gateway.url);
    println!("warm: {share:.3} of all tokens, and {:.3} on one machine", alone().1);
    assert!(share >= 0.9 * alone().1, "{share} of {}", alone().1);
    equal(&storm(&gateway.url, |_| {}));
    for name in ["one", "two"] {
        let rtt = |house: &House| house.metric_of("mtplx_node_rtt_seconds", name) > 0.0;
        gateway.eventually("its signs of life are timed", rtt);
    }
    let answers = storm(&gateway.url, |count| {
        if count == REQUESTS / 4 {
            one.child.kill().unwrap();
        }
    });
    equal(&answers);
    let resumed = gateway.metric("mtplx_requests_resumed_total");
    println!("{resumed} answers went on elsewhere");
    assert!(resumed > 0.0);
    are_ready(&gateway, 1);
    gateway.eventually("all places are free", |house| house.metric("mtplx_permits_taken") == 0.0);
    // Another one takes its name, and its place.
    let _three = ground.node("one");
    are_ready(&gateway, 2);
}

#[test]
fn who_is_drained_gets_nothing_more_and_what_it_has_is_not_lost() {
    let ground = Ground::new();
    let (_one, mut two) = (ground.node("one"), ground.node("two"));
    let gateway = ground.gateway(false);
    are_ready(&gateway, 2);
    let node = |words: &[&str]| {
        let mut command = mtplx();
        command.arg("node").args(words).args(["--json", "--url", &gateway.url]);
        command.env("MTPLX_ADMIN_TOKEN", "admin").output().unwrap()
    };
    let told = |words: &[&str]| serde_json::from_slice(&node(words).stdout).unwrap();
    assert!(String::from_utf8_lossy(&node(&["drain", "three"]).stderr).contains("no node"));
    fits("node drain", &told(&["drain", "two"]));
    fits("node resume", &told(&["resume", "two"]));
    let answers = storm(&gateway.url, |count| {
        if count == REQUESTS / 4 {
            assert!(node(&["drain", "one"]).status.success());
        }
    });
    equal(&answers);
    let list = told(&["list"]);
    fits("node list", &list);
    assert!(list.to_string().contains("draining"), "{list}");
    // A third comes, and the second is told to end in the middle of all.
    let _three = ground.node("three");
    are_ready(&gateway, 2);
    let answers = storm(&gateway.url, |count| {
        if count == REQUESTS / 4 {
            two.terminate();
        }
    });
    equal(&answers);
    let (fine, log) = two.ends();
    assert!(fine, "{log}");
}

#[test]
fn who_is_another_is_refused_by_name() {
    let ground = Ground::new();
    let at = format!("127.0.0.1:{}", ground.port);
    let _one = ground.node("one");
    let gateway = ground.gateway(true);
    std::fs::write(ground.path("other"), "0".repeat(64)).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(ground.path("other"), mode).unwrap();
    let mut stranger = Node::start(mtplx(), "stranger", &at, &ground.path("other"), &[]);
    let (fine, log) = stranger.ends();
    assert!(!fine && log.contains("does not hold the same secret"), "{log}");
    gateway.eventually("the stranger is in the log", |house| {
        house.log().iter().any(|line| line.contains("no node of ours"))
    });
    let model = ground.path("model");
    std::fs::create_dir(&model).unwrap();
    for file in std::fs::read_dir(root().join("config/models/tiny-q8")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), model.join(file.file_name())).unwrap();
    }
    let template = model.join("chat_template.jinja");
    let text = std::fs::read_to_string(&template).unwrap();
    std::fs::write(&template, format!("{text} ")).unwrap();
    let more = ["--model", model.to_str().unwrap()];
    let mut other = Node::start(mtplx(), "other", &at, &ground.path("secret"), &more);
    let (fine, log) = other.ends();
    assert!(!fine && log.contains("another"), "{log}");
    are_ready(&gateway, 2);
    // The gateway makes rows itself, too.
    equal(&storm(&gateway.url, |_| {}));
}

/// Carries connections to a gateway, until it is told to carry nothing any more.
struct Cable {
    port: u16,
    cut: Arc<AtomicBool>,
}

impl Cable {
    fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (own, cut) = (listener.local_addr().unwrap().port(), Arc::new(AtomicBool::new(false)));
        let shared = Arc::clone(&cut);
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let cut = Arc::clone(&shared);
                    std::thread::spawn(move || carry(from, to, &cut));
                }
            }
        });
        Self { port: own, cut }
    }
}

/// What comes while it is cut comes late, not never: as with a network.
fn carry(mut from: TcpStream, mut to: TcpStream, cut: &AtomicBool) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(n @ 1..) = from.read(&mut bytes) {
        while cut.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(2));
        if to.write_all(&bytes[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

#[test]
fn who_is_cut_off_is_done_without_and_comes_back() {
    let ground = Ground::new();
    let cable = Cable::to(ground.port);
    let at = format!("127.0.0.1:{}", cable.port);
    let one = Node::start(mtplx(), "one", &at, &ground.path("secret"), &[]);
    let _two = ground.node("two");
    let gateway = ground.gateway(false);
    are_ready(&gateway, 2);
    let answers = storm(&gateway.url, |count| {
        if count == REQUESTS / 4 {
            cable.cut.store(true, Ordering::Relaxed);
        }
    });
    equal(&answers);
    are_ready(&gateway, 1);
    assert!(gateway.log().iter().any(|line| line.contains("a node is silent")));
    gateway.eventually("the node noticed", |_| one.said("its rows end"));
    // What was on its way comes now, and is of no interest to anybody.
    cable.cut.store(false, Ordering::Relaxed);
    are_ready(&gateway, 2);
    equal(&storm(&gateway.url, |_| {}));
}

/// A network of its own for one node, with a wire to this one, where the system lets us have it.
struct Space {
    name: String,
    wire: String,
    gateway: String,
}

impl Space {
    fn new() -> Option<Self> {
        let id = std::process::id() % 60_000;
        let name = format!("mtplx-{id}");
        let (wire, net) = (format!("mtw{id}"), format!("10.213.{}", id % 250));
        let space = Self { name, wire, gateway: format!("{net}.1") };
        let Self { name, wire, gateway } = &space;
        let laid = [
            format!("netns add {name}"),
            format!("link add {wire} type veth peer name inner netns {name}"),
            format!("addr add {gateway}/24 dev {wire}"),
            format!("link set {wire} up"),
            format!("-n {name} addr add {net}.2/24 dev inner"),
            format!("-n {name} link set inner up"),
            format!("-n {name} link set lo up"),
        ]
        .iter()
        .all(|line| run("ip", line));
        // Both ways, where this kernel knows how.
        let late = format!("qdisc add dev {wire} root netem delay 20ms 5ms loss 1%");
        if laid && !run("tc", &late) {
            println!("this kernel delays nothing: cuts only");
        }
        laid.then_some(space)
    }
}

fn run(program: &str, line: &str) -> bool {
    let mut command = Command::new(program);
    command.args(line.split(' ')).stderr(Stdio::null()).stdout(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

impl Drop for Space {
    fn drop(&mut self) {
        run("ip", &format!("link del {}", self.wire));
        run("ip", &format!("netns del {}", self.name));
    }
}

#[test]
fn a_wire_that_is_cut_loses_nothing_either() {
    let Some(space) = Space::new() else {
        println!("no network namespaces here: not tried");
        return;
    };
    let ground = Ground::new();
    let mut inside = Command::new("ip");
    inside.args(["netns", "exec", &space.name, env!("CARGO_BIN_EXE_mtplx")]);
    let at = format!("{}:{}", space.gateway, ground.port);
    let one = Node::start(inside, "one", &at, &ground.path("secret"), &[]);
    let _two = ground.node("two");
    let gateway = ground.gateway(false);
    are_ready(&gateway, 2);
    let answers = storm(&gateway.url, |count| {
        if count == REQUESTS / 4 {
            assert!(run("ip", &format!("link set {} down", space.wire)));
        }
    });
    equal(&answers);
    are_ready(&gateway, 1);
    gateway.eventually("the node noticed", |_| one.said("its rows end"));
    assert!(run("ip", &format!("link set {} up", space.wire)));
    are_ready(&gateway, 2);
}

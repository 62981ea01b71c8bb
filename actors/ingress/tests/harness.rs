//! A door on port 0 with a bank of the tests' own behind it, and a client that speaks HTTP by hand
//! and so sees exactly what is sent.

use std::sync::Arc;

use mtplx_core::Token;
use mtplx_core::batch::{Batch, BatchLimits, Knobs, RowEvent};
use mtplx_core::engine::{Engine, EngineInfo};
use mtplx_core::request::{Finish, Request, Usage};
use mtplx_core::scripted::{Script, Scripted};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

use crate::admission::{Admission, Door, Served, Way};
use crate::bank;
use crate::heart::Heart;
use crate::ingress::keys::Keys;
use crate::ingress::text::tests::{published, shown, tiny};
use crate::ingress::{Config, Handle, Text, UnknownFields, start};

/// What the bank of a test does with each request.
pub(super) type Play = Arc<dyn Fn(Admission) + Send + Sync>;

pub(super) struct FakeBank;

impl Actor for FakeBank {
    type Msg = bank::Message;
    type State = Play;
    type Arguments = Play;

    async fn pre_start(
        &self,
        _: ActorRef<bank::Message>,
        script: Play,
    ) -> Result<Play, ActorProcessingErr> {
        Ok(script)
    }

    async fn handle(
        &self,
        _: ActorRef<bank::Message>,
        message: bank::Message,
        script: &mut Play,
    ) -> Result<(), ActorProcessingErr> {
        if let bank::Message::Open(admission) = message {
            script(admission);
        } else if let bank::Message::Manage(bank::Command::FileMax(port)) = message {
            // Its files are short.
            let _ = port.send(1 << 20);
        }
        Ok(())
    }
}

pub(in crate::ingress) fn config() -> Config {
    Config {
        bind: "127.0.0.1:0".parse().unwrap(),
        model: "tiny".into(),
        tier: "verified".into(),
        requests_max: 8.try_into().unwrap(),
        body_bytes_max: 64 * 1024,
        new_tokens_max: None,
        keep_alive_s: 1.try_into().unwrap(),
        aliases: vec!["claude-*".into(), "alias".into()],
        unknown_fields: UnknownFields::Refuse,
        thinking_tokens_max: None,
        responses_bytes_max: 1 << 20,
        responses_idle_s: 3600,
        resume_s: 0,
        strikes_max: 4,
        tokens_max: None,
        bytes_max: 64 << 20,
        reader_stall_s: 120,
        hosts: vec!["test".into()],
        origins: Vec::new(),
        keys: Keys::default(),
        admin: crate::ingress::Secret::default(),
        nodes: None,
        tls: None,
    }
}

pub(super) fn info() -> EngineInfo {
    EngineInfo {
        vocab: 8192,
        context_tokens_max: 256,
        depth_max: 3,
        ..Scripted::small(Script::default()).info().clone()
    }
}

/// A door nobody serves behind.
pub(super) async fn closed(config: Config) -> Handle {
    closed_with(config, tiny()).await
}

async fn closed_with(config: Config, text: Arc<Text>) -> Handle {
    let render = Arc::new(|| "# metrics".to_owned());
    start(config, text, render).await.unwrap().0
}

/// A door for agents with long prompts, whose model's template is like the published ones.
pub(super) async fn agents_door(script: impl Fn(Admission) + Send + Sync + 'static) -> Handle {
    let config = Config {
        unknown_fields: UnknownFields::Warn,
        requests_max: 64.try_into().unwrap(),
        body_bytes_max: 8 << 20,
        ..config()
    };
    let handle = closed_with(config, published()).await;
    let long = EngineInfo { context_tokens_max: 200_000, pages_max: 20_000, ..info() };
    serve(&handle, long, script).await;
    handle
}

/// A door with this bank behind it.
pub(super) async fn open(
    config: Config,
    info: EngineInfo,
    script: impl Fn(Admission) + Send + Sync + 'static,
) -> Handle {
    let handle = closed(config).await;
    serve(&handle, info, script).await;
    handle
}

/// Puts this bank behind the door.
pub(super) async fn serve(
    handle: &Handle,
    info: EngineInfo,
    script: impl Fn(Admission) + Send + Sync + 'static,
) -> ActorRef<bank::Message> {
    let script: Play = Arc::new(script);
    let (bank, _) = Actor::spawn(None, FakeBank, script).await.unwrap();
    let engine = served(bank.clone(), info);
    handle.serve(engine.clone());
    tokio::spawn(async move {
        loop {
            engine.heart.beat();
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
    });
    // The door hears messages in order: once it answers this, it serves.
    handle.observe().await;
    bank
}

/// An engine as the door knows it.
pub(super) fn served(bank: ActorRef<bank::Message>, info: EngineInfo) -> Served {
    Served { way: Way::One(bank), tuner: None, info: Arc::new(info), heart: Heart::default() }
}

/// Plays each request alone on the scripted engine, drafting three tokens a cycle.
pub(super) fn scripted(admission: Admission) {
    scripted_at(3, admission);
}

/// The same where the tuner says to draft `depth` tokens a cycle.
pub(super) fn scripted_at(depth: u8, admission: Admission) {
    scripted_on(info(), depth, admission);
}

/// The same on an engine like this.
pub(super) fn scripted_on(info: EngineInfo, depth: u8, admission: Admission) {
    let Admission { request, events, permit, .. } = admission;
    let mut engine = Scripted::new(info, Script::default());
    let limits = BatchLimits { snapshots_max: 4, chunk_grain: 64 };
    let mut batch = Batch::new(engine.info().clone(), limits);
    let knobs = Knobs::fixed(depth, 1, (512, 512));
    batch.admit(request, None);
    while batch.is_busy() && !events.is_closed() {
        let plan = batch.plan(knobs);
        let outcome = engine.run(&plan, batch.rows()).unwrap();
        let settled = batch.settle(&plan, outcome);
        for (_, event) in settled.events {
            let _ = events.try_send(event);
        }
        for deposit in settled.deposits {
            batch.release(deposit.snapshot);
        }
    }
    drop(permit);
}

/// The same on one with room for long answers.
pub(super) fn scripted_roomy(admission: Admission) {
    scripted_on(roomy(), 3, admission);
}

/// A bank that says these tokens to everybody, one event for each list, and then ends.
pub(super) fn says(
    lists: &'static [&'static [Token]],
    end: Option<Finish>,
) -> impl Fn(Admission) + Send + Sync {
    move |admission| {
        let Admission { request, events, .. } = admission;
        let prompt = request.prompt.len();
        let mut usage = Usage { prompt, cached: 5, generated: 0, drafted: 4, accepted: 3 };
        for tokens in lists {
            usage.generated += tokens.len();
            let _ = events.try_send(RowEvent::Tokens(tokens.to_vec(), usage));
        }
        if let Some(end) = end {
            let _ = events.try_send(RowEvent::Finished(end, usage));
        }
    }
}

/// A bank that says this text to everybody, as far as there is room, two tokens at a time.
pub(super) fn speaks(text: &str, end: Finish) -> impl Fn(Admission) + Send + Sync + 'static {
    let tokens = tiny().raw(text).unwrap().tokens;
    move |admission| {
        let Admission { request, events, .. } = admission;
        let mut usage = Usage { prompt: request.prompt.len(), cached: 5, ..Usage::default() };
        let room = request.limits.new_tokens_max;
        let end = if tokens.len() > room { Finish::Length } else { end };
        for tokens in tokens[..room.min(tokens.len())].chunks(2) {
            usage.generated += tokens.len();
            let _ = events.try_send(RowEvent::Tokens(tokens.to_vec(), usage));
        }
        let _ = events.try_send(RowEvent::Finished(end, usage));
    }
}

/// Says a text to one request, three tokens at a time, and `thought` before it where the prompt
/// ends within thinking.
pub(super) fn answers(admission: Admission, thought: &str, said: &str) {
    let Admission { request, events, .. } = admission;
    let thinks = shown(&request.prompt).ends_with("<think>\n");
    let thought = if thinks { format!("{thought}\n</think>\n\n") } else { String::new() };
    let tokens = tiny().raw(&format!("{thought}{said}")).unwrap().tokens;
    let mut usage = Usage { prompt: request.prompt.len(), cached: 3, ..Usage::default() };
    for tokens in tokens.chunks(3) {
        usage.generated += tokens.len();
        let _ = events.try_send(RowEvent::Tokens(tokens.to_vec(), usage));
    }
    let _ = events.try_send(RowEvent::Finished(Finish::Stop, usage));
}

/// What clients are answered in tests needs more room than what they ask.
pub(super) fn roomy() -> EngineInfo {
    EngineInfo { context_tokens_max: 4096, ..info() }
}

/// A schema that answers are held to.
pub(super) fn person() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 10},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
        },
        "required": ["name", "age"], "additionalProperties": false,
    })
}

/// A bank that keeps all requests and says nothing.
#[derive(Clone)]
pub(super) struct Held(Arc<watch::Sender<Vec<Admission>>>);

impl Held {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Vec::new())))
    }

    pub(super) fn keep(&self) -> impl Fn(Admission) + Send + Sync + 'static {
        let held = Arc::clone(&self.0);
        move |admission| held.send_modify(|all| all.push(admission))
    }

    /// Waits until there are as many.
    pub(super) async fn requests(&self, count: usize) -> Vec<Request> {
        let mut seen = self.0.subscribe();
        let all = seen.wait_for(|all| all.len() == count).await.unwrap();
        all.iter().map(|admission| admission.request.clone()).collect()
    }

    pub(super) fn streams(&self) -> Vec<mpsc::Sender<RowEvent>> {
        self.0.borrow().iter().map(|admission| admission.events.clone()).collect()
    }

    pub(super) fn take(&self) -> Vec<Admission> {
        self.0.send_replace(Vec::new())
    }
}

/// An answer as it came over the wire.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: String,
}

impl Reply {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v).next()
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    pub(super) fn error(&self) -> Value {
        self.json()["error"].clone()
    }

    /// The data of all events; a test names `[DONE]` itself.
    pub(super) fn events(&self) -> Vec<String> {
        assert_eq!(self.header("content-type"), Some("text/event-stream"), "{self:?}");
        let lines = self.body.lines().filter_map(|line| line.strip_prefix("data: "));
        lines.map(str::to_owned).collect()
    }
}

/// A connection on which a request has been sent.
pub(super) async fn begin(handle: &Handle, line: &str, headers: &str, body: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(handle.address).await.unwrap();
    let head = format!(
        "{line} HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // A server that refuses early may close before all is written.
    let _ = stream.write_all(body).await;
    stream
}

/// Reads until the server closes.
pub(super) async fn end(mut stream: TcpStream) -> Reply {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes).await;
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { dechunked(body) } else { body.to_owned() };
    Reply { status, head: head.to_owned(), body }
}

fn dechunked(mut body: &str) -> String {
    let mut out = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        out.push_str(&rest[..size]);
        body = rest[size..].strip_prefix("\r\n").unwrap();
    }
    out
}

/// Sends and reads.
pub(super) async fn exchange(handle: &Handle, line: &str, headers: &str, body: &[u8]) -> Reply {
    end(begin(handle, line, headers, body).await).await
}

pub(super) async fn get(handle: &Handle, path: &str) -> Reply {
    exchange(handle, &format!("GET {path}"), "", b"").await
}

pub(super) const JSON: &str = "content-type: application/json\r\n";

pub(super) async fn post(handle: &Handle, path: &str, body: &Value) -> Reply {
    exchange(handle, &format!("POST {path}"), JSON, body.to_string().as_bytes()).await
}

pub(super) async fn chat(handle: &Handle, body: Value) -> Reply {
    post(handle, "/v1/chat/completions", &body).await
}

pub(super) async fn complete(handle: &Handle, body: Value) -> Reply {
    post(handle, "/v1/completions", &body).await
}

/// A bank that drops whatever it hears.
pub(super) async fn fresh_bank() -> ActorRef<bank::Message> {
    Actor::spawn(None, FakeBank, Arc::new(drop) as Play).await.unwrap().0
}

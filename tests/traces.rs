//! Traces, as a collector gets them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;

use crate::house::{House, block, question};

/// A stand-in for a collector: it keeps what is sent to it.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Vec<u8>>>>);

impl Collector {
    fn start() -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        let collector = Self::default();
        let own = collector.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let own = own.clone();
                std::thread::spawn(move || own.hear(stream));
            }
        });
        (collector, url)
    }

    /// One connection's requests.
    fn hear(&self, stream: TcpStream) -> Option<()> {
        let mut answers = stream.try_clone().ok()?;
        let mut reader = BufReader::new(stream);
        loop {
            let mut length = 0;
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).ok()? == 0 {
                    return None;
                }
                let line = line.trim().to_ascii_lowercase();
                if let Some(value) = line.strip_prefix("content-length:") {
                    length = value.trim().parse().ok()?;
                }
                if line.is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).ok()?;
            self.0.lock().unwrap().push(body);
            answers.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()?;
        }
    }

    fn spans(&self) -> Vec<Span> {
        let bodies = self.0.lock().unwrap();
        let read = |body: &Vec<u8>| ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
        let resources = bodies.iter().map(read).flat_map(|request| request.resource_spans);
        resources.flat_map(|r| r.scope_spans).flat_map(|scope| scope.spans).collect()
    }
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn a_request_is_told_to_a_collector_in_the_clients_trace_without_its_text() {
    let (collector, url) = Collector::start();
    let folder = tempfile::tempdir().unwrap();
    let settings = folder.path().join("my.toml");
    std::fs::write(&settings, format!("[traces]\nendpoint = {url:?}\n")).unwrap();
    let house = House::start(&["--config", &settings.display().to_string()]);
    let mut body = question("Tell me a story about a xylophone.");
    body["max_tokens"] = 24.into();
    body["ignore_eos"] = true.into();
    let post = |flags: &str, id: &str| {
        block(async {
            let url = format!("{}/v1/chat/completions", house.url);
            let post = reqwest::Client::new().post(url).json(&body);
            let post = post.header("traceparent", format!("00-{TRACE}-{PARENT}-{flags}"));
            let answer = post.header("x-request-id", id).send().await.unwrap();
            let told = |name| answer.headers()[name].to_str().unwrap().to_owned();
            let headers = (told("traceparent"), told("x-request-id"));
            answer.text().await.unwrap();
            headers
        })
    };
    // Who is not to be traced is not, and still told by which names.
    post("00", "quiet");
    let (traceparent, id) = post("01", "loud");
    assert_eq!(id, "loud");
    assert!(traceparent.starts_with(&format!("00-{TRACE}-")) && traceparent.ends_with("-01"));
    let name = "POST /v1/chat/completions";
    house.eventually("traced", |_| collector.spans().iter().any(|span| span.name == name));
    let spans: Vec<Span> =
        collector.spans().into_iter().filter(|span| hex(&span.trace_id) == TRACE).collect();
    let by_name: BTreeMap<&str, &Span> = spans.iter().map(|s| (s.name.as_str(), s)).collect();
    let names: Vec<&str> = by_name.keys().copied().collect();
    let parts = ["bank", "chunk", "decode", "prefill", "queue", "stream", "tokenise"];
    assert_eq!(names, [&[name][..], &parts[..]].concat());
    assert_eq!(spans.iter().filter(|span| span.name == name).count(), 1, "one was not traced");
    let request = by_name[name];
    assert_eq!(hex(&request.parent_span_id), PARENT);
    assert_eq!(request.kind(), SpanKind::Server);
    assert_eq!(traceparent.split('-').nth(2).unwrap(), hex(&request.span_id));
    for part in parts {
        let parent = if part == "chunk" { by_name["prefill"] } else { request };
        assert_eq!(by_name[part].parent_span_id, parent.span_id, "{part}");
        assert!(by_name[part].end_time_unix_nano >= by_name[part].start_time_unix_nano);
    }
    let said = |span: &Span, key: &str| {
        let found = span.attributes.iter().find(|a| a.key == key);
        found.map(|a| format!("{:?}", a.value)).unwrap_or_default()
    };
    assert!(said(request, "http.response.status_code").contains("200"));
    assert!(said(by_name["decode"], "tokens").contains("24"), "{:?}", by_name["decode"]);
    let sent = collector.0.lock().unwrap().concat();
    assert!(!String::from_utf8_lossy(&sent).contains("xylophone"));
}

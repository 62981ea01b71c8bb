//! The chat page at /, in a headless Chromium, on the real binary: used by a person, attacked by
//! what a model writes, encrypted and behind a key. Its pictures are written to target/ui-test;
//! those in actors/ingress/ui/pictures are some of these.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::house::{House, mtplx, root};
use crate::openai::{judges, make};

/// A browser, and node for npm, which brings axe-core; or nothing, with a word.
fn chromium() -> Option<String> {
    let chromium = std::env::var("CHROMIUM").unwrap_or_else(|_| "chromium".into());
    for program in [chromium.as_str(), "node"] {
        if Command::new(program).arg("--version").output().is_err() {
            println!("NOT JUDGED: there is no {program} on this machine");
            return None;
        }
    }
    let found = Command::new("sh").args(["-c", "command -v \"$0\"", &chromium]).output().unwrap();
    Some(String::from_utf8(found.stdout).unwrap().trim().to_owned())
}

/// Has a person go through it.
fn driven(asked: &Value) {
    let out = Command::new(judges())
        .arg(root().join("tests/judges/ui/drive.py"))
        .arg(asked.to_string())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
    println!("{text}");
}

/// Bytes a second of an answer on its way to the browser: dozens of tokens.
const BYTES_PER_S: u32 = 20_000;

/// A way to the server on which answers come so slowly, as a large model's do, that whoever wants
/// to stop one always can. Everything else passes at once. Its address.
pub fn slow_way(server: &str, bytes_per_s: u32) -> String {
    let server = server.trim_start_matches("http://").to_owned();
    let door = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", door.local_addr().unwrap());
    std::thread::spawn(move || {
        for browser in door.incoming().flatten() {
            // A server that is gone: so is its way.
            let Ok(server) = TcpStream::connect(&server) else { continue };
            let [from, to] = [&browser, &server].map(|end| end.try_clone().unwrap());
            std::thread::spawn(move || carry(from, to, |_| None));
            let mut answer = Answer::default();
            let pace = move |part: &[u8]| answer.streams(part).then_some(bytes_per_s);
            std::thread::spawn(move || carry(server, browser, pace));
        }
    });
    url
}

/// Where a connection's answers are, however reads split them: what came last is kept.
#[derive(Default)]
struct Answer {
    streams: bool,
    last: Vec<u8>,
}

impl Answer {
    /// Longer than what is looked for.
    const KEPT: usize = 64;

    /// Whether `part` belongs to a stream of events. One begins with its head, as nobody asks
    /// before the last answer ended, and ends with an empty chunk.
    fn streams(&mut self, part: &[u8]) -> bool {
        const HEAD: &[u8] = b"content-type: text/event-stream";
        self.last.extend(part);
        self.streams |= self.last.windows(HEAD.len()).any(|seen| seen == HEAD);
        let streams = self.streams;
        if self.last.ends_with(b"\r\n0\r\n\r\n") {
            *self = Self::default();
        }
        self.last.drain(..self.last.len().saturating_sub(Self::KEPT));
        streams
    }
}

/// Carries what comes, until one end closes; then both do. `pace` says how fast a part may go.
fn carry(mut from: TcpStream, mut to: TcpStream, mut pace: impl FnMut(&[u8]) -> Option<u32>) {
    let mut bytes = [0; 4096];
    'open: while let Ok(count @ 1..) = from.read(&mut bytes) {
        let pace = pace(&bytes[..count]);
        for part in bytes[..count].chunks(256) {
            if to.write_all(part).is_err() {
                break 'open;
            }
            if let Some(bytes_per_s) = pace {
                std::thread::sleep(Duration::from_secs(part.len() as u64) / bytes_per_s);
            }
        }
    }
    // They may be closed already.
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

#[test]
fn a_person_chats_in_a_browser_and_nothing_that_is_written_runs() {
    let Some(chromium) = chromium() else { return };
    make("judges-js");
    let folder = root().join("target/ui-test");
    std::fs::create_dir_all(&folder).unwrap();
    let house = House::start(&[]);
    let axe = root().join(".native/judges-js/node_modules/axe-core/axe.min.js");
    let url = slow_way(&house.url, BYTES_PER_S);
    driven(&json!({"url": url, "folder": folder, "chromium": chromium, "axe": axe,
        "pid": house.child.id()}));
}

/// A server with a certificate of its own and one key.
fn guarded(dir: &Path) -> (House, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let [cert, key, keys, config] =
        ["cert.pem", "key.pem", "keys.toml", "my.toml"].map(|name| dir.join(name));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let added = mtplx().args(["keys", "--file"]).arg(&keys).args(["add", "ann"]).output().unwrap();
    let ann = String::from_utf8(added.stdout).unwrap().trim().to_owned();
    let text = format!("[tls]\ncert = {cert:?}\nkey = {key:?}\n[keys]\nfile = {keys:?}\n");
    std::fs::write(&config, text).unwrap();
    (House::start_unasked(&["--config", config.to_str().unwrap()]), ann)
}

#[test]
fn an_encrypted_page_asks_for_the_key_and_keeps_it_with_the_tab_alone() {
    let Some(chromium) = chromium() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (house, key) = guarded(dir.path());
    let url = house.url.replace("127.0.0.1", "localhost");
    driven(&json!({"url": url, "folder": dir.path(), "chromium": chromium, "axe": "", "key": key}));
}

#[test]
fn a_browser_keeps_the_page_as_long_as_it_is_the_same() {
    let house = House::shared();
    let ask = |path: &str, tag: &str| {
        crate::house::block(async {
            let url = format!("{}{path}", house.url);
            let asked = reqwest::Client::new().get(url).header("if-none-match", tag);
            let answer = asked.send().await.unwrap();
            let headers = answer.headers().clone();
            (answer.status().as_u16(), headers, answer.text().await.unwrap())
        })
    };
    let mut bytes = 0;
    for path in ["/", "/ui/app.js", "/ui/turns.js", "/ui/style.css", "/ui/icon.svg"] {
        let (status, headers, body) = ask(path, "\"other\"");
        assert_eq!(status, 200, "{path}");
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert!(policy.contains("default-src 'none'") && policy.contains("trusted-types 'none'"));
        for html in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!body.contains(html), "{path}: {html}");
        }
        bytes += body.len();
        let (status, _, body) = ask(path, headers["etag"].to_str().unwrap());
        assert_eq!((status, body.as_str()), (304, ""), "{path}");
    }
    assert!(bytes > 10_000, "{bytes}");
    assert_eq!(ask("/ui/none.js", "").0, 404);
}

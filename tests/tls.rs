//! TLS on the real binary: who it answers, who it does not, and certificates that change.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::house::{House, mtplx};

const TOKEN: &str = "authorization: Bearer open sesame\r\n";

/// A certificate of its own for localhost, written to both files; what clients are to trust.
fn issue(dir: &Path) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(dir.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    made.cert.der().clone()
}

/// What a client that trusts only this is answered.
fn ask(address: &str, root: &CertificateDer<'static>, head: &str) -> io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(connection, TcpStream::connect(address)?);
    let head = format!("{head} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{TOKEN}\r\n");
    stream.write_all(head.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn start(dir: &Path) -> (House, String) {
    let config = dir.join("my.toml");
    let file = |name: &str| format!("{:?}", dir.join(name));
    let (cert, key) = (file("cert.pem"), file("key.pem"));
    let text = format!("[tls]\ncert = {cert}\nkey = {key}\n[admin]\ntoken = \"open sesame\"\n");
    std::fs::write(&config, text).unwrap();
    let house = House::start_unasked(&["--config", config.to_str().unwrap()]);
    let address = house.url.strip_prefix("https://").unwrap().to_owned();
    (house, address)
}

#[test]
fn who_speaks_tls_is_answered_and_nobody_else_holds_them_up() {
    let dir = tempfile::tempdir().unwrap();
    let root = issue(dir.path());
    let (_house, address) = start(dir.path());
    assert!(ask(&address, &root, "GET /health").unwrap().starts_with("HTTP/1.1 200"));

    // Plain HTTP is told so in its own words; who trusts somebody else turns away.
    let mut plain = TcpStream::connect(&address).unwrap();
    plain.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    plain.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400") && answer.ends_with("https://..."), "{answer}");
    let elsewhere = tempfile::tempdir().unwrap();
    let stranger = issue(elsewhere.path());
    assert!(ask(&address, &stranger, "GET /health").is_err());

    // Those who say nothing, begin and stop, or talk nonsense cost others nothing, and are let go.
    let said: [&[u8]; 3] = [b"", b"\x16\x03\x01\x02\x00\x01", b"\x16\x03\x01\x00\x05nonsense"];
    let mut slow = Vec::new();
    for i in 0..60 {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.write_all(said[i % 3]).unwrap();
        slow.push(stream);
    }
    let began = Instant::now();
    assert!(ask(&address, &root, "GET /livez").unwrap().starts_with("HTTP/1.1 200"));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    for mut stream in slow {
        stream.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
        // A close or a reset, after an alert or nothing; a time-out would be an error of its own.
        match stream.read_to_end(&mut Vec::new()) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
    }
}

#[test]
fn a_new_certificate_is_taken_and_a_bad_pair_is_refused_while_the_old_one_holds() {
    let dir = tempfile::tempdir().unwrap();
    let first = issue(dir.path());
    let (house, address) = start(dir.path());
    let reload = |root| ask(&address, root, "POST /admin/reload").unwrap();

    let key = std::fs::read(dir.path().join("key.pem")).unwrap();
    let second = issue(dir.path());
    let pair = std::fs::read(dir.path().join("key.pem")).unwrap();
    std::fs::write(dir.path().join("key.pem"), key).unwrap();
    let answer = reload(&first);
    assert!(answer.starts_with("HTTP/1.1 422") && answer.contains("cert.pem"), "{answer}");
    assert!(ask(&address, &first, "GET /livez").unwrap().starts_with("HTTP/1.1 200"));
    std::fs::write(dir.path().join("key.pem"), "no key").unwrap();
    let answer = reload(&first);
    assert!(answer.starts_with("HTTP/1.1 422") && answer.contains("key.pem"), "{answer}");

    std::fs::write(dir.path().join("key.pem"), pair).unwrap();
    let pid = house.child.id().to_string();
    assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    house.eventually("the new one", |_| ask(&address, &second, "GET /livez").is_ok());
    assert!(ask(&address, &first, "GET /livez").is_err());
    let answer = reload(&second);
    assert!(answer.contains("\"read_anew\":[]"), "nothing is new any more: {answer}");
}

#[test]
fn admin_commands_speak_tls_and_trust_whom_they_are_told_to() {
    let dir = tempfile::tempdir().unwrap();
    issue(dir.path());
    let (_house, address) = start(dir.path());
    let port = address.rsplit(':').next().unwrap();
    let bank = |scheme: &str, token: &str, more: &[&Path]| {
        let mut command = mtplx();
        command.args(["bank", "--json", "--url", &format!("{scheme}://localhost:{port}")]);
        command.args(more).env("MTPLX_ADMIN_TOKEN", token).output().unwrap()
    };
    let trusts = |name: &str| [Path::new("--ca").to_owned(), dir.path().join(name)];
    let with = |name: &str, token: &str| {
        let more = trusts(name);
        bank("https", token, &[&more[0], &more[1]])
    };
    let listed = with("cert.pem", "open sesame");
    let told = String::from_utf8_lossy(&listed.stderr).into_owned();
    let listing: serde_json::Value = serde_json::from_slice(&listed.stdout).expect(&told);
    assert!(listing["states"].is_array(), "{listing}");

    // (what was given, exit code, words that say what was wrong)
    let cases = [
        (with("cert.pem", "open poppy"), 4, "token"),
        (with("key.pem", "open sesame"), 1, "holds no certificate"),
        (with("none.pem", "open sesame"), 1, "none.pem"),
        (bank("https", "open sesame", &[]), 5, "certificate"),
        (bank("http", "open sesame", &[]), 1, "https"),
    ];
    for (out, code, words) in cases {
        let told = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(code), "{told}");
        assert!(told.contains(words), "{words}: {told}");
    }
}

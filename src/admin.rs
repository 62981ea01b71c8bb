//! A running server, as commands ask its admin routes: in plain HTTP, or by TLS.

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use ureq::http::{Method, Request, Response, StatusCode};
use ureq::tls::{Certificate, PemItem, RootCerts, parse_pem};
use ureq::{Agent, Body};

use crate::config::ADMIN_TOKEN;
use crate::exit::Stop;
use crate::server::URL;
use crate::tls;

/// Until somebody answers at all.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// Until it begins to answer: a state that is imported is written first.
const ANSWER_TIME: Duration = Duration::from_secs(120);

/// Bytes of what a server says of itself, or of why it refuses.
const WORDS_MAX: u64 = 64 << 20;

/// Letters of what it says otherwise.
const LINE_MAX: usize = 200;

/// Which server.
#[derive(Args, Clone, Debug)]
pub struct Admin {
    /// The server; https:// where it has a certificate.
    #[arg(long, default_value = URL, global = true)]
    url: String,
    /// Certificates in PEM to trust instead of the system's, as of a server that signs its own.
    #[arg(long, value_name = "FILE", global = true)]
    ca: Option<PathBuf>,
}

impl Admin {
    /// Asks with the token that the environment holds; `path` begins with a slash.
    ///
    /// # Errors
    /// When there is no token, no server, or it refuses.
    pub fn ask(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Response<Body>> {
        let token = std::env::var(ADMIN_TOKEN)
            .map_err(|_| Stop::Denied(format!("set {ADMIN_TOKEN} to the server's admin token")))?;
        let url = self.url.trim_end_matches('/');
        let whole = format!("{url}{path}");
        let request = Request::builder().method(method.clone()).uri(whole);
        let request = request.header("authorization", format!("Bearer {token}"));
        let agent = self.agent()?;
        // Only some methods have a body.
        let answer = match method {
            Method::PUT | Method::POST => agent.run(request.body(body)?),
            _ => agent.run(request.body(())?),
        };
        let answer = answer.map_err(|error| nobody(url, &error))?;
        if answer.status().is_success() { Ok(answer) } else { Err(refusal(answer)) }
    }

    /// The same, of what is answered as JSON.
    ///
    /// # Errors
    /// As [`Self::ask`], and when it is none.
    pub fn json(&self, method: Method, path: &str) -> Result<serde_json::Value> {
        let mut answer = self.ask(method, path, Vec::new())?;
        let body = answer.body_mut().with_config().limit(WORDS_MAX);
        body.read_json().with_context(|| format!("whoever answers at {} is no mtplx", self.url))
    }

    fn agent(&self) -> Result<Agent> {
        let agent = Agent::config_builder()
            .tls_config(tls::trusting(self.roots()?))
            .http_status_as_error(false)
            // The token is for this server alone.
            .max_redirects(0)
            .proxy(None)
            .timeout_connect(Some(CONNECT_TIME))
            .timeout_recv_response(Some(ANSWER_TIME))
            .build();
        Ok(agent.into())
    }

    fn roots(&self) -> Result<RootCerts> {
        let Some(file) = &self.ca else { return Ok(RootCerts::PlatformVerifier) };
        ensure!(self.url.starts_with("https://"), "--ca is for https://, which --url is not");
        let pem = std::fs::read(file).with_context(|| format!("--ca {}", file.display()))?;
        let found: Result<Vec<Certificate<'static>>> = parse_pem(&pem)
            .filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(Ok(certificate)),
                Ok(_) => None,
                Err(error) => Some(Err(error.into())),
            })
            .collect();
        let found = found.with_context(|| format!("--ca {} is no PEM", file.display()))?;
        ensure!(!found.is_empty(), "--ca {} holds no certificate", file.display());
        Ok(RootCerts::Specific(Arc::new(found)))
    }
}

/// What to say of a server that cannot be asked.
fn nobody(url: &str, error: &ureq::Error) -> Stop {
    let refused = |e: &io::Error| e.kind() == ErrorKind::ConnectionRefused;
    let why = if matches!(error, ureq::Error::Io(error) if refused(error)) {
        "; start one: mtplx serve".to_owned()
    } else {
        format!(": {error}")
    };
    Stop::Nobody(format!("no server at {url}{why}"))
}

/// What a server that refuses says.
fn refusal(mut answer: Response<Body>) -> anyhow::Error {
    let status = answer.status();
    let body = answer.body_mut().with_config().limit(WORDS_MAX);
    let body = body.read_to_string().unwrap_or_default();
    let json: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
    let told = json["error"]["message"].as_str().map(str::to_owned);
    // Who is asked in plain HTTP for TLS says so in words of its own.
    let line = body.lines().next().filter(|_| json.is_null()).unwrap_or_default();
    let line: String = line.chars().filter(|c| !c.is_control()).take(LINE_MAX).collect();
    match (status, told) {
        (StatusCode::NOT_FOUND, Some(told)) if told.contains("/admin") => {
            anyhow!("the server has no admin routes: it was started without admin.token")
        }
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, Some(told)) => Stop::Denied(told).into(),
        (_, Some(told)) => anyhow!(told),
        (_, None) if line.is_empty() => anyhow!("the server answered {status}"),
        (_, None) => anyhow!("the server answered {status}: {line}"),
    }
}

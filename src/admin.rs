//! The routes of whoever keeps a server, asked from the command line.

use anyhow::{Result, bail};
use reqwest::{Method, Response, StatusCode};
use serde_json::Value;

use crate::config::ADMIN_TOKEN;
use crate::exit::Stop;

/// One part of these routes.
pub(crate) struct Admin {
    url: String,
    token: String,
}

impl Admin {
    /// Of the server at `url`, with the token that the environment holds.
    pub(crate) fn of(url: &str, part: &str) -> Result<Self> {
        let Ok(token) = std::env::var(ADMIN_TOKEN) else {
            let said = format!("no token: set {ADMIN_TOKEN} to the server's admin.token");
            return Err(Stop::Denied(said).into());
        };
        Ok(Self { url: format!("{}/admin/{part}", url.trim_end_matches('/')), token })
    }

    /// What the server answers, if it does what it is asked.
    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Response> {
        let request = reqwest::Client::builder().no_proxy().build()?;
        let request = request.request(method, format!("{}{path}", self.url));
        let request = request.bearer_auth(&self.token).body(body.unwrap_or_default());
        let nobody = |_| {
            let said = format!("no server at {}", self.url);
            Stop::Nobody(format!("{said}; start one: mtplx serve, or name yours with --url"))
        };
        let answer = request.send().await.map_err(nobody)?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let body: Value = answer.json().await.unwrap_or_default();
        match (status, body["error"]["message"].as_str()) {
            (StatusCode::NOT_FOUND, Some(message)) if message.contains("/admin") => {
                bail!("the server has no admin routes: it was started without admin.token")
            }
            (StatusCode::UNAUTHORIZED, Some(message)) => {
                Err(Stop::Denied(format!("{message}; set {ADMIN_TOKEN} to it")).into())
            }
            (_, Some(message)) => bail!("{message}"),
            (_, None) => bail!("the server answered {status}"),
        }
    }
}

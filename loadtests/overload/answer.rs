//! What became of one request.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::time::Instant;

use crate::client::Client;

/// Longest time that anybody may be told to wait before another attempt.
const RETRY_MAX_S: u32 = 120;

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// With an answer of so many tokens.
    Served(usize),
    /// With this status, and after how many seconds to come again.
    Refused(u16, u32),
    /// Not at all, or not as it should; why.
    Wrong(String),
}

/// One answer.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) outcome: Outcome,
    /// When it was to be sent, whether it was or not.
    pub(super) due: Instant,
    /// When it really was.
    pub(super) sent: Instant,
    /// When all of the answer had come.
    pub(super) ended: Instant,
}

impl Answer {
    /// Sends this body, due at that time.
    pub(super) async fn to(client: &Client, body: String, due: Instant) -> Self {
        let sent = Instant::now();
        let outcome = asked(client, body).await;
        let outcome = outcome.unwrap_or_else(|error| Outcome::Wrong(format!("{error:#}")));
        Self { outcome, due, sent, ended: Instant::now() }
    }

    /// None came.
    pub(super) fn none(due: Instant) -> Self {
        let ended = Instant::now();
        Self { outcome: Outcome::Wrong("no end in time".into()), due, sent: due, ended }
    }

    /// As a client feels it.
    pub(super) fn took(&self) -> Duration {
        self.ended - self.due
    }
}

async fn asked(client: &Client, body: String) -> Result<Outcome> {
    let answer = client.post(body).await?;
    let status = answer.status().as_u16();
    let retry = answer.headers().get("retry-after").cloned();
    let text = answer.text().await?;
    match status {
        200 => Ok(Outcome::Served(tokens(&text)?)),
        429 | 503 => {
            let retry = retry.context("a refusal without Retry-After")?;
            let seconds: u32 = retry.to_str()?.parse()?;
            ensure!((1..=RETRY_MAX_S).contains(&seconds), "Retry-After: {seconds}");
            let error: Value = serde_json::from_str(&text).context("a refusal without JSON")?;
            ensure!(error["error"]["message"].is_string(), "a refusal without a reason: {error}");
            Ok(Outcome::Refused(status, seconds))
        }
        _ => anyhow::bail!("{status}: {text}"),
    }
}

/// Tokens of an answer, streamed or whole.
fn tokens(text: &str) -> Result<usize> {
    let count = |usage: &Value| usage["completion_tokens"].as_u64().map(|n| n as usize);
    if !text.contains("data: ") {
        return count(&serde_json::from_str::<Value>(text)?["usage"]).context("no usage");
    }
    ensure!(text.trim_end().ends_with("[DONE]"), "the stream broke off: {text}");
    let events = text.lines().rev().filter_map(|line| line.strip_prefix("data: "));
    let usage = events.filter_map(|event| serde_json::from_str::<Value>(event).ok());
    usage.filter_map(|event| count(&event["usage"])).next().context("no usage in the stream")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_counted_in_answers_of_both_kinds_and_in_no_broken_one() {
        assert_eq!(tokens(r#"{"usage": {"completion_tokens": 7}}"#).unwrap(), 7);
        let stream = "data: {\"choices\": []}\n\ndata: {\"usage\": {\"completion_tokens\": 9}}\n\n";
        assert_eq!(tokens(&format!("{stream}data: [DONE]\n\n")).unwrap(), 9);
        assert!(tokens(stream).is_err());
        assert!(tokens("{}").is_err());
    }
}

//! One streaming chat request, timed chunk by chunk.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use eventsource_stream::Eventsource;
use futures_util::StreamExt;
use serde_json::{Value, json};

/// Topics of the prompts: short questions of the kind that a chat begins with.
const TOPICS: [&str; 12] = [
    "a dragon who is afraid of fire",
    "a boy and his kite",
    "a cat that lost its hat",
    "an old clock in a tower",
    "two friends at the sea",
    "a bird that could not sing",
    "a girl who built a boat",
    "a snowman in spring",
    "a fox and a lantern",
    "a baker and a mouse",
    "a train in the night",
    "a star that fell down",
];

/// Sends requests that differ by number only.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
    max_tokens: usize,
    draft_tokens: Option<u8>,
    temperature: f64,
}

/// What the client of one request saw.
pub(crate) struct Seen {
    /// Until the first text.
    pub(crate) first: Duration,
    /// Between pieces of text.
    pub(crate) gaps: Vec<Duration>,
    /// Tokens, as the server counted them.
    pub(crate) tokens: u64,
}

impl Client {
    pub(crate) fn new(
        url: &str,
        max_tokens: usize,
        draft_tokens: Option<u8>,
        temperature: f64,
    ) -> Self {
        let url = format!("{url}/v1/chat/completions");
        Self { http: reqwest::Client::new(), url, max_tokens, draft_tokens, temperature }
    }

    pub(crate) async fn chat(&self, number: usize) -> Result<Seen> {
        let topic = TOPICS[number % TOPICS.len()];
        let prompt = format!("Tell me a short story about {topic}. It is story number {number}.");
        let mut body = json!({
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": number,
            "ignore_eos": true,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        if let Some(drafts) = self.draft_tokens {
            body["draft_tokens"] = json!(drafts);
        }
        let start = Instant::now();
        let answer = self.http.post(&self.url).json(&body).send().await?;
        let status = answer.status();
        if !status.is_success() {
            bail!("{status}: {}", answer.text().await?);
        }
        let mut events = answer.bytes_stream().eventsource();
        let (mut first, mut last) = (None, start);
        let mut seen = Seen { first: Duration::ZERO, gaps: Vec::new(), tokens: 0 };
        while let Some(event) = events.next().await {
            let event = event.context("the stream broke off")?;
            if event.data == "[DONE]" {
                break;
            }
            let chunk: Value = serde_json::from_str(&event.data)?;
            if let Some(error) = chunk.get("error") {
                bail!("the stream ended with {error}");
            }
            seen.tokens = chunk["usage"]["completion_tokens"].as_u64().unwrap_or(seen.tokens);
            let text = chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
            if text.is_empty() {
                continue;
            }
            let now = Instant::now();
            match first {
                None => first = Some(now - start),
                Some(_) => seen.gaps.push(now - last),
            }
            last = now;
        }
        seen.first = first.context("the reply was empty")?;
        Ok(seen)
    }
}

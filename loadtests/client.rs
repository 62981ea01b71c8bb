//! One streamed request, timed event by event.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use eventsource_stream::{Event, EventStreamError, Eventsource};
use futures_util::{Stream, StreamExt};
use reqwest::header::{HeaderMap, HeaderName};
use serde_json::Value;

/// Longest silence of a stream before it counts as broken.
const SILENCE: Duration = Duration::from_secs(300);

/// Sends chats.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
    key: Option<String>,
    headers: HeaderMap,
}

/// What the client of one request saw.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// When it was sent.
    pub(crate) start: Instant,
    /// When text came. An event may carry several tokens.
    pub(crate) times: Vec<Instant>,
    pub(crate) text: String,
    /// Why it ended, if it did.
    pub(crate) finish: Option<String>,
    /// Tokens of the answer, as the server counted them.
    pub(crate) tokens: usize,
    /// Tokens of the prompt, as the server counted them.
    pub(crate) prompt: usize,
    /// Of these, found warm.
    pub(crate) cached: usize,
}

impl Seen {
    fn new(start: Instant) -> Self {
        let (times, text, finish) = (Vec::new(), String::new(), None);
        Self { start, times, text, finish, tokens: 0, prompt: 0, cached: 0 }
    }

    /// Until the first text.
    pub(crate) fn first(&self) -> Option<Duration> {
        self.times.first().map(|&t| t - self.start)
    }

    /// Time between events that carry text.
    pub(crate) fn gaps(&self) -> impl Iterator<Item = Duration> {
        self.times.windows(2).map(|pair| pair[1] - pair[0])
    }

    /// Notes one event; true if it carried text.
    fn take(&mut self, chunk: &Value, now: Instant) -> Result<bool> {
        if let Some(error) = chunk.get("error") {
            bail!("the stream ended with {error}");
        }
        let count = |value: &Value, old| {
            value.as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(old)
        };
        let usage = &chunk["usage"];
        self.tokens = count(&usage["completion_tokens"], self.tokens);
        self.prompt = count(&usage["prompt_tokens"], self.prompt);
        self.cached = count(&usage["prompt_tokens_details"]["cached_tokens"], self.cached);
        let choice = &chunk["choices"][0];
        if let Some(finish) = choice["finish_reason"].as_str() {
            self.finish = Some(finish.to_owned());
        }
        // Some servers take the text of a model without thoughts for thoughts.
        let part = |name: &str| choice["delta"][name].as_str().unwrap_or_default();
        let before = self.text.len();
        for name in ["reasoning", "reasoning_content", "content"] {
            self.text.push_str(part(name));
        }
        let any = self.text.len() > before;
        if any {
            self.times.push(now);
        }
        Ok(any)
    }
}

type Events = Pin<Box<dyn Stream<Item = Result<Event, EventStreamError<reqwest::Error>>> + Send>>;

/// A stream that is being read. To drop it is to hang up.
pub(crate) struct Reply {
    events: Events,
    pub(crate) seen: Seen,
}

impl Client {
    pub(crate) fn new(url: &str) -> Result<Self> {
        let url = format!("{url}/v1/chat/completions");
        Ok(Self { http: crate::server::http()?, url, key: None, headers: HeaderMap::new() })
    }

    /// The same with these headers.
    pub(crate) fn with_headers(mut self, headers: &BTreeMap<String, String>) -> Result<Self> {
        for (name, value) in headers {
            self.headers.insert(HeaderName::try_from(name)?, value.parse()?);
        }
        Ok(self)
    }

    /// The same with this key.
    pub(crate) fn with_key(self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self }
    }

    /// Sends anything and returns whatever answer comes.
    pub(crate) async fn post(&self, body: String) -> Result<reqwest::Response> {
        let json = reqwest::header::HeaderValue::from_static("application/json");
        let post = self.http.post(&self.url).header(reqwest::header::CONTENT_TYPE, json);
        let post = post.headers(self.headers.clone());
        let post = match &self.key {
            Some(key) => post.bearer_auth(key),
            None => post,
        };
        Ok(post.body(body).send().await?)
    }

    /// Opens a stream; fails unless the server takes the request.
    pub(crate) async fn open(&self, body: &Value) -> Result<Reply> {
        let start = Instant::now();
        let answer = self.post(body.to_string()).await?;
        let status = answer.status();
        if !status.is_success() {
            bail!("{status}: {}", answer.text().await?);
        }
        Ok(Reply::new(answer, start))
    }

    /// The same, read to its end.
    pub(crate) async fn read(&self, body: &Value) -> Result<Seen> {
        let mut reply = self.open(body).await?;
        while reply.next().await?.is_some() {}
        Ok(reply.seen)
    }
}

impl Reply {
    pub(crate) fn new(answer: reqwest::Response, start: Instant) -> Self {
        let events = Box::pin(answer.bytes_stream().eventsource());
        Self { events, seen: Seen::new(start) }
    }

    /// When the next text came; `None` at the orderly end.
    pub(crate) async fn next(&mut self) -> Result<Option<Instant>> {
        loop {
            let event = tokio::time::timeout(SILENCE, self.events.next());
            let event = event.await.context("the stream fell silent")?;
            let event = event.context("the stream ended without [DONE]")?;
            let event = event.context("the stream broke off")?;
            if event.data == "[DONE]" {
                return Ok(None);
            }
            let now = Instant::now();
            if self.seen.take(&serde_json::from_str(&event.data)?, now)? {
                return Ok(Some(now));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_events_with_text_count_and_the_usage_is_taken_where_it_stands() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut seen = Seen::new(start);
        let text = |t: &str| json!({"choices": [{"delta": {"content": t}}]});
        let end = json!({"choices": [{"delta": {}, "finish_reason": "length"}]});
        let usage = json!({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 4}}});
        let came: Vec<bool> = [(text(""), 1), (text("a"), 3), (text("b c"), 11), (end, 12)]
            .iter()
            .chain([&(usage, 13)])
            .map(|(chunk, ms)| seen.take(chunk, at(*ms)).unwrap())
            .collect();
        assert_eq!(came, [false, true, true, false, false]);
        assert_eq!((seen.text.as_str(), seen.finish.as_deref()), ("ab c", Some("length")));
        assert_eq!((seen.prompt, seen.cached, seen.tokens), (9, 4, 5));
        assert_eq!(seen.first(), Some(Duration::from_millis(3)));
        assert_eq!(seen.gaps().collect::<Vec<_>>(), [Duration::from_millis(8)]);
    }

    #[test]
    fn an_error_within_a_stream_is_no_end() {
        let mut seen = Seen::new(Instant::now());
        assert!(seen.take(&json!({"error": {"message": "x"}}), Instant::now()).is_err());
    }
}

//! A server to talk to: one that runs already, or one that is started for a while and ends with us.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use eventsource_stream::Eventsource;
use futures_util::{Stream, StreamExt};
use reqwest::{RequestBuilder, Response, StatusCode};
use serde_json::Value;

use crate::exit::Stop;

/// Where a server listens that nobody told otherwise.
pub const URL: &str = "http://127.0.0.1:8000";

/// A client's key, for servers that want one.
pub const KEY: &str = "MTPLX_API_KEY";

/// Lines of a server's log that are kept to say why it did not start.
const LOG_LINES: usize = 20;

/// A server's first answer.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// A server, and our part in it.
#[derive(Debug)]
pub struct Server {
    /// Its address, without a path.
    pub url: String,
    key: Option<String>,
    client: reqwest::Client,
    /// Ends with us.
    own: Option<Own>,
}

#[derive(Debug)]
struct Own {
    child: Child,
    log: Arc<Mutex<VecDeque<String>>>,
}

/// What it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// The model, as clients call it.
    pub model: String,
    /// Tokens of a sequence, where it says so.
    pub context: Option<u64>,
}

/// What an answer brings.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// Some of what the model thinks before it answers.
    Thought(String),
    /// Some of the answer.
    Text(String),
    /// Why it ended.
    Finish(String),
    /// What it took.
    Cost(Cost),
}

/// What an answer took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Tokens of the prompt.
    pub prompt: u64,
    /// Of these, warm.
    pub cached: u64,
    /// Tokens made.
    pub tokens: u64,
    /// And how many a second.
    pub tokens_per_second: f64,
    /// Tokens drafted.
    pub drafted: u64,
    /// Of these, accepted.
    pub accepted: u64,
}

impl Cost {
    /// The share of drafts that stood, if any were made.
    #[must_use]
    pub fn acceptance(&self) -> Option<f64> {
        (self.drafted > 0).then(|| self.accepted as f64 / self.drafted as f64)
    }
}

/// A server's address as others are told it: with `http://` or `https://`, without its API's path.
///
/// # Errors
/// When it makes no sense.
pub fn address(url: &str) -> Result<String> {
    let url = url.trim_end_matches('/');
    let url = url.strip_suffix("/v1").unwrap_or(url);
    let known = reqwest::Url::parse(url).with_context(|| format!("{url:?} is no address"))?;
    ensure!(matches!(known.scheme(), "http" | "https"), "{url}: no http:// or https://");
    Ok(url.to_owned())
}

impl Server {
    /// The one at an address; it is not asked yet.
    ///
    /// # Errors
    /// When the address makes no sense.
    pub fn at(url: &str) -> Result<Self> {
        let url = address(url)?;
        if !url.starts_with("http:") {
            // The client inside brings no certificates; browsers and agents do.
            bail!("{url}: only http:// is spoken here; a browser or an agent speaks https://");
        }
        let key = std::env::var(KEY).ok().filter(|key| !key.is_empty());
        let client = reqwest::Client::builder().no_proxy().connect_timeout(ANSWER_TIME).build()?;
        Ok(Self { url, key, client, own: None })
    }

    /// Starts one of our own with these arguments of `mtplx serve` and waits until it serves.
    ///
    /// # Errors
    /// What it said when it ended instead.
    pub fn start(args: &[OsString]) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(program);
        command.arg("serve").args(args).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C is for us: it stops an answer, not the server.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().context("cannot start a server")?;
        let log = Arc::new(Mutex::new(VecDeque::new()));
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut own = Own { child, log: Arc::clone(&log) };
        let stderr = stderr.context("it has a stderr")?;
        let reading = std::thread::spawn(move || keep(stderr, &log));
        let mut stdout = BufReader::new(stdout.context("it has a stdout")?);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        let Some(url) = line.split_whitespace().find(|word| word.starts_with("http")) else {
            own.child.wait()?;
            let _ = reading.join();
            let said = own.log.lock().unwrap_or_else(PoisonError::into_inner);
            let last = said.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
            bail!("the server did not start:\n{last}");
        };
        let mut server = Self::at(url)?;
        server.own = Some(own);
        Ok(server)
    }

    /// Whether it is ours and ends with us.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.own.is_some()
    }

    fn with_key(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    async fn checked(&self, request: RequestBuilder) -> Result<Response> {
        let nobody = |_| Stop::Nobody(format!("no server at {}; start one: mtplx serve", self.url));
        let answer = self.with_key(request).send().await.map_err(nobody)?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let body: Value = answer.json().await.unwrap_or_default();
        let told = body["error"]["message"].as_str().map(str::to_owned);
        let told = told.unwrap_or_else(|| format!("the server answered {status}"));
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(Stop::Denied(format!("{told}; set {KEY} to a key of this server")).into())
            }
            _ => Err(anyhow!(told)),
        }
    }

    /// Any of its pages as JSON, whatever the status.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn page(&self, path: &str) -> Result<(u16, Value)> {
        let request = self.client.get(format!("{}{path}", self.url)).timeout(ANSWER_TIME);
        let answer = self.with_key(request).send().await?;
        let status = answer.status().as_u16();
        Ok((status, answer.json().await.unwrap_or_default()))
    }

    /// What it serves.
    ///
    /// # Errors
    /// When nobody answers, or not as a server of models does.
    pub async fn served(&self) -> Result<Served> {
        let request = self.client.get(format!("{}/v1/models", self.url)).timeout(ANSWER_TIME);
        let list: Value = self.checked(request).await?.json().await.unwrap_or_default();
        let first = &list["data"][0];
        let model = first["id"]
            .as_str()
            .with_context(|| format!("whoever answers at {} is no server of models", self.url))?;
        let context = first["meta"]["context_length"].as_u64();
        Ok(Served { model: model.to_owned(), context })
    }

    /// Asks for an answer of a chat, streamed.
    ///
    /// # Errors
    /// When nobody answers, or it is refused.
    pub async fn chat(&self, body: &Value) -> Result<impl Stream<Item = Result<Said>> + use<>> {
        let request = self.client.post(format!("{}/v1/chat/completions", self.url)).json(body);
        let events = self.checked(request).await?.bytes_stream().eventsource();
        Ok(events.flat_map(|event| {
            let said = match event {
                Ok(event) if event.data == "[DONE]" => Vec::new(),
                Ok(event) => match serde_json::from_str(&event.data) {
                    Ok(chunk) => read(&chunk),
                    Err(_) => vec![Err(anyhow!("the server said what is no JSON"))],
                },
                Err(error) => vec![Err(anyhow!("the answer was cut off: {error}"))],
            };
            futures_util::stream::iter(said)
        }))
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // It lets running requests finish; there are none of ours any more.
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        let asked =
            pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::TERM));
        if !matches!(asked, Some(Ok(()))) {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// Reads a log to its end and keeps the last of it.
fn keep(from: impl std::io::Read, log: &Mutex<VecDeque<String>>) {
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.len() == LOG_LINES {
            log.pop_front();
        }
        log.push_back(line);
    }
}

/// What a chunk of the stream says.
fn read(chunk: &Value) -> Vec<Result<Said>> {
    if let Some(error) = chunk["error"]["message"].as_str() {
        return vec![Err(anyhow!(error.to_owned()))];
    }
    let mut said = Vec::new();
    let choice = &chunk["choices"][0];
    let text = |name: &str| choice["delta"][name].as_str().filter(|text| !text.is_empty());
    said.extend(text("reasoning_content").map(|text| Ok(Said::Thought(text.to_owned()))));
    said.extend(text("content").map(|text| Ok(Said::Text(text.to_owned()))));
    said.extend(choice["finish_reason"].as_str().map(|why| Ok(Said::Finish(why.to_owned()))));
    if chunk["usage"].is_object() {
        let (usage, timings) = (&chunk["usage"], &chunk["timings"]);
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        said.push(Ok(Said::Cost(Cost {
            prompt: number(&usage["prompt_tokens"]),
            cached: number(&timings["cache_n"]),
            tokens: number(&usage["completion_tokens"]),
            tokens_per_second: timings["predicted_per_second"].as_f64().unwrap_or(0.0),
            drafted: number(&timings["draft_n"]),
            accepted: number(&timings["draft_n_accepted"]),
        })));
    }
    said
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(chunk: &Value) -> Vec<Said> {
        read(chunk).into_iter().map(Result::unwrap).collect()
    }

    #[test]
    fn thoughts_text_and_cost_are_told_apart() {
        let delta = json!({"choices": [{"delta": {"reasoning_content": "hm", "content": "yes"},
            "finish_reason": "stop"}]});
        let thought = Said::Thought("hm".into());
        assert_eq!(of(&delta), [thought, Said::Text("yes".into()), Said::Finish("stop".into())]);
        let last = json!({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4},
            "timings": {"predicted_per_second": 8.0, "draft_n": 4, "draft_n_accepted": 3}});
        let [Said::Cost(cost)] = of(&last)[..] else { panic!("{:?}", of(&last)) };
        assert_eq!((cost.prompt, cost.tokens, cost.acceptance()), (9, 4, Some(0.75)));
        assert!(read(&json!({"error": {"message": "no"}}))[0].is_err());
    }

    #[test]
    fn addresses_are_taken_with_or_without_the_apis_path() {
        assert_eq!(Server::at("http://h:1/v1/").unwrap().url, "http://h:1");
        assert!(Server::at("h:1").is_err() && Server::at("https://h").is_err());
        assert_eq!(address("https://h:1/v1").unwrap(), "https://h:1");
    }
}

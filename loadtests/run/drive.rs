//! Clients at work: each session asks when it is due, and tells what became of every request.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::scenario::{Arrivals, Scenario};
use super::session::{Manner, Session, Turn, arrivals};
use crate::client::{Client, Reply};

/// Longest rest of a client of a closed loop after a refusal, whatever it was told.
const REST_MAX: Duration = Duration::from_secs(10);
/// … and after a failure.
const REST: Duration = Duration::from_secs(1);

/// What became of a request.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Outcome {
    /// Answered to its end.
    Served,
    /// Its client hung up.
    Left,
    /// Sent away in order: why, and after how many seconds to come again.
    Refused(String, u64),
    /// What cannot be served was not.
    Declined,
    /// Anything that should not have happened.
    Failed(String),
}

/// One request. Times count from the start of the run.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) load: usize,
    pub(super) outcome: Outcome,
    /// Whether it was read as a stream.
    pub(super) streamed: bool,
    /// When it was to be sent.
    pub(super) due: Duration,
    /// When it was.
    pub(super) sent: Duration,
    pub(super) end: Duration,
    /// When texts came.
    pub(super) texts: Vec<Duration>,
    /// Tokens of the answer by the server's count, or texts where its client left.
    pub(super) tokens: usize,
    pub(super) prompt: usize,
    pub(super) cached: usize,
}

/// What the clients share.
pub(super) struct Stage {
    pub(super) scenario: Scenario,
    /// One client program for each load.
    pub(super) clients: Vec<Client>,
    pub(super) start: Instant,
    pub(super) told: UnboundedSender<Record>,
}

/// What was read of an answer.
#[derive(Default)]
struct Read {
    texts: Vec<Instant>,
    text: String,
    tokens: usize,
    prompt: usize,
    cached: usize,
}

/// Everybody of the scenario; ends when all have gone.
pub(super) async fn all(stage: Arc<Stage>) {
    let mut crowd = JoinSet::new();
    for load in 0..stage.scenario.loads.len() {
        if let Arrivals::Closed(clients) = stage.scenario.loads[load].arrivals {
            for client in 0..clients {
                crowd.spawn(closed(Arc::clone(&stage), load, client));
            }
        } else {
            crowd.spawn(open(Arc::clone(&stage), load));
        }
    }
    while crowd.join_next().await.is_some() {}
}

/// Sessions at times of their own, whatever becomes of those before.
async fn open(stage: Arc<Stage>, load: usize) {
    let mut asked = JoinSet::new();
    for (number, due) in arrivals(&stage.scenario, load).into_iter().enumerate() {
        let session = Session::new(&stage.scenario, load, 0, number);
        sleep_until(stage.start + due).await;
        let stage = Arc::clone(&stage);
        asked.spawn(async move { stage.session(load, &session, due).await });
        while asked.try_join_next().is_some() {}
    }
    while asked.join_next().await.is_some() {}
}

/// A client with one session after the other.
async fn closed(stage: Arc<Stage>, load: usize, client: usize) {
    for number in 0.. {
        let session = Session::new(&stage.scenario, load, client, number);
        let think = session.turns.first().map_or(Duration::ZERO, |turn| turn.think);
        let due = stage.start.elapsed() + think;
        if due >= stage.until() {
            return;
        }
        sleep_until(stage.start + due).await;
        match stage.session(load, &session, due).await {
            Outcome::Refused(_, seconds) => sleep(Duration::from_secs(seconds).min(REST_MAX)).await,
            Outcome::Failed(_) => sleep(REST).await,
            Outcome::Served | Outcome::Left | Outcome::Declined => {}
        }
    }
}

impl Stage {
    fn until(&self) -> Duration {
        Duration::from_secs_f64(self.scenario.seconds)
    }

    /// Turn by turn, until one is not answered; how the last one ended.
    async fn session(&self, load: usize, session: &Session, mut due: Duration) -> Outcome {
        let (mut answers, mut last) = (Vec::new(), Outcome::Served);
        for (number, turn) in session.turns.iter().enumerate() {
            if number > 0 {
                due = self.start.elapsed() + turn.think;
                if due >= self.until() {
                    break;
                }
                sleep_until(self.start + due).await;
            }
            let body = session.body(number, &answers);
            let (record, text) = self.ask(load, turn, body, due).await;
            last = record.outcome.clone();
            // Nobody listens once the run is over.
            if self.told.send(record).is_err() || last != Outcome::Served {
                break;
            }
            answers.push(text);
        }
        last
    }

    async fn ask(&self, load: usize, turn: &Turn, body: String, due: Duration) -> (Record, String) {
        let sent = self.start.elapsed();
        let mut read = Read::default();
        let work = answer(&self.clients[load], turn, body, &mut read);
        let patience = Duration::from_secs_f64(self.scenario.patience_s);
        // Dropping the work half done closes the connection.
        let outcome = match turn.manner {
            Manner::LeavesEarly(after) => timeout(after, work).await.unwrap_or(Ok(Outcome::Left)),
            Manner::Streamed | Manner::Whole | Manner::LeavesMidway(_) | Manner::Wrong => {
                let none = |_| Ok(Outcome::Failed(format!("no end within {patience:?}")));
                timeout(patience, work).await.unwrap_or_else(none)
            }
        };
        let outcome = outcome.unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")));
        let record = Record {
            load,
            outcome,
            streamed: turn.manner != Manner::Whole,
            due,
            sent,
            end: self.start.elapsed(),
            texts: read.texts.iter().map(|&at| at - self.start).collect(),
            tokens: read.tokens.max(read.texts.len()),
            prompt: read.prompt,
            cached: read.cached,
        };
        (record, read.text)
    }
}

async fn answer(client: &Client, turn: &Turn, body: String, read: &mut Read) -> Result<Outcome> {
    let answer = client.post(body).await?;
    let status = answer.status();
    if matches!(status.as_u16(), 429 | 503) {
        return refused(answer).await;
    }
    if turn.manner == Manner::Wrong {
        ensure!(status.is_client_error(), "{status} where a refusal was due");
        let error: Value = answer.json().await.context("a refusal without a JSON body")?;
        ensure!(error["error"]["message"].is_string(), "a refusal without a reason: {error}");
        return Ok(Outcome::Declined);
    }
    ensure!(status.is_success(), "{status}: {}", answer.text().await?);
    if turn.manner == Manner::Whole {
        return whole(&answer.json().await?, turn.max_tokens, read);
    }
    let mut reply = Reply::new(answer, std::time::Instant::now());
    while let Some(at) = reply.next().await? {
        read.texts.push(at.into());
        if matches!(turn.manner, Manner::LeavesMidway(most) if read.texts.len() >= most) {
            return Ok(Outcome::Left);
        }
    }
    let seen = reply.seen;
    (read.tokens, read.prompt, read.cached) = (seen.tokens, seen.prompt, seen.cached);
    read.text = seen.text;
    ended(seen.finish.as_deref(), seen.tokens, turn.max_tokens)
}

/// An orderly refusal says when to come again, and why.
async fn refused(answer: reqwest::Response) -> Result<Outcome> {
    let status = answer.status();
    let retry = answer.headers().get("retry-after").context("a refusal without Retry-After")?;
    let seconds = retry.to_str()?.parse().context("Retry-After")?;
    let error: Value = answer.json().await.context("a refusal without a JSON body")?;
    let words = ["code", "type"].iter().find_map(|name| error["error"][name].as_str());
    let Some(reason) = words else { bail!("a refusal without a reason: {error}") };
    Ok(Outcome::Refused(format!("{} {reason}", status.as_u16()), seconds))
}

fn whole(answer: &Value, max_tokens: usize, read: &mut Read) -> Result<Outcome> {
    let usage = &answer["usage"];
    let count = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
    read.tokens = count(&usage["completion_tokens"]).context("no usage")?;
    read.prompt = count(&usage["prompt_tokens"]).unwrap_or(0);
    read.cached = count(&usage["prompt_tokens_details"]["cached_tokens"]).unwrap_or(0);
    let choice = &answer["choices"][0];
    read.text = choice["message"]["content"].as_str().unwrap_or_default().to_owned();
    ended(choice["finish_reason"].as_str(), read.tokens, max_tokens)
}

/// An answer ends by its length or by itself, with at least one token and none too many.
fn ended(finish: Option<&str>, tokens: usize, max_tokens: usize) -> Result<Outcome> {
    let right = match finish {
        Some("length") => tokens == max_tokens,
        Some("stop" | "tool_calls") => (1..=max_tokens).contains(&tokens),
        _ => false,
    };
    ensure!(right, "ended as {finish:?} after {tokens} of {max_tokens} tokens");
    Ok(Outcome::Served)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_must_fit_what_was_asked_for() {
        assert!(ended(Some("length"), 5, 5).is_ok() && ended(Some("stop"), 3, 5).is_ok());
        let bad = [(Some("length"), 4), (Some("stop"), 6), (Some("stop"), 0), (None, 5)];
        assert!(bad.iter().all(|&(finish, tokens)| ended(finish, tokens, 5).is_err()));
    }
}

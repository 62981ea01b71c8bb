//! One request of a soak: what it asks, and how its client behaves.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::client::{Client, Reply, Seen};
use crate::prompts::{Random, chat, passage};

/// Prompts that come again, so that warm prefixes are met.
const FAMILIAR: usize = 40;
/// Longest time of one request.
const PATIENCE: Duration = Duration::from_secs(120);

/// How a client behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Manner {
    /// Reads a stream to its end.
    Streamed,
    /// Waits for the whole answer.
    Whole,
    /// Hangs up after so many milliseconds, often before there is an answer.
    LeavesEarly(u64),
    /// Hangs up after so many pieces of text.
    LeavesMidway(usize),
    /// Sends what cannot be served.
    Wrong,
}

impl Manner {
    /// Without its figures, for counting.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Streamed => "streamed",
            Self::Whole => "whole",
            Self::LeavesEarly(_) => "left early",
            Self::LeavesMidway(_) => "left midway",
            Self::Wrong => "wrong",
        }
    }

    /// Whether its end is a generation that the server counts as finished.
    pub(super) fn stays(self) -> bool {
        matches!(self, Self::Streamed | Self::Whole)
    }
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Job {
    pub(super) manner: Manner,
    body: String,
    max_tokens: usize,
}

impl Job {
    /// The request of this number: always the same one.
    pub(super) fn new(seed: u64, number: usize) -> Self {
        let mut random = Random::new(seed, number as u64);
        let manner = match random.below(100) {
            0..50 => Manner::Streamed,
            50..62 => Manner::Whole,
            62..76 => Manner::LeavesEarly(random.below(60) as u64),
            76..90 => Manner::LeavesMidway(1 + random.below(6)),
            _ => Manner::Wrong,
        };
        if manner == Manner::Wrong {
            return Self { manner, body: wrong(&mut random), max_tokens: 0 };
        }
        // Most prompts are short, a few long, and a third begin as others did.
        let words = [4, 8, 8, 12, 12, 16, 24, 40, 60, 200][random.below(10)];
        let mut prompt = Vec::new();
        if random.chance(33) {
            let familiar = random.below(FAMILIAR);
            prompt = passage(&mut Random::new(seed ^ 1, familiar as u64), 10 + 2 * familiar);
        }
        let own = words + random.below(words);
        prompt.extend(passage(&mut random, own));
        let max_tokens = match manner {
            Manner::LeavesEarly(_) | Manner::LeavesMidway(_) => 200 + random.below(400),
            Manner::Streamed | Manner::Whole | Manner::Wrong => 1 + random.below(24),
        };
        let mut body = chat(&prompt.join(" "), max_tokens, random.pick(&[0.0, 0.6, 1.0]));
        if manner == Manner::Whole {
            body["stream"] = false.into();
            body.as_object_mut().map(|b| b.remove("stream_options"));
        }
        if !manner.stays() || random.chance(50) {
            body["ignore_eos"] = true.into();
        }
        if random.chance(50) {
            body["draft_tokens"] = random.below(4).into();
        }
        if random.chance(30) {
            body["seed"] = random.below(1 << 30).into();
        }
        Self { manner, body: body.to_string(), max_tokens }
    }

    /// Sends it and behaves; an error is something that should not have happened.
    pub(super) async fn run(&self, client: &Client) -> Result<()> {
        let work = async {
            match self.manner {
                Manner::Streamed => self.streamed(client).await,
                Manner::Whole => self.whole(client).await,
                Manner::LeavesEarly(ms) => {
                    // Dropping the work half done closes the connection.
                    let left =
                        tokio::time::timeout(Duration::from_millis(ms), self.streamed(client));
                    left.await.unwrap_or(Ok(()))
                }
                Manner::LeavesMidway(events) => self.midway(client, events).await,
                Manner::Wrong => self.refused(client).await,
            }
        };
        tokio::time::timeout(PATIENCE, work).await.context("no end within two minutes")?
    }

    async fn open(&self, client: &Client) -> Result<Reply> {
        let start = Instant::now();
        let answer = client.post(self.body.clone()).await?;
        let status = answer.status();
        ensure!(status.is_success(), "{status} where an answer was due: {}", answer.text().await?);
        Ok(Reply::new(answer, start))
    }

    async fn streamed(&self, client: &Client) -> Result<()> {
        let mut reply = self.open(client).await?;
        while reply.next().await?.is_some() {}
        let Seen { finish, tokens, .. } = reply.seen;
        self.ended(finish.as_deref(), tokens)
    }

    async fn whole(&self, client: &Client) -> Result<()> {
        let answer = client.post(self.body.clone()).await?;
        let status = answer.status();
        ensure!(status.is_success(), "{status} where an answer was due: {}", answer.text().await?);
        let answer: Value = answer.json().await?;
        let tokens = answer["usage"]["completion_tokens"].as_u64().context("no usage")?;
        self.ended(answer["choices"][0]["finish_reason"].as_str(), usize::try_from(tokens)?)
    }

    /// An answer ends by its length or by a stop token, with at least one token and none too many.
    fn ended(&self, finish: Option<&str>, tokens: usize) -> Result<()> {
        let right = match finish {
            Some("length") => tokens == self.max_tokens,
            Some("stop") => (1..=self.max_tokens).contains(&tokens),
            _ => false,
        };
        ensure!(right, "ended as {finish:?} after {tokens} of {} tokens", self.max_tokens);
        Ok(())
    }

    async fn midway(&self, client: &Client, events: usize) -> Result<()> {
        let mut reply = self.open(client).await?;
        for _ in 0..events {
            if reply.next().await?.is_none() {
                break;
            }
        }
        Ok(())
    }

    async fn refused(&self, client: &Client) -> Result<()> {
        let answer = client.post(self.body.clone()).await?;
        let status = answer.status();
        ensure!(status.is_client_error(), "{status} where a refusal was due: {}", self.body);
        let error: Value = answer.json().await.context("a refusal without a JSON body")?;
        ensure!(error["error"]["message"].is_string(), "a refusal without a reason: {error}");
        Ok(())
    }
}

/// Something that cannot be served.
fn wrong(random: &mut Random) -> String {
    let mut body = chat("Hello.", 4, 0.0);
    match random.below(9) {
        0 => return "{\"messages\": [".into(),
        1 => return String::new(),
        2 => body["messages"] = json!([]),
        3 => body["temperature"] = json!(-1),
        4 => body["max_tokens"] = json!(1_000_000),
        5 => body["no_such_field"] = json!(true),
        6 => body["messages"] = json!([{"role": "nobody", "content": "x"}]),
        7 => body["draft_tokens"] = json!(99),
        // Longer than any context that is served here.
        _ => body["messages"][0]["content"] = passage(random, 6000).join(" ").into(),
    }
    body.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_always_the_same_request() {
        for number in 0..50 {
            assert_eq!(Job::new(1, number), Job::new(1, number));
        }
        assert_ne!(Job::new(1, 1), Job::new(2, 1));
    }

    #[test]
    fn all_manners_come_often() {
        let mut counts = std::collections::BTreeMap::new();
        for number in 0..2000 {
            *counts.entry(Job::new(1, number).manner.name()).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 5);
        assert!(counts.values().all(|&n| n > 140), "{counts:?}");
    }

    #[test]
    fn an_end_must_fit_what_was_asked_for() {
        let job = Job { manner: Manner::Whole, body: String::new(), max_tokens: 5 };
        assert!(job.ended(Some("length"), 5).is_ok() && job.ended(Some("stop"), 3).is_ok());
        let bad = [(Some("length"), 4), (Some("stop"), 6), (Some("stop"), 0), (None, 5)];
        assert!(bad.iter().all(|&(finish, tokens)| job.ended(finish, tokens).is_err()));
    }
}

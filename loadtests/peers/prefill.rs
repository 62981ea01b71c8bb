//! Some read; then a long prompt arrives. How long does their text stand still?

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::cell::Work;
use super::peer::Form;
use super::{PATIENCE, Peers, body, long, short};
use crate::client::{Client, Seen};
use crate::statistics::{Spread, ms};

/// Texts that one reader has when the prompt arrives.
const TEXTS: usize = 3;
/// Tokens of the long prompt's answer.
const ANSWER: usize = 4;

/// One scene, unless told otherwise after one of the same kind that does not count: servers compile
/// what they meet first.
pub(super) async fn scene(args: &Peers, form: Form, client: &Client) -> Result<Work> {
    if !args.warm_once {
        timeout(PATIENCE, once(args, form, client, 0)).await.context("it took too long")??;
    }
    timeout(PATIENCE, once(args, form, client, 1)).await.context("it took too long")?
}

async fn once(args: &Peers, form: Form, client: &Client, number: u64) -> Result<Work> {
    let (told, mut heard) = mpsc::unbounded_channel();
    let mut readers = JoinSet::new();
    for reader in 0..args.readers {
        let number = usize::try_from(number).unwrap_or(0) * 100 + reader;
        let (client, told) = (client.clone(), told.clone());
        let body = body(form, &short(number), args.reader_tokens);
        readers.spawn(async move {
            let mut reply = client.open(&body).await?;
            while reply.next().await?.is_some() {
                if reply.seen.times.len() == TEXTS {
                    // Nobody listens any more once the prompt was sent.
                    let _ = told.send(());
                }
            }
            anyhow::Ok(reply.seen)
        });
    }
    drop(told);
    heard.recv().await.context("no reader had any text")?;
    let prompt = long(args.seed, number, args.long_words)?;
    let sent = Instant::now();
    let long = client.read(&body(form, &prompt, ANSWER)).await?;
    let mut seen: Vec<Seen> = Vec::new();
    while let Some(done) = readers.join_next().await {
        seen.push(done??);
    }
    let first = long.first().context("the long prompt got no answer")?;
    Ok(judge(&seen, (sent, first), long.prompt))
}

/// Of gaps those count that touch the time from the prompt's arrival to its first text.
fn judge(seen: &[Seen], (sent, first): (Instant, Duration), prompt: usize) -> Work {
    let touched = |pair: &&[Instant]| pair[1] > sent && pair[0] < sent + first;
    let of = |s: &Seen| {
        let pairs = s.times.windows(2).filter(touched);
        pairs.map(|pair| pair[1] - pair[0]).collect::<Vec<_>>()
    };
    let gaps: Spread = seen.iter().flat_map(of).collect();
    let all: Spread = seen.iter().flat_map(Seen::gaps).collect();
    let waits: Spread = seen.iter().filter_map(Seen::first).collect();
    Work::Prefill {
        readers: seen.len(),
        prompt,
        ttft: ms(first),
        gap_p50: ms(all.median()),
        gap_max: ms(gaps.max()),
        wait_max: ms(waits.max()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_count_that_touch_the_prefill_and_a_readers_wait_is_told_apart() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let seen = |times: &[u64]| Seen {
            start,
            times: times.iter().map(|&ms| at(ms)).collect(),
            text: String::new(),
            finish: None,
            tokens: 0,
            prompt: 0,
            cached: 0,
        };
        // Sent at 100, answered at 300.
        let found = judge(
            &[seen(&[10, 95, 170, 290, 320]), seen(&[600, 650, 1650])],
            (at(100), Duration::from_millis(200)),
            9,
        );
        let Work::Prefill { readers, prompt, gap_max, wait_max, .. } = found else { panic!() };
        assert_eq!((readers, prompt, gap_max, wait_max), (2, 9, 120.0, 600.0));
    }
}

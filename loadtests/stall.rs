//! `stall`: some streams decode steadily; then a long prompt arrives. How long do they wait?
//!
//! A gap is the time between two events of one stream that carry text. With speculation an event
//! may carry several tokens: a gap is what a reader sees as a pause, not the time of a token.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::client::{Client, Seen};
use crate::progress;
use crate::prompts::{Random, chat, passage, question};
use crate::report::Report;
use crate::server::{Server, Target};

mod scene;

use scene::{Beat, Scene, Timeline};

/// Longest gap while a prompt is prefilled, in medians of the time before.
const RATIO_MAX: f64 = 3.0;
/// Longest wait for any step of a scene.
const PATIENCE: Duration = Duration::from_secs(120);
/// Tokens that an answer to a long prompt may add to it.
const ANSWER_TOKENS: usize = 8;
/// A length counts as met this close to it.
const NEAR_TOKENS: usize = 12;

/// What streams that decode notice of a long prompt that arrives.
#[derive(Args)]
pub(crate) struct Stall {
    #[command(flatten)]
    target: Target,
    /// Streams that decode when the prompt arrives.
    #[arg(long, value_delimiter = ',', default_value = "1,4,8")]
    streams: Vec<usize>,
    /// Tokens of the prompt.
    #[arg(long, value_delimiter = ',', default_value = "1000,2000,4000")]
    lengths: Vec<usize>,
    /// Events of every stream before the prompt arrives.
    #[arg(long, default_value_t = 600)]
    events: usize,
    /// How often every combination is run; the worst counts.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Drafts a cycle; the server's own choice if absent.
    #[arg(long)]
    draft_tokens: Option<u8>,
    /// Answers go on beyond their end until the context is full, in place of the next question.
    /// Tokens that mark turns have no text then, and two steps may look like one gap.
    #[arg(long)]
    endless: bool,
    /// Temperature of the streams.
    #[arg(long, default_value_t = 0.6)]
    temperature: f64,
    /// Prompts and their order follow from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs it.
pub(crate) async fn run(args: &Stall) -> Result<Report> {
    // The long prompt finds a slot, however many decode.
    let slots = args.streams.iter().max().copied().unwrap_or(1) + 1;
    let settings = format!("[engine]\nslots = {slots}\n[tuner]\nrows_max = {slots}\n");
    let server = Server::open(&args.target, &settings).await?;
    let client = Client::new(&server.url)?;
    let mut random = Random::new(args.seed, 0);
    let mut scenes = Vec::new();
    for &length in &args.lengths {
        progress::say(&format!("a prompt of {length} tokens"));
        let mut words = prompt(&client, &mut random, length).await?;
        let alone = ask(&client, &mut words, &mut random).await?;
        let alone = alone.first().context("the long prompt got no answer")?;
        for &streams in &args.streams {
            for round in 1..=args.rounds {
                progress::say(&format!("{streams} streams, {length} tokens, round {round}"));
                let mut scene = scene(&client, args, streams, (&mut words, &mut random)).await?;
                scene.alone = alone;
                scenes.push(scene);
            }
        }
    }
    let held = scenes.iter().all(|scene| scene.worst() <= RATIO_MAX);
    Ok(Report { text: scene::table(&scenes), json: scene::json(&scenes), held })
}

/// Words that come to `length` tokens with all around them, by asking the server.
async fn prompt(client: &Client, random: &mut Random, length: usize) -> Result<Vec<&'static str>> {
    // A sample says how many tokens a word has; the first guess stays below the length, which may
    // be all that the context holds.
    let mut words = passage(random, length / 8);
    let counted = ask(client, &mut words, random).await?.prompt;
    words.extend(passage(
        random,
        (words.len() * length * 4 / 5 / counted.max(1)).saturating_sub(words.len()),
    ));
    for _ in 0..12 {
        let counted = ask(client, &mut words, random).await?.prompt;
        if counted.abs_diff(length) <= NEAR_TOKENS {
            return Ok(words);
        }
        // In proportion, but for the last few tokens, where a word is one or more.
        let wanted = (words.len() * length).div_ceil(counted.max(1));
        if wanted > words.len() {
            // Words differ in tokens, and the context may end where the length does.
            words.extend(passage(random, ((wanted - words.len()) * 3).div_ceil(4)));
        } else {
            words.truncate(wanted.min(words.len() - 1));
        }
    }
    bail!("no prompt of {length} tokens could be made of words")
}

/// Sends the long prompt; turning the words makes it new to the server from its first word on.
async fn ask(client: &Client, words: &mut [&'static str], random: &mut Random) -> Result<Seen> {
    let middle = 1 + random.below(words.len() - 1);
    words.rotate_left(middle);
    let mut body = chat(&words.join(" "), ANSWER_TOKENS, 0.0);
    body["ignore_eos"] = true.into();
    let seen = client.read(&body).await?;
    ensure!(seen.cached < seen.prompt / 20, "{} tokens of a new prompt were warm", seen.cached);
    Ok(seen)
}

/// One scene: streams come to a steady pace, the prompt arrives, its first text ends the scene.
async fn scene(
    client: &Client,
    args: &Stall,
    streams: usize,
    (words, random): (&mut [&'static str], &mut Random),
) -> Result<Scene> {
    let epoch = Instant::now();
    let (told, mut heard) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    for index in 0..streams {
        let number = random.below(1_000_000_000);
        let task = decode(client.clone(), stream_body(args, number), (index, epoch), told.clone());
        tasks.spawn(task);
    }
    // When all streams that could tell are gone, so is the channel.
    drop(told);
    let mut lines = vec![Timeline::default(); streams];
    let pace =
        listen(&mut heard, &mut lines, |lines| lines.iter().all(|line| line.len() >= args.events));
    timeout(PATIENCE, pace).await.context("the streams never came to a steady pace")??;
    let sent = epoch.elapsed();
    let long = ask(client, words, random);
    let mut long = std::pin::pin!(timeout(PATIENCE, long));
    let seen = loop {
        tokio::select! {
            seen = &mut long => break seen.context("the long prompt took too long")??,
            beat = heard.recv() => note(beat, &mut lines)?,
        }
    };
    let first = seen.first().context("the long prompt got no answer")?;
    let counts: Vec<usize> = lines.iter().map(Timeline::len).collect();
    let after = listen(&mut heard, &mut lines, |lines| {
        lines.iter().zip(&counts).all(|(line, &count)| line.len() > count)
    });
    timeout(PATIENCE, after).await.context("a stream never went on after the prompt")??;
    let scene = Scene::new(seen.prompt, (sent, first), &lines);
    ensure!(scene.is_measured(), "a stream showed too few gaps to judge; run it again");
    Ok(scene)
}

fn stream_body(args: &Stall, number: usize) -> Value {
    // The answer is as long as the context allows.
    let mut body = chat(&question(number), 1, args.temperature);
    body["ignore_eos"] = args.endless.into();
    if let Some(body) = body.as_object_mut() {
        body.remove("max_tokens");
    }
    if let Some(drafts) = args.draft_tokens {
        body["draft_tokens"] = drafts.into();
    }
    body
}

/// A beat of the stream with this index, or why it broke off.
type Told = Result<(usize, Beat)>;

/// A stream that decodes for ever: at the end of the context it begins anew.
async fn decode(
    client: Client,
    body: Value,
    (index, epoch): (usize, Instant),
    told: mpsc::UnboundedSender<Told>,
) {
    let work = async {
        // Nobody listens any more once the scene is over.
        while !told.is_closed() {
            let mut reply = client.open(&body).await?;
            while let Some(at) = reply.next().await? {
                let _ = told.send(Ok((index, Beat::Text(at - epoch))));
            }
            let _ = told.send(Ok((index, Beat::Anew)));
        }
        anyhow::Ok(())
    };
    if let Err(error) = work.await {
        let _ = told.send(Err(error.context("a stream broke off")));
    }
}

async fn listen(
    heard: &mut mpsc::UnboundedReceiver<Told>,
    lines: &mut [Timeline],
    enough: impl Fn(&[Timeline]) -> bool,
) -> Result<()> {
    while !enough(lines) {
        note(heard.recv().await, lines)?;
    }
    Ok(())
}

fn note(told: Option<Told>, lines: &mut [Timeline]) -> Result<()> {
    let (index, beat) = told.context("the streams are gone")??;
    lines[index].push(beat);
    Ok(())
}

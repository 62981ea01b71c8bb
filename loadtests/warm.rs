//! `warm`: what a prompt's warm beginning saves. A second turn at once after the first, sixteen
//! clients with one system prompt, and a second turn after the server was started anew.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::client::{Client, Seen};
use crate::progress;
use crate::prompts::{Random, chat, passage, question};
use crate::report::Report;
use crate::server::{Server, Target};
use crate::statistics::ms;

/// Most of a cold first token's time that a second turn may take.
const TURN_MAX: f64 = 0.05;
/// The same when the server was started anew between the turns.
const RESTART_MAX: f64 = 0.25;
/// Most tokens forwarded for clients with one system prompt, in those that there are at least.
const SHARED_MAX: f64 = 1.15;
/// Long enough for the server to write what nobody uses, as it is told here.
const WRITTEN: Duration = Duration::from_secs(4);

/// What a warm beginning saves.
#[derive(Args)]
pub(crate) struct Warm {
    #[command(flatten)]
    target: Target,
    /// Tokens of a first turn, about.
    #[arg(long, default_value_t = 1200)]
    tokens: usize,
    /// Clients with one system prompt.
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Tokens of the system prompt, about.
    #[arg(long, default_value_t = 2000)]
    system: usize,
    /// How often each is done; the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Prompts follow from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Two turns of one conversation.
struct Turns {
    cold: Seen,
    warm: Seen,
}

impl Turns {
    fn share(&self) -> f64 {
        let first = |seen: &Seen| seen.first().unwrap_or(Duration::MAX).as_secs_f64();
        first(&self.warm) / first(&self.cold)
    }
}

/// What a server forwarded for clients with one system prompt.
struct Shared {
    system: usize,
    private: usize,
    forwarded: usize,
}

impl Shared {
    fn ratio(&self) -> f64 {
        self.forwarded as f64 / (self.system + self.private) as f64
    }
}

/// Runs it.
pub(crate) async fn run(args: &Warm) -> Result<Report> {
    let folder = tempfile::tempdir()?;
    let settings = format!(
        "[disk]\npath = {:?}\nidle_s = 1\n",
        folder.path().join("bank").display().to_string()
    );
    let mut random = Random::new(args.seed, 0);
    let server = Server::open(&args.target, "").await?;
    let client = Client::new(&server.url)?;
    // Everything is loaded and has run before anything counts.
    client.read(&chat(&question(0), 8, 0.0)).await?;
    let words = words(&client, &mut random, args.tokens).await?;
    let mut at_once = Vec::new();
    for round in 1..=args.rounds {
        progress::say(&format!("two turns, round {round}"));
        let body = first_turn(&mut random, words);
        let cold = client.read(&body).await?;
        let warm = client.read(&second_turn(&body, &cold)).await?;
        at_once.push(Turns { cold, warm });
    }
    progress::say("one system prompt");
    let per_token = args.tokens as f64 / words as f64;
    let system = (args.system as f64 / per_token) as usize;
    let shared = one_system_prompt(&server, args.clients, &passage(&mut random, system)).await?;
    server.leave().await?;
    // Only now with a folder: what it writes there would disturb what was measured so far.
    let server = Server::open(&args.target, &settings).await?;
    Client::new(&server.url)?.read(&chat(&question(0), 8, 0.0)).await?;
    let mut restarted = Vec::new();
    let mut server = Some(server);
    for round in 1..=args.rounds.min(4) {
        progress::say(&format!("a server started anew, round {round}"));
        let before = server.take().context("a server runs between rounds")?;
        let (turns, after) = restart(args, &settings, before, (&mut random, words, round)).await?;
        restarted.push(turns);
        server = Some(after);
    }
    Ok(report(&at_once, &shared, &restarted))
}

/// Words that come to about so many tokens.
async fn words(client: &Client, random: &mut Random, tokens: usize) -> Result<usize> {
    let guess = tokens / 4;
    let counted = client.read(&first_turn(random, guess)).await?.prompt;
    Ok(guess * tokens / counted.max(1))
}

fn first_turn(random: &mut Random, words: usize) -> Value {
    let mut body = chat(&passage(random, words).join(" "), 24, 0.0);
    body["ignore_eos"] = true.into();
    body
}

/// The same conversation after its reply, with one more short question.
fn second_turn(body: &Value, seen: &Seen) -> Value {
    let mut body = body.clone();
    if let Some(messages) = body["messages"].as_array_mut() {
        messages.push(json!({"role": "assistant", "content": seen.text}));
        messages.push(json!({"role": "user", "content": "And then?"}));
    }
    body
}

/// All clients at once, with one system prompt that is new and a question each.
async fn one_system_prompt(server: &Server, clients: usize, system: &[&str]) -> Result<Shared> {
    let client = Client::new(&server.url)?;
    let body = |number: usize| {
        let mut body = chat(&question(number), 8, 0.0);
        let system = json!({"role": "system", "content": system.join(" ")});
        if let Some(messages) = body["messages"].as_array_mut() {
            messages.insert(0, system);
        }
        body
    };
    let before = forwarded(server).await?;
    let mut tasks = JoinSet::new();
    for number in 0..clients {
        let (client, body) = (client.clone(), body(1000 + number));
        tasks.spawn(async move { client.read(&body).await });
    }
    let seen: Vec<Seen> = tasks.join_all().await.into_iter().collect::<Result<_>>()?;
    let forwarded = forwarded(server).await? - before;
    // One more, who parts from them where their questions begin, tells how long it was.
    let mut last = body(0);
    last["messages"][1]["content"] = "7 + 5?".into();
    let system = client.read(&last).await?.cached;
    let prompts: usize = seen.iter().map(|seen| seen.prompt).sum();
    let private = prompts.saturating_sub(system * clients);
    Ok(Shared { system, private, forwarded })
}

async fn forwarded(server: &Server) -> Result<usize> {
    let gauges = server.gauges().await?;
    let tokens = gauges.with("mtplx_prompt_tokens_total", "source=\"forwarded\"");
    Ok(tokens.context("the server does not count what it forwards")? as usize)
}

/// A first turn, the server's end (in order, or killed in every second round), its next start and
/// the second turn.
async fn restart(
    args: &Warm,
    settings: &str,
    before: Server,
    (random, words, round): (&mut Random, usize, usize),
) -> Result<(Turns, Server)> {
    let body = first_turn(random, words);
    let cold = Client::new(&before.url)?.read(&body).await?;
    if round % 2 == 0 {
        sleep(WRITTEN).await;
        before.end().await?;
    } else {
        before.leave().await?;
    }
    let after = Server::open(&args.target, settings).await?;
    let client = Client::new(&after.url)?;
    client.read(&chat(&question(round), 8, 0.0)).await?;
    let warm = client.read(&second_turn(&body, &cold)).await?;
    ensure!(cold.cached < cold.prompt / 4, "a new prompt was warm");
    Ok((Turns { cold, warm }, after))
}

fn median(turns: &[Turns]) -> Option<&Turns> {
    let mut sorted: Vec<&Turns> = turns.iter().collect();
    sorted.sort_by(|a, b| a.share().total_cmp(&b.share()));
    sorted.get(sorted.len() / 2).copied()
}

fn report(at_once: &[Turns], shared: &Shared, restarted: &[Turns]) -> Report {
    let (turn, restart) = (median(at_once), median(restarted));
    let share = |turns: Option<&Turns>| turns.map_or(f64::INFINITY, Turns::share);
    let bars = [
        ("second turn at once", share(turn), TURN_MAX),
        ("one system prompt", shared.ratio(), SHARED_MAX),
        ("second turn after a restart", share(restart), RESTART_MAX),
    ];
    let held = bars.iter().all(|(_, found, most)| found <= most);
    let mut text = String::new();
    for (name, turns) in [("at once", turn), ("after a restart", restart)] {
        let Some(Turns { cold, warm }) = turns else { continue };
        let first = |seen: &Seen| format!("{:.1} ms", ms(seen.first().unwrap_or_default()));
        let _ = writeln!(
            text,
            "{name}: cold {} for {} tokens, then {} for {}, of which {} were warm",
            first(cold),
            cold.prompt,
            first(warm),
            warm.prompt,
            warm.cached
        );
    }
    let Shared { system, private, forwarded } = shared;
    let _ = writeln!(
        text,
        "one system prompt: {forwarded} tokens forwarded for {system} in common and {private} of \
         their own\n"
    );
    for (name, found, most) in bars {
        let verdict = if found <= most { "holds" } else { "MISSED" };
        let _ = writeln!(text, "{name:<30} {found:>7.3}  at most {most:<5} {verdict}");
    }
    let turns = |turns: &[Turns]| -> Vec<Value> {
        let first = |seen: &Seen| seen.first().unwrap_or_default().as_secs_f64();
        let one = |t: &Turns| {
            json!({
                "cold_s": first(&t.cold),
                "warm_s": first(&t.warm),
                "share": t.share(),
                "prompt": t.warm.prompt,
                "cached": t.warm.cached,
            })
        };
        turns.iter().map(one).collect()
    };
    let json = json!({
        "at_once": turns(at_once),
        "shared": {
            "system": system,
            "private": private,
            "forwarded": forwarded,
            "ratio": shared.ratio(),
        },
        "restarted": turns(restarted),
        "held": held,
    });
    Report { text, json, held }
}

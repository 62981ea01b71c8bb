//! `peers`: the same work for us, for `mlx_lm.server` and for the original MTPLX, on the same
//! checkpoint, one server after the other, nobody else at work.
//!
//! Each answer has exactly the same number of tokens: ours by `ignore_eos`, the peers' by a copy of
//! the checkpoint that names no stop token, and what came is counted. Peers may be hundreds of
//! times slower on a CPU, so a run may be made in pieces: `--append` keeps them in a file, and the
//! table is of all that the file holds.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::client::{Client, Seen};
use crate::prompts::{Random, TOPICS, chat, passage};
use crate::report::Report;
use crate::server::{Server, Target};
use crate::{conditions, progress};

mod cell;
mod peer;
mod prefill;
mod table;

use cell::{Cell, Cells, Work};
use peer::{Form, Peer};

/// Longest time of one round.
const PATIENCE: Duration = Duration::from_secs(1200);
/// Tokens of an answer whose time does not count.
const WARM_TOKENS: usize = 4;

/// The same work for us, mlx_lm.server and MTPLX 2.12.2, side by side.
#[derive(Args)]
pub(crate) struct Peers {
    #[command(flatten)]
    target: Target,
    /// The checkpoint as a folder, for the peers; the one inside our binary is the default.
    #[arg(long, default_value = "config/models/tiny-q8")]
    checkpoint: PathBuf,
    /// Who is measured.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "ours,mlx-lm,mlx-lm-blas,mlx-lm-fp32,mtplx,mtplx-blas"
    )]
    peer: Vec<Form>,
    /// Clients at once; 0 for none, where only the prefill is wanted.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8,16")]
    clients: Vec<usize>,
    /// Tokens of every answer.
    #[arg(long, default_value_t = 16)]
    tokens: usize,
    /// Rounds of every width; the median counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Warm every server up once, in place of at every width and with a long prompt: for peers that
    /// take minutes.
    #[arg(long)]
    warm_once: bool,
    /// Words of the prompt that arrives while others read; 0: none does.
    #[arg(long, default_value_t = 200)]
    long_words: usize,
    /// Readers while it arrives, and tokens of each.
    #[arg(long, default_value_t = 2)]
    readers: usize,
    #[arg(long, default_value_t = 48)]
    reader_tokens: usize,
    /// A fast BLAS to preload for the peers, in place of Debian's libopenblas0-pthread.
    #[arg(long)]
    blas: Option<PathBuf>,
    /// Prompts follow from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Keep what was measured in this file, beside and in place of what it held.
    #[arg(long, value_name = "FILE")]
    append: Option<PathBuf>,
    /// Measure nothing: tell what the file of --append holds.
    #[arg(long, requires = "append")]
    table: bool,
    /// Write the table as a page in Markdown.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

/// Runs it.
pub(crate) async fn run(args: &Peers) -> Result<Report> {
    let mut cells = args.append.as_deref().map_or_else(|| Ok(Cells::default()), Cells::read)?;
    if !args.table {
        for &form in &args.peer {
            measure(args, form, &mut cells).await.with_context(|| format!("{form:?}"))?;
        }
    }
    let report = table::report(&cells);
    if let Some(path) = &args.markdown {
        std::fs::write(path, table::markdown(&cells))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(report)
}

/// Every width and the long prompt, for one server.
async fn measure(args: &Peers, form: Form, cells: &mut Cells) -> Result<()> {
    progress::say(&format!("starting {form:?}"));
    let mut server = start(args, form).await?;
    let client = Client::new(&server.url)?;
    let made = conditions::line(&conditions::of_this_machine());
    let keep = |work, cells: &mut Cells| {
        cells.put(Cell { form, made: made.clone(), work });
        args.append.as_deref().map_or(Ok(()), |path| cells.write(path))
    };
    if args.warm_once {
        round(args, form, &client, (1, 0, WARM_TOKENS)).await?;
    }
    for &clients in args.clients.iter().filter(|&&clients| clients > 0) {
        progress::say(&format!("{form:?}, {clients} clients"));
        // It has compiled what it compiles, at this width, before anything counts.
        if !args.warm_once {
            round(args, form, &client, (clients, 0, WARM_TOKENS)).await?;
        }
        let mut rounds = Vec::new();
        for number in 1..=args.rounds.max(1) {
            rounds.push(round(args, form, &client, (clients, number, args.tokens)).await?);
        }
        server.alive()?;
        keep(Work::width(clients, args.tokens, &rounds), cells)?;
    }
    if args.long_words > 0 {
        progress::say(&format!("{form:?}, a long prompt while others read"));
        keep(prefill::scene(args, form, &client).await?, cells)?;
        server.alive()?;
    }
    server.end().await
}

async fn start(args: &Peers, form: Form) -> Result<Server> {
    if form == Form::Ours {
        let widest = args.clients.iter().max().copied().unwrap_or(1);
        let slots = widest.max(args.readers + 1).max(8);
        let settings = format!("[engine]\nslots = {slots}\n[tuner]\nrows_max = {slots}\n");
        return Server::open(&args.target, &settings).await;
    }
    Peer::prepare(form, &args.checkpoint, args.blas.as_deref())?.start().await
}

/// One round: every client asks once; how long all took, and what each saw.
async fn round(
    args: &Peers,
    form: Form,
    client: &Client,
    (clients, number, tokens): (usize, usize, usize),
) -> Result<(Duration, Vec<Seen>)> {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for i in 0..clients {
        let mut random = Random::new(args.seed, (number * 1000 + clients * 40 + i) as u64);
        let body = body(form, &short(random.below(TOPICS.len() * 1000)), tokens);
        let client = client.clone();
        tasks.spawn(async move { client.read(&body).await });
    }
    let work = async {
        let mut seen = Vec::new();
        while let Some(done) = tasks.join_next().await {
            seen.push(done??);
        }
        anyhow::Ok(seen)
    };
    let seen = timeout(PATIENCE, work).await.context("it took too long")??;
    Ok((start.elapsed(), seen))
}

/// The same for all servers.
fn body(form: Form, content: &str, tokens: usize) -> Value {
    // A seed would keep mlx_lm from batching; each server draws as it likes.
    let mut body = chat(content, tokens, 0.6);
    body["top_p"] = 0.95.into();
    body["top_k"] = 20.into();
    if form == Form::Ours {
        body["ignore_eos"] = true.into();
    }
    body
}

/// A question of a dozen tokens: peers feed a prompt to a quantised model on a CPU at a few tokens
/// a second.
fn short(number: usize) -> String {
    format!("Tell me about {}, {}.", TOPICS[number % TOPICS.len()], number / TOPICS.len())
}

/// A prompt of so many words of real text and a question, another for every number.
fn long(seed: u64, number: u64, words: usize) -> Result<String> {
    ensure!(words <= 100_000, "a prompt has 100 000 words at most");
    let mut random = Random::new(seed, (1 << 40) + number);
    let text = passage(&mut random, words).join(" ");
    Ok(format!("{text}\n{}", short(random.below(1000))))
}

impl Cells {
    fn read(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = std::fs::read_to_string(path)?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }

    fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

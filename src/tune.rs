//! `mtplx tune`: which draft depth is fastest here, beyond doubt. Each depth runs in a process of
//! its own, all take turns within a round, and a depth is compared with plain decoding of the same
//! round. One is kept only where the whole interval of its speed-up lies above 1.
//!
//! `mtplx bench tune` is the same, keeps nothing, and says what the machine did meanwhile.

#![allow(clippy::print_stdout, reason = "a command reports on stdout")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use mtplx_actors::ingress::{Chat, Must};
use mtplx_actors::thermal::{Sensor, Sources};
use mtplx_core::engine::Engine;
use mtplx_kernels::MlxEngine;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml_edit::{DocumentMut, Item, Table, value};

use crate::bench::{Bench, BenchArgs, Figures};
use crate::files;
use crate::model::Model;

pub mod interval;
mod samples;

use interval::SpeedUp;
use samples::{Figure, Machine, Sampler, Scope, Scoped, Window};

const PROMPTS: &str = include_str!("tune/prompts.toml");
/// What a process says once everything was touched and the rest counts.
const MEASURING: &str = "measuring";

/// The hidden command that a process of one depth runs.
pub const CANDIDATE: &str = "tune-candidate";

/// What the help of `mtplx tune` ends with.
pub const EXAMPLES: &str = "Examples:\n  mtplx tune\n  \
    mtplx tune --model owner/name --save my.toml --retune\n\nThen: mtplx serve --config \
    mtplx-tuned.toml";

/// And that of `mtplx bench tune`.
pub const BENCH_EXAMPLES: &str = "Examples:\n  mtplx bench tune\n  \
    mtplx bench tune --rounds 12 --sample-s 0.1 --json";

/// What is compared.
#[derive(Args, Debug, Clone)]
pub struct CompareArgs {
    /// Rounds; each runs every depth once.
    #[arg(long, default_value_t = 6)]
    pub rounds: usize,
    /// Deepest draft.
    #[arg(long, default_value_t = 4)]
    pub depth_max: u8,
    /// Seed of the interval.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// One object of JSON in place of a table; `mtplx schema tune` describes it.
    #[arg(long)]
    pub json: bool,
    /// What is generated.
    #[command(flatten)]
    pub texts: TextArgs,
}

/// What is compared, and where the result goes.
#[derive(Args, Debug, Clone)]
pub struct TuneArgs {
    /// What is compared.
    #[command(flatten)]
    pub compare: CompareArgs,
    /// Settings into which the depth goes that was found, to be given to --config.
    #[arg(long, default_value = "mtplx-tuned.toml")]
    pub save: PathBuf,
    /// Measure although that file exists, and set the depth in it; all else in it stays.
    #[arg(long)]
    pub retune: bool,
}

/// What is compared, and how often sensors are looked at meanwhile.
#[derive(Args, Debug, Clone)]
pub struct BenchTuneArgs {
    /// What is compared.
    #[command(flatten)]
    pub compare: CompareArgs,
    /// Seconds between two looks at the sensors.
    #[arg(long, default_value_t = 0.25)]
    pub sample_s: f64,
}

/// Where the processes run.
#[derive(Debug)]
pub struct Site {
    /// Deepest draft that the engine can.
    pub depth_max: u8,
    /// Longest wait for a sensor.
    pub sensor_time: Duration,
    /// What goes to every process: which model and settings.
    pub common: Vec<OsString>,
}

/// What is generated.
#[derive(Args, Debug, Clone)]
pub struct TextArgs {
    /// Tokens of a text.
    #[arg(long, default_value_t = 128)]
    pub tokens: usize,
    /// Temperature; top-k 20 and top-p 0.95 are always on.
    #[arg(long, default_value_t = 0.6)]
    pub temperature: f32,
}

/// One depth, in a process of its own.
#[derive(Args, Debug, Clone)]
pub struct CandidateArgs {
    /// Tokens to draft.
    #[arg(long)]
    pub depth: u8,
    /// What is generated.
    #[command(flatten)]
    pub texts: TextArgs,
}

#[derive(Deserialize)]
struct Prompts {
    kind: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    name: String,
    chat: Vec<String>,
}

/// What one process measured of one kind of text.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Measured {
    tokens_per_s: f64,
    /// Judged and accepted, by position.
    positions: Vec<(u32, u32)>,
}

/// Runs one depth and prints what it gave.
///
/// # Errors
/// When the engine fails.
pub fn candidate(model: &Model, engine: MlxEngine, args: &CandidateArgs) -> Result<()> {
    leave_with_the_parent()?;
    let most = engine.info().depth_max;
    if args.depth > most {
        bail!("this engine drafts {most} tokens at most");
    }
    let TextArgs { tokens, temperature } = args.texts;
    let bench =
        BenchArgs { temperature, tokens, rounds: 1, depth_max: most, clients: 1, json: false };
    let mut bench = Bench::new(engine, model, bench);
    let Prompts { kind } = toml::from_str(PROMPTS).context("prompts of tune")?;
    let mut told = BTreeMap::new();
    for (i, Kind { name, chat }) in kind.into_iter().enumerate() {
        let mut sum = Figures::default();
        for (j, text) in chat.iter().enumerate() {
            let chat = Chat { must: Must::NotThink, ..Chat::question(text) };
            let prompt = [model.text.chat(&chat)?.tokens];
            if i + j == 0 {
                // Everything is touched once before anything counts.
                bench.measure(&prompt, args.depth)?;
                println!("{MEASURING}");
            }
            sum.add(&bench.measure(&prompt, args.depth)?);
        }
        let positions = sum.positions.iter().map(|t| (t.tried, t.accepted)).collect();
        told.insert(name, Measured { tokens_per_s: sum.rate(), positions });
    }
    println!("{}", serde_json::to_string(&told)?);
    Ok(())
}

/// Ends this process when the one that started it is gone, by whatever means: it holds the other
/// end of our stdin.
fn leave_with_the_parent() -> Result<()> {
    let wait = || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(1);
    };
    std::thread::Builder::new().name("parent".into()).spawn(wait).context("no thread")?;
    Ok(())
}

type Told = BTreeMap<String, Measured>;

/// A depth over all rounds.
#[derive(Clone, Debug, JsonSchema, Serialize)]
struct Row {
    depth: u8,
    /// Beside plain decoding of the same round, over all kinds; absent for plain itself.
    speed_up: Option<SpeedUp>,
    by_kind: BTreeMap<String, OfKind>,
    /// The hottest sensor after each of its processes had ended; `null` where none speaks.
    celsius_after: Vec<Option<f32>>,
    /// What the machine did while it was measured; absent where nobody looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    machine: Option<Machine>,
}

#[derive(Clone, Debug, JsonSchema, Serialize)]
struct OfKind {
    tokens_per_s: Vec<f64>,
    speed_up: Option<SpeedUp>,
    acceptance: Vec<f64>,
}

/// What `mtplx tune --json` and `mtplx bench tune --json` print.
#[derive(Debug, JsonSchema, Serialize)]
pub(crate) struct Report {
    rounds: usize,
    depths: Vec<Row>,
    /// The depth that was kept, if one was faster beyond doubt.
    kept: Option<u8>,
    saved: Option<PathBuf>,
}

/// Compares all depths up to what the engine can, and keeps the best if it is one beyond doubt.
///
/// # Errors
/// When a process fails or the result cannot be written.
pub fn run(args: &TuneArgs, site: &Site) -> Result<()> {
    if args.save.exists() && !args.retune {
        bail!("{} exists: --retune measures and sets the depth in it", args.save.display());
    }
    // What could not be written is found out before anything is measured.
    let settings = settings(&args.save)?;
    let rows = compare(&args.compare, site, None)?;
    let kept = best(&rows);
    let saved = kept.map(|_| args.save.clone());
    if let (Some(depth), Some(path)) = (kept, &saved) {
        save(path, settings, depth)?;
    }
    let report = Report { rounds: args.compare.rounds.max(1), depths: rows, kept, saved };
    print(&report, args.compare.json)
}

/// Compares all depths, and says what the machine did meanwhile.
///
/// # Errors
/// When a process fails.
pub fn bench(args: &BenchTuneArgs, site: &Site) -> Result<()> {
    let every = Duration::try_from_secs_f64(args.sample_s).context("--sample-s")?;
    let rows = compare(&args.compare, site, Some(every))?;
    let kept = best(&rows);
    let report = Report { rounds: args.compare.rounds.max(1), depths: rows, kept, saved: None };
    print(&report, args.compare.json)
}

/// Every depth in every round; sensors are looked at `every` so often, or once after each process.
fn compare(args: &CompareArgs, site: &Site, every: Option<Duration>) -> Result<Vec<Row>> {
    let deepest = args.depth_max.min(site.depth_max);
    if deepest == 0 {
        bail!("this model drafts nothing: there is nothing to tune");
    }
    let depths: Vec<u8> = (0..=deepest).collect();
    let rounds = args.rounds.max(1);
    let bar = ProgressBar::new((rounds * depths.len()) as u64);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} ({eta})")?);
    let mut told: Vec<Vec<Told>> = vec![Vec::new(); depths.len()];
    let mut heat: Vec<Vec<Option<f32>>> = vec![Vec::new(); depths.len()];
    let mut windows: Vec<Vec<Window>> = vec![Vec::new(); depths.len()];
    let sampler = every.map(|every| Sampler::start(site.sensor_time, every)).transpose()?;
    let mut sensor = Sources::of_this_machine(site.sensor_time);
    for round in 0..rounds {
        for i in 0..depths.len() {
            // The order turns, so that no depth always follows the same one.
            let i = (i + round) % depths.len();
            bar.set_message(format!("round {}, depth {}", round + 1, depths[i]));
            let (said, window) = process(depths[i], &args.texts, &site.common)?;
            told[i].push(said);
            windows[i].push(window);
            heat[i].push(sensor.read().heat().celsius);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let looks = sampler.map(Sampler::finish);
    let rows = depths.iter().zip(heat).zip(windows).map(|((&depth, celsius_after), windows)| {
        let machine = looks.as_ref().map(|looks| looks.within(&windows));
        Row { machine, ..row(depth, &told, celsius_after, args.seed) }
    });
    Ok(rows.collect())
}

/// A process that ends with us: killed if we fail, and by its own watch if we are.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended long ago.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs one depth in a process of its own: what it measured, from when to when.
fn process(depth: u8, texts: &TextArgs, common: &[OsString]) -> Result<(Told, Window)> {
    let mut command = Command::new(std::env::current_exe().context("which binary am I?")?);
    command.arg(CANDIDATE).args(["--depth", &depth.to_string()]);
    command.args(["--tokens", &texts.tokens.to_string()]);
    command.args(["--temperature", &texts.temperature.to_string()]).args(common);
    // It watches its stdin, which we hold until it has ended.
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = Started(command.spawn()?);
    let stdout = child.0.stdout.take().context("its stdout is ours")?;
    let (mut began, mut last) = (Instant::now(), String::new());
    for line in BufReader::new(stdout).lines() {
        last = line?;
        if last == MEASURING {
            began = Instant::now();
        }
    }
    let ended = Instant::now();
    let status = child.0.wait()?;
    if !status.success() {
        bail!("the process of depth {depth} ended with {status}");
    }
    let told = serde_json::from_str(&last);
    Ok((told.with_context(|| format!("depth {depth} said {last:?}"))?, (began, ended)))
}

fn print(report: &Report, json: bool) -> Result<()> {
    let text = if json { serde_json::to_string_pretty(report)? } else { table(report) };
    println!("{}", text.trim_end());
    Ok(())
}

fn row(depth: u8, told: &[Vec<Told>], celsius_after: Vec<Option<f32>>, seed: u64) -> Row {
    let (own, plain) = (&told[usize::from(depth)], &told[0]);
    let mut by_kind = BTreeMap::new();
    // A round's ratio over all kinds is their geometric mean: each counts alike.
    let mut rounds = vec![0.0; own.len()];
    let names: Vec<&String> = own.first().map(|t| t.keys().collect()).unwrap_or_default();
    for name in &names {
        let pairs = own.iter().zip(plain).filter_map(|(o, p)| Some((o.get(*name)?, p.get(*name)?)));
        let pairs: Vec<(&Measured, &Measured)> = pairs.collect();
        let ratios: Vec<f64> = pairs.iter().map(|(o, p)| o.tokens_per_s / p.tokens_per_s).collect();
        for (sum, ratio) in rounds.iter_mut().zip(&ratios) {
            *sum += ratio.ln() / names.len() as f64;
        }
        let places = pairs.iter().map(|(o, _)| o.positions.len()).max().unwrap_or(0);
        let rate = |place: usize| {
            let of = pairs.iter().filter_map(|(o, _)| o.positions.get(place));
            let (judged, stood) = of.fold((0, 0), |(j, s), (tried, kept)| (j + tried, s + kept));
            f64::from(stood) / f64::from(judged.max(1))
        };
        let of = OfKind {
            tokens_per_s: pairs.iter().map(|(o, _)| o.tokens_per_s).collect(),
            speed_up: SpeedUp::of(&ratios, seed).filter(|_| depth > 0),
            acceptance: (0..places).map(rate).collect(),
        };
        by_kind.insert((*name).clone(), of);
    }
    let ratios: Vec<f64> = rounds.iter().map(|log: &f64| log.exp()).collect();
    let speed_up = SpeedUp::of(&ratios, seed).filter(|_| depth > 0);
    Row { depth, speed_up, by_kind, celsius_after, machine: None }
}

/// The fastest of those that are faster beyond doubt.
fn best(rows: &[Row]) -> Option<u8> {
    let sure = rows.iter().filter_map(|row| Some((row.depth, row.speed_up?)));
    let sure = sure.filter(|(_, speed_up)| speed_up.is_sure());
    sure.max_by(|a, b| a.1.mean.total_cmp(&b.1.mean)).map(|(depth, _)| depth)
}

/// The settings that stand in a file; none if it is not there.
fn settings(path: &Path) -> Result<DocumentMut> {
    let name = path.display();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::from(
            "# By `mtplx tune`: the depth to start from; `depth_auto = false` would hold it.\n",
        ),
        Err(error) => return Err(error).with_context(|| format!("cannot read {name}")),
    };
    let settings: DocumentMut =
        text.parse().with_context(|| format!("{name} holds no settings"))?;
    if settings.get("tuner").is_some_and(|item| !item.is_table_like()) {
        bail!("{name}: tuner is no table");
    }
    Ok(settings)
}

/// Sets the depth and nothing else.
fn save(path: &Path, mut settings: DocumentMut, depth: u8) -> Result<()> {
    let tuner = settings.entry("tuner").or_insert(Item::Table(Table::new()));
    tuner["depth"] = value(i64::from(depth));
    let text = settings.to_string();
    // A depth is no secret, and whoever serves may be somebody else.
    if path.exists() { files::replace(path, &text) } else { files::replace_shared(path, &text) }
}

fn table(report: &Report) -> String {
    let mut out = String::from("depth  speed-up  95 % interval   by kind, with acceptance\n");
    for row in &report.depths {
        let of = row.speed_up.map_or_else(
            || format!("{:>8}  {:<14}", "1", "plain"),
            |s| format!("{:>8.3}  {:.3} to {:.3}", s.mean, s.low, s.high),
        );
        // Writing to a string cannot fail.
        let _ = write!(out, "{:>5}  {of}", row.depth);
        for (name, kind) in &row.by_kind {
            let ratio = kind.speed_up.map_or(1.0, |s| s.mean);
            let rates: Vec<String> = kind.acceptance.iter().map(|a| format!("{a:.2}")).collect();
            let _ = write!(out, "  {name} {ratio:.2} [{}]", rates.join(" "));
        }
        out.push('\n');
    }
    for row in &report.depths {
        let Some(machine) = &row.machine else { continue };
        let Machine { watts, megahertz, celsius, busy, .. } = machine;
        let all = [("W", watts), ("MHz", megahertz), ("°C", celsius), ("busy", busy)];
        let said: Vec<String> = all.into_iter().map(|(unit, of)| of_sensors(unit, of)).collect();
        let _ = writeln!(out, "{:>5}  {}", row.depth, said.join(", "));
    }
    let _ = match (report.kept, &report.saved) {
        (Some(depth), Some(path)) => writeln!(out, "depth {depth} is kept in {}", path.display()),
        (Some(depth), None) => writeln!(out, "depth {depth} is the fastest beyond doubt"),
        (None, _) => writeln!(out, "no depth is faster beyond doubt: nothing is kept"),
    };
    out
}

/// The largest mean of the sensors of a quantity, and whose samples those are.
fn of_sensors(unit: &str, of: &Scoped<Vec<Figure>>) -> String {
    let means = of.sensors.iter().flatten().map(|figure| figure.mean);
    let scope = match of.scope {
        Scope::Candidate => "of it",
        Scope::Run => "of the run",
        Scope::None => return format!("{unit} unknown"),
    };
    format!("{:.1} {unit} {scope}", means.fold(f32::NEG_INFINITY, f32::max))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(rate: f64) -> Told {
        let measured = Measured { tokens_per_s: rate, positions: vec![(10, 8), (8, 4)] };
        BTreeMap::from([("prose".into(), measured.clone()), ("code".into(), measured)])
    }

    #[test]
    fn only_what_is_faster_beyond_doubt_is_kept() {
        let plain = vec![told(100.0), told(50.0), told(80.0)];
        let faster = vec![told(130.0), told(62.0), told(104.0)];
        let maybe = vec![told(200.0), told(40.0), told(90.0)];
        let all = [plain, faster, maybe];
        let rows: Vec<Row> = (0..3).map(|depth| row(depth, &all, Vec::new(), 1)).collect();
        assert_eq!(best(&rows), Some(1));
        assert_eq!(best(&rows[..1]), None);
        assert!((rows[1].by_kind["code"].acceptance[1] - 0.5).abs() < 1e-9);
        let report = Report { rounds: 3, depths: rows, kept: None, saved: None };
        assert!(table(&report).contains("nothing is kept"));
    }

    #[test]
    fn what_is_saved_is_a_file_of_settings() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tuned.toml");
        save(&path, settings(&path).unwrap(), 3).unwrap();
        let config = crate::config::Config::load(Some(&path), &[]).unwrap();
        assert_eq!(config.actors.tuner.depth, 3);
        // All that is not its own stays as it stands.
        let own =
            "# mine\n[server]\nport = 1234 # free here\n\n[tuner]\nitl_ms = 40.0\ndepth = 1\n";
        std::fs::write(&path, own).unwrap();
        save(&path, settings(&path).unwrap(), 2).unwrap();
        let now = std::fs::read_to_string(&path).unwrap();
        assert_eq!(now, own.replace("depth = 1", "depth = 2"));
        for wrong in ["tuner = 3", "what is this"] {
            std::fs::write(&path, wrong).unwrap();
            assert!(settings(&path).is_err());
        }
    }
}

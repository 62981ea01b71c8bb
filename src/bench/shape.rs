//! `mtplx bench shape`: the real engine at a full shape with random weights, so that a machine's
//! speed is known without a checkpoint. Random weights agree about nothing: acceptance is forced.

use std::fmt;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use mtplx_core::batch::{Batch, BatchLimits, Knobs};
use mtplx_core::engine::{Engine, Kernel, Phases};
use mtplx_core::request::{Drafts, Limits, Request, Sharing};
use mtplx_core::sample::Sampling;
use mtplx_core::{RequestId, Token};
use mtplx_kernels::place::{Dtype, Place};
use mtplx_kernels::shape::{self, Noise, Scheme};
use mtplx_kernels::{EngineOptions, MlxEngine};
use schemars::JsonSchema;
use serde::Serialize;

/// Steps before those that count.
const WARM_UP: usize = 10;
/// Tokens of the prompt before decoding is timed.
const PROMPT: usize = 64;

/// What is measured.
#[derive(Args, Debug, Clone)]
#[command(after_help = "Examples:\n  mtplx bench shape\n  \
    mtplx bench shape --clients 8 --depth 3 --bits 8 --json")]
pub struct ShapeArgs {
    /// The shape.
    #[arg(long, default_value = shape::PRESETS[0], value_parser = shape::PRESETS)]
    pub preset: String,
    /// Layers, if not all of the shape's.
    #[arg(long)]
    pub layers: Option<usize>,
    /// Bits of a weight.
    #[arg(long, default_value = "4", value_parser = one_of([4, 8]))]
    pub bits: usize,
    /// Weights that share a scale.
    #[arg(long, default_value = "64", value_parser = one_of([32, 64, 128]))]
    pub group: usize,
    /// Activations and scales, where the model runs on a GPU.
    #[arg(long, value_enum, default_value_t = Half::Bfloat16)]
    pub dtype: Half,
    /// Sequences at once; with neither this nor a depth 1 and 8, at depths 0 and 3, and at 3 with
    /// drafts made up, which is verification alone.
    #[arg(long)]
    pub clients: Option<usize>,
    /// Tokens to draft.
    #[arg(long)]
    pub depth: Option<u8>,
    /// How often drafts are accepted, place by place, whatever they are.
    #[arg(long, value_delimiter = ',', default_values_t = [0.85, 0.77, 0.66])]
    pub acceptance: Vec<f64>,
    /// Steps that count; the median of their times is told.
    #[arg(long, default_value_t = 30)]
    pub steps: usize,
    /// Tokens of the prompt whose prefill is timed; 0 for none.
    #[arg(long, default_value_t = 4096)]
    pub prompt: usize,
    /// Times of single blocks, too.
    #[arg(long)]
    pub blocks: bool,
    /// One object of JSON in place of lines for people; `mtplx schema bench-shape` describes it.
    #[arg(long)]
    pub json: bool,
}

/// Types of activations on a GPU; a CPU computes in fp32.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// bf16.
    Bfloat16,
    /// fp16.
    Float16,
}

/// Reads one of a few numbers.
pub(super) fn one_of<const N: usize>(
    known: [usize; N],
) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| {
        let number = text.parse().ok().filter(|number| known.contains(number));
        number.ok_or_else(|| format!("one of {known:?} is wanted"))
    }
}

/// What `mtplx bench shape --json` prints.
#[derive(Debug, JsonSchema, Serialize)]
pub(crate) struct Report {
    preset: String,
    layers: usize,
    weights: String,
    place: String,
    device: Option<String>,
    mlx: String,
    copy_gb_s: f64,
    /// Of packed weights that one pass reads.
    pass_gb: f64,
    kernels_switched_off: Vec<String>,
    blocks: Vec<Block>,
    acceptance_forced: Vec<f64>,
    decode: Vec<Decode>,
    prefill: Option<Prefill>,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Block {
    name: &'static str,
    tokens: usize,
    built_us: f64,
    evaluated_us: f64,
}

/// Medians of steps; milliseconds.
#[derive(Debug, JsonSchema, Serialize)]
struct Decode {
    clients: usize,
    depth: u8,
    step_ms: f64,
    draft_ms: f64,
    trunk_ms: f64,
    sampling_ms: f64,
    device_ms: f64,
    /// Of the trunk's weights over its time.
    share_of_copy: f64,
    tokens_per_row: f64,
    tokens_per_s: f64,
    forced: bool,
    /// Whether drafts were made up and the head not asked, so that the step is verification alone.
    made_up: bool,
    /// The step over that of the same clients without drafts, where it was measured before.
    over_plain: Option<f64>,
}

/// What is decoded for a measurement.
#[derive(Clone, Copy)]
struct Load {
    clients: usize,
    depth: u8,
    made_up: bool,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Prefill {
    tokens: usize,
    ms: f64,
    tokens_per_s: f64,
}

/// Measures and prints.
///
/// # Errors
/// When the engine fails.
pub fn run(args: &ShapeArgs) -> Result<()> {
    let Some(config) = shape::preset(&args.preset, args.layers) else {
        bail!("an unknown shape: {}", args.preset)
    };
    if config.layers.is_empty() || args.clients == Some(0) {
        bail!("there is nothing to measure without layers and clients");
    }
    let half = args.dtype == Half::Float16;
    let scheme = Scheme { bits: args.bits, group: args.group, half };
    let place = Place::detect(if half { Dtype::Float16 } else { Dtype::Bfloat16 })?;
    let copy = shape::bandwidth(place)?;
    let noise = Noise::new(config.vocab * config.hidden, scheme);
    let loads = loads(args);
    let options = EngineOptions {
        slots: loads.iter().map(|load| load.clients).max().unwrap_or(1),
        depth_max: loads.iter().map(|load| load.depth).max().unwrap_or(0).max(1),
        context_tokens_max: Some((args.prompt + 64).max(8192)),
        place: Some(place),
        ..EngineOptions::default()
    };
    let mut engine = mtplx_kernels::open(&noise.checkpoint(&config), &options)?;
    engine.force_acceptance(&args.acceptance);
    let off =
        |kernel: &Kernel| kernel.fault.as_ref().map(|fault| format!("{}: {fault}", kernel.name));
    let mut report = Report {
        preset: args.preset.clone(),
        layers: config.layers.len(),
        weights: format!("random, {} bits in groups of {}", args.bits, args.group),
        place: engine.info().device.clone(),
        device: shape::device_name(),
        mlx: shape::mlx_version(),
        copy_gb_s: copy / 1e9,
        pass_gb: shape::pass_bytes(&config, scheme) / 1e9,
        kernels_switched_off: engine.info().kernels.iter().filter_map(off).collect(),
        blocks: Vec::new(),
        acceptance_forced: args.acceptance.clone(),
        decode: Vec::new(),
        prefill: None,
    };
    say(args, &report)?;
    if args.blocks {
        report.blocks = shape::blocks(&noise, &config, place)?.iter().map(Block::of).collect();
        report.blocks.iter().try_for_each(|block| say(args, block))?;
    }
    let mut bench = Bench { engine, vocab: config.vocab as u32, steps: args.steps.max(1) };
    for load in loads {
        let floor_ms = 1e3 * report.pass_gb / report.copy_gb_s;
        let mut decode = bench.decode(load, floor_ms)?;
        let plain = report.decode.iter().find(|d| d.clients == load.clients && d.depth == 0);
        decode.over_plain = plain.map(|plain| decode.step_ms / plain.step_ms);
        say(args, &decode)?;
        report.decode.push(decode);
    }
    if args.prompt > 0 {
        let prefill = bench.prefill(args.prompt)?;
        say(args, &prefill)?;
        report.prefill = Some(prefill);
    }
    if args.json { told(&serde_json::to_string(&report)?) } else { Ok(()) }
}

/// What is decoded, one after another.
fn loads(args: &ShapeArgs) -> Vec<Load> {
    let load = |clients, depth, made_up| Load { clients, depth, made_up };
    match (args.clients, args.depth) {
        (None, None) => [1, 8]
            .into_iter()
            .flat_map(|n| [load(n, 0, false), load(n, 3, true), load(n, 3, false)])
            .collect(),
        (clients, depth) => vec![load(clients.unwrap_or(1), depth.unwrap_or(3), false)],
    }
}

/// Tells people a finding as soon as it is there.
fn say(args: &ShapeArgs, what: &impl fmt::Display) -> Result<()> {
    if args.json { Ok(()) } else { told(&what.to_string()) }
}

#[expect(clippy::print_stdout, reason = "a command reports on stdout")]
pub(super) fn told(line: &str) -> Result<()> {
    println!("{line}");
    std::io::stdout().flush()?;
    Ok(())
}

struct Bench {
    engine: MlxEngine,
    vocab: u32,
    steps: usize,
}

impl Bench {
    fn batch(&self, clients: usize, prompt: usize, new_tokens: usize) -> Batch {
        // Nothing is kept: every text starts cold.
        let limits = BatchLimits { snapshots_max: 0, chunk_grain: 64 };
        let mut batch = Batch::new(self.engine.info().clone(), limits);
        for id in 0..clients as u64 {
            let token = |i: usize| -> Token { (i as u32 * 7919 + id as u32 * 31) % self.vocab };
            let sampling =
                Sampling { temperature: 0.6, top_k: 20, seed: id, ..Sampling::default() };
            let request = Request {
                id: RequestId(id + 1),
                prompt: (0..prompt).map(token).collect(),
                sampling,
                limits: Limits { new_tokens_max: new_tokens, stop_tokens: Arc::default() },
                draft_tokens: Drafts::Tuned,
                boundaries: Vec::new(),
                resumed: 0,
                sharing: Sharing::default(),
                standing: Default::default(),
            };
            batch.admit(request, None);
        }
        batch
    }

    /// One step; its seconds, phases and new tokens.
    fn step(&mut self, batch: &mut Batch, depth: u8) -> Result<(f64, Phases, usize)> {
        let knobs = Knobs::fixed(depth, 64, (8192, 8192));
        let start = Instant::now();
        let plan = batch.plan(knobs);
        if plan.verify.is_empty() && plan.prefill.is_empty() && plan.moves.is_empty() {
            bail!("the texts do not fit into memory: {:?}", batch.shortage());
        }
        let outcome = self.engine.run(&plan, batch.rows())?;
        let phases = outcome.phases;
        let tokens = outcome.rows.iter().map(|r| r.result.as_ref().map_or(0, |e| e.tokens.len()));
        let tokens = tokens.sum();
        batch.settle(&plan, outcome);
        Ok((start.elapsed().as_secs_f64(), phases, tokens))
    }

    fn decode(&mut self, load: Load, floor_ms: f64) -> Result<Decode> {
        let Load { clients, depth, made_up } = load;
        // Whatever it is: acceptance is forced.
        self.engine.make_up_drafts(made_up.then_some(self.vocab / 2));
        let most = (WARM_UP + self.steps + 2) * (usize::from(depth) + 1);
        let mut batch = self.batch(clients, PROMPT, most);
        let (mut times, mut tokens) = (Vec::new(), 0);
        for i in 0..=WARM_UP + self.steps {
            let (seconds, phases, new) = self.step(&mut batch, depth)?;
            if i > WARM_UP {
                times.push((seconds, phases));
                tokens += new;
            }
        }
        let total: f64 = times.iter().map(|t| t.0).sum();
        let ms = |pick: fn(&Phases) -> u64| median(times.iter().map(|t| pick(&t.1) as f64 / 1e3));
        let trunk_ms = ms(|p| p.verify_us);
        Ok(Decode {
            clients,
            depth,
            step_ms: median(times.iter().map(|t| t.0 * 1e3)),
            draft_ms: ms(|p| p.draft_us),
            trunk_ms,
            sampling_ms: ms(|p| p.accept_us),
            device_ms: ms(|p| p.device_us),
            share_of_copy: floor_ms / trunk_ms,
            tokens_per_row: tokens as f64 / times.len() as f64 / clients as f64,
            tokens_per_s: tokens as f64 / total,
            forced: depth > 0,
            made_up,
            over_plain: None,
        })
    }

    /// The best of three, the first of which warms up.
    fn prefill(&mut self, tokens: usize) -> Result<Prefill> {
        self.engine.make_up_drafts(None);
        let mut best = f64::INFINITY;
        for _ in 0..3 {
            let mut batch = self.batch(1, tokens, 2);
            let mut seconds = 0.0;
            loop {
                let (step, _, new) = self.step(&mut batch, 0)?;
                seconds += step;
                if new > 0 {
                    break;
                }
            }
            best = best.min(seconds);
        }
        Ok(Prefill { tokens, ms: best * 1e3, tokens_per_s: tokens as f64 / best })
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = values.collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

impl Block {
    fn of(time: &shape::BlockTime) -> Self {
        let shape::BlockTime { name, tokens, built_us, evaluated_us } = *time;
        Self { name, tokens, built_us, evaluated_us }
    }
}

/// What is known before anything is measured.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = self.device.as_deref().unwrap_or("a device without a name");
        writeln!(f, "{}, {} layers, weights {}", self.preset, self.layers, self.weights)?;
        writeln!(f, "{device}, MLX {}, {}", self.mlx, self.place)?;
        writeln!(f, "copy, read and written: {:.0} GB/s", self.copy_gb_s)?;
        let floor_ms = 1e3 * self.pass_gb / self.copy_gb_s;
        write!(f, "a pass reads {:.2} GB of weights: {floor_ms:.2} ms", self.pass_gb)?;
        for kernel in &self.kernels_switched_off {
            write!(f, "\nSWITCHED OFF {kernel}")?;
        }
        if !self.acceptance_forced.is_empty() {
            write!(f, "\nacceptance of drafts is FORCED to {:?}", self.acceptance_forced)?;
        }
        Ok(())
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, tokens, built_us, evaluated_us } = self;
        write!(f, "M={tokens:2} {name}: {built_us:.1} us to build + {evaluated_us:.1} us")
    }
}

impl fmt::Display for Decode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = 100.0 * self.share_of_copy;
        let drafts = if self.made_up { ", verification alone" } else { "" };
        write!(f, "B={} T={}{drafts}: step {:.2} ms", self.clients, self.depth + 1, self.step_ms)?;
        if let Some(over) = self.over_plain.filter(|_| self.depth > 0) {
            write!(f, ", {over:.2} of T=1")?;
        }
        write!(f, " = draft {:.2} + trunk {:.2} ({share:.0} %", self.draft_ms, self.trunk_ms)?;
        write!(f, " of copy bandwidth) + sampling {:.2};", self.sampling_ms)?;
        write!(f, " waiting for the device {:.2};", self.device_ms)?;
        write!(f, " {:.2} tokens a row and cycle,", self.tokens_per_row)?;
        write!(f, " {:.0} tokens/s", self.tokens_per_s)?;
        if self.forced { write!(f, ", acceptance FORCED") } else { Ok(()) }
    }
}

impl fmt::Display for Prefill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tokens, ms, tokens_per_s } = self;
        write!(f, "prefill of {tokens}: {ms:.1} ms, {tokens_per_s:.0} tokens/s")
    }
}

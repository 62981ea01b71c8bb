//! `mtplx bench shape`: the real engine at a full shape with random weights, so that a machine's
//! speed is known without a checkpoint. Random weights agree about nothing: acceptance is forced.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use mtplx_core::batch::{Batch, BatchLimits, Knobs};
use mtplx_core::engine::{Engine, Kernel, Phases};
use mtplx_core::request::{Drafts, Limits, Request, Sharing};
use mtplx_core::sample::Sampling;
use mtplx_core::{RequestId, Token};
use mtplx_kernels::place::{Dtype, Place};
use mtplx_kernels::shape::{self, Noise};
use mtplx_kernels::{EngineOptions, MlxEngine};
use serde::Serialize;

/// Steps before those that count.
const WARM_UP: usize = 10;
/// Tokens of the prompt before decoding is timed.
const PROMPT: usize = 64;

/// What is measured.
#[derive(Args, Debug, Clone)]
pub struct ShapeArgs {
    /// The shape.
    #[arg(long, default_value = shape::PRESETS[0], value_parser = shape::PRESETS)]
    pub preset: String,
    /// Layers, if not all of the shape's.
    #[arg(long)]
    pub layers: Option<usize>,
    /// Sequences at once; with neither this nor a depth 1 and 8, at depths 0 and 3.
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
    /// One object of JSON in place of lines for people.
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize)]
struct Report {
    preset: String,
    layers: usize,
    weights: &'static str,
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

#[derive(Serialize)]
struct Block {
    name: &'static str,
    tokens: usize,
    built_us: f64,
    evaluated_us: f64,
}

/// Medians of steps; milliseconds.
#[derive(Serialize)]
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
}

#[derive(Serialize)]
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
    let place = Place::detect(Dtype::Bfloat16)?;
    let copy = shape::bandwidth(place)?;
    let noise = Noise::new(config.vocab * config.hidden);
    let blocks = if args.blocks { shape::blocks(&noise, &config, place)? } else { Vec::new() };
    let pairs = match (args.clients, args.depth) {
        (None, None) => vec![(1, 0), (1, 3), (8, 0), (8, 3)],
        (clients, depth) => vec![(clients.unwrap_or(1), depth.unwrap_or(3))],
    };
    let options = EngineOptions {
        slots: pairs.iter().map(|p| p.0).max().unwrap_or(1),
        depth_max: pairs.iter().map(|p| p.1).max().unwrap_or(0).max(1),
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
        weights: "random, 4 bits in groups of 64",
        place: engine.info().device.clone(),
        device: shape::device_name(),
        mlx: shape::mlx_version(),
        copy_gb_s: copy / 1e9,
        pass_gb: shape::pass_bytes(&config) / 1e9,
        kernels_switched_off: engine.info().kernels.iter().filter_map(off).collect(),
        blocks: blocks.iter().map(Block::of).collect(),
        acceptance_forced: args.acceptance.clone(),
        decode: Vec::new(),
        prefill: None,
    };
    let mut bench = Bench { engine, vocab: config.vocab as u32, steps: args.steps.max(1) };
    for (clients, depth) in pairs {
        let floor_ms = 1e3 * report.pass_gb / report.copy_gb_s;
        report.decode.push(bench.decode(clients, depth, floor_ms)?);
    }
    if args.prompt > 0 {
        report.prefill = Some(bench.prefill(args.prompt)?);
    }
    print(&report, args.json)
}

#[expect(clippy::print_stdout, reason = "a command reports on stdout")]
fn print(report: &Report, json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string(report)?);
    } else {
        print!("{report}");
    }
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
                sharing: Sharing::default(),
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

    fn decode(&mut self, clients: usize, depth: u8, floor_ms: f64) -> Result<Decode> {
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
        })
    }

    /// The best of three, the first of which warms up.
    fn prefill(&mut self, tokens: usize) -> Result<Prefill> {
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

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = self.device.as_deref().unwrap_or("a device without a name");
        writeln!(f, "{}, {} layers, weights {}", self.preset, self.layers, self.weights)?;
        writeln!(f, "{device}, MLX {}, {}", self.mlx, self.place)?;
        writeln!(f, "copy, read and written: {:.0} GB/s", self.copy_gb_s)?;
        let floor_ms = 1e3 * self.pass_gb / self.copy_gb_s;
        writeln!(f, "a pass reads {:.2} GB of weights: {floor_ms:.2} ms", self.pass_gb)?;
        for kernel in &self.kernels_switched_off {
            writeln!(f, "SWITCHED OFF {kernel}")?;
        }
        for b in &self.blocks {
            let Block { name, tokens, built_us, evaluated_us } = b;
            writeln!(f, "M={tokens:2} {name}: {built_us:.1} us to build + {evaluated_us:.1} us")?;
        }
        for d in &self.decode {
            let share = 100.0 * d.share_of_copy;
            write!(f, "B={} T={}: step {:.2} ms", d.clients, d.depth + 1, d.step_ms)?;
            write!(f, " = draft {:.2} + trunk {:.2} ({share:.0} %", d.draft_ms, d.trunk_ms)?;
            write!(f, " of copy bandwidth) + sampling {:.2};", d.sampling_ms)?;
            write!(f, " waiting for the device {:.2};", d.device_ms)?;
            write!(f, " {:.2} tokens a row and cycle,", d.tokens_per_row)?;
            write!(f, " {:.0} tokens/s", d.tokens_per_s)?;
            if d.forced {
                write!(f, ", acceptance FORCED to {:?}", self.acceptance_forced)?;
            }
            writeln!(f)?;
        }
        let Some(p) = &self.prefill else { return Ok(()) };
        writeln!(f, "prefill of {}: {:.1} ms, {:.0} tokens/s", p.tokens, p.ms, p.tokens_per_s)
    }
}

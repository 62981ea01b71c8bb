//! The real engine at a full shape with random weights: time by phase, and of single blocks.
//!
//! `cargo run --release -p mtplx-kernels --example shape -- qwen3.6-27b [layers]`

#![allow(clippy::print_stdout)]

mod random;

use std::sync::Arc;
use std::time::Instant;

use mlx_rs::{Array, Dtype, random as noise};
use mtplx_core::batch::{Batch, BatchLimits, Knobs};
use mtplx_core::engine::{Engine, Phases};
use mtplx_core::request::{Drafts, Limits, Request};
use mtplx_core::sample::Sampling;
use mtplx_core::{RequestId, Token};
use mtplx_kernels::attention::{Attention, AttentionRow};
use mtplx_kernels::checkpoint::{FeedForward, LayerKind, Mixer, ModelConfig};
use mtplx_kernels::ffn::Ffn;
use mtplx_kernels::gdn::{Gdn, GdnRow};
use mtplx_kernels::linear::Matrix;
use mtplx_kernels::place::{Place, eval};
use mtplx_kernels::{EngineOptions, MlxEngine};
use random::{Noise, pass_bytes, preset};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The acceptance of the bars: forced, since random weights agree about nothing.
const FORCED: [f64; 3] = [0.85, 0.77, 0.66];
const BLOCKS: usize = 6;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let name = arguments.first().map_or("qwen3.6-27b", String::as_str);
    let layers = arguments.get(1).and_then(|n| n.parse().ok());
    let config = preset(name, layers).ok_or("an unknown preset")?;
    let place = Place::detect(Dtype::Bfloat16)?;
    println!(
        "{name}, {} layers, {}, {:?}",
        config.layers.len(),
        place.name(),
        mlx_rs::Device::try_default()?
    );
    let bandwidth = bandwidth()?;
    println!("copy, read and written: {:.0} GB/s", bandwidth / 1e9);
    let noise = Noise::new(config.vocab * config.hidden);
    let only = arguments.get(2).map(String::as_str);
    if matches!(place, Place::Mlx(_)) && only.is_none() {
        blocks(&noise, &config, place)?;
    }
    let start = Instant::now();
    let options = EngineOptions {
        slots: 8,
        context_tokens_max: Some(8192),
        place: Some(place),
        ..EngineOptions::default()
    };
    let mut engine = mtplx_kernels::open(&noise.checkpoint(&config), &options)?;
    println!("open: {:.1} s", start.elapsed().as_secs_f64());
    for warning in engine.warnings() {
        println!("{warning}");
    }
    engine.force_acceptance(&FORCED);
    let bytes = pass_bytes(&config);
    let floor = bytes / bandwidth;
    println!(
        "a pass reads {:.2} GB of weights: {:.2} ms at copy bandwidth",
        bytes / 1e9,
        floor * 1e3
    );
    let mut bench = Bench { engine, floor, vocab: config.vocab as u32 };
    match only {
        Some("profile") => return bench.profiled(),
        Some("prefill") => return bench.prefill(4096),
        _ => {}
    }
    for (clients, depth) in [(1, 0), (1, 3), (8, 0), (8, 3)] {
        bench.decode(clients, depth)?;
    }
    bench.prefill(4096)
}

/// Bytes read and written each second by a copy of 2 GiB.
fn bandwidth() -> Result<f64> {
    let a = mlx_rs::ops::zeros_dtype(&[1 << 28], Dtype::Float32)?;
    eval([&a])?;
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        let b = a.add(Array::from_f32(1.0))?;
        eval([&b])?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(2.0 * f64::from(1 << 30) / best)
}

/// Microseconds of a chain of `f` over blocks whose weights no cache holds together: to build its
/// graph, and to evaluate it.
fn chain(x: &Array, mut f: impl FnMut(usize, &Array) -> Result<Array>) -> Result<(f64, f64)> {
    let reps = 4;
    let mut best = (f64::INFINITY, f64::INFINITY);
    for _ in 0..5 {
        let start = Instant::now();
        let mut y = x.clone();
        for i in 0..reps * BLOCKS {
            y = f(i % BLOCKS, &y)?;
        }
        let built = start.elapsed().as_secs_f64();
        eval([&y])?;
        let all = start.elapsed().as_secs_f64();
        best = (best.0.min(built), best.1.min(all - built));
    }
    let each = 1e6 / (reps * BLOCKS) as f64;
    Ok((best.0 * each, best.1 * each))
}

/// Times single blocks.
fn blocks(noise_of: &Noise, c: &ModelConfig, place: Place) -> Result<()> {
    let layers: Vec<_> = (0..BLOCKS).map(|_| noise_of.layer(c, LayerKind::Gdn)).collect();
    let gain = vec![1.0; c.hidden];
    let (mut gdn, mut ffn, mut attention) = (Vec::new(), Vec::new(), Vec::new());
    let (mut up, mut down) = (Vec::new(), Vec::new());
    for layer in &layers {
        if let Mixer::Gdn(w) = &layer.mixer {
            gdn.push(Gdn::load(place, &gain, w, c, 5)?);
        }
        if let Mixer::Attention(w) = noise_of.layer(c, LayerKind::Attention).mixer {
            attention.push(Attention::load(place, &gain, &w, c, (32, false))?);
        }
        ffn.push(Ffn::load(place, &gain, &layer.mlp, c)?);
        if let FeedForward::Dense(w) = &layer.mlp {
            up.push(Matrix::load(place, &[&w.up])?);
            down.push(Matrix::load(place, &[&w.down])?);
        }
    }
    let mut gdn_pools =
        gdn.iter().map(|g| g.pool(8)).collect::<std::result::Result<Vec<_>, _>>()?;
    let mut kv =
        attention.iter().map(|a| a.pool(512)).collect::<std::result::Result<Vec<_>, _>>()?;
    println!("single blocks, us to build their graph + to evaluate it:");
    for (rows, len) in [(1, 1), (1, 4), (8, 1), (8, 4), (16, 4)] {
        let m = rows * len;
        let x = noise::normal::<f32>(&[m, c.hidden as i32], None, None, None)?
            .as_dtype(Dtype::Bfloat16)?;
        eval([&x])?;
        let show = |what: &str, (built, evaluated): (f64, f64)| {
            println!("  M={m:2} {what}: {built:.1} + {evaluated:.1}");
        };
        show("up, down", chain(&x, |i, y| Ok(down[i].apply(&up[i].apply(y)?)?))?);
        show("ffn", chain(&x, |i, y| Ok(ffn[i].apply(y)?))?);
        if rows > 8 {
            continue;
        }
        let (rows, len) = (rows as usize, len as usize);
        let keep = |i| if i == 0 { 0 } else { len };
        let mut calls = 0;
        let figures = chain(&x, |i, y| {
            let keep = keep(calls / BLOCKS);
            let row = |r| GdnRow { slot: r, start: r * len, len, keep, commit: false };
            calls += 1;
            Ok(gdn[i].apply(y, &(0..rows).map(row).collect::<Vec<_>>(), &mut gdn_pools[i])?)
        })?;
        show("gdn", figures);
        let pages: Vec<Arc<[u32]>> =
            (0..rows as u32).map(|r| (r * 40..r * 40 + 40).collect()).collect();
        let row = |r: usize| AttentionRow {
            start: r * len,
            len,
            position: 1000,
            pages: Arc::clone(&pages[r]),
        };
        let all: Vec<AttentionRow> = (0..rows).map(row).collect();
        show("attention at 1000", chain(&x, |i, y| Ok(attention[i].apply(y, &all, &mut kv[i])?))?);
    }
    Ok(())
}

struct Bench {
    engine: MlxEngine,
    floor: f64,
    vocab: u32,
}

impl Bench {
    fn batch(&self, clients: usize, prompt: usize, new_tokens: usize) -> Batch {
        let limits = BatchLimits { snapshots_max: 0, chunk_grain: 64 };
        let mut batch = Batch::new(self.engine.info().clone(), limits);
        for id in 0..clients as u64 {
            let token = |i: usize| -> Token { (i as u32 * 7919 + id as u32 * 31) % self.vocab };
            let sampling =
                Sampling { temperature: 0.6, top_k: 20, seed: id, ..Sampling::default() };
            batch.admit(
                Request {
                    id: RequestId(id + 1),
                    prompt: (0..prompt).map(token).collect(),
                    sampling,
                    limits: Limits { new_tokens_max: new_tokens, stop_tokens: Arc::default() },
                    draft_tokens: Drafts::Tuned,
                    boundaries: Vec::new(),
                    sharing: mtplx_core::request::Sharing::default(),
                },
                None,
            );
        }
        batch
    }

    /// One step; its seconds, phases and new tokens of rows that decode.
    fn step(&mut self, batch: &mut Batch, depth: u8) -> Result<(f64, Phases, usize)> {
        let knobs = Knobs::fixed(depth, 64, (8192, 8192));
        let start = Instant::now();
        let plan = batch.plan(knobs);
        let outcome = self.engine.run(&plan, batch.rows())?;
        let phases = outcome.phases;
        let tokens = outcome.rows.iter().map(|r| r.result.as_ref().map_or(0, |e| e.tokens.len()));
        let tokens = tokens.sum();
        batch.settle(&plan, outcome);
        Ok((start.elapsed().as_secs_f64(), phases, tokens))
    }

    fn decode(&mut self, clients: usize, depth: u8) -> Result<()> {
        let mut batch = self.batch(clients, 64, 400);
        let (mut times, mut tokens) = (Vec::new(), 0);
        self.step(&mut batch, depth)?;
        for i in 0..40 {
            let (seconds, phases, new) = self.step(&mut batch, depth)?;
            if i >= 10 {
                times.push((seconds, phases));
                tokens += new;
            }
        }
        let total: f64 = times.iter().map(|t| t.0).sum();
        let median = |pick: &dyn Fn(&(f64, Phases)) -> f64| {
            let mut all: Vec<f64> = times.iter().map(pick).collect();
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        };
        let ms = |pick: fn(&Phases) -> u64| median(&|t| pick(&t.1) as f64 / 1e3);
        let verify = ms(|p| p.verify_us);
        println!(
            "B={clients} T={}: step {:.2} ms = draft {:.2} + trunk {verify:.2} ({:.0} % of copy \
             bandwidth) + sampling {:.2}; waiting for the device {:.2}; {:.2} tokens a row and \
             cycle, {:.0} tok/s{}",
            depth + 1,
            median(&|t| t.0 * 1e3),
            ms(|p| p.draft_us),
            100.0 * self.floor * 1e3 / verify,
            ms(|p| p.accept_us),
            ms(|p| p.device_us),
            tokens as f64 / times.len() as f64 / clients as f64,
            tokens as f64 / total,
            if depth > 0 { ", acceptance FORCED to .85/.77/.66" } else { "" },
        );
        Ok(())
    }

    /// One cycle between the marks of a profiler that was told to wait for them.
    fn profiled(&mut self) -> Result<()> {
        let mut batch = self.batch(1, 64, 400);
        for _ in 0..4 {
            self.step(&mut batch, 3)?;
        }
        mark(c"cuProfilerStart");
        self.step(&mut batch, 3)?;
        mark(c"cuProfilerStop");
        Ok(())
    }

    fn prefill(&mut self, prompt: usize) -> Result<()> {
        for _ in 0..3 {
            mark(c"cuProfilerStop");
            let mut batch = self.batch(1, prompt, 2);
            // Later ones overwrite: a profiler sees them all, its reader wants the last.
            mark(c"cuProfilerStart");
            let mut total = 0.0;
            let mut phases = Vec::new();
            loop {
                let (seconds, p, tokens) = self.step(&mut batch, 0)?;
                total += seconds;
                phases.push(p.verify_us as f64 / 1e3);
                if tokens > 0 {
                    break;
                }
            }
            println!("prefill of {prompt}: {:.1} ms, steps {phases:?}", total * 1e3);
        }
        Ok(())
    }
}

/// Calls a function of the CUDA driver that takes nothing, where there is one.
fn mark(name: &std::ffi::CStr) {
    use std::ffi::{c_char, c_int, c_void};
    unsafe extern "C" {
        fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    }
    // SAFETY: a null library means what the process has; both functions take nothing.
    unsafe {
        let found = dlsym(std::ptr::null_mut(), name.as_ptr());
        if !found.is_null() {
            std::mem::transmute::<*mut c_void, extern "C" fn() -> c_int>(found)();
        }
    }
}

//! `mtplx bench`: what speculation brings on this machine, in one run. Depths take turns within
//! every round, so that a machine whose speed drifts slows them all alike.

#![allow(clippy::print_stdout, reason = "a command reports on stdout")]

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use mtplx_actors::ingress::Chat;
use mtplx_core::batch::{Batch, BatchLimits, Knobs, Tried};
use mtplx_core::engine::Engine;
use mtplx_core::request::{Limits, Request};
use mtplx_core::sample::Sampling;
use mtplx_core::{RequestId, Token};
use mtplx_kernels::MlxEngine;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::Model;

pub mod products;
pub mod shape;

const PROMPTS: &str = include_str!("bench/prompts.toml");

/// What `--help` ends with.
pub const EXAMPLES: &str = "Examples:\n  mtplx bench\n  \
    mtplx bench --model owner/name --rounds 5 --json\n  \
    mtplx bench shape --preset 27b --clients 8 --depth 3";

/// What is measured.
#[derive(Args, Debug, Clone)]
pub struct BenchArgs {
    /// Temperature; top-k 20 and top-p 0.95 are always on.
    #[arg(long, default_value_t = 0.6)]
    pub temperature: f32,
    /// Most tokens of a text.
    #[arg(long, default_value_t = 96)]
    pub tokens: usize,
    /// Rounds; the median counts.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Deepest draft.
    #[arg(long, default_value_t = 3)]
    pub depth_max: u8,
    /// Texts at once for the second table.
    #[arg(long, default_value_t = 8)]
    pub clients: usize,
    /// One object of JSON in place of tables; `mtplx schema bench` describes it.
    #[arg(long)]
    pub json: bool,
}

/// What `mtplx bench --json` prints.
#[derive(Debug, JsonSchema, Serialize)]
pub(crate) struct Report {
    model: String,
    device: String,
    /// Why nothing is drafted, where that is so.
    mtp_absent: Option<String>,
    temperature: f32,
    /// One text at a time.
    alone: Vec<Row>,
    /// How many texts at once the rest is of.
    clients: usize,
    /// All of them in the same passes.
    together: Vec<Row>,
}

/// One kind of text at one depth, the median of the rounds.
#[derive(Debug, JsonSchema, Serialize)]
struct Row {
    text: String,
    /// Whether people wrote it.
    real: bool,
    depth: u8,
    tokens_per_s: f64,
    /// Beside depth 0.
    over_plain: f64,
    /// The device's share of the time.
    device_share: f64,
    /// Of drafts, place by place.
    acceptance: Vec<f64>,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.real { "real" } else { "synthetic" };
        let rates: Vec<String> = self.acceptance.iter().map(|rate| format!("{rate:.2}")).collect();
        let Self { text, depth, tokens_per_s, over_plain, device_share, .. } = self;
        write!(f, "{text:<10} {kind:<9} {depth:>2}  {tokens_per_s:>9.1}  {over_plain:>5.2}x  ")?;
        write!(f, "{:>5.0}%  {}", 100.0 * device_share, rates.join(" / "))
    }
}

#[derive(Deserialize)]
struct Prompts {
    kind: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    name: String,
    real: bool,
    #[serde(default)]
    text: Vec<String>,
    #[serde(default)]
    chat: Vec<String>,
}

/// Prompts of one kind, tokenized.
struct Texts {
    name: String,
    real: bool,
    prompts: Vec<Vec<Token>>,
}

/// What one measurement gave.
#[derive(Default, Clone)]
pub(crate) struct Figures {
    tokens: usize,
    seconds: f64,
    device_s: f64,
    pub(crate) positions: Vec<Tried>,
}

impl Figures {
    pub(crate) fn rate(&self) -> f64 {
        self.tokens as f64 / self.seconds
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.seconds += other.seconds;
        self.device_s += other.device_s;
        if self.positions.len() < other.positions.len() {
            self.positions.resize(other.positions.len(), Tried::default());
        }
        for (sum, part) in self.positions.iter_mut().zip(&other.positions) {
            sum.tried += part.tried;
            sum.accepted += part.accepted;
        }
    }

    fn acceptance(&self) -> Vec<f64> {
        let rate = |t: &Tried| f64::from(t.accepted) / f64::from(t.tried.max(1));
        self.positions.iter().map(rate).collect()
    }
}

/// Measures and prints.
///
/// # Errors
/// When the engine fails.
pub fn run(model: &Model, engine: MlxEngine, args: &BenchArgs) -> Result<()> {
    let texts = load(model)?;
    let say = |line: &str| {
        if !args.json {
            println!("{line}");
        }
    };
    let mut report = Report {
        model: model.name.clone(),
        device: engine.info().device.clone(),
        mtp_absent: engine.info().mtp_absent.as_ref().map(ToString::to_string),
        temperature: args.temperature,
        alone: Vec::new(),
        clients: args.clients,
        together: Vec::new(),
    };
    say(&format!("model {}, {}", report.model, report.device));
    if let Some(reason) = &report.mtp_absent {
        say(&format!("no MTP head: {reason}"));
    }
    let mut bench = Bench::new(engine, model, args.clone());
    let depth_max = args.depth_max.min(bench.engine.info().depth_max);
    // Everything is touched once before anything counts.
    bench.measure(&texts[0].prompts[..1], depth_max)?;
    let alone = |prompts: &[Vec<Token>]| prompts.iter().map(|p| vec![p.clone()]).collect();
    say(&format!("\none text at a time, temperature {}", args.temperature));
    report.alone = bench.table(&texts, depth_max, (&alone, &say))?;
    let clients = args.clients;
    let together = |prompts: &[Vec<Token>]| {
        vec![prompts.iter().cycle().take(clients).cloned().collect::<Vec<_>>()]
    };
    say(&format!("\n{clients} texts at once, aggregate"));
    report.together = bench.table(&texts, depth_max, (&together, &say))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    }
    Ok(())
}

fn load(model: &Model) -> Result<Vec<Texts>> {
    let Prompts { kind } = toml::from_str(PROMPTS).context("prompts of the bench")?;
    kind.into_iter()
        .map(|kind| {
            let text = kind.text.iter().map(|t| model.text.raw(t));
            let chat = kind.chat.iter().map(|c| model.text.chat(&Chat::question(c)));
            let prompts = text.chain(chat).map(|p| Ok(p?.tokens)).collect::<Result<_>>()?;
            Ok(Texts { name: kind.name, real: kind.real, prompts })
        })
        .collect()
}

/// All prompts of the bench, one kind after the other.
pub(crate) fn prompts(model: &Model) -> Result<Vec<Vec<Token>>> {
    Ok(load(model)?.into_iter().flat_map(|texts| texts.prompts).collect())
}

pub(crate) struct Bench {
    engine: MlxEngine,
    batch: Batch,
    limits: Limits,
    sampling: Sampling,
    rounds: usize,
    next: u64,
}

type Groups<'a> = dyn Fn(&[Vec<Token>]) -> Vec<Vec<Vec<Token>>> + 'a;
type Say<'a> = dyn Fn(&str) + 'a;

impl Bench {
    pub(crate) fn new(engine: MlxEngine, model: &Model, args: BenchArgs) -> Self {
        // Nothing is kept: every text starts cold.
        let limits = BatchLimits { snapshots_max: 0, chunk_grain: 64 };
        let batch = Batch::new(engine.info().clone(), limits);
        let stop_tokens = Arc::clone(model.text.stop_tokens());
        Self {
            engine,
            batch,
            limits: Limits { new_tokens_max: args.tokens, stop_tokens },
            sampling: Sampling {
                temperature: args.temperature,
                top_k: 20,
                top_p: 0.95,
                ..Sampling::default()
            },
            rounds: args.rounds.max(1),
            next: 0,
        }
    }

    fn table(
        &mut self,
        texts: &[Texts],
        depth_max: u8,
        (groups, say): (&Groups<'_>, &Say<'_>),
    ) -> Result<Vec<Row>> {
        say("text                 K   tokens/s   ratio  device  acceptance");
        let mut rows = Vec::new();
        for texts in texts {
            let groups = groups(&texts.prompts);
            let mut rounds: Vec<Vec<Figures>> = vec![Vec::new(); usize::from(depth_max) + 1];
            for _ in 0..self.rounds {
                for (depth, rounds) in (0..).zip(&mut rounds) {
                    let mut sum = Figures::default();
                    for group in &groups {
                        sum.add(&self.measure(group, depth)?);
                    }
                    rounds.push(sum);
                }
            }
            let medians: Vec<Figures> = rounds.into_iter().filter_map(median).collect();
            let plain = medians.first().map_or(1.0, Figures::rate);
            for (depth, f) in (0..).zip(&medians) {
                let row = Row {
                    text: texts.name.clone(),
                    real: texts.real,
                    depth,
                    tokens_per_s: f.rate(),
                    over_plain: f.rate() / plain,
                    device_share: f.device_s / f.seconds,
                    acceptance: f.acceptance(),
                };
                say(&row.to_string());
                rows.push(row);
            }
        }
        Ok(rows)
    }

    /// Serves `prompts` at once at one depth; decoding alone is timed.
    pub(crate) fn measure(&mut self, prompts: &[Vec<Token>], depth: u8) -> Result<Figures> {
        for (i, prompt) in prompts.iter().enumerate() {
            self.next += 1;
            self.batch.admit(
                Request {
                    id: RequestId(self.next),
                    prompt: prompt.as_slice().into(),
                    sampling: Sampling { seed: i as u64, ..self.sampling.clone() },
                    limits: self.limits.clone(),
                    draft_tokens: mtplx_core::request::Drafts::Exactly(depth),
                    boundaries: Vec::new(),
                    resumed: 0,
                    sharing: mtplx_core::request::Sharing::default(),
                    standing: mtplx_core::fairness::Standing::default(),
                },
                None,
            );
        }
        let mut figures = Figures::default();
        while self.batch.is_busy() {
            let knobs = Knobs::fixed(depth, 64, (4096, 4096));
            let start = Instant::now();
            let plan = self.batch.plan(knobs);
            if plan.verify.is_empty() && plan.prefill.is_empty() && plan.moves.is_empty() {
                bail!("the texts do not fit into memory: {:?}", self.batch.shortage());
            }
            let outcome = self.engine.run(&plan, self.batch.rows())?;
            let settled = self.batch.settle(&plan, outcome);
            let seconds = start.elapsed().as_secs_f64();
            if plan.prefill.is_empty() {
                let report = settled.report;
                let device_s = report.phases.device_us as f64 / 1e6;
                let (tokens, positions) = (report.emitted, report.positions);
                figures.add(&Figures { tokens, seconds, device_s, positions });
            }
        }
        Ok(figures)
    }
}

fn median(mut rounds: Vec<Figures>) -> Option<Figures> {
    rounds.sort_by(|a, b| a.rate().total_cmp(&b.rate()));
    let middle = rounds.len() / 2;
    rounds.into_iter().nth(middle)
}

//! `mtplx plan`: what a model and a number of clients need in memory, before anything is loaded.

#![allow(clippy::print_stdout, reason = "a command reports on stdout")]

use anyhow::{Result, bail};
use clap::Args;
use mtplx_core::preflight::{Estimate, Fit, Precision, Wish, estimate, fit};
use mtplx_kernels::checkpoint::Checkpoint;
use mtplx_kernels::preflight::{precision, shape, spare_slots};
use mtplx_kernels::{EngineOptions, memory, place_of};
use serde_json::json;

use crate::config::Config;
use crate::model::Model;

/// What `--help` ends with.
pub const EXAMPLES: &str = "Examples:\n  mtplx plan\n  \
    mtplx plan --model owner/name --context 200000 --clients 8 --memory 128 --json";

/// What is planned for.
#[derive(Args, Debug, Clone)]
pub struct PlanArgs {
    /// Tokens of each client's sequence, prompt and answer; the model's own bound without it.
    #[arg(long)]
    context: Option<usize>,
    /// Sequences at once; engine.slots without it.
    #[arg(long)]
    clients: Option<usize>,
    /// Memory of the machine in GiB, three quarters of which are planned with; without it this
    /// machine's, or what engine.memory_budget says.
    #[arg(long)]
    memory: Option<f64>,
    /// As JSON, all in bytes; `mtplx schema plan` describes it.
    #[arg(long)]
    json: bool,
}

const GIB: f64 = (1_u64 << 30) as f64;

/// Works it out and prints it.
///
/// # Errors
/// When a number makes no sense.
pub fn run(model: &Model, config: &Config, args: &PlanArgs) -> Result<()> {
    let checkpoint = &model.checkpoint;
    let machine = match args.memory {
        Some(gib) if gib.is_finite() && gib > 0.0 => (gib * GIB) as u64,
        Some(gib) => bail!("--memory {gib}: must be a number of GiB above 0"),
        None => memory::machine(),
    };
    let place = place_of(checkpoint, &config.engine)?;
    let precision = precision(checkpoint, place);
    let actors = &config.actors;
    let wish = Wish {
        context_tokens: args.context.unwrap_or(checkpoint.config.positions_max),
        clients: args.clients.unwrap_or(config.engine.slots),
        spare_slots: spare_slots(place),
        snapshots: actors.bank.entries_max as usize,
        depth: config.engine.depth_max.into(),
        step_tokens: actors.tuner.prefill_idle_tokens,
        page_tokens: config.engine.page_tokens,
    };
    let bounds = 1..=u32::MAX as usize;
    if !bounds.contains(&wish.context_tokens) || !bounds.contains(&wish.clients) {
        bail!("--context and --clients must be between 1 and {}", bounds.end());
    }
    let wish = Wish { snapshots: parked(checkpoint, config, &wish, &precision), ..wish };
    // The setting is of this machine; another one is planned for with the usual share.
    let set = config.engine.memory_budget.filter(|_| args.memory.is_none());
    let budget = set.unwrap_or_else(|| memory::budget_of(machine));
    let fit = fit(&shape(checkpoint), &precision, &wish, budget);
    let settings = narrow_settings(&config.engine, &wish, &fit.estimate);
    let verdict = judged(checkpoint, &precision, &wish, machine);
    if args.json {
        println!("{}", json(model, &wish, &fit, (&settings, &verdict)));
    } else {
        table(model, &wish, &fit, machine);
        settings.iter().for_each(|setting| println!("{setting}"));
        match &verdict {
            Verdict::Fits => {}
            Verdict::Tight(said) => println!("warning: {said}"),
            Verdict::TooLarge(said) => println!("mtplx start refuses this: {said}"),
        }
    }
    Ok(())
}

/// Below this machines are short of memory for large models and for what else people run.
const SMALL: u64 = 48 << 30;

/// What is to be said of a model before it is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Fits,
    /// It may go, and somebody should know this.
    Tight(String),
    /// It takes more than four fifths of the machine; and what would fit.
    TooLarge(String),
}

/// Judges so many clients of so long a context on this machine.
///
/// # Errors
/// When the device is not known.
pub fn preflight(model: &Model, config: &Config, wished: (usize, usize)) -> Result<Verdict> {
    let checkpoint = &model.checkpoint;
    let place = place_of(checkpoint, &config.engine)?;
    let precision = precision(checkpoint, place);
    let wish = Wish {
        context_tokens: wished.0,
        clients: wished.1,
        spare_slots: spare_slots(place),
        snapshots: config.actors.bank.entries_max as usize,
        depth: config.engine.depth_max.into(),
        step_tokens: config.actors.tuner.prefill_idle_tokens,
        page_tokens: config.engine.page_tokens,
    };
    let wish = Wish { snapshots: parked(checkpoint, config, &wish, &precision), ..wish };
    Ok(judged(checkpoint, &precision, &wish, memory::machine()))
}

/// A wish by what may be taken of a whole machine: four fifths.
fn judged(checkpoint: &Checkpoint, precision: &Precision, wish: &Wish, machine: u64) -> Verdict {
    verdict(&fit(&shape(checkpoint), precision, wish, machine / 5 * 4), wish, machine)
}

fn verdict(fit: &Fit, wish: &Wish, machine: u64) -> Verdict {
    let gib = |bytes: u64| bytes as f64 / GIB;
    let (needed, all) = (gib(fit.estimate.total()), gib(machine));
    let (context, clients) = (wish.context_tokens, wish.clients);
    if !fit.fits() {
        let said = format!("{clients} x {context} tokens take {needed:.1} GiB");
        let said = format!("{said}, over 80 % of a machine with {all:.1} GiB");
        let mut ways = Vec::new();
        ways.extend((fit.context_max > 0).then(|| format!("--context {}", fit.context_max)));
        ways.extend((fit.clients_max > 0).then(|| format!("--clients {}", fit.clients_max)));
        let way = match ways.is_empty() {
            true => "take fewer bits or a smaller model".into(),
            false => format!("it would fit with {}", ways.join(", or with ")),
        };
        return Verdict::TooLarge(format!("{said}: {way}"));
    }
    if machine < SMALL {
        let said =
            format!("a machine with {all:.1} GiB is below the 48 that leave room for others");
        return Verdict::Tight(format!("{said}; this takes {needed:.1} GiB"));
    }
    Verdict::Fits
}

/// Settings that would keep the wish from coming true whatever memory there is.
fn narrow_settings(engine: &EngineOptions, wish: &Wish, estimate: &Estimate) -> Vec<String> {
    let mut narrow = Vec::new();
    if wish.clients > engine.slots {
        narrow
            .push(format!("engine.slots is {}: {} at once need more", engine.slots, wish.clients));
    }
    if let Some(most) = engine.context_tokens_max.filter(|&most| wish.context_tokens > most) {
        narrow.push(format!("engine.context_tokens_max is {most}: raise it, or set it to 0"));
    }
    if let Some(most) = engine.kv_bytes_max.filter(|&most| estimate.kv > most) {
        let needed = estimate.kv;
        narrow.push(format!("engine.kv_bytes_max is {most}: these clients' pages are {needed}"));
    }
    narrow
}

/// As many states as the bank's bytes have room for.
fn parked(checkpoint: &Checkpoint, config: &Config, wish: &Wish, precision: &Precision) -> usize {
    let one = Wish { snapshots: 1, ..*wish };
    let estimate = estimate(&shape(checkpoint), precision, &one);
    let room = config.actors.bank.bytes_max / estimate.snapshots.max(1);
    wish.snapshots.min(usize::try_from(room).unwrap_or(usize::MAX))
}

/// Every part with its bytes and where they come from.
fn parts(e: &Estimate, wish: &Wish) -> [(&'static str, u64, String); 8] {
    let clients = wish.clients;
    let kib = e.kv_token as f64 / 1024.0;
    let mib = e.state_slot as f64 / (1 << 20) as f64;
    let context = wish.context_tokens;
    let spare = if wish.spare_slots > 0 { " and a spare one" } else { "" };
    let states = format!("{clients}{spare} x {mib:.1} MiB, recurrent");
    [
        ("weights", e.weights, "trunk, embedding and output head".into()),
        ("MTP head", e.mtp_weights, "its own layer".into()),
        ("KV pages", e.kv, format!("{clients} x {context} tokens of {kib:.0} KiB")),
        ("states", e.states, states),
        ("tapes", e.tapes, format!("of {} drafts, and convolution windows", wish.depth)),
        ("bank", e.snapshots, format!("{} parked states, besides their pages", wish.snapshots)),
        ("activations", e.activations, format!("of {} tokens, and logits", wish.step_tokens)),
        ("scores", e.scores, "of one attention layer, where none is fused".into()),
    ]
}

fn table(model: &Model, wish: &Wish, fit: &Fit, machine: u64) {
    let gib = |bytes: u64| bytes as f64 / GIB;
    println!("{}: {} clients of {} tokens\n", model.name, wish.clients, wish.context_tokens);
    for (name, bytes, reason) in parts(&fit.estimate, wish) {
        println!("{name:<12} {:>9.2} GiB  {reason}", gib(bytes));
    }
    println!("{:<12} {:>9.2} GiB", "total", gib(fit.estimate.total()));
    let of = format!("of a machine with {:.1} GiB", gib(machine));
    println!("{:<12} {:>9.2} GiB  {of}\n", "budget", gib(fit.budget));
    let positions = model.checkpoint.config.positions_max;
    if wish.context_tokens > positions {
        println!("this model was made for {positions} tokens; the rest is arithmetic only");
    }
    let (clients, context) = (fit.clients_max, fit.context_max);
    if fit.fits() {
        println!("it fits; so would {clients} clients of {} tokens", wish.context_tokens);
    } else {
        let mut ways = Vec::new();
        ways.extend((clients > 0).then(|| format!("lower --clients to {clients}")));
        ways.extend((context > 0).then(|| format!("lower --context to {context}")));
        match ways.is_empty() {
            true => println!("it does not fit: take fewer bits or a smaller model"),
            false => println!("it does not fit: {}, or both a little", ways.join(", or ")),
        }
    }
}

fn json(
    model: &Model,
    wish: &Wish,
    fit: &Fit,
    (settings, verdict): (&[String], &Verdict),
) -> serde_json::Value {
    let e = &fit.estimate;
    let (status, warning) = match verdict {
        Verdict::Fits => ("fits", None),
        Verdict::Tight(said) => ("tight", Some(said)),
        Verdict::TooLarge(said) => ("too-large", Some(said)),
    };
    json!({
        "model": model.name,
        "wish": {
            "context_tokens": wish.context_tokens,
            "clients": wish.clients,
            "spare_slots": wish.spare_slots,
            "snapshots": wish.snapshots,
            "depth": wish.depth,
            "step_tokens": wish.step_tokens,
        },
        "bytes": {
            "weights": e.weights,
            "mtp_weights": e.mtp_weights,
            "kv_token": e.kv_token,
            "kv": e.kv,
            "state_slot": e.state_slot,
            "states": e.states,
            "tapes": e.tapes,
            "snapshots": e.snapshots,
            "activations": e.activations,
            "scores": e.scores,
            "total": e.total(),
            "budget": fit.budget,
        },
        "fits": fit.fits(),
        "clients_max": fit.clients_max,
        "context_max": fit.context_max,
        "narrow_settings": settings,
        "verdict": {"status": status, "warning": warning},
    })
}

#[cfg(feature = "embedded-model")]
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_is_small_or_too_small_is_named_with_what_would_fit() {
        let config = Config::load(None, &[]).unwrap();
        let model = Model::open(&config.model).unwrap();
        let place = place_of(&model.checkpoint, &config.engine).unwrap();
        let precision = precision(&model.checkpoint, place);
        let (context_tokens, clients, depth) = (4096, 4, 2);
        let wish = Wish {
            context_tokens,
            clients,
            spare_slots: 1,
            snapshots: 0,
            depth,
            step_tokens: 64,
            page_tokens: 32,
        };
        let on = |machine: u64| {
            let fit = fit(&shape(&model.checkpoint), &precision, &wish, machine / 5 * 4);
            verdict(&fit, &wish, machine)
        };
        assert_eq!(on(64 << 30), Verdict::Fits);
        assert!(matches!(on(40 << 30), Verdict::Tight(said) if said.contains("40.0 GiB")));
        // All of it would fit, four fifths do not.
        let needed = fit(&shape(&model.checkpoint), &precision, &wish, 0).estimate.total();
        let Verdict::TooLarge(said) = on(needed) else { panic!("{:?}", on(needed)) };
        assert!(said.contains("--context") && said.contains("80 %"), "{said}");
        let none = on(1 << 20);
        assert!(matches!(none, Verdict::TooLarge(said) if said.contains("smaller model")));
    }

    #[test]
    fn the_shape_of_the_small_model_gives_the_bytes_of_its_files() {
        let config = Config::load(None, &[]).unwrap();
        let model = Model::open(&config.model).unwrap();
        let place = place_of(&model.checkpoint, &config.engine).unwrap();
        let shape = shape(&model.checkpoint);
        // As the files store them.
        let stored = Precision { float_bytes: 2, ..precision(&model.checkpoint, place) };
        let guess = Precision { weights_total: None, ..stored };
        let known =
            Precision { weights_total: Some(model.checkpoint.bytes_total as u64), ..stored };
        let wish = Wish {
            context_tokens: 1000,
            clients: 2,
            spare_slots: 0,
            snapshots: 0,
            depth: 2,
            step_tokens: 64,
            page_tokens: 32,
        };
        let total = |p: &Precision| {
            let fit = fit(&shape, p, &wish, u64::MAX);
            fit.estimate.weights + fit.estimate.mtp_weights
        };
        let (files, guess) = (total(&known) as f64, total(&guess) as f64);
        assert!((guess / files - 1.0).abs() < 0.03, "{guess} for {files}");
    }
}

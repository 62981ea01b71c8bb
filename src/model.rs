//! Where the model comes from: a folder, or the binary itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use mtplx_actors::ingress::{self, Text};
use mtplx_core::engine::{Engine, EngineInfo, Fault};
use mtplx_core::guard;
use mtplx_kernels::checkpoint::{Checkpoint, Files};
use mtplx_kernels::{EngineOptions, MlxEngine};

use crate::config;
use crate::tiers::gate::{self, Generation};
use crate::tiers::{self, Judged, Tier};

/// The model that travels in the binary.
#[cfg(feature = "embedded-model")]
mod embedded {
    macro_rules! files {
        ($($name:literal),* $(,)?) => {
            &[$(($name, include_bytes!(concat!("../config/models/tiny-q8/", $name)))),*]
        };
    }

    pub(super) const NAME: &str = "tiny-qwen3_5-mtp-q8";
    pub(super) static FILES: &[(&str, &[u8])] = files![
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "mtp.safetensors",
        "mtplx_runtime.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
}

/// A model that can be served: checked weights and its text side.
#[derive(Debug)]
pub struct Model {
    /// What clients call it.
    pub name: String,
    /// Weights, not yet on a device.
    pub checkpoint: Arc<Checkpoint>,
    /// Template, tokenizer, stop tokens, defaults of sampling.
    pub text: Arc<Text>,
    /// Digest of the files that this was read from.
    pub template: String,
    /// How much is known of it, and why.
    pub judged: Judged,
    /// Its folder, as whoever named it wrote it; empty for the embedded one.
    pub path: PathBuf,
}

impl Model {
    /// Reads and checks a model; nothing is computed yet.
    ///
    /// # Errors
    /// When a file is missing or unusable; the message names it.
    pub fn open(settings: &config::Model) -> Result<Self> {
        let (files, name) = locate(&settings.path)?;
        let name = if settings.name.is_empty() { name } else { settings.name.clone() };
        let mut checkpoint = Checkpoint::load(&files)?;
        if settings.generation == Generation::Ar {
            checkpoint.mtp = Err("it is to be served plainly: model.generation is \"ar\"".into());
        }
        let checkpoint = Arc::new(checkpoint);
        warn_of_unused(&checkpoint.unused);
        let text = text(&files).with_context(|| format!("in {}", files.label()))?;
        let text = Arc::new(text.remembering(settings.text_bytes_max));
        let template = digest(&files).with_context(|| format!("in {}", files.label()))?;
        let judged = judged(settings)?;
        let path = settings.path.clone();
        Ok(Self { name, checkpoint, text, template, judged, path })
    }

    /// Lets it be served, or says what would let it.
    ///
    /// # Errors
    /// Nobody has verified it, or it has no head that drafts, and settings do not say that it may.
    pub fn admit(&self, settings: &config::Model) -> Result<()> {
        admit(settings, &self.judged)?;
        if self.judged.tier != Tier::Verified {
            let (tier, reason) = (self.judged.tier.name(), self.judged.reasons.first());
            tracing::warn!(tier, reason, "served though it is not verified, as was asked for");
        }
        Ok(())
    }

    /// What clients are told: its name and how much is known of it.
    #[must_use]
    pub fn card(&self) -> (String, Tier) {
        (self.name.clone(), self.judged.tier)
    }

    /// What opens an engine over it, on the thread that will own the engine.
    pub fn opener(
        &self,
        options: EngineOptions,
    ) -> impl Fn() -> Result<MlxEngine, Fault> + Send + Sync + 'static {
        let checkpoint = Arc::clone(&self.checkpoint);
        move || {
            let engine = mtplx_kernels::open(&checkpoint, &options)?;
            warn_of_bounds(engine.info(), &options, checkpoint.config.positions_max);
            for kernel in &engine.info().kernels {
                if let Some(fault) = &kernel.fault {
                    let name = &kernel.name;
                    tracing::warn!(
                        name,
                        fault,
                        "a GPU kernel failed its trial and is switched off"
                    );
                }
            }
            Ok(engine)
        }
    }
}

/// What the model of `settings` is, by its configuration and headers alone.
///
/// # Errors
/// None is named, and none is within.
pub fn judged(settings: &config::Model) -> Result<Judged> {
    Ok(match settings.path.as_os_str().is_empty() {
        true => tiers::judge_files(&locate(&settings.path)?.0),
        false => tiers::judge(&settings.path),
    })
}

/// Lets the model of `settings`, which was `judged`, be served, or says what would let it.
///
/// # Errors
/// As [`gate::admit`].
pub fn admit(settings: &config::Model, judged: &Judged) -> Result<()> {
    let path = match settings.path.as_os_str().is_empty() {
        true => "the embedded model".into(),
        false => settings.path.display().to_string(),
    };
    gate::admit(&path, judged, (settings.unverified, settings.generation))
}

/// A tensor that nobody reads is often a spelling that was not understood.
fn warn_of_unused(unused: &[String]) {
    const NAMED: usize = 4;
    if !unused.is_empty() {
        let first = unused[..unused.len().min(NAMED)].join(", ");
        tracing::warn!(count = unused.len(), first, "the checkpoint holds tensors without a use");
    }
}

/// What settings take away from the model, before a client meets it.
fn warn_of_bounds(info: &EngineInfo, options: &EngineOptions, positions_max: usize) {
    let wanted = options.context_tokens_max.unwrap_or(usize::MAX).min(positions_max);
    let tokens = info.context_tokens_max;
    if tokens < wanted {
        let what = "engine.kv_bytes_max bounds the longest request: raise it for more";
        tracing::warn!(tokens, wanted, "{what}");
    }
    let held = guard::tokens_max(info);
    if held < info.context_tokens_max {
        let (budget, base) = (info.budget.bytes, info.budget.base);
        let what = "engine.memory_budget bounds the longest request: raise it for more";
        tracing::warn!(tokens = held, wanted = info.context_tokens_max, budget, base, "{what}");
    }
    if info.snapshot_bytes > options.bank_bytes / 4 {
        let (one, bank) = (info.snapshot_bytes, options.bank_bytes);
        let what = "bank.bytes_max holds fewer than four warm prefixes: raise it for reuse";
        tracing::warn!(snapshot_bytes = one, bank_bytes = bank, "{what}");
    }
}

fn locate(path: &Path) -> Result<(Files, String)> {
    if !path.as_os_str().is_empty() {
        let name = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let name = name.file_name().map_or("model".into(), |n| n.to_string_lossy().into_owned());
        return Ok((Files::folder(path)?, name));
    }
    #[cfg(feature = "embedded-model")]
    return Ok((Files::embedded("the embedded model", embedded::FILES), embedded::NAME.into()));
    #[cfg(not(feature = "embedded-model"))]
    bail!("this binary carries no model: name a folder with --model DIR")
}

fn text(files: &Files) -> Result<Text> {
    let open = |name: &str| -> Result<_> { Ok(files.open(name)?) };
    let Some(tokenizer) = open("tokenizer.json")? else {
        bail!("tokenizer.json is missing: it comes with the checkpoint");
    };
    let tokenizer_config = open("tokenizer_config.json")?;
    let chat_template = open("chat_template.jinja")?;
    let generation_config = open("generation_config.json")?;
    let config = open("config.json")?;
    Ok(Text::new(&ingress::Files {
        tokenizer: &tokenizer,
        tokenizer_config: tokenizer_config.as_deref(),
        chat_template: chat_template.as_deref(),
        generation_config: generation_config.as_deref(),
        config: config.as_deref(),
    })?)
}

/// Of all that turns messages into tokens.
fn digest(files: &Files) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        let bytes = files.open(name)?;
        let bytes = bytes.as_deref().unwrap_or_default();
        hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
    }
    Ok(hasher.finalize().to_hex()[..32].to_owned())
}

#[cfg(feature = "embedded-model")]
#[cfg(test)]
mod tests {
    use super::*;

    fn info(kv_bytes_max: Option<u64>) -> EngineInfo {
        let settings = config::Config::load(None, &[]).unwrap().model;
        let model = Model::open(&settings).unwrap();
        let options = EngineOptions { kv_bytes_max, ..EngineOptions::default() };
        model.opener(options)().unwrap().info().clone()
    }

    #[test]
    fn kv_memory_bounds_the_pages_and_with_them_the_longest_request() {
        let free = info(None);
        let tight = info(Some(10 * free.page_bytes + 1));
        assert_eq!((tight.rows_pages_max, tight.context_tokens_max), (10, 10 * tight.page_tokens));
        // What the bank may hold comes on top, however few pages rows have.
        let bank = EngineOptions::default().bank_bytes / free.page_bytes;
        assert_eq!(tight.pages_max as u64, 10 + bank);
        // What was in use at the start is measured, and so differs.
        let wide = info(Some(u64::MAX));
        assert_eq!(EngineInfo { budget: free.budget, ..wide }, free);
        assert_eq!(info(Some(0)).rows_pages_max, 1);
    }
}

//! Where the model comes from: a folder, or the binary itself.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use mtplx_actors::ingress::{self, Text};
use mtplx_core::engine::Fault;
use mtplx_kernels::checkpoint::{Checkpoint, Files};
use mtplx_kernels::{EngineOptions, MlxEngine};

use crate::config;

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
}

impl Model {
    /// Reads and checks a model; nothing is computed yet.
    ///
    /// # Errors
    /// When a file is missing or unusable; the message names it.
    pub fn open(settings: &config::Model) -> Result<Self> {
        let (files, name) = locate(&settings.path)?;
        let name = if settings.name.is_empty() { name } else { settings.name.clone() };
        let checkpoint = Arc::new(Checkpoint::load(&files)?);
        let text = Arc::new(text(&files).with_context(|| format!("in {}", files.label()))?);
        Ok(Self { name, checkpoint, text })
    }

    /// What opens an engine over it, on the thread that will own the engine.
    pub fn opener(
        &self,
        options: EngineOptions,
    ) -> impl Fn() -> Result<MlxEngine, Fault> + Send + Sync + 'static {
        let checkpoint = Arc::clone(&self.checkpoint);
        move || mtplx_kernels::open(&checkpoint, &options).map_err(Fault::from)
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

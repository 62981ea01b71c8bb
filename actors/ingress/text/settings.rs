//! What the small JSON files beside a checkpoint say about text.

use mtplx_core::Token;
use mtplx_core::sample::Sampling;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::TextError;

/// A checkpoint's text files, as read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Files<'a> {
    /// `tokenizer.json`.
    pub tokenizer: &'a [u8],
    /// `tokenizer_config.json`: special tokens, in old checkpoints the chat template too.
    pub tokenizer_config: Option<&'a [u8]>,
    /// `chat_template.jinja`; goes before the one in `tokenizer_config.json`.
    pub chat_template: Option<&'a [u8]>,
    /// `generation_config.json`: stop tokens and recommended sampling.
    pub generation_config: Option<&'a [u8]>,
    /// `config.json`: stop tokens.
    pub config: Option<&'a [u8]>,
}

/// The files' content, as far as text goes.
pub(super) struct Settings {
    pub(super) eos_ids: Vec<Token>,
    pub(super) eos_names: Vec<String>,
    /// Special tokens by role, as templates may use them: `bos_token` and so on.
    pub(super) named: Map<String, Value>,
    pub(super) template: Option<String>,
    pub(super) sampling: Sampling,
}

impl Settings {
    pub(super) fn read(files: &Files<'_>) -> Result<Self, TextError> {
        let model: Model = parse("config.json", files.config)?;
        let generation: Generation = parse("generation_config.json", files.generation_config)?;
        let sampling = generation.sampling()?;
        let tokenizer: Map<String, Value> = parse("tokenizer_config.json", files.tokenizer_config)?;
        let named = special_tokens(&tokenizer);
        let eos_names = named.get("eos_token").and_then(Value::as_str).map(str::to_owned);
        let inner = model.text_config.map(|c| c.eos_token_id);
        let ids = [Some(generation.eos_token_id), Some(model.eos_token_id), inner];
        let template = match files.chat_template {
            Some(bytes) => Some(utf8("chat_template.jinja", bytes)?),
            None => template_within(&tokenizer),
        };
        Ok(Self {
            eos_ids: ids.into_iter().flatten().flatten().flat_map(Ids::into_vec).collect(),
            eos_names: eos_names.into_iter().collect(),
            named,
            template,
            sampling,
        })
    }
}

#[derive(Deserialize, Default)]
struct Model {
    eos_token_id: Option<Ids>,
    text_config: Option<TextModel>,
}

#[derive(Deserialize, Default)]
struct TextModel {
    eos_token_id: Option<Ids>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    One(Token),
    Many(Vec<Token>),
}

impl Ids {
    fn into_vec(self) -> Vec<Token> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

#[derive(Deserialize, Default)]
struct Generation {
    eos_token_id: Option<Ids>,
    do_sample: Option<bool>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
}

impl Generation {
    fn sampling(&self) -> Result<Sampling, TextError> {
        let plain = Sampling::default();
        // Only an explicit false means greedy: many files name a temperature and leave this out.
        let greedy = self.do_sample == Some(false);
        let sampling = Sampling {
            temperature: if greedy { 0.0 } else { self.temperature.unwrap_or(plain.temperature) },
            top_p: self.top_p.unwrap_or(plain.top_p),
            top_k: self.top_k.unwrap_or(plain.top_k),
            min_p: self.min_p.unwrap_or(plain.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(plain.repetition_penalty),
            ..plain
        };
        let file = "generation_config.json";
        let checked = sampling.check(usize::MAX);
        checked.map_err(|e| TextError::File { file, reason: e.to_string() })?;
        Ok(sampling)
    }
}

fn parse<T: DeserializeOwned + Default>(
    file: &'static str,
    bytes: Option<&[u8]>,
) -> Result<T, TextError> {
    let Some(bytes) = bytes else { return Ok(T::default()) };
    serde_json::from_slice(bytes).map_err(|e| TextError::File { file, reason: e.to_string() })
}

fn utf8(file: &'static str, bytes: &[u8]) -> Result<String, TextError> {
    let text = std::str::from_utf8(bytes);
    text.map(str::to_owned).map_err(|e| TextError::File { file, reason: e.to_string() })
}

/// `bos_token` and its like: written as a string, or as an object with the string in `content`.
fn special_tokens(tokenizer: &Map<String, Value>) -> Map<String, Value> {
    let named = tokenizer.iter().filter(|(name, _)| name.ends_with("_token"));
    named
        .filter_map(|(name, value)| {
            let content = value.as_str().or_else(|| value["content"].as_str())?;
            Some((name.clone(), Value::from(content)))
        })
        .collect()
}

/// One template, or several with names, of which `default` is for chat.
fn template_within(tokenizer: &Map<String, Value>) -> Option<String> {
    let template = tokenizer.get("chat_template")?;
    if let Some(only) = template.as_str() {
        return Some(only.to_owned());
    }
    let default = template.as_array()?.iter().find(|t| t["name"] == "default")?;
    default["template"].as_str().map(str::to_owned)
}

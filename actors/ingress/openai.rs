//! OpenAI's API on the wire, and its mapping to what the engine is asked for. Every parameter of
//! its reference is honoured or refused by name: none is ignored in silence. Those that cannot
//! change the output are accepted and marked so.

use std::collections::BTreeMap;
use std::sync::Arc;

use mtplx_core::Token;
use mtplx_core::accept::Rule;
use mtplx_core::request::{Drafts, Sharing};
use mtplx_core::sample::Sampling;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use utoipa::ToSchema;

use super::grammar::Structure;
use super::number;
use super::openapi::asked;
use super::text::{Chat, Must};
use super::unknown::{Ignored, shown};

pub(crate) mod answer;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod error;
pub(crate) mod logprobs;
mod message;
mod one_or_many;
mod source;
pub(crate) mod structure;
#[cfg(test)]
mod tests;
pub(crate) mod tokenize;
pub(crate) mod tools;

pub(crate) use self::error::ApiError;
use self::one_or_many::OneOrMany;
pub(crate) use self::source::Source;
pub(crate) use self::tools::Reading;

/// Most choices of one prompt.
pub(crate) const CHOICES_MAX: usize = 8;
/// Most tokens a request may ask to be drafted a cycle.
const DRAFT_TOKENS_MAX: u8 = 4;
const STOPS_MAX: usize = 16;
/// Longer ones would only cost time: each piece of text is compared with all of them.
const STOP_BYTES_MAX: usize = 1024;

/// What a client asks for, whichever endpoint it used.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Wanted {
    /// The model's name, if the client gave one.
    pub(crate) model: Option<String>,
    /// Prompts, each to be answered on its own.
    pub(crate) sources: Vec<Source>,
    /// Answers to each.
    pub(crate) choices: usize,
    /// With the seed of the first choice.
    pub(crate) sampling: Sampling,
    /// Most tokens of an answer, and the parameter that said so.
    pub(crate) new_tokens_max: Option<(usize, &'static str)>,
    /// Most tokens of an answer where no parameter said so; without it whatever there is room for.
    pub(crate) new_tokens_default: Option<usize>,
    /// Text that ends an answer.
    pub(crate) stops: Vec<String>,
    /// Tokens that end an answer besides the model's own.
    pub(crate) stop_tokens: Vec<Token>,
    /// Whether the model's own stop tokens count for nothing.
    pub(crate) ignore_eos: bool,
    /// How drafts are made.
    pub(crate) drafting: Drafting,
    /// How the answer is to be sent.
    pub(crate) delivery: Delivery,
    /// How replies are read.
    pub(crate) reading: Reading,
    /// Most tokens of thought; none is too many without it.
    pub(crate) thinking_tokens_max: Option<usize>,
    /// What was asked for and is not honoured, for a warning.
    pub(crate) ignored: Vec<String>,
    /// What the answer is to be, if not any text.
    pub(crate) structure: Option<Structure>,
    /// Whether a text is to begin with its prompt.
    pub(crate) echo: bool,
    /// How it meets the bank; set by headers.
    pub(crate) sharing: Sharing,
}

impl Wanted {
    /// A bound of no tokens is kept by the prompt.
    pub(crate) fn think_not_at_all(&mut self) {
        if self.thinking_tokens_max != Some(0) {
            return;
        }
        for source in &mut self.sources {
            if let Source::Chat(Chat { must: must @ Must::Nothing, .. }) = source {
                *must = Must::NotThink;
            }
        }
    }
}

/// What a client wants of speculation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Drafting {
    /// How many tokens a cycle.
    pub(crate) tokens: Drafts,
    /// The parameter, if any, that cannot be honoured without an MTP head.
    pub(crate) demanded_by: Option<&'static str>,
}

/// How an answer is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Delivery {
    /// As events while it is made, or whole.
    pub(crate) stream: bool,
    /// Whether a stream ends with the usage.
    pub(crate) include_usage: bool,
    /// Whether each of its chunks says what was used so far.
    pub(crate) continuous_usage: bool,
}

/// Declares the bodies of requests: each has the shared parameters and its own. A macro, because
/// serde's `flatten` forgets at which field it failed and cannot refuse unknown ones.
macro_rules! bodies {
    (@shared { $($(#[$about:meta])* $field:ident: $type:ty,)* }) => {
        /// The parameters that every endpoint takes.
        #[derive(Debug, Default)]
        pub(crate) struct Shared {
            $(pub(crate) $field: Option<$type>,)*
        }
    };
    (@body $(#[$meta:meta])* $name:ident { $($(#[$own_meta:meta])* $own:ident: $own_type:ty,)* }
     { $($(#[$about:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Deserialize, ToSchema)]
        #[serde(expecting = "an object")]
        pub(crate) struct $name {
            $($(#[$own_meta])* pub(super) $own: Option<$own_type>,)*
            $($(#[$about])* $field: Option<$type>,)*
        }

        impl $name {
            /// Takes the shared parameters out.
            pub(super) fn shared(&mut self) -> Shared {
                Shared { $($field: self.$field.take(),)* }
            }
        }
    };
    ($shared:tt $($(#[$meta:meta])* $name:ident $own:tt)*) => {
        bodies!(@shared $shared);
        $(bodies!(@body $(#[$meta])* $name $own $shared);)*
    };
}

bodies! {
    {
        model: String,
        #[schema(minimum = 1)]
        max_tokens: usize,
        #[schema(minimum = 1, maximum = 8)]
        n: usize,
        stream: bool,
        stream_options: StreamOptions,
        #[schema(schema_with = asked::strings)]
        stop: OneOrMany<String>,
        seed: i64,
        #[schema(minimum = 0, maximum = 2)]
        #[serde(default, deserialize_with = "number::narrow")]
        temperature: f32,
        #[schema(minimum = 0, maximum = 1)]
        #[serde(default, deserialize_with = "number::narrow")]
        top_p: f32,
        #[schema(minimum = -2, maximum = 2)]
        #[serde(default, deserialize_with = "number::narrow")]
        presence_penalty: f32,
        #[schema(minimum = -2, maximum = 2)]
        #[serde(default, deserialize_with = "number::narrow")]
        frequency_penalty: f32,
        logit_bias: BTreeMap<String, f32>,
        // Extensions, by the names that vLLM and others gave them.
        #[schema(minimum = -1)]
        top_k: i64,
        #[schema(minimum = 0, maximum = 1)]
        #[serde(default, deserialize_with = "number::narrow")]
        min_p: f32,
        #[schema(minimum = 0)]
        #[serde(default, deserialize_with = "number::narrow")]
        repetition_penalty: f32,
        stop_token_ids: Vec<Token>,
        ignore_eos: bool,
        // What the answer is to be, in OpenAI's words and in vLLM's.
        #[schema(schema_with = asked::format)]
        response_format: Value,
        #[schema(schema_with = asked::schema)]
        guided_json: Value,
        guided_regex: String,
        guided_choice: Vec<String>,
        guided_grammar: String,
        structured_outputs: structure::StructuredOutputs,
        // Extensions of our own.
        generation_mode: GenerationMode,
        #[schema(minimum = 0, maximum = 4)]
        draft_tokens: u64,
    }
    /// The body of `POST /v1/chat/completions`.
    ChatBody {
        #[schema(required, nullable = false, min_items = 1)]
        messages: Vec<message::Message>,
        #[schema(minimum = 1)]
        max_completion_tokens: usize,
        chat_template_kwargs: serde_json::Map<String, Value>,
        // Bookkeeping of the client's, or hints for caches.
        #[expect(dead_code, reason = "no effect on the output")]
        user: Value,
        #[expect(dead_code, reason = "no effect on the output")]
        metadata: Value,
        #[expect(dead_code, reason = "no effect on the output")]
        safety_identifier: Value,
        #[expect(dead_code, reason = "no effect on the output")]
        prompt_cache_key: Value,
        #[expect(dead_code, reason = "no effect on the output")]
        prompt_cache_retention: Value,
        #[schema(schema_with = asked::chat_tools)]
        tools: Vec<Value>,
        #[schema(schema_with = asked::tool_choice)]
        tool_choice: Value,
        parallel_tool_calls: bool,
        reasoning_effort: String,
        // Extensions, by the names that others gave them.
        enable_thinking: bool,
        continue_final_message: bool,
        add_generation_prompt: bool,
        // An extension of our own.
        max_thinking_tokens: usize,
        // Accepted where they ask for nothing.
        #[schema(schema_with = asked::no)]
        store: Value,
        service_tier: Value,
        #[schema(schema_with = asked::none_of_them)]
        functions: Value,
        #[schema(schema_with = asked::no_call)]
        function_call: Value,
        logprobs: bool,
        top_logprobs: u64,
        #[schema(schema_with = asked::text_only)]
        modalities: Value,
        #[schema(schema_with = asked::never)]
        audio: Value,
        prediction: Value,
        #[schema(schema_with = asked::medium)]
        verbosity: Value,
        #[schema(schema_with = asked::never)]
        web_search_options: Value,
        #[schema(schema_with = asked::never)]
        moderation: Value,
        // Named in a warning.
        prompt_cache_options: Value,
    }
    /// The body of `POST /v1/completions`.
    CompletionsBody {
        #[schema(schema_with = asked::prompts)]
        prompt: OneOrMany<completions::Item>,
        #[expect(dead_code, reason = "no effect on the output")]
        user: Value,
        // Accepted where they ask for nothing.
        best_of: usize,
        echo: bool,
        logprobs: u64,
        #[schema(schema_with = asked::no_text)]
        suffix: Value,
    }
}

/// How tokens are generated.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum GenerationMode {
    /// One by one.
    Ar,
    /// With drafts of the MTP head.
    Mtp,
}

/// What a stream holds besides the answer.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
pub(crate) struct StreamOptions {
    include_usage: Option<bool>,
    /// As of vLLM: each chunk says what was used so far.
    continuous_usage_stats: Option<bool>,
    include_obfuscation: Option<bool>,
}

/// Reads a body in one pass; what is wrong with it, or unknown, is told by its path.
pub(crate) fn parse<T: DeserializeOwned>(
    body: &[u8],
    ignored: &mut Ignored,
) -> Result<T, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&mut json, &mut track);
    let mut told = Ok(());
    let parsed = serde_ignored::deserialize(tracked, |path| {
        if told.is_ok() {
            told = ignored.field(shown(&path));
        }
    });
    let parsed = parsed.map_err(|inner: serde_json::Error| {
        let path = track.path().to_string();
        let reason = inner.to_string();
        // The JSON is well-formed, but the number is beyond all floats.
        let huge = reason.starts_with("number out of range");
        if path == "." || !(inner.is_data() || huge) {
            ApiError::Json(reason)
        } else {
            ApiError::invalid(path, &reason)
        }
    })?;
    json.end().map_err(|e| ApiError::Json(e.to_string()))?;
    told.map(|()| parsed)
}

impl Shared {
    /// Checks and maps all that does not depend on the endpoint.
    pub(crate) fn wanted(
        mut self,
        sources: Vec<Source>,
        defaults: &Sampling,
        ignored: &mut Ignored,
    ) -> Result<Wanted, ApiError> {
        let choices = self.n.unwrap_or(1);
        if !(1..=CHOICES_MAX).contains(&choices) {
            let reason = format!("must be from 1 to {CHOICES_MAX}, got {choices}");
            return Err(ApiError::invalid("n", &reason));
        }
        if self.max_tokens == Some(0) {
            return Err(ApiError::invalid("max_tokens", "must be at least 1"));
        }
        Ok(Wanted {
            model: self.model.take(),
            sources,
            choices,
            sampling: self.sampling(defaults)?,
            new_tokens_max: self.max_tokens.map(|n| (n, "max_tokens")),
            new_tokens_default: None,
            stops: self.stops()?,
            stop_tokens: self.stop_token_ids.take().unwrap_or_default(),
            ignore_eos: self.ignore_eos.unwrap_or(false),
            drafting: self.drafting()?,
            delivery: self.delivery()?,
            reading: Reading::default(),
            thinking_tokens_max: None,
            ignored: Vec::new(),
            structure: self.structure(ignored)?,
            echo: false,
            sharing: Sharing::default(),
        })
    }

    fn sampling(&mut self, defaults: &Sampling) -> Result<Sampling, ApiError> {
        let top_k = match self.top_k {
            None => defaults.top_k,
            // vLLM's way to say that all are kept.
            Some(-1) => 0,
            Some(k) => usize::try_from(k)
                .map_err(|_| ApiError::invalid("top_k", "must be -1, 0 (keep all) or positive"))?,
        };
        // A seed makes the text reproducible whatever is drafted and whoever else is served;
        // without one nothing needs to be, and the ratio rule accepts more drafts.
        let (seed, rule) = match self.seed {
            Some(seed) => (seed.cast_unsigned(), Rule::Coupled),
            None => (super::random(), Rule::Ratio),
        };
        Ok(Sampling {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            top_k,
            min_p: self.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            logit_bias: Arc::new(self.logit_bias()?),
            seed,
            rule,
            grammar: None,
            logprobs: None,
        })
    }

    fn logit_bias(&mut self) -> Result<BTreeMap<Token, f32>, ApiError> {
        let bias = self.logit_bias.take().unwrap_or_default();
        bias.into_iter()
            .map(|(token, bias)| {
                let token = token.parse().map_err(|_| {
                    ApiError::invalid("logit_bias", &format!("`{token}` is not a token id"))
                })?;
                Ok((token, bias))
            })
            .collect()
    }

    fn stops(&mut self) -> Result<Vec<String>, ApiError> {
        let stops = self.stop.take().map_or(Vec::new(), OneOrMany::into_vec);
        let reason = if stops.len() > STOPS_MAX {
            format!("takes at most {STOPS_MAX} strings, got {}", stops.len())
        } else if stops.iter().any(String::is_empty) {
            "must not hold an empty string".into()
        } else if stops.iter().any(|s| s.len() > STOP_BYTES_MAX) {
            format!("must not hold a string longer than {STOP_BYTES_MAX} bytes")
        } else {
            return Ok(stops);
        };
        Err(ApiError::invalid("stop", &reason))
    }

    fn drafting(&self) -> Result<Drafting, ApiError> {
        let range = || {
            let reason = format!("must be from 0 to {DRAFT_TOKENS_MAX}");
            ApiError::invalid("draft_tokens", &reason)
        };
        let tokens = match self.draft_tokens {
            Some(n) if n > u64::from(DRAFT_TOKENS_MAX) => return Err(range()),
            Some(n) => Some(u8::try_from(n).map_err(|_| range())?),
            None => None,
        };
        match (self.generation_mode, tokens) {
            (Some(GenerationMode::Ar), None | Some(0)) | (None, Some(0)) => {
                Ok(Drafting { tokens: Drafts::Exactly(0), demanded_by: None })
            }
            (Some(GenerationMode::Ar), Some(_)) => {
                let reason = "must be 0 or absent with generation_mode \"ar\"";
                Err(ApiError::invalid("draft_tokens", reason))
            }
            (Some(GenerationMode::Mtp), Some(0)) => {
                let reason = "must be at least 1 or absent with generation_mode \"mtp\"";
                Err(ApiError::invalid("draft_tokens", reason))
            }
            (Some(GenerationMode::Mtp), None) => {
                Ok(Drafting { tokens: Drafts::AtLeast(1), demanded_by: Some("generation_mode") })
            }
            (_, Some(n)) => {
                Ok(Drafting { tokens: Drafts::Exactly(n), demanded_by: Some("draft_tokens") })
            }
            (None, None) => Ok(Drafting::default()),
        }
    }

    fn delivery(&self) -> Result<Delivery, ApiError> {
        let stream = self.stream.unwrap_or(false);
        let options = self.stream_options.unwrap_or_default();
        if options.include_obfuscation == Some(true) {
            let reason = "not supported; leave it out or set it to false";
            return Err(ApiError::unsupported("stream_options.include_obfuscation", reason));
        }
        if self.stream_options.is_some() && !stream {
            let reason = "only allowed with \"stream\": true; add that or leave it out";
            return Err(ApiError::invalid("stream_options", reason));
        }
        let include_usage = options.include_usage.unwrap_or(false);
        let continuous_usage = options.continuous_usage_stats.unwrap_or(false);
        Ok(Delivery { stream, include_usage, continuous_usage })
    }
}

/// Refuses a parameter unless its value asks for nothing.
pub(crate) fn neutral(
    param: &'static str,
    value: Option<&Value>,
    asks_for_nothing: impl Fn(&Value) -> bool,
    instead: &str,
) -> Result<(), ApiError> {
    match value {
        Some(value) if !asks_for_nothing(value) => Err(ApiError::unsupported(param, instead)),
        Some(_) | None => Ok(()),
    }
}

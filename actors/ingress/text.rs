//! Between people's text and the model's tokens: chat template, tokenizer, stop tokens, defaults of
//! sampling, and the way back (in [`detokenize`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mtplx_core::Token;
use mtplx_core::request::Refusal;
use mtplx_core::sample::Sampling;
use serde_json::{Map, Value};
use tokenizers::{AddedToken, DecoderWrapper, Tokenizer};

pub(crate) use self::detokenize::Detokenizer;
use self::detokenize::Pieces;
pub(crate) use self::template::RESERVED;
use self::template::{Renderer, Scene};

mod clock;
mod detokenize;
mod python;
mod settings;
mod template;

pub use self::settings::Files;
use self::settings::Settings;

/// System prompts shorter than this are computed again sooner than their state is copied.
const SYSTEM_TOKENS_MIN: usize = 32;

/// Why a checkpoint's text files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file is not what its name says.
    #[error("{file}: {reason}")]
    File {
        /// The file's usual name.
        file: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// No file names a token that ends a text.
    #[error(
        "no token ends a text: generation_config.json, config.json and tokenizer_config.json name \
         no eos token that the tokenizer knows"
    )]
    Endless,
}

/// A conversation to be rendered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chat {
    /// Messages as the template reads them: content is a string, arguments of calls are maps.
    pub messages: Vec<Value>,
    /// Functions the model may call.
    pub tools: Vec<Value>,
    /// Further variables of the template, by the client.
    pub kwargs: Map<String, Value>,
}

impl Chat {
    /// One question by a user.
    #[must_use]
    pub fn question(text: &str) -> Self {
        let message = serde_json::json!({"role": "user", "content": text});
        Self { messages: vec![message], ..Self::default() }
    }
}

/// What the engine is fed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// The whole prompt.
    pub tokens: Vec<Token>,
    /// Positions at which other requests may leave it: message boundaries, ascending.
    pub boundaries: Vec<usize>,
    /// The boundary after system prompt and tools; 0 if there is none.
    pub root: usize,
}

/// The text side of one checkpoint.
pub struct Text {
    tokenizer: Tokenizer,
    added: BTreeMap<Token, AddedToken>,
    pieces: Arc<Pieces>,
    renderer: Option<Renderer>,
    stop_tokens: Arc<BTreeSet<Token>>,
    defaults: Sampling,
}

impl Text {
    /// Reads a checkpoint's text files.
    ///
    /// # Errors
    /// [`TextError`] if one of them cannot be used.
    pub fn new(files: &Files<'_>) -> Result<Self, TextError> {
        let settings = Settings::read(files)?;
        let unusable = |reason| TextError::File { file: "tokenizer.json", reason };
        let mut tokenizer =
            Tokenizer::from_bytes(files.tokenizer).map_err(|e| unusable(e.to_string()))?;
        // Files saved after training may still cut or fill every text to one length.
        tokenizer.with_truncation(None).map_err(|e| unusable(e.to_string()))?;
        tokenizer.with_padding(None);
        if !matches!(tokenizer.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
            return Err(unusable("its decoder is not ByteLevel".into()));
        }
        let added: BTreeMap<_, _> = tokenizer.get_added_tokens_decoder().into_iter().collect();
        let pieces = Arc::new(Pieces::new(&tokenizer.get_vocab(false), &added));
        let named = settings.eos_names.iter().filter_map(|name| tokenizer.token_to_id(name));
        let stop_tokens: BTreeSet<Token> = settings.eos_ids.iter().copied().chain(named).collect();
        if stop_tokens.is_empty() {
            return Err(TextError::Endless);
        }
        let renderer = settings.template.map(|source| Renderer::new(source, settings.named));
        Ok(Self {
            tokenizer,
            added,
            pieces,
            renderer: renderer.transpose()?,
            stop_tokens: Arc::new(stop_tokens),
            defaults: settings.sampling,
        })
    }

    /// Tokens that end a text, by all that the checkpoint says.
    #[must_use]
    pub fn stop_tokens(&self) -> &Arc<BTreeSet<Token>> {
        &self.stop_tokens
    }

    /// How the checkpoint's authors want tokens to be chosen.
    #[must_use]
    pub fn defaults(&self) -> &Sampling {
        &self.defaults
    }

    /// The special token that is written like this. Special tokens never reach the text, so a stop
    /// string that names one has to become a stop token.
    pub(crate) fn special(&self, text: &str) -> Option<Token> {
        let (&id, _) = self.added.iter().find(|(_, t)| t.special && t.content == text)?;
        Some(id)
    }

    /// Tokens to text, as they come.
    pub(crate) fn detokenizer(&self) -> Detokenizer {
        Detokenizer::new(Arc::clone(&self.pieces))
    }

    /// Renders and tokenizes a conversation.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] if the template does not accept it.
    pub fn chat(&self, chat: &Chat) -> Result<Prompt, Refusal> {
        let Some(renderer) = &self.renderer else {
            return Err(wrong_messages("this model has no chat template; use /v1/completions"));
        };
        let whole = Scene { chat, generation_prompt: true };
        let rendered = renderer.render(&whole).map_err(|e| {
            wrong_messages(&format!("the model's chat template does not accept them: {e}"))
        })?;
        let encoding = self.tokenizer.encode(rendered.as_str(), false);
        let encoding =
            encoding.map_err(|e| wrong_messages(&format!("cannot be tokenized: {e}")))?;
        let edges = Edges { text: self, ids: encoding.get_ids(), offsets: encoding.get_offsets() };
        let mut boundaries = BTreeSet::new();
        let root = self.end_of_system(renderer, chat, &rendered, &edges);
        boundaries.extend(root);
        let history = renderer.render(&Scene { chat, generation_prompt: false });
        if let Ok(history) = history
            && rendered.starts_with(&history)
        {
            boundaries.extend(edges.at(history.len()));
        }
        let tokens = encoding.get_ids().to_vec();
        boundaries.retain(|&b| (1..tokens.len()).contains(&b));
        let root = root.filter(|root| boundaries.contains(root)).unwrap_or(0);
        Ok(Prompt { tokens, boundaries: boundaries.into_iter().collect(), root })
    }

    /// Where conversations with the same system prompt and tools part. Found by rendering another
    /// one, since templates may refuse a system message alone.
    fn end_of_system(
        &self,
        renderer: &Renderer,
        chat: &Chat,
        rendered: &str,
        edges: &Edges<'_>,
    ) -> Option<usize> {
        let system = chat.messages.first().filter(|m| m["role"] == "system");
        if system.is_none() && chat.tools.is_empty() {
            return None;
        }
        let stranger = serde_json::json!({"role": "user", "content": "\u{1}"});
        let other = Chat {
            messages: system.cloned().into_iter().chain([stranger]).collect(),
            tools: chat.tools.clone(),
            kwargs: chat.kwargs.clone(),
        };
        let other = renderer.render(&Scene { chat: &other, generation_prompt: false }).ok()?;
        let same = rendered.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
        edges.before(same).filter(|&tokens| tokens >= SYSTEM_TOKENS_MIN)
    }

    /// Tokenizes text as it is.
    pub fn raw(&self, text: &str) -> Result<Prompt, Refusal> {
        let encoding = self.tokenizer.encode_fast(text, true).map_err(|e| Refusal::Invalid {
            field: "prompt",
            reason: format!("cannot be tokenized: {e}"),
        })?;
        Ok(Prompt { tokens: encoding.get_ids().to_vec(), boundaries: Vec::new(), root: 0 })
    }
}

fn wrong_messages(reason: &str) -> Refusal {
    Refusal::Invalid { field: "messages", reason: reason.to_owned() }
}

/// Token positions that no other continuation of the text before them can move: those at which an
/// added token begins, because added tokens are cut out before anything is merged.
struct Edges<'a> {
    text: &'a Text,
    ids: &'a [Token],
    offsets: &'a [(usize, usize)],
}

impl Edges<'_> {
    /// The edge at exactly this byte.
    fn at(&self, byte: usize) -> Option<usize> {
        let i = self.offsets.partition_point(|&(start, _)| start < byte);
        let is_edge = self.offsets.get(i)?.0 == byte && self.is_added(i);
        is_edge.then_some(i)
    }

    /// The last edge at or before this byte.
    fn before(&self, byte: usize) -> Option<usize> {
        let end = self.offsets.partition_point(|&(start, _)| start <= byte);
        (0..end).rev().find(|&i| self.is_added(i))
    }

    fn is_added(&self, i: usize) -> bool {
        self.text.added.get(&self.ids[i]).is_some_and(|t| !t.lstrip && !t.normalized)
    }
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Text")
            .field("chat_template", &self.renderer.is_some())
            .field("stop_tokens", &self.stop_tokens)
            .field("defaults", &self.defaults)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests;

//! Between people's text and the model's tokens: chat template, tokenizer, stop tokens, defaults of
//! sampling, and the way back (in [`detokenize`]).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use mtplx_core::request::Refusal;
use mtplx_core::sample::Sampling;
use mtplx_core::{Tenant, Token};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer};

use self::cuts::Cuts;
use self::detokenize::Pieces;
pub(crate) use self::detokenize::{Detokenizer, Spelt};
pub(crate) use self::template::RESERVED;
use self::template::{Renderer, Scene};
use super::grammar::calls::{Calls, Form};
use super::grammar::{Grammars, Unusable};

mod clock;
mod cuts;
mod detokenize;
mod python;
mod settings;
mod template;
mod vocabulary;

pub(crate) use self::clock::iso_8601;
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
    /// Whether the last message, which is the assistant's and has text, is to be gone on with.
    pub continues: bool,
    /// What the answer must begin with.
    pub must: Must,
    /// Whose it is.
    pub tenant: Tenant,
}

/// What an answer must begin with. It is put into the prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Must {
    /// As the model likes.
    #[default]
    Nothing,
    /// No thinking, even where the template begins it.
    NotThink,
    /// A call, without thinking; of this tool, if it is named.
    Call(Option<String>),
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
    /// Whether it ends within thinking.
    pub thinking: bool,
    /// Whether it has closed the answer's thinking already.
    pub thought: bool,
    /// What at its end is part of the answer.
    pub prefill: String,
    /// The boundary after system prompt and tools; 0 if there is none.
    pub root: usize,
}

impl Prompt {
    /// Tokens as they are.
    #[must_use]
    pub fn plain(tokens: Vec<Token>) -> Self {
        let (boundaries, prefill) = (Vec::new(), String::new());
        Self { tokens, boundaries, root: 0, thinking: false, thought: false, prefill }
    }
}

/// A rendered prompt.
struct Rendered {
    text: String,
    /// Where the conversation so far ends and the assistant's turn begins.
    history: Option<usize>,
    thinking: bool,
    thought: bool,
    prefill: String,
}

/// What ends thinking, as templates write it where there was none.
const END_OF_THINKING: &str = "\n</think>\n\n";

/// The text side of one checkpoint.
pub struct Text {
    tokenizer: Tokenizer,
    added: BTreeMap<Token, AddedToken>,
    pieces: Arc<Pieces>,
    cuts: Cuts,
    renderer: Option<Renderer>,
    stop_tokens: Arc<BTreeSet<Token>>,
    defaults: Sampling,
    /// Made when the first grammar is asked for.
    grammars: OnceLock<Result<Grammars, Unusable>>,
}

/// What of `tokenizer.json` is looked at before the crate reads it.
#[derive(Deserialize)]
struct Outline {
    #[serde(default)]
    decoder: Value,
    model: OutlineOfModel,
}

#[derive(Deserialize)]
struct OutlineOfModel {
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
}

impl Text {
    /// Reads a checkpoint's text files.
    ///
    /// # Errors
    /// [`TextError`] if one of them cannot be used.
    pub fn new(files: &Files<'_>) -> Result<Self, TextError> {
        let settings = Settings::read(files)?;
        let unusable = |reason| TextError::File { file: "tokenizer.json", reason };
        // The crate panics on a damaged decoder instead of naming it, so that is read first.
        let outline: Outline =
            serde_json::from_slice(files.tokenizer).map_err(|e| unusable(e.to_string()))?;
        if outline.decoder["type"] != "ByteLevel" {
            return Err(unusable("its decoder is not ByteLevel".into()));
        }
        // Nor does it look whether a prefix is there, or ends within a character, to cut it off.
        if outline.model.continuing_subword_prefix.is_some_and(|prefix| !prefix.is_empty()) {
            return Err(unusable("a ByteLevel model has no continuing_subword_prefix".into()));
        }
        let read = std::panic::catch_unwind(|| Tokenizer::from_bytes(files.tokenizer));
        let read = read.map_err(|_| unusable("it is damaged beyond naming".into()))?;
        let mut tokenizer = read.map_err(|e| unusable(e.to_string()))?;
        // Files saved after training may still cut or fill every text to one length.
        tokenizer.with_truncation(None).map_err(|e| unusable(e.to_string()))?;
        tokenizer.with_padding(None);
        let added: BTreeMap<_, _> = tokenizer.get_added_tokens_decoder().into_iter().collect();
        let pieces = Arc::new(Pieces::new(&tokenizer.get_vocab(false), &added));
        let named = settings.eos_names.iter().filter_map(|name| tokenizer.token_to_id(name));
        let stop_tokens: BTreeSet<Token> = settings.eos_ids.iter().copied().chain(named).collect();
        if stop_tokens.is_empty() {
            return Err(TextError::Endless);
        }
        let cuts = Cuts::new(&tokenizer, added.values(), settings.template.as_deref());
        let renderer = settings.template.map(|source| Renderer::new(source, settings.named));
        Ok(Self {
            tokenizer,
            added,
            pieces,
            cuts,
            renderer: renderer.transpose()?,
            stop_tokens: Arc::new(stop_tokens),
            defaults: settings.sampling,
            grammars: OnceLock::new(),
        })
    }

    /// The same with `bytes_max` of memory for pieces of texts as tokens, so that a conversation is
    /// not tokenized anew with every turn.
    #[must_use]
    pub fn remembering(self, bytes_max: u64) -> Self {
        Self { cuts: self.cuts.remembering(bytes_max), ..self }
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
        let chat = &tamed(renderer, chat);
        let Rendered { text: rendered, history, thinking, thought, prefill } =
            Self::render(renderer, chat)?;
        let cut = self.cuts.cut(&self.tokenizer, chat.tenant, &rendered);
        let cut = cut.map_err(|e| wrong_messages(&format!("cannot be tokenized: {e}")))?;
        let edges = Edges { text: self, ids: &cut.ids, offsets: &cut.offsets };
        let mut boundaries = BTreeSet::new();
        let root = self.end_of_system(renderer, chat, &rendered, &edges);
        boundaries.extend(root);
        if let Some(history) = history {
            boundaries.extend(edges.at(history));
        }
        let tokens = cut.ids;
        boundaries.retain(|&b| (1..tokens.len()).contains(&b));
        let root = root.filter(|root| boundaries.contains(root)).unwrap_or(0);
        let boundaries = boundaries.into_iter().collect();
        Ok(Prompt { tokens, boundaries, root, thinking, thought, prefill })
    }

    /// The prompt's text, what it says of thinking, and what at its end is of the answer.
    fn render(renderer: &Renderer, chat: &Chat) -> Result<Rendered, Refusal> {
        let scene = Scene { chat, generation_prompt: !chat.continues };
        let mut rendered = renderer.render(&scene).map_err(|e| {
            wrong_messages(&format!("the model's chat template does not accept them: {e}"))
        })?;
        if chat.continues {
            let last = chat.messages.last().and_then(|last| last["content"].as_str());
            let last = last.map(str::trim).filter(|last| !last.is_empty());
            let end = last.and_then(|last| Some(rendered.rfind(last)? + last.len()));
            let end = end.ok_or_else(|| {
                wrong_messages("the model's chat template does not show the last one as it is")
            })?;
            rendered.truncate(end);
            // Who goes on with an answer has thought, unless it is the thinking that goes on.
            let thought = rendered.rfind("<think>") <= rendered.rfind("</think>");
            let (text, prefill) = (rendered, String::new());
            return Ok(Rendered { text, history: None, thinking: false, thought, prefill });
        }
        let history = history_of(renderer, chat, &rendered);
        let tail = match history {
            Some(history) => &rendered[history..],
            None => rendered.trim_end(),
        };
        // Thinking that the template began and did not end, not what somebody said of it.
        let begun = tail.rfind("<think>").filter(|begun| !tail[*begun..].contains("</think>"));
        let mut thinking = begun.is_some_and(|begun| tail[begun..].trim_end() == "<think>");
        if thinking && chat.must != Must::Nothing {
            rendered.truncate(rendered.trim_end().len());
            rendered.push('\n');
            rendered.push_str(END_OF_THINKING);
            thinking = false;
        }
        let thought = rendered.trim_end().ends_with("</think>");
        let prefill = match &chat.must {
            Must::Nothing | Must::NotThink => String::new(),
            Must::Call(name) => renderer.call(name.as_deref()),
        };
        rendered.push_str(&prefill);
        Ok(Rendered { text: rendered, history, thinking, thought, prefill })
    }

    /// How this model writes calls of these tools.
    pub(crate) fn calls<'a>(&self, tools: &'a [Value], one: bool) -> Calls<'a> {
        let tags = self.renderer.as_ref().is_some_and(Renderer::tags);
        let form = if tags { Form::Tags } else { Form::Json };
        let is_token = |text: &str| self.added.values().any(|token| token.content == text);
        let marks = is_token("<tool_call>") && is_token("</tool_call>");
        Calls { form, tools, one, marks }
    }

    /// Whether this model marks what it thinks.
    pub(crate) fn thinks(&self) -> bool {
        self.renderer.as_ref().is_some_and(Renderer::thinks)
    }

    /// What ends thinking before its time, as text and as tokens.
    pub(crate) fn end_of_thinking(&self) -> (String, Arc<[Token]>) {
        let encoding = self.tokenizer.encode_fast(END_OF_THINKING, false);
        let tokens = encoding.map(|e| e.get_ids().to_vec()).unwrap_or_default();
        (END_OF_THINKING.to_owned(), tokens.into())
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
            ..Chat::default()
        };
        let other = renderer.render(&Scene { chat: &other, generation_prompt: false }).ok()?;
        let same = rendered.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
        edges.before(same).filter(|&tokens| tokens >= SYSTEM_TOKENS_MIN)
    }

    /// Whether this piece of a prompt was tokenized for this tenant.
    #[cfg(test)]
    pub(crate) fn remembers(&self, tenant: Tenant, piece: &str) -> bool {
        self.cuts.remembers(tenant, piece)
    }

    /// Tokenizes text as it is, with the special tokens that the tokenizer puts around it.
    pub fn raw(&self, text: &str) -> Result<Prompt, Refusal> {
        self.cut(text, true)
    }

    /// Tokenizes text as it is; whether special tokens are put around it is for the caller to say.
    pub(crate) fn cut(&self, text: &str, special: bool) -> Result<Prompt, Refusal> {
        let encoding = self.tokenizer.encode_fast(text, special).map_err(|e| Refusal::Invalid {
            field: "prompt",
            reason: format!("cannot be tokenized: {e}"),
        })?;
        Ok(Prompt::plain(encoding.get_ids().to_vec()))
    }
}

/// The conversation as the template accepts it: many take a system message at the beginning only,
/// and clients say something in between. Then it is the user who says it.
fn tamed<'a>(renderer: &Renderer, chat: &'a Chat) -> Cow<'a, Chat> {
    let is_system = |message: &Value| message["role"] == "system";
    let late = chat.messages.iter().skip(1).any(is_system);
    if !late || renderer.render(&Scene { chat, generation_prompt: true }).is_ok() {
        return Cow::Borrowed(chat);
    }
    let mut chat = chat.clone();
    let leading = chat.messages.iter().take_while(|message| is_system(message)).count();
    for message in chat.messages.iter_mut().skip(leading).filter(|message| is_system(message)) {
        message["role"] = "user".into();
    }
    let leading: Vec<Value> = chat.messages.drain(..leading).collect();
    let texts: Vec<&str> = leading.iter().filter_map(|m| m["content"].as_str()).collect();
    if !texts.is_empty() {
        let system = serde_json::json!({"role": "system", "content": texts.join("\n\n")});
        chat.messages.insert(0, system);
    }
    Cow::Owned(chat)
}

/// Where the conversation so far ends and the assistant's turn begins.
fn history_of(renderer: &Renderer, chat: &Chat, rendered: &str) -> Option<usize> {
    let history = renderer.render(&Scene { chat, generation_prompt: false }).ok()?;
    rendered.starts_with(&history).then_some(history.len())
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

//! OpenAI's Responses API on the wire, and its mapping to what the engine is asked for. Functions
//! are the only tools: what OpenAI runs on its own servers is refused by name.

use mtplx_core::sample::Sampling;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::number;
use super::openai::structure::flat_format;
use super::openai::tools::{self, checked, unique};
use super::openai::{ApiError, Shared, Source, Wanted, neutral};
use super::openapi::asked;
use super::text::Chat;
use super::thinking::Effort;
use super::unknown::Ignored;

pub(crate) mod answer;
mod item;
mod store;

pub(crate) use self::store::{Kept, Store};

/// The body of `POST /v1/responses`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(expecting = "an object")]
pub(crate) struct ResponsesBody {
    model: Option<String>,
    #[schema(schema_with = asked::items, required)]
    input: Option<Value>,
    instructions: Option<String>,
    previous_response_id: Option<String>,
    store: Option<bool>,
    stream: Option<bool>,
    stream_options: Option<Value>,
    #[schema(minimum = 1)]
    max_output_tokens: Option<usize>,
    #[schema(minimum = 0, maximum = 2)]
    #[serde(default, deserialize_with = "number::narrow")]
    temperature: Option<f32>,
    #[schema(minimum = 0, maximum = 1)]
    #[serde(default, deserialize_with = "number::narrow")]
    top_p: Option<f32>,
    #[schema(schema_with = asked::flat_tools)]
    tools: Option<Vec<Value>>,
    #[schema(schema_with = asked::tool_choice)]
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    reasoning: Option<Reasoning>,
    text: Option<Text>,
    metadata: Option<Value>,
    include: Option<Vec<String>>,
    // Bookkeeping of the client's, or hints for caches.
    user: Option<Value>,
    #[serde(rename = "safety_identifier")]
    _safety_identifier: Option<Value>,
    #[serde(rename = "prompt_cache_key")]
    _prompt_cache_key: Option<Value>,
    #[serde(rename = "prompt_cache_retention")]
    _prompt_cache_retention: Option<Value>,
    #[serde(rename = "client_metadata")]
    _client_metadata: Option<Value>,
    /// Bounds calls of hosted tools, of which there are none.
    #[serde(rename = "max_tool_calls")]
    _max_tool_calls: Option<u64>,
    // Accepted where they ask for nothing.
    #[schema(schema_with = asked::disabled)]
    truncation: Option<Value>,
    #[schema(schema_with = asked::no)]
    background: Option<Value>,
    #[schema(schema_with = asked::never)]
    conversation: Option<Value>,
    #[schema(schema_with = asked::never)]
    prompt: Option<Value>,
    service_tier: Option<Value>,
    top_logprobs: Option<Value>,
    #[schema(schema_with = asked::never)]
    moderation: Option<Value>,
    // Named in a warning.
    context_management: Option<Value>,
    prompt_cache_options: Option<Value>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ResponsesReasoning)]
struct Reasoning {
    effort: Option<String>,
    summary: Option<Value>,
    generate_summary: Option<Value>,
    /// Which thoughts of earlier turns are shown is the template's affair.
    #[serde(rename = "context")]
    _context: Option<Value>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ResponsesText)]
struct Text {
    #[schema(schema_with = asked::format)]
    format: Option<Value>,
    verbosity: Option<Value>,
}

/// What of a request its answer repeats or needs later.
#[derive(Clone, Debug)]
pub(crate) struct Echo {
    /// The request's own fields.
    pub(crate) fields: Map<String, Value>,
    /// The conversation without its instructions, if it is to be kept.
    pub(crate) keeps: Option<Vec<Value>>,
}

impl ResponsesBody {
    /// Checks and maps the body.
    pub(crate) fn wanted(
        mut self,
        defaults: &Sampling,
        store: &Store,
        ignored: &mut Ignored,
    ) -> Result<(Wanted, Echo), ApiError> {
        self.refuse_what_is_not_supported()?;
        self.name_hints(ignored);
        let mut echo = self.echo();
        let format = self.text.as_mut().and_then(|text| text.format.take());
        let format = format.map(|format| flat_format("text.format", format, ignored));
        let structure = format.transpose()?.flatten();
        let input = self.input.take().ok_or_else(|| {
            ApiError::invalid("input", "must be given: a string or an array of items")
        })?;
        let mut said = match &self.previous_response_id {
            Some(id) => store.conversation(id)?,
            None => Vec::new(),
        };
        item::into_template(input, &mut said, ignored)?;
        let messages = item::instructed(self.instructions.take(), said.clone());
        echo.keeps = self.store.unwrap_or(true).then_some(said);
        let declared = self.declared(ignored)?;
        let choice = tools::choice(self.tool_choice.take(), &declared)?;
        let mut chat = Chat { messages, tools: declared, ..Chat::default() };
        let effort = self.effort()?;
        effort.tell(&mut chat.kwargs, "reasoning.effort")?;
        let reading = choice.apply(&mut chat, self.parallel_tool_calls);
        let shared = Shared {
            model: self.model.take(),
            max_tokens: self.max_output_tokens,
            stream: self.stream,
            temperature: self.temperature,
            top_p: self.top_p,
            ..Shared::default()
        };
        let wanted = shared.wanted(vec![Source::Chat(chat)], defaults, ignored);
        let mut wanted =
            wanted.map_err(|error| error.renamed("max_tokens", "max_output_tokens"))?;
        wanted.new_tokens_max = self.max_output_tokens.map(|n| (n, "max_output_tokens"));
        wanted.thinking_tokens_max = effort.bound(None);
        (wanted.reading, wanted.structure) = (reading, structure);
        Ok((wanted, echo))
    }

    fn declared(&mut self, ignored: &mut Ignored) -> Result<Vec<Value>, ApiError> {
        let mut out = Vec::new();
        for (i, tool) in self.tools.take().unwrap_or_default().into_iter().enumerate() {
            let path = format!("tools[{i}]");
            let Value::Object(mut tool) = tool else {
                return Err(ApiError::invalid(path, "must be an object with type and name"));
            };
            match tool.remove("type").as_ref().and_then(Value::as_str) {
                Some("function") => out.push(checked(tool, &path, ignored)?),
                Some(kind) => ignored.tool(&path, kind)?,
                None => {
                    return Err(ApiError::invalid(format!("{path}.type"), "must be \"function\""));
                }
            }
        }
        unique(&out)?;
        Ok(out)
    }

    fn effort(&self) -> Result<Effort, ApiError> {
        let word = self.reasoning.as_ref().and_then(|reasoning| reasoning.effort.as_deref());
        let effort = word.map(|word| {
            let named = Effort::named(word);
            named.map_err(|error| error.renamed("reasoning_effort", "reasoning.effort"))
        });
        Ok(effort.transpose()?.unwrap_or_default())
    }

    fn echo(&self) -> Echo {
        let reasoning = self.reasoning.as_ref();
        let effort = reasoning.and_then(|reasoning| reasoning.effort.clone());
        let format = self.text.as_ref().and_then(|text| text.format.clone());
        let format = format.unwrap_or_else(|| json!({"type": "text"}));
        let fields = json!({
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata.clone().unwrap_or_else(|| json!({})),
            "parallel_tool_calls": self.parallel_tool_calls.unwrap_or(true),
            "previous_response_id": self.previous_response_id,
            "reasoning": {"effort": effort, "summary": null},
            "store": self.store.unwrap_or(true),
            "temperature": self.temperature,
            "text": {"format": format},
            "tool_choice": self.tool_choice.clone().unwrap_or_else(|| "auto".into()),
            "tools": self.tools.clone().unwrap_or_default(),
            "top_p": self.top_p,
            "truncation": "disabled",
            "user": self.user,
        });
        let fields = if let Value::Object(fields) = fields { fields } else { Map::new() };
        Echo { fields, keeps: None }
    }

    fn refuse_what_is_not_supported(&self) -> Result<(), ApiError> {
        let never = |_: &Value| false;
        let off = |v: &Value| *v == json!(false);
        let unsupported = "not supported; leave it out";
        let cut = "this server cuts nothing off; leave it out or set it to \"disabled\"";
        neutral("truncation", self.truncation.as_ref(), |v| *v == "disabled", cut)?;
        neutral("background", self.background.as_ref(), off, unsupported)?;
        let chain = "not supported; send previous_response_id or all items";
        neutral("conversation", self.conversation.as_ref(), never, chain)?;
        neutral("prompt", self.prompt.as_ref(), never, "this server keeps no prompts; send it")?;
        neutral("moderation", self.moderation.as_ref(), never, "this server moderates nothing")?;
        neutral("top_logprobs", self.top_logprobs.as_ref(), |v| *v == json!(0), unsupported)?;
        let hidden = |v: &Value| *v == json!({"include_obfuscation": false}) || *v == json!({});
        neutral("stream_options", self.stream_options.as_ref(), hidden, unsupported)
    }

    /// Hints, which some clients always give.
    fn name_hints(&self, ignored: &mut Ignored) {
        let verbosity = self.text.as_ref().and_then(|text| text.verbosity.as_ref());
        if verbosity.is_some_and(|v| *v != "medium") {
            ignored.hint("text.verbosity");
        }
        let only = |v: &&Value| **v != "auto" && **v != "default";
        if self.service_tier.as_ref().filter(only).is_some() {
            ignored.hint("service_tier");
        }
        // A conversation that grows too long is refused with 400, never made shorter.
        if self.context_management.as_ref().is_some_and(|v| *v != json!([])) {
            ignored.hint("context_management");
        }
        if self.prompt_cache_options.is_some() {
            ignored.hint("prompt_cache_options");
        }
        let summary = self.reasoning.as_ref();
        if summary.is_some_and(|r| r.summary.is_some() || r.generate_summary.is_some()) {
            // Thoughts are shown as they are.
            ignored.hint("reasoning.summary");
        }
        // They ask for more in the answer; thoughts are in it in clear already.
        let include = self.include.iter().flatten();
        let more = include.filter(|wanted| *wanted != "reasoning.encrypted_content");
        more.for_each(|wanted| ignored.hint(format!("include {wanted}")));
    }
}

//! Anthropic's Messages API on the wire, and its mapping to what the engine is asked for. As with
//! OpenAI's, every field is honoured, refused by name, or named in a warning.

use mtplx_core::sample::Sampling;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::grammar::Structure;
use super::number;
use super::openai::structure::flat_format;
use super::openai::tools::{ToolChoice, checked, demand_declared, unique};
use super::openai::{ApiError, Shared, Source, Wanted, neutral};
use super::openapi::asked;
use super::text::Chat;
use super::thinking::Effort;
use super::unknown::Ignored;

pub(crate) mod answer;
pub(crate) mod error;
mod message;

/// The body of `POST /v1/messages`, and of its `count_tokens`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(expecting = "an object")]
pub(crate) struct MessagesBody {
    model: Option<String>,
    #[schema(required, nullable = false, min_items = 1)]
    messages: Option<Vec<message::Message>>,
    #[schema(schema_with = asked::system)]
    system: Option<Value>,
    /// Most tokens of the answer; must be given but to count tokens.
    #[schema(minimum = 1)]
    max_tokens: Option<usize>,
    stop_sequences: Option<Vec<String>>,
    stream: Option<bool>,
    #[schema(minimum = 0, maximum = 2)]
    #[serde(default, deserialize_with = "number::narrow")]
    temperature: Option<f32>,
    #[schema(minimum = 0, maximum = 1)]
    #[serde(default, deserialize_with = "number::narrow")]
    top_p: Option<f32>,
    #[schema(minimum = -1)]
    top_k: Option<i64>,
    #[schema(schema_with = asked::message_tools)]
    tools: Option<Vec<Value>>,
    tool_choice: Option<Choice>,
    thinking: Option<Thinking>,
    output_config: Option<OutputConfig>,
    // Bookkeeping of the client's.
    #[serde(rename = "metadata")]
    _metadata: Option<Value>,
    // Accepted where they ask for nothing, or named in a warning.
    service_tier: Option<Value>,
    #[schema(schema_with = asked::never)]
    container: Option<Value>,
    #[schema(schema_with = asked::none_of_them)]
    mcp_servers: Option<Value>,
    context_management: Option<Value>,
    speed: Option<Value>,
    inference_geo: Option<Value>,
    output_format: Option<Value>,
    cache_control: Option<Value>,
    diagnostics: Option<Value>,
    user_profile_id: Option<Value>,
    workspace_id: Option<Value>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = MessagesToolChoice)]
struct Choice {
    #[serde(rename = "type")]
    kind: ChoiceKind,
    name: Option<String>,
    disable_parallel_tool_use: Option<bool>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = MessagesToolChoiceKind)]
enum ChoiceKind {
    Auto,
    Any,
    Tool,
    None,
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = MessagesThinking)]
struct Thinking {
    #[serde(rename = "type")]
    kind: ThinkingKind,
    budget_tokens: Option<usize>,
    display: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = MessagesThinkingKind)]
enum ThinkingKind {
    Enabled,
    Adaptive,
    Disabled,
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = MessagesOutputConfig)]
struct OutputConfig {
    effort: Option<String>,
    #[schema(schema_with = asked::format)]
    format: Option<Value>,
}

impl MessagesBody {
    /// Checks and maps the body of a request for an answer.
    pub(crate) fn wanted(
        self,
        defaults: &Sampling,
        ignored: &mut Ignored,
    ) -> Result<Wanted, ApiError> {
        if self.max_tokens.is_none() {
            let reason = "must be given: most tokens of the answer";
            return Err(ApiError::invalid("max_tokens", reason));
        }
        self.counted(defaults, ignored)
    }

    /// Checks and maps the body of a question for its length.
    pub(crate) fn counted(
        mut self,
        defaults: &Sampling,
        ignored: &mut Ignored,
    ) -> Result<Wanted, ApiError> {
        self.refuse_what_is_not_supported()?;
        self.name_hints(ignored);
        let structure = self.structure(ignored)?;
        let messages = self
            .messages
            .take()
            .ok_or_else(|| ApiError::invalid("messages", "must be given: an array of messages"))?;
        let mut chat = Chat { tools: self.tools(ignored)?, ..Chat::default() };
        chat.messages = message::into_template(self.system.take(), messages, ignored)?;
        // To go on with a last message of the assistant's is what it is for in this API.
        let last = chat.messages.last().filter(|last| last["role"] == "assistant");
        let text = last.filter(|last| last.get("tool_calls").is_none());
        chat.continues = text.and_then(|m| m["content"].as_str()).is_some_and(|t| !t.is_empty());
        let effort = self.effort(ignored)?;
        effort.tell(&mut chat.kwargs, "thinking")?;
        let (choice, parallel) = self.choice(&chat.tools)?;
        let reading = choice.apply(&mut chat, parallel);
        let shared = Shared {
            model: self.model.take(),
            max_tokens: self.max_tokens,
            stream: self.stream,
            stop: self.stop_sequences.take().map(Into::into),
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            ..Shared::default()
        };
        let wanted = shared.wanted(vec![Source::Chat(chat)], defaults, ignored);
        let mut wanted = wanted.map_err(|error| error.renamed("stop", "stop_sequences"))?;
        wanted.thinking_tokens_max = effort.bound(None);
        (wanted.reading, wanted.structure) = (reading, structure);
        Ok(wanted)
    }

    fn tools(&mut self, ignored: &mut Ignored) -> Result<Vec<Value>, ApiError> {
        let mut out = Vec::new();
        for (i, tool) in self.tools.take().unwrap_or_default().into_iter().enumerate() {
            let path = format!("tools[{i}]");
            let Value::Object(mut tool) = tool else {
                return Err(ApiError::invalid(path, "must be an object with a name"));
            };
            match tool.remove("type") {
                None | Some(Value::Null) => {}
                Some(kind) if kind == "custom" => {}
                Some(kind) => {
                    ignored.tool(&path, kind.as_str().unwrap_or_default())?;
                    continue;
                }
            }
            // Hints: what is warm is found, and arguments are streamed, without being asked to.
            tool.remove("cache_control");
            tool.remove("eager_input_streaming");
            let schema = tool.remove("input_schema").filter(Value::is_object);
            let schema = schema.ok_or_else(|| {
                ApiError::invalid(format!("{path}.input_schema"), "must be a JSON schema")
            })?;
            tool.insert("parameters".into(), schema);
            out.push(checked(tool, &path, ignored)?);
        }
        unique(&out)?;
        Ok(out)
    }

    fn choice(&mut self, tools: &[Value]) -> Result<(ToolChoice, Option<bool>), ApiError> {
        let Some(Choice { kind, name, disable_parallel_tool_use }) = self.tool_choice.take() else {
            return Ok((ToolChoice::Auto, None));
        };
        let choice = match (kind, name) {
            (ChoiceKind::Auto, None) => ToolChoice::Auto,
            (ChoiceKind::Any, None) => ToolChoice::Required,
            (ChoiceKind::None, None) => ToolChoice::None,
            (ChoiceKind::Tool, Some(name)) => ToolChoice::Named(name),
            (ChoiceKind::Tool, None) => {
                return Err(ApiError::invalid("tool_choice.name", "must be given"));
            }
            (_, Some(_)) => {
                let reason = "only allowed with type \"tool\"";
                return Err(ApiError::invalid("tool_choice.name", reason));
            }
        };
        let choice = demand_declared(choice, tools, "tool_choice")?;
        Ok((choice, disable_parallel_tool_use.map(|disable| !disable)))
    }

    fn effort(&mut self, ignored: &mut Ignored) -> Result<Effort, ApiError> {
        let word = self.output_config.as_ref().and_then(|config| config.effort.as_deref());
        let word = word.map(|word| {
            let named = Effort::named(word);
            named.map_err(|error| error.renamed("reasoning_effort", "output_config.effort"))
        });
        let word = word.transpose()?;
        let Some(Thinking { kind, budget_tokens, display }) = self.thinking.take() else {
            // In this API, thinking that is not asked for is off.
            return Ok(word.unwrap_or_else(|| Effort::budget(false, None)));
        };
        if display.is_some_and(|display| display == "omitted") {
            ignored.hint("thinking.display");
        }
        match (kind, budget_tokens) {
            (ThinkingKind::Disabled, _) => Ok(Effort::budget(false, None)),
            (ThinkingKind::Enabled, Some(0)) => {
                Err(ApiError::invalid("thinking.budget_tokens", "must be at least 1"))
            }
            (_, Some(budget)) => Ok(Effort::budget(true, Some(budget))),
            (_, None) => word.map_or(Ok(Effort::budget(true, None)), |w| w.with(Some(true), "")),
        }
    }

    /// What the answer is to be; the older of the two names is that of a beta.
    fn structure(&mut self, ignored: &mut Ignored) -> Result<Option<Structure>, ApiError> {
        let new = self.output_config.as_mut().and_then(|config| config.format.take());
        let (field, format) = match (new, self.output_format.take()) {
            (Some(_), Some(_)) => {
                let reason = "cannot be had together with output_config.format; send one of them";
                return Err(ApiError::invalid("output_format", reason));
            }
            (Some(format), None) => ("output_config.format", format),
            (None, Some(format)) => ("output_format", format),
            (None, None) => return Ok(None),
        };
        flat_format(field, format, ignored)
    }

    fn refuse_what_is_not_supported(&self) -> Result<(), ApiError> {
        let never = |_: &Value| false;
        let empty = |v: &Value| *v == json!([]);
        let unsupported = "not supported; leave it out";
        neutral("container", self.container.as_ref(), never, unsupported)?;
        neutral("mcp_servers", self.mcp_servers.as_ref(), empty, unsupported)
    }

    /// They ask for less or faster work, not for other text, and some clients always ask.
    fn name_hints(&self, ignored: &mut Ignored) {
        let hints = [
            ("service_tier", &self.service_tier, json!("auto")),
            ("context_management", &self.context_management, json!({"edits": []})),
            ("speed", &self.speed, json!("standard")),
            ("inference_geo", &self.inference_geo, Value::Null),
            ("cache_control", &self.cache_control, Value::Null),
            ("diagnostics", &self.diagnostics, Value::Null),
            ("user_profile_id", &self.user_profile_id, Value::Null),
            ("workspace_id", &self.workspace_id, Value::Null),
        ];
        let asked = hints.into_iter().filter(|(_, value, nothing)| {
            value.as_ref().is_some_and(|value| value != nothing && *value != "standard_only")
        });
        asked.for_each(|(name, ..)| ignored.hint(name));
    }
}

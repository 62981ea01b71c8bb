//! `POST /v1/chat/completions`: the body's own parameters.

use mtplx_core::sample::Sampling;
use serde_json::{Value, json};

use super::error::ApiError;
use super::tools;
use super::{ChatBody, Source, Wanted, logprobs, message, neutral};
use crate::ingress::text::{Chat, RESERVED};
use crate::ingress::thinking::Effort;
use crate::ingress::unknown::Ignored;

impl ChatBody {
    /// Checks and maps the body.
    pub(crate) fn wanted(
        mut self,
        defaults: &Sampling,
        ignored: &mut Ignored,
    ) -> Result<Wanted, ApiError> {
        self.refuse_what_is_not_supported()?;
        self.name_hints(ignored);
        let shared = self.shared();
        let messages = self.messages.take().ok_or_else(|| {
            ApiError::invalid(
                "messages",
                "must be given: an array of messages with role and content",
            )
        })?;
        let mut kwargs = self.chat_template_kwargs.take().unwrap_or_default();
        if let Some(name) = RESERVED.iter().find(|name| kwargs.contains_key(**name)) {
            let path = format!("chat_template_kwargs.{name}");
            return Err(ApiError::invalid(path, "this variable is set by the server"));
        }
        // All others go to the template as they are. Which it reads is known to it alone, and
        // Jinja does not tell a variable that is never read from one that is: this server cannot
        // name those that have no effect.
        let messages = message::into_template(messages, ignored)?;
        let effort = self.reasoning_effort.as_deref().map(Effort::named).transpose()?;
        let effort = effort.unwrap_or_default().with(self.enable_thinking, "enable_thinking")?;
        effort.tell(&mut kwargs, "reasoning_effort")?;
        let declared = tools::declared(self.tools.take().unwrap_or_default(), ignored)?;
        let choice = tools::choice(self.tool_choice.take(), &declared)?;
        let continues = self.continues(&messages)?;
        let mut chat = Chat { messages, tools: declared, kwargs, continues, ..Chat::default() };
        let reading = choice.apply(&mut chat, self.parallel_tool_calls);
        let old_name = shared.max_tokens;
        let mut wanted = shared.wanted(vec![Source::Chat(chat)], defaults, ignored)?;
        wanted.reading = reading;
        wanted.thinking_tokens_max = effort.bound(self.max_thinking_tokens);
        wanted.sampling.logprobs = logprobs::of_chat(self.logprobs, self.top_logprobs)?;
        if let Some(n) = self.max_completion_tokens {
            let field = "max_completion_tokens";
            if n == 0 {
                return Err(ApiError::invalid(field, "must be at least 1"));
            }
            if old_name.is_some_and(|old| old != n) {
                return Err(ApiError::invalid(field, "differs from max_tokens; send one of them"));
            }
            wanted.new_tokens_max = Some((n, field));
        }
        Ok(wanted)
    }

    /// Whether the last message is to be gone on with. vLLM has one name for it, llama.cpp another
    /// with which a last message of the assistant's is always meant.
    fn continues(&self, messages: &[Value]) -> Result<bool, ApiError> {
        let field = "continue_final_message";
        let asked = match (self.continue_final_message, self.add_generation_prompt) {
            (Some(true), Some(true)) => {
                let reason = "cannot be had together with add_generation_prompt";
                return Err(ApiError::invalid(field, reason));
            }
            (Some(true), _) | (None, Some(false)) => true,
            (Some(false), Some(false)) => {
                let reason = "must be true where this is false: something has to be answered";
                return Err(ApiError::unsupported("add_generation_prompt", reason));
            }
            (Some(false) | None, _) => false,
        };
        let last = messages.last().filter(|last| last["role"] == "assistant");
        let has_text = last.and_then(|last| last["content"].as_str());
        if asked && has_text.is_none_or(|text| text.trim().is_empty()) {
            let reason = "the last message must be the assistant's, with text to go on from";
            return Err(ApiError::invalid(field, reason));
        }
        Ok(asked)
    }

    fn refuse_what_is_not_supported(&self) -> Result<(), ApiError> {
        let empty = |v: &Value| *v == json!([]);
        let none = |v: &Value| *v == "none" || *v == "auto";
        let never = |_: &Value| false;
        let text_only = "this server answers with text only; leave it out";
        let renamed = "OpenAI replaced it by tools and tool_choice; send those";
        neutral("functions", self.functions.as_ref(), empty, renamed)?;
        neutral("function_call", self.function_call.as_ref(), none, renamed)?;
        neutral("modalities", self.modalities.as_ref(), |v| *v == json!(["text"]), text_only)?;
        neutral("audio", self.audio.as_ref(), never, text_only)?;
        let unsupported = "not supported; leave it out";
        neutral("verbosity", self.verbosity.as_ref(), |v| *v == "medium", unsupported)?;
        neutral("web_search_options", self.web_search_options.as_ref(), never, unsupported)?;
        let store = "this server keeps no answers; leave it out or set it to false";
        neutral("store", self.store.as_ref(), |v| *v == json!(false), store)?;
        neutral("moderation", self.moderation.as_ref(), never, "this server moderates nothing")
    }

    /// What asks for faster or cheaper work, not for another text.
    fn name_hints(&self, ignored: &mut Ignored) {
        let has_tier = |v: &&Value| **v != "auto" && **v != "default";
        if self.service_tier.as_ref().filter(has_tier).is_some() {
            ignored.hint("service_tier");
        }
        if self.prediction.is_some() {
            ignored.hint("prediction");
        }
        if self.prompt_cache_options.is_some() {
            ignored.hint("prompt_cache_options");
        }
    }
}

//! `POST /v1/chat/completions`: the body's own parameters.

use mtplx_core::sample::Sampling;
use serde_json::{Value, json};

use super::error::ApiError;
use super::{ChatBody, Source, Wanted, logprobs, message, neutral};
use crate::ingress::text::{Chat, RESERVED};

const NOT_YET: &str = "not supported yet; leave it out";

impl ChatBody {
    /// Checks and maps the body.
    pub(crate) fn wanted(mut self, defaults: &Sampling) -> Result<Wanted, ApiError> {
        self.refuse_what_is_not_supported()?;
        let shared = self.shared();
        let messages = self.messages.take().ok_or_else(|| {
            ApiError::invalid(
                "messages",
                "must be given: an array of messages with role and content",
            )
        })?;
        let kwargs = self.chat_template_kwargs.take().unwrap_or_default();
        if let Some(name) = RESERVED.iter().find(|name| kwargs.contains_key(**name)) {
            let path = format!("chat_template_kwargs.{name}");
            return Err(ApiError::invalid(path, "this variable is set by the server"));
        }
        // All others go to the template as they are. Which it reads is known to it alone, and
        // Jinja does not tell a variable that is never read from one that is: this server cannot
        // name those that have no effect.
        let messages = message::into_template(messages)?;
        let source = Source::Chat(Chat { messages, tools: Vec::new(), kwargs });
        let old_name = shared.max_tokens;
        let mut wanted = shared.wanted(vec![source], defaults)?;
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

    fn refuse_what_is_not_supported(&self) -> Result<(), ApiError> {
        let empty = |v: &Value| *v == json!([]);
        let none = |v: &Value| *v == "none" || *v == "auto";
        let never = |_: &Value| false;
        let text_only = "this server answers with text only; leave it out";
        neutral("tools", self.tools.as_ref(), empty, NOT_YET)?;
        neutral("functions", self.functions.as_ref(), empty, NOT_YET)?;
        neutral("tool_choice", self.tool_choice.as_ref(), none, NOT_YET)?;
        neutral("function_call", self.function_call.as_ref(), none, NOT_YET)?;
        let effort = "not supported yet; chat_template_kwargs reaches the model's template";
        neutral("reasoning_effort", self.reasoning_effort.as_ref(), never, effort)?;
        neutral("modalities", self.modalities.as_ref(), |v| *v == json!(["text"]), text_only)?;
        neutral("audio", self.audio.as_ref(), never, text_only)?;
        let unsupported = "not supported; leave it out";
        neutral("prediction", self.prediction.as_ref(), never, unsupported)?;
        neutral("verbosity", self.verbosity.as_ref(), |v| *v == "medium", unsupported)?;
        neutral("web_search_options", self.web_search_options.as_ref(), never, unsupported)?;
        let store = "this server keeps no answers; leave it out or set it to false";
        neutral("store", self.store.as_ref(), |v| *v == json!(false), store)?;
        let tier = "there is one tier only; leave it out or set it to \"auto\"";
        let only = |v: &Value| *v == "auto" || *v == "default";
        neutral("service_tier", self.service_tier.as_ref(), only, tier)
    }
}

//! A request as the engine sees it: token ids, sampling, limits. Text never comes this far.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use crate::fairness::Standing;
use crate::guard::Shortage;
use crate::sample::Sampling;
use crate::{RequestId, Tenant, Token};

/// One sequence to be generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Its name in every message, event and log line.
    pub id: RequestId,
    /// The whole prompt, template applied; never empty.
    pub prompt: Arc<[Token]>,
    /// How many tokens at the prompt's end are of the same answer, made by a row that this one goes
    /// on from: penalties count them as output, and to a grammar they are text.
    pub resumed: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// When to stop.
    pub limits: Limits,
    /// How many tokens to draft a cycle, as far as engine and limits allow.
    pub draft_tokens: Drafts,
    /// Prompt positions at which the state is worth keeping for later requests (message
    /// boundaries), ascending, each in `1..prompt.len()`. The prompt's end is always kept.
    pub boundaries: Vec<usize>,
    /// How it meets the states of others.
    pub sharing: Sharing,
    /// Whose it is, and how it stands among others.
    pub standing: Standing,
}

impl Request {
    /// The request of a row called `id` that goes on after `made`, the tokens that this one's row
    /// made: as randomness has no state, what it makes is what that row would have made. `None` if
    /// there were all that are wanted.
    #[must_use]
    pub fn resume(&self, id: RequestId, made: &[Token]) -> Option<Self> {
        let left = self.limits.new_tokens_max.checked_sub(made.len()).filter(|&left| left > 0)?;
        let prompt = self.prompt.iter().chain(made).copied().collect();
        let limits = Limits { new_tokens_max: left, ..self.limits.clone() };
        Some(Self { id, prompt, resumed: self.resumed + made.len(), limits, ..self.clone() })
    }
}

/// How a request meets the states that others left and leaves its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sharing {
    /// Whose states it may start from, and who may start from its own.
    pub tenant: Tenant,
    /// The boundary at the end of what whole groups of conversations begin with, system prompt and
    /// tools; 0 if there is none.
    pub root: usize,
    /// Background work starts from what is warm and leaves nothing behind.
    pub background: bool,
}

/// How many tokens a sequence drafts a cycle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drafts {
    /// As many as the tuner says.
    #[default]
    Tuned,
    /// As many as the tuner says, but at least this.
    AtLeast(u8),
    /// This many, whatever the tuner says; 0 is plain decoding.
    Exactly(u8),
}

impl Drafts {
    /// The depth, where the tuner says `tuned`.
    #[must_use]
    pub fn depth(self, tuned: u8) -> u8 {
        match self {
            Self::Tuned => tuned,
            Self::AtLeast(least) => tuned.max(least),
            Self::Exactly(depth) => depth,
        }
    }
}

/// When a sequence ends by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most tokens to generate, the stop token included; at least 1.
    pub new_tokens_max: usize,
    /// Tokens that end the sequence; they are emitted as its last.
    pub stop_tokens: Arc<BTreeSet<Token>>,
}

/// How a sequence ended. Data in the stream, never an error of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop token was generated.
    Stop,
    /// `new_tokens_max` or the model's context was reached.
    Length,
    /// The client went away.
    Cancelled,
    /// The engine could not go on with this sequence.
    Fault,
}

/// What a sequence cost and gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Of these, restored from the session bank instead of computed.
    pub cached: usize,
    /// Tokens generated.
    pub generated: usize,
    /// Tokens proposed by the MTP head.
    pub drafted: usize,
    /// Of these, accepted.
    pub accepted: usize,
}

/// Why a request is not served; each names what was wrong and how to mend it.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// A parameter is outside its domain.
    Invalid {
        /// The parameter's name as the client wrote it.
        field: &'static str,
        /// What was expected.
        reason: String,
    },
    /// Prompt and wanted output do not fit the model's context.
    TooLong {
        /// The parameter that holds the prompt.
        field: &'static str,
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens wanted after it and the parameter that said so, if any did.
        wanted: Option<(usize, &'static str)>,
        /// What the model can hold.
        context: usize,
    },
    /// The house is full.
    Overloaded {
        /// Seconds after which a new attempt is sensible.
        retry_after_s: u32,
    },
    /// It waited for a slot for as long as anybody is to.
    Late {
        /// Seconds after which a new attempt is sensible.
        retry_after_s: u32,
    },
    /// There is no memory for it.
    NoMemory(Shortage),
    /// No engine runs at the moment (starting, restarting or draining).
    Unavailable {
        /// What is going on.
        reason: String,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid { field, reason } => write!(f, "{field}: {reason}"),
            Self::TooLong { field, prompt, wanted: Some((wanted, limit)), context } => write!(
                f,
                "{field}: {prompt} tokens, and {wanted} more were asked for, but this model's \
                 context holds {context} tokens; shorten {field} or lower {limit}"
            ),
            Self::TooLong { field, prompt, wanted: None, context } => write!(
                f,
                "{field}: {prompt} tokens leave no room for an answer, because this model's \
                 context holds {context} tokens; shorten {field}"
            ),
            Self::Overloaded { retry_after_s } => {
                write!(f, "the server is full; try again in {retry_after_s} s")
            }
            Self::Late { retry_after_s } => write!(
                f,
                "the server is busy and this request waited for its turn too long; try again in \
                 {retry_after_s} s"
            ),
            Self::NoMemory(shortage) => shortage.fmt(f),
            Self::Unavailable { reason } => write!(f, "the engine is not available: {reason}"),
        }
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tuner_decides_what_the_request_leaves_open() {
        for (drafts, depths) in [
            (Drafts::Tuned, [0, 3]),
            (Drafts::AtLeast(1), [1, 3]),
            (Drafts::Exactly(0), [0, 0]),
            (Drafts::Exactly(2), [2, 2]),
        ] {
            assert_eq!([0, 3].map(|tuned| drafts.depth(tuned)), depths, "{drafts:?}");
        }
    }

    #[test]
    fn what_is_too_long_is_told_in_the_words_of_the_request() {
        let long = |wanted| Refusal::TooLong { field: "prompt", prompt: 9, wanted, context: 9 };
        let text = long(None).to_string();
        assert!(!text.contains("asked for"), "{text}");
        let text = long(Some((7, "max_tokens"))).to_string();
        assert!(text.contains("7 more") && text.contains("lower max_tokens"), "{text}");
        assert!(text.starts_with("prompt: 9 tokens") && text.contains("holds 9 tokens"), "{text}");
    }
}

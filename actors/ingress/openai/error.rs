//! Errors in OpenAI's shape. Each names the parameter it is about and says how to mend it.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use mtplx_core::quota::Exceeded;
use mtplx_core::request::Refusal;
use serde::Serialize;

use crate::ingress::stream::Interrupted;
use crate::metrics;

/// Seconds after which a client of a full or resting house may ask again.
pub(crate) const RETRY_AFTER_S: u32 = 2;

/// Why a client gets an error instead of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ApiError {
    /// A parameter cannot be served; `param` is its path in the body.
    Param { param: String, code: &'static str, message: String },
    /// The body is no JSON object.
    Json(String),
    /// The body does not say of itself that it is JSON, but this, if anything.
    ContentType(Option<String>),
    /// The body is longer than this many bytes.
    BodyTooLarge { limit: usize },
    /// The body did not come within so many seconds, or they passed without any of it.
    BodyTooSlow { seconds: u64, silent: bool },
    /// Another model is served here.
    UnknownModel { asked: String, served: String },
    /// No answer of this name is kept, or not any more; `param` holds the name.
    NotKept { param: String, id: String },
    /// Nothing is here.
    UnknownPath(String),
    /// The path is right, the method is not.
    WrongMethod { method: String, path: String },
    /// Something else of this API, which this server does not have.
    NotImplemented(String),
    /// No key, or one that nobody knows.
    NoKey { sent: bool },
    /// The key has used what it may.
    OverQuota { exceeded: Exceeded, retry_after_s: u32 },
    /// Its client asked again, and is answered there.
    Superseded,
    /// A browser was led here, by what this says.
    Stranger(String),
    /// The house refuses.
    Refused(Refusal),
    /// The engine broke while it answered.
    Interrupted,
    /// A bug of ours.
    Panicked,
}

impl ApiError {
    /// A value that is out of its domain.
    pub(crate) fn invalid(param: impl Into<String>, reason: &str) -> Self {
        let param = param.into();
        let message = format!("{param}: {reason}");
        Self::Param { param, code: "invalid_value", message }
    }

    /// A known parameter, asking for what this server cannot do.
    pub(crate) fn unsupported(param: impl Into<String>, reason: &str) -> Self {
        let param = param.into();
        let message = format!("{param}: {reason}");
        Self::Param { param, code: "unsupported_parameter", message }
    }

    /// A grammar that took more than it may in the middle of an answer. No fault of the engine's:
    /// the same request would come to the same end again.
    fn grammar(param: &str) -> Self {
        let message = format!(
            "{param}: what may come next took too much to work out, so the answer was given up; \
             make it simpler, with fewer alternatives that begin alike"
        );
        Self::Param { param: param.to_owned(), code: "grammar_too_complex", message }
    }

    /// A parameter nobody knows.
    pub(crate) fn unknown(param: impl Into<String>) -> Self {
        let param = param.into();
        let message = format!(
            "{param}: this server does not know this parameter and refuses it rather than ignore \
             it; remove it"
        );
        Self::Param { param, code: "unknown_parameter", message }
    }

    /// The same where another API has another name for the parameter.
    pub(crate) fn renamed(mut self, old: &str, new: &str) -> Self {
        if let Self::Param { param, message, .. } = &mut self
            && param == old
        {
            *message = message.replacen(old, new, 1);
            *param = new.to_owned();
        }
        self
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Param { .. } | Self::Json(_) => StatusCode::BAD_REQUEST,
            // A body may name one, and a path.
            Self::NotKept { param, .. } if param == "response_id" => StatusCode::NOT_FOUND,
            Self::NotKept { .. } => StatusCode::BAD_REQUEST,
            Self::ContentType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTooSlow { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::UnknownModel { .. } | Self::UnknownPath(_) => StatusCode::NOT_FOUND,
            Self::WrongMethod { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::Refused(Refusal::Invalid { .. } | Refusal::TooLong { .. }) => {
                StatusCode::BAD_REQUEST
            }
            Self::Refused(
                Refusal::Overloaded { .. }
                | Refusal::Late { .. }
                | Refusal::NoMemory(_)
                | Refusal::Unavailable { .. },
            )
            | Self::Interrupted => StatusCode::SERVICE_UNAVAILABLE,
            Self::NoKey { .. } => StatusCode::UNAUTHORIZED,
            Self::OverQuota { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Superseded => StatusCode::CONFLICT,
            Self::Stranger(_) => StatusCode::FORBIDDEN,
            Self::NotImplemented(_) => StatusCode::NOT_IMPLEMENTED,
            Self::Panicked => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The body of the answer, also sent as an event where a stream has begun.
    pub(crate) fn body(&self) -> Body<'_> {
        let status = self.status();
        let kind = if status.is_server_error() { "server_error" } else { "invalid_request_error" };
        let error = Inner { message: self.message(), kind, param: self.param(), code: self.code() };
        Body { error }
    }

    /// What is wrong, and how to mend it.
    pub(crate) fn message(&self) -> String {
        match self {
            Self::Param { message, .. } => message.clone(),
            Self::Json(reason) => format!("the body is not the JSON object expected: {reason}"),
            Self::ContentType(is) => {
                let is = is.as_deref().unwrap_or("missing");
                format!(
                    "the content-type is {is}; send JSON and say so, with curl by \
                     -H 'content-type: application/json'"
                )
            }
            Self::BodyTooLarge { limit } => {
                format!("the body is longer than the {limit} bytes that this server accepts")
            }
            Self::BodyTooSlow { seconds, silent: false } => {
                format!("the body did not come within {seconds} seconds; please send it again")
            }
            Self::BodyTooSlow { seconds, silent: true } => format!(
                "the body was not sent to its end: nothing of it came for {seconds} seconds; \
                 please send it again"
            ),
            Self::UnknownModel { asked, served } => {
                format!(
                    "model: the model `{asked}` does not exist here; this server has `{served}`"
                )
            }
            Self::NotKept { param, id } => format!(
                "{param}: no answer is kept under `{id}`: this server keeps them in memory, for a \
                 while; send the whole conversation instead"
            ),
            Self::UnknownPath(path) => format!("there is nothing at {path}; the API is under /v1"),
            Self::WrongMethod { method, path } => format!("{path} does not answer to {method}"),
            Self::NoKey { sent } => {
                let what = if *sent { "this key is not known here" } else { "a key is wanted" };
                format!(
                    "{what}: send yours as `Authorization: Bearer mtplx_…` or `x-api-key`; \
                     whoever keeps this server makes one with `mtplx keys add`"
                )
            }
            Self::OverQuota { exceeded, .. } => over_quota(exceeded),
            Self::NotImplemented(what) | Self::Stranger(what) => what.clone(),
            Self::Refused(refusal) => refusal.to_string(),
            Self::Superseded => {
                "this request was sent again, and the later attempt is answered instead".into()
            }
            Self::Interrupted => {
                "the engine failed while it generated the answer; please try again".into()
            }
            Self::Panicked => "the server made a mistake of its own; this was logged".into(),
        }
    }

    fn param(&self) -> Option<&str> {
        match self {
            Self::Param { param, .. } | Self::NotKept { param, .. } => Some(param),
            Self::Refused(Refusal::Invalid { field, .. } | Refusal::TooLong { field, .. }) => {
                Some(field)
            }
            Self::UnknownModel { .. } => Some("model"),
            Self::Refused(
                Refusal::Overloaded { .. }
                | Refusal::Late { .. }
                | Refusal::NoMemory(_)
                | Refusal::Unavailable { .. },
            )
            | Self::Json(_)
            | Self::ContentType(_)
            | Self::BodyTooLarge { .. }
            | Self::BodyTooSlow { .. }
            | Self::UnknownPath(_)
            | Self::WrongMethod { .. }
            | Self::NoKey { .. }
            | Self::OverQuota { .. }
            | Self::Superseded
            | Self::Stranger(_)
            | Self::NotImplemented(_)
            | Self::Interrupted
            | Self::Panicked => None,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Param { code, .. } => code,
            Self::Json(_) => "invalid_json",
            Self::ContentType(_) => "unsupported_content_type",
            Self::BodyTooLarge { .. } => "body_too_large",
            Self::BodyTooSlow { .. } => "body_too_slow",
            Self::UnknownModel { .. } => "model_not_found",
            Self::NotKept { .. } => "previous_response_not_found",
            Self::UnknownPath(_) => "unknown_path",
            Self::WrongMethod { .. } => "method_not_allowed",
            Self::NoKey { .. } => "invalid_api_key",
            Self::OverQuota { .. } => "rate_limit_exceeded",
            Self::Superseded => "superseded",
            Self::Stranger(_) => "forbidden",
            Self::NotImplemented(_) => "not_implemented",
            Self::Refused(Refusal::Invalid { .. }) => "invalid_value",
            Self::Refused(Refusal::TooLong { .. }) => "context_length_exceeded",
            Self::Refused(Refusal::Overloaded { .. }) => "overloaded",
            Self::Refused(Refusal::Late { .. }) => "queue_timeout",
            Self::Refused(Refusal::NoMemory(_)) => "insufficient_memory",
            Self::Refused(Refusal::Unavailable { .. }) => "unavailable",
            Self::Interrupted => "generation_interrupted",
            Self::Panicked => "internal_error",
        }
    }

    fn retry_after_s(&self) -> Option<u32> {
        match self {
            Self::Refused(
                Refusal::Overloaded { retry_after_s } | Refusal::Late { retry_after_s },
            )
            | Self::OverQuota { retry_after_s, .. } => Some(*retry_after_s),
            Self::Refused(Refusal::NoMemory(_) | Refusal::Unavailable { .. })
            | Self::Interrupted => Some(RETRY_AFTER_S),
            Self::Refused(Refusal::Invalid { .. } | Refusal::TooLong { .. })
            | Self::Param { .. }
            | Self::Json(_)
            | Self::ContentType(_)
            | Self::BodyTooLarge { .. }
            | Self::BodyTooSlow { .. }
            | Self::NotKept { .. }
            | Self::UnknownModel { .. }
            | Self::UnknownPath(_)
            | Self::WrongMethod { .. }
            | Self::NoKey { .. }
            | Self::Superseded
            | Self::Stranger(_)
            | Self::NotImplemented(_)
            | Self::Panicked => None,
        }
    }

    pub(crate) fn count(&self) {
        match self {
            Self::Refused(refusal) => metrics::refused(refusal),
            Self::Param { .. }
            | Self::Json(_)
            | Self::ContentType(_)
            | Self::BodyTooLarge { .. }
            | Self::BodyTooSlow { .. }
            | Self::NotKept { .. }
            | Self::UnknownModel { .. } => {
                metrics::refused(&Refusal::Invalid { field: "body", reason: String::new() });
            }
            Self::NoKey { .. } => metrics::no_key(),
            Self::OverQuota { .. } => metrics::over_quota(),
            // Not requests for a generation, or not refused.
            Self::UnknownPath(_)
            | Self::WrongMethod { .. }
            | Self::Superseded
            | Self::Stranger(_)
            | Self::NotImplemented(_)
            | Self::Interrupted
            | Self::Panicked => {}
        }
    }
}

/// Which quota is used up, and when there is room again.
fn over_quota(exceeded: &Exceeded) -> String {
    let used = |what: &str, tokens, seconds: f64| {
        format!(
            "this key may use {tokens} tokens a {what} and has; there is room again in {:.0} s",
            seconds.ceil()
        )
    };
    match *exceeded {
        Exceeded::Minute { tokens, retry_after_s } => used("minute", tokens, retry_after_s),
        Exceeded::Day { tokens, retry_after_s } => used("day", tokens, retry_after_s),
        Exceeded::Requests { requests } => format!(
            "this key may have {requests} answers in the making at once and has; wait for one of \
             them to end"
        ),
        Exceeded::Places { held } => format!(
            "{held} answers to this client are in the making, and the places that are left are \
             for others; wait for one of them to end"
        ),
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Interrupted> for ApiError {
    fn from(interrupted: Interrupted) -> Self {
        match interrupted {
            Interrupted::Engine => Self::Interrupted,
            Interrupted::Memory(shortage) => Self::Refused(Refusal::NoMemory(shortage)),
            Interrupted::Late { retry_after_s } => Self::Refused(Refusal::Late { retry_after_s }),
            Interrupted::Grammar(field) => Self::grammar(field),
            Interrupted::Superseded => Self::Superseded,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.count();
        let mut response = (self.status(), Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after_s() {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if matches!(self, Self::NoKey { .. }) {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        if matches!(self, Self::Superseded) {
            // The official clients ask again after a 409 otherwise, and would take the place back.
            let no = HeaderValue::from_static("false");
            response.headers_mut().insert("x-should-retry", no);
        }
        // For layers that say it in the words of another API.
        response.extensions_mut().insert(self);
        response
    }
}

/// An error as OpenAI writes it.
#[derive(Debug, Serialize)]
pub(crate) struct Body<'a> {
    error: Inner<'a>,
}

#[derive(Debug, Serialize)]
struct Inner<'a> {
    message: String,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<&'a str>,
    code: &'static str,
}

//! Errors in Anthropic's shape. Clients of it read the two numbers of an overflow out of its
//! message, so that is in the very words they look for.

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use mtplx_core::request::Refusal;
use serde_json::{Value, json};

use crate::ingress::openai::ApiError;

const VERSION: &str = "anthropic-version";
const REQUEST_ID: &str = "x-request-id";
const THEIR_REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// Speaks to clients of Anthropic's API as it does: errors in its shape, and its name for the
/// request's id.
pub(crate) async fn speak(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let theirs = request.uri().path().starts_with("/v1/messages") || headers.contains_key(VERSION);
    let id = headers.get(REQUEST_ID).cloned();
    let mut response = next.run(request).await;
    if !theirs {
        return response;
    }
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        let name = id.as_ref().and_then(|id| id.to_str().ok());
        let body = Json(error_body(&error, name)).into_response();
        let (parts, _) = response.into_parts();
        response = Response::from_parts(parts, body.into_body());
        let headers = response.headers_mut();
        headers.remove(header::CONTENT_LENGTH);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    if let Some(id) = id {
        response.headers_mut().insert(THEIR_REQUEST_ID, id);
    }
    response
}

/// An error as Anthropic writes it.
pub(crate) fn error_body(error: &ApiError, request_id: Option<&str>) -> Value {
    let message = match error {
        ApiError::Refused(Refusal::TooLong { prompt, wanted: None, context, .. }) => {
            format!("prompt is too long: {prompt} tokens > {context} maximum")
        }
        ApiError::Refused(Refusal::TooLong { prompt, wanted: Some(_), context, .. })
            if prompt >= context =>
        {
            format!("prompt is too long: {prompt} tokens > {context} maximum")
        }
        ApiError::Refused(Refusal::TooLong {
            prompt, wanted: Some((more, _)), context, ..
        }) => {
            format!(
                "input length and `max_tokens` exceed context limit: {prompt} + {more} > \
                 {context}, decrease input length or `max_tokens` and try again"
            )
        }
        ApiError::Param { .. }
        | ApiError::Json(_)
        | ApiError::ContentType(_)
        | ApiError::BodyTooLarge { .. }
        | ApiError::BodyTooSlow { .. }
        | ApiError::UnknownModel { .. }
        | ApiError::NotKept { .. }
        | ApiError::UnknownPath(_)
        | ApiError::NoKey { .. }
        | ApiError::OverQuota { .. }
        | ApiError::Superseded
        | ApiError::Stranger(_)
        | ApiError::NotImplemented(_)
        | ApiError::WrongMethod { .. }
        | ApiError::Refused(_)
        | ApiError::Interrupted
        | ApiError::Panicked => error.message(),
    };
    let kind = match error.status() {
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        status if status.is_server_error() => "api_error",
        _ => "invalid_request_error",
    };
    let mut body = json!({"type": "error", "error": {"type": kind, "message": message}});
    if let Some(id) = request_id {
        body["request_id"] = id.into();
    }
    body
}

//! What requests bring along: bodies, bounded in size and in time before anything reads them, and
//! names in paths.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};

use super::admission::House;
use super::openai::ApiError;

/// Longest time in which a body must have come. It holds no place among the answers in the making
/// while it comes, but a connection and memory.
const BODY_TIME_MAX: Duration = Duration::from_secs(60);

/// A body that came whole and says that it is JSON.
pub(super) struct JsonBody(pub(super) Bytes);

impl FromRequest<Arc<House>> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, house: &Arc<House>) -> Result<Self, ApiError> {
        let limit = house.config.body_bytes_max;
        let too_large = ApiError::BodyTooLarge { limit };
        // This also keeps out the web pages of strangers, which a browser of the house would let
        // post here: without asking first they can send a body of no type, but not one that says
        // JSON.
        let kind = request.headers().get(header::CONTENT_TYPE);
        let kind = kind.map(|kind| String::from_utf8_lossy(kind.as_bytes()).to_ascii_lowercase());
        if !kind.as_deref().is_some_and(is_json) {
            return Err(ApiError::ContentType(kind));
        }
        // Before any of it is read: who sends it may be spared the rest.
        if announced(request.headers()).is_some_and(|bytes| bytes > limit) {
            return Err(too_large);
        }
        let body = tokio::time::timeout(BODY_TIME_MAX, Bytes::from_request(request, house)).await;
        match body {
            Err(_) => Err(ApiError::BodyTooSlow { seconds: BODY_TIME_MAX.as_secs() }),
            Ok(Ok(body)) => Ok(Self(body)),
            Ok(Err(error)) if error.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(too_large),
            Ok(Err(error)) => Err(ApiError::Json(error.body_text())),
        }
    }
}

/// The name at the end of a path.
pub(super) struct Named(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let named = Path::<String>::from_request_parts(parts, state).await;
        // What is no text names nothing.
        let Ok(Path(name)) = named else {
            return Err(ApiError::UnknownPath(parts.uri.path().to_owned()));
        };
        Ok(Self(name))
    }
}

fn announced(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn is_json(kind: &str) -> bool {
    let essence = kind.split(';').next().unwrap_or_default().trim();
    let subtype = essence.strip_prefix("application/");
    subtype.is_some_and(|subtype| subtype == "json" || subtype.ends_with("+json"))
}

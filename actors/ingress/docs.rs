//! The page of the API: one file of our own that reads `/openapi.json`, and fetches nothing else.

use axum::http::{HeaderValue, header};
use axum::response::{Html, IntoResponse, Response};

/// Nothing is loaded from elsewhere, and only this server is asked.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
     connect-src 'self'; base-uri 'none'; frame-ancestors 'none'",
);

pub(super) fn page() -> Response {
    ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(include_str!("docs/page.html")))
        .into_response()
}

//! The chat in a browser: five files of our own within the binary, that fetch nothing from
//! elsewhere.

use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// Only what this server sends is run, and only this server is asked; no page may frame it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

const FILES: [(&str, &str, &str); 6] = [
    ("app.js", "text/javascript; charset=utf-8", include_str!("ui/app.js")),
    ("markdown.js", "text/javascript; charset=utf-8", include_str!("ui/markdown.js")),
    ("server.js", "text/javascript; charset=utf-8", include_str!("ui/server.js")),
    ("store.js", "text/javascript; charset=utf-8", include_str!("ui/store.js")),
    ("style.css", "text/css; charset=utf-8", include_str!("ui/style.css")),
    ("icon.svg", "image/svg+xml", include_str!("ui/icon.svg")),
];

/// The page.
pub(super) async fn page(headers: HeaderMap) -> Response {
    sent(&headers, "text/html; charset=utf-8", include_str!("ui/index.html"))
}

/// What the page is made of.
pub(super) async fn file(Path(name): Path<String>, headers: HeaderMap) -> Response {
    match FILES.iter().find(|(known, ..)| *known == name) {
        Some((_, kind, text)) => sent(&headers, kind, text),
        None => (StatusCode::NOT_FOUND, "the chat has no such file\n").into_response(),
    }
}

/// A file that a browser keeps, and asks each time whether it is still the same: after an update of
/// the server no old script meets a new one.
fn sent(asked: &HeaderMap, kind: &'static str, text: &'static str) -> Response {
    let tag = format!("\"{}\"", blake3::hash(text.as_bytes()).to_hex());
    let fixed = |value| HeaderValue::from_static(value);
    let mut response = match asked.get(header::IF_NONE_MATCH) {
        Some(known) if known.as_bytes() == tag.as_bytes() => {
            StatusCode::NOT_MODIFIED.into_response()
        }
        _ => ([(header::CONTENT_TYPE, fixed(kind))], text).into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, fixed(POLICY));
    headers.insert(header::CACHE_CONTROL, fixed("no-cache"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, fixed("nosniff"));
    headers.insert(header::REFERRER_POLICY, fixed("no-referrer"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(header::ETAG, tag);
    }
    response
}

//! The chat in a browser: a few files of our own within the binary, that fetch nothing from
//! elsewhere.

use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};

use super::body::Named;
use super::openai::ApiError;
use super::openapi::answers::OpenAiError;

/// Only what this server sends is run, and only this server is asked; no page may frame it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

const FILES: [(&str, &str, &str); 7] = [
    ("app.js", "text/javascript; charset=utf-8", include_str!("ui/app.js")),
    ("markdown.js", "text/javascript; charset=utf-8", include_str!("ui/markdown.js")),
    ("server.js", "text/javascript; charset=utf-8", include_str!("ui/server.js")),
    ("store.js", "text/javascript; charset=utf-8", include_str!("ui/store.js")),
    ("turns.js", "text/javascript; charset=utf-8", include_str!("ui/turns.js")),
    ("style.css", "text/css; charset=utf-8", include_str!("ui/style.css")),
    ("icon.svg", "image/svg+xml", include_str!("ui/icon.svg")),
];

/// The chat, in a browser.
#[utoipa::path(get, path = "/", tag = "house", responses(
    (status = 200, description = "A page.", body = String, content_type = "text/html"),
    (status = 304, description = "The page that the browser has.")))]
pub(super) async fn page(headers: HeaderMap) -> Response {
    sent(&headers, "text/html; charset=utf-8", include_str!("ui/index.html"))
}

/// What the chat is made of: scripts, a style sheet, an icon.
#[utoipa::path(get, path = "/ui/{name}", tag = "house",
    params(("name" = String, Path, description = "The file's.")), responses(
    (status = 200, description = "The file.", content(
        (String = "text/javascript"), (String = "text/css"), (String = "image/svg+xml"))),
    (status = 304, description = "The file that the browser has."),
    (status = 404, description = "There is no such file.", body = OpenAiError)))]
pub(super) async fn file(
    uri: Uri,
    Named(name): Named,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let found = FILES.iter().find(|(known, ..)| *known == name);
    let (_, kind, text) = found.ok_or_else(|| ApiError::UnknownPath(uri.path().to_owned()))?;
    Ok(sent(&headers, kind, text))
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

//! The page that shows the essentials live, for those without Grafana: three files of our own that
//! read `/metrics`, and fetch nothing else.

use axum::http::{HeaderValue, header};
use axum::response::{Html, IntoResponse, Response};

/// Nothing is loaded from elsewhere, nothing within the page is run, and only this server is asked.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// The essentials, live, in a browser.
#[utoipa::path(get, path = "/dashboard", tag = "house",
    responses((status = 200, description = "A page.", body = String,
        content_type = "text/html")))]
pub(super) async fn page() -> Response {
    ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(include_str!("dashboard/page.html")))
        .into_response()
}

/// What the page does.
#[utoipa::path(get, path = "/dashboard/page.js", tag = "house",
    responses((status = 200, description = "A script.", body = String,
        content_type = "text/javascript")))]
pub(super) async fn script() -> Response {
    file("text/javascript; charset=utf-8", include_str!("dashboard/page.js"))
}

/// What the page looks like.
#[utoipa::path(get, path = "/dashboard/page.css", tag = "house",
    responses((status = 200, description = "A style sheet.", body = String,
        content_type = "text/css")))]
pub(super) async fn style() -> Response {
    file("text/css; charset=utf-8", include_str!("dashboard/page.css"))
}

fn file(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    (headers, text).into_response()
}

//! What answers at which path, and the layers around it.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, MatchedPath, Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn};
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use mtplx_core::request::Sharing;
use mtplx_core::sample::Sampling;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{
    MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer,
};
use tower_http::trace::TraceLayer;

use super::admin;
use super::admission::{House, Readiness, context};
use super::openai::answer::{Answer, Shape};
use super::openai::error::RETRY_AFTER_S;
use super::openai::{ApiError, ChatBody, CompletionsBody, Wanted, parse};
use super::stream::Events;
use super::{RenderMetrics, off_thread, random};
use crate::metrics;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

type Shared = Arc<House>;

/// The whole service.
pub(super) fn router(house: Arc<House>, render: RenderMetrics) -> Router {
    for route in [CHAT, COMPLETIONS] {
        metrics::prepare_route(route);
    }
    let body_bytes_max = house.config.body_bytes_max;
    let rendered = move |State(house): State<Shared>| async move {
        metrics::permits(house.taken(), house.config.requests_max.get().into());
        ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], render())
    };
    let layers = ServiceBuilder::new()
        .layer(SetRequestIdLayer::new(REQUEST_ID, NewRequestId))
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(TraceLayer::new_for_http().make_span_with(span).on_failure(()))
        .layer(from_fn(count))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(DefaultBodyLimit::max(body_bytes_max));
    Router::new()
        .route(CHAT, post(chat))
        .route(COMPLETIONS, post(completions))
        .route("/v1/models", get(models))
        // Names of models may hold slashes.
        .route("/v1/models/{*id}", get(model))
        .route("/health", get(health))
        .route("/metrics", get(rendered))
        .merge(admin::routes(&house.config.admin))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(layers)
        .with_state(house)
}

// === generation ===

async fn chat(
    State(house): State<Shared>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let route = Route { path: CHAT, shape: Shape::Chat, arrived: Instant::now() };
    let body = checked(&house, &headers, body)?;
    let mut wanted = read(&house, body, ChatBody::wanted).await?;
    wanted.sharing = sharing(&headers);
    answer(&house, wanted, route).await
}

async fn completions(
    State(house): State<Shared>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let route = Route { path: COMPLETIONS, shape: Shape::Completions, arrived: Instant::now() };
    let body = checked(&house, &headers, body)?;
    let mut wanted = read(&house, body, CompletionsBody::wanted).await?;
    wanted.sharing = sharing(&headers);
    answer(&house, wanted, route).await
}

/// What the headers say of how a request meets the bank. Open WebUI can be told to name its tasks
/// (titles, tags, follow-ups): they start from what is warm and leave nothing behind.
fn sharing(headers: &HeaderMap) -> Sharing {
    Sharing { background: headers.contains_key("x-openwebui-task"), ..Sharing::default() }
}

struct Route {
    path: &'static str,
    shape: Shape,
    arrived: Instant,
}

/// The body, if it came whole and says that it is JSON.
fn checked(
    house: &House,
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Bytes, ApiError> {
    // This also keeps out the web pages of strangers, which a browser of the house would let post
    // here: without asking first they can send a body of no type, but not one that says JSON.
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.map(|kind| String::from_utf8_lossy(kind.as_bytes()).to_ascii_lowercase());
    if !kind.as_deref().is_some_and(is_json) {
        return Err(ApiError::ContentType(kind));
    }
    body.map_err(|rejection| {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            ApiError::BodyTooLarge { limit: house.config.body_bytes_max }
        } else {
            ApiError::Json(rejection.body_text())
        }
    })
}

fn is_json(kind: &str) -> bool {
    let essence = kind.split(';').next().unwrap_or_default().trim();
    let subtype = essence.strip_prefix("application/");
    subtype.is_some_and(|subtype| subtype == "json" || subtype.ends_with("+json"))
}

/// Parses and maps a body, then looks whether its model is served here.
async fn read<B: DeserializeOwned + 'static>(
    house: &House,
    body: Bytes,
    wanted: fn(B, &Sampling) -> Result<Wanted, ApiError>,
) -> Result<Wanted, ApiError> {
    let defaults = house.text.defaults().clone();
    let mut wanted = off_thread(body.len(), move || wanted(parse(&body)?, &defaults)).await?;
    match wanted.model.take() {
        // One model is served, so its name may be left out.
        Some(asked) if asked != house.config.model => {
            Err(ApiError::UnknownModel { asked, served: house.config.model.clone() })
        }
        Some(_) | None => Ok(wanted),
    }
}

async fn answer(house: &House, wanted: Wanted, route: Route) -> Result<Response, ApiError> {
    let (delivery, choices) = (wanted.delivery, wanted.choices);
    let admitted = house.admit(wanted, (route.path, route.arrived)).await?;
    let answer = Answer::new(route.shape, &house.config.model, admitted.prompts, choices);
    if delivery.stream {
        let events = Events::new(answer, admitted.choices, delivery.include_usage);
        let keep_alive = KeepAlive::new().interval(house.config.keep_alive()).text("keep-alive");
        return Ok(Sse::new(events).keep_alive(keep_alive).into_response());
    }
    let (texts, ends) = admitted.choices.whole().await?;
    let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    Ok((json, answer.whole(&texts, &ends)).into_response())
}

// === facts ===

async fn models(State(house): State<Shared>) -> Json<Value> {
    Json(json!({"object": "list", "data": [card(&house)]}))
}

async fn model(
    State(house): State<Shared>,
    Path(asked): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let served = &house.config.model;
    if asked != *served {
        return Err(ApiError::UnknownModel { asked, served: served.clone() });
    }
    Ok(Json(card(&house)))
}

fn card(house: &House) -> Value {
    let meta = match house.readiness() {
        Readiness::Serving(_, info) => json!({
            "context_length": context(&info),
            "mtp": info.depth_max > 0,
        }),
        Readiness::Between(_) => Value::Null,
    };
    json!({
        "id": house.config.model,
        "object": "model",
        "created": house.started_s,
        "owned_by": "mtplx",
        "meta": meta,
    })
}

async fn health(State(house): State<Shared>) -> Response {
    match house.readiness() {
        Readiness::Serving(..) => Json(json!({"status": "ok"})).into_response(),
        Readiness::Between(reason) => {
            let retry = [(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S))];
            let body = Json(json!({"status": "unavailable", "reason": reason}));
            (StatusCode::SERVICE_UNAVAILABLE, retry, body).into_response()
        }
    }
}

async fn unknown_path(uri: Uri) -> ApiError {
    ApiError::UnknownPath(uri.path().to_owned())
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::WrongMethod { method: method.to_string(), path: uri.path().to_owned() }
}

// === layers ===

#[derive(Clone, Copy)]
struct NewRequestId;

impl MakeRequestId for NewRequestId {
    fn make_request_id<B>(&mut self, _: &Request<B>) -> Option<RequestId> {
        HeaderValue::try_from(format!("{:016x}", random())).ok().map(RequestId::new)
    }
}

fn span<B>(request: &Request<B>) -> tracing::Span {
    let id = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default();
    let (method, path) = (request.method(), request.uri().path());
    tracing::info_span!("request", %method, path, id)
}

/// Counts answers by route and code.
async fn count(path: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let code = response.status().as_u16();
    match path {
        Some(path) => metrics::http(path.as_str().to_owned(), code),
        None => metrics::http("none", code),
    }
    response
}

fn panicked(cause: Box<dyn std::any::Any + Send>) -> Response {
    let text = cause.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| cause.downcast_ref::<&str>().copied()).unwrap_or("no message");
    tracing::error!(panic = text, "a request handler panicked");
    ApiError::Panicked.into_response()
}

//! What answers at which path, and the layers around it.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, MatchedPath, Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn};
use axum::response::sse::Sse;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use mtplx_core::engine::EngineInfo;
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
use super::admission::{Admitted, House, Readiness, context};
use super::anthropic::error::speak;
use super::openai::answer::{Answer, Shape};
use super::openai::error::RETRY_AFTER_S;
use super::openai::{ApiError, ChatBody, CompletionsBody, Delivery, Wanted, parse};
use super::stream::Events;
use super::text::iso_8601;
use super::wire::Wire;
use super::{Config, RenderMetrics, off_thread, random, tokenize};
use crate::metrics;

mod messages;
mod responses;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const MESSAGES: &str = "/v1/messages";
const RESPONSES: &str = "/v1/responses";
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const WARNING: HeaderName = HeaderName::from_static("x-mtplx-warning");

type Shared = Arc<House>;

/// The whole service.
pub(super) fn router(house: Arc<House>, render: RenderMetrics) -> Router {
    for route in [CHAT, COMPLETIONS, MESSAGES, RESPONSES] {
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
        .layer(from_fn(speak))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(DefaultBodyLimit::max(body_bytes_max));
    Router::new()
        .route(CHAT, post(chat))
        .route(COMPLETIONS, post(completions))
        .route(MESSAGES, post(messages::messages))
        .route("/v1/messages/count_tokens", post(messages::count_tokens))
        .route(RESPONSES, post(responses::create))
        .route("/v1/responses/{id}", get(responses::fetch).delete(responses::forget))
        .route("/v1/embeddings", post(tokenize::embeddings))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
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
    let route = Route::new(CHAT, &headers);
    let body = checked(&house, &headers, body)?;
    let (wanted, ()) = read(&house, body, |body: ChatBody, d| Ok((body.wanted(d)?, ()))).await?;
    answer(&house, wanted, route, openai(Shape::Chat)).await
}

async fn completions(
    State(house): State<Shared>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let route = Route::new(COMPLETIONS, &headers);
    let body = checked(&house, &headers, body)?;
    let map = |body: CompletionsBody, defaults: &_| Ok((body.wanted(defaults)?, ()));
    let (wanted, ()) = read(&house, body, map).await?;
    answer(&house, wanted, route, openai(Shape::Completions)).await
}

fn openai(shape: Shape) -> impl FnOnce(&Config, Asked) -> Box<dyn Wire> {
    move |config, Asked { prompts, choices, include_usage, tells, echo, .. }| {
        let answer = Answer::new(shape, &config.model, prompts, (choices, include_usage));
        Box::new(answer.with(tells, echo))
    }
}

/// What the headers say of how a request meets the bank. Open WebUI can be told to name its tasks
/// (titles, tags, follow-ups): they start from what is warm and leave nothing behind.
fn sharing(headers: &HeaderMap) -> Sharing {
    Sharing { background: headers.contains_key("x-openwebui-task"), ..Sharing::default() }
}

/// Where, when and how a request came in.
struct Route {
    path: &'static str,
    arrived: Instant,
    sharing: Sharing,
}

impl Route {
    fn new(path: &'static str, headers: &HeaderMap) -> Self {
        Self { path, arrived: Instant::now(), sharing: sharing(headers) }
    }
}

/// What is to be answered.
struct Asked {
    /// Tokens of each prompt.
    prompts: Vec<usize>,
    /// Whether they end within thinking.
    thinking: bool,
    /// Answers to each.
    choices: usize,
    include_usage: bool,
    /// Whether what the model thought of each token is told.
    tells: bool,
    /// The prompts, where texts begin with them.
    echo: Vec<String>,
}

/// The body, if it came whole and says that it is JSON.
pub(super) fn checked(
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
async fn read<B: DeserializeOwned, T: Send + 'static>(
    house: &House,
    body: Bytes,
    map: impl Fn(B, &Sampling) -> Result<(Wanted, T), ApiError> + Send + 'static,
) -> Result<(Wanted, T), ApiError> {
    let defaults = house.text.defaults().clone();
    let unknown = house.config.unknown_fields;
    let parsed =
        off_thread(body.len(), move || unknown.read(&body, |body| map(parse(body)?, &defaults)));
    let ((mut wanted, rest), ignored) = parsed.await?;
    wanted.ignored.extend(ignored);
    served(house, wanted.model.take())?;
    Ok((wanted, rest))
}

/// One model is served, so its name may be left out.
pub(super) fn served(house: &House, asked: Option<String>) -> Result<(), ApiError> {
    match asked {
        Some(asked) if !house.config.serves(&asked) => {
            Err(ApiError::UnknownModel { asked, served: house.config.model.clone() })
        }
        Some(_) | None => Ok(()),
    }
}

/// Admits a request and answers in the words of its API.
async fn answer(
    house: &House,
    mut wanted: Wanted,
    route: Route,
    wire: impl FnOnce(&Config, Asked) -> Box<dyn Wire>,
) -> Result<Response, ApiError> {
    wanted.sharing = route.sharing;
    let Delivery { stream, include_usage } = wanted.delivery;
    let (choices, ignored) = (wanted.choices, std::mem::take(&mut wanted.ignored));
    let tells = wanted.sampling.logprobs.is_some();
    let echo = if wanted.echo { house.shown(&wanted.sources) } else { Vec::new() };
    let Admitted { choices: running, prompts, thinking } =
        house.admit(wanted, (route.path, route.arrived)).await?;
    let asked = Asked { prompts, thinking, choices, include_usage, tells, echo };
    let mut wire = wire(&house.config, asked);
    let mut response = if stream {
        Sse::new(Events::new(wire, running, house.config.keep_alive())).into_response()
    } else {
        let (replies, told, ends) = running.whole().await?;
        let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        (json, wire.whole(&replies, &told, &ends)).into_response()
    };
    warn(&mut response, &ignored);
    Ok(response)
}

/// Names what was asked for and not honoured.
fn warn(response: &mut Response, ignored: &[String]) {
    if ignored.is_empty() {
        return;
    }
    let names: Vec<String> = ignored.iter().map(|name| name.escape_default().collect()).collect();
    if let Ok(value) = HeaderValue::try_from(format!("ignored: {}", names.join(", "))) {
        response.headers_mut().insert(WARNING, value);
    }
}

// === facts ===

/// In the shapes of OpenAI and Anthropic, which have no field in common that differs.
async fn models(State(house): State<Shared>) -> Json<Value> {
    let id = &house.config.model;
    Json(json!({
        "object": "list", "data": [card(&house)],
        "has_more": false, "first_id": id, "last_id": id,
    }))
}

async fn model(
    State(house): State<Shared>,
    Path(asked): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let served = &house.config.model;
    if !house.config.serves(&asked) {
        return Err(ApiError::UnknownModel { asked, served: served.clone() });
    }
    Ok(Json(card(&house)))
}

fn card(house: &House) -> Value {
    let meta = match house.readiness() {
        Readiness::Serving(_, info) => json!({
            "context_length": context(&info),
            "mtp": info.depth_max > 0,
            "tier": if info.depth_max > 0 { "mtp" } else { "ar-only" },
        }),
        Readiness::Between(_) => Value::Null,
    };
    json!({
        "id": house.config.model,
        "object": "model",
        "created": house.started_s,
        "owned_by": "mtplx",
        "type": "model",
        "display_name": house.config.model,
        "created_at": iso_8601(house.started_s),
        "meta": meta,
    })
}

async fn health(State(house): State<Shared>) -> Response {
    match house.readiness() {
        Readiness::Serving(_, info) => Json(healthy(&info)).into_response(),
        Readiness::Between(reason) => {
            let retry = [(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S))];
            let body = Json(json!({"status": "unavailable", "reason": reason}));
            (StatusCode::SERVICE_UNAVAILABLE, retry, body).into_response()
        }
    }
}

/// Serving; and what of the engine's own kernels failed its trial. Why is for the log.
fn healthy(info: &EngineInfo) -> Value {
    let off = info.kernels.iter().filter(|kernel| kernel.fault.is_some());
    let off: Vec<&str> = off.map(|kernel| kernel.name.as_str()).collect();
    if off.is_empty() {
        return json!({"status": "ok"});
    }
    json!({"status": "ok", "kernels_switched_off": off})
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

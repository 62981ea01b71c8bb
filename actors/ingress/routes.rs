//! What answers at which path, and the layers around it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Extension, MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::sse::Sse;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use mtplx_core::request::Refusal;
use mtplx_core::sample::Sampling;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tower::ServiceBuilder;
use tower::util::option_layer;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{
    MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer,
};
use tower_http::trace::TraceLayer;
use tracing::Span;
use tracing::field::Empty;

use super::admission::{Admitted, House, Readiness, context};
use super::anthropic::error::speak;
use super::body::{Asking, Named};
use super::clients::Caller;
use super::guard::{cors, guard};
use super::openai::answer::{Answer, Shape};
use super::openai::error::RETRY_AFTER_S;
use super::openai::{ApiError, ChatBody, CompletionsBody, Delivery, Wanted, parse};
use super::openapi::answers::{
    ChatCompletion, Health, Model, ModelList, OpenAiError, StreamEvent, TextCompletion,
};
use super::retry::Ticket;
use super::stream::Events;
use super::text::iso_8601;
use super::unknown::Ignored;
use super::wire::Wire;
use super::{Config, RenderMetrics, admin, dashboard, docs, openapi, random, tokenize, trace, ui};
use crate::admission::Served;
use crate::node::Report;
use crate::{metrics, thermal};

pub(super) mod messages;
pub(super) mod responses;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const MESSAGES: &str = "/v1/messages";
const RESPONSES: &str = "/v1/responses";
/// An engine that was not seen at work for so long has no use for more work.
const READY_AGE_MAX: Duration = Duration::from_secs(30);
/// More of a client's name for a request is not written.
const REQUEST_ID_MAX: usize = 128;
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const WARNING: HeaderName = HeaderName::from_static("x-mtplx-warning");

pub(super) type Shared = Arc<House>;

/// The whole service.
pub(super) fn router(house: Arc<House>, render: RenderMetrics) -> Router {
    for route in [CHAT, COMPLETIONS, MESSAGES, RESPONSES] {
        metrics::prepare_route(route);
    }
    let body_bytes_max = house.config.body_bytes_max;
    let document = openapi::document(house.config.unknown_fields).to_string();
    let layers = ServiceBuilder::new()
        .layer(SetRequestIdLayer::new(REQUEST_ID, NewRequestId))
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(TraceLayer::new_for_http().make_span_with(span).on_failure(()))
        .layer(from_fn(count))
        .layer(from_fn(speak))
        .layer(option_layer(cors(&house.config)))
        .layer(from_fn_with_state(Arc::clone(&house), guard))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(DefaultBodyLimit::max(body_bytes_max))
        .layer(Extension(render))
        .layer(Extension(Document(document.into())));
    let app =
        table().into_iter().fold(Router::new(), |app, (path, method)| app.route(path, method));
    app.merge(admin::routes(&house.config.admin))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(layers)
        .with_state(house)
}

/// What answers at which path; admin adds its own.
pub(super) fn table() -> Vec<(&'static str, MethodRouter<Shared>)> {
    vec![
        (CHAT, post(chat)),
        (COMPLETIONS, post(completions)),
        (MESSAGES, post(messages::messages)),
        ("/v1/messages/count_tokens", post(messages::count_tokens)),
        (RESPONSES, post(responses::create)),
        ("/v1/responses/{id}", get(responses::fetch).delete(responses::forget)),
        ("/v1/embeddings", post(tokenize::embeddings)),
        ("/tokenize", post(tokenize::tokenize)),
        ("/detokenize", post(tokenize::detokenize)),
        ("/v1/models", get(models)),
        // Names of models may hold slashes.
        ("/v1/models/{*id}", get(model)),
        ("/health", get(health)),
        ("/livez", get(livez)),
        ("/readyz", get(readyz)),
        ("/metrics", get(metrics)),
        ("/openapi.json", get(document)),
        ("/docs", get(docs)),
        ("/", get(ui::page)),
        ("/ui/{name}", get(ui::file)),
        ("/dashboard", get(dashboard::page)),
        ("/dashboard/page.js", get(dashboard::script)),
        ("/dashboard/page.css", get(dashboard::style)),
    ]
}

// === generation ===

/// Goes on with a conversation. With `"stream": true` as events of chunks that end with `[DONE]`.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "OpenAI", request_body = ChatBody,
    responses((status = 200, description = "The answer, or events of it.", content(
        (ChatCompletion = "application/json"), (StreamEvent = "text/event-stream")))))]
pub(super) async fn chat(
    State(house): State<Shared>,
    Extension(caller): Extension<Caller>,
    Asking { body, attempt }: Asking,
) -> Result<Response, ApiError> {
    let route = Route::new(CHAT, caller, attempt);
    let map = |body: ChatBody, d: &_, i: &mut _| Ok((body.wanted(d, i)?, ()));
    let (wanted, ()) = read(&house, body, map).await?;
    answer(&house, wanted, route, openai(Shape::Chat)).await
}

/// Goes on with a text. With `"stream": true` as events of chunks that end with `[DONE]`.
#[utoipa::path(post, path = "/v1/completions", tag = "OpenAI", request_body = CompletionsBody,
    responses((status = 200, description = "The text, or events of it.", content(
        (TextCompletion = "application/json"), (StreamEvent = "text/event-stream")))))]
pub(super) async fn completions(
    State(house): State<Shared>,
    Extension(caller): Extension<Caller>,
    Asking { body, attempt }: Asking,
) -> Result<Response, ApiError> {
    let route = Route::new(COMPLETIONS, caller, attempt);
    let map = |body: CompletionsBody, d: &_, i: &mut _| Ok((body.wanted(d, i)?, ()));
    let (wanted, ()) = read(&house, body, map).await?;
    answer(&house, wanted, route, openai(Shape::Completions)).await
}

fn openai(shape: Shape) -> impl FnOnce(&Config, Asked) -> Box<dyn Wire> {
    move |config, Asked { prompts, choices, delivery, tells, echo, .. }| {
        let answer = Answer::new(shape, &config.model, prompts, (choices, delivery));
        Box::new(answer.with(tells, echo))
    }
}

/// Where, when and from whom a request came in.
struct Route {
    path: &'static str,
    arrived: Instant,
    caller: Caller,
    /// As one of those that may be sent again.
    attempt: Ticket,
}

impl Route {
    fn new(path: &'static str, caller: Caller, attempt: Ticket) -> Self {
        Self { path, arrived: Instant::now(), caller, attempt }
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
    delivery: Delivery,
    /// Whether what the model thought of each token is told.
    tells: bool,
    /// The prompts, where texts begin with them.
    echo: Vec<String>,
}

/// Parses and maps a body; with it, the names of what was left out.
pub(super) async fn parsed<B: DeserializeOwned, T: Send + 'static>(
    house: &House,
    body: Bytes,
    map: impl FnOnce(B, &mut Ignored) -> Result<T, ApiError> + Send + 'static,
) -> Result<(T, Vec<String>), ApiError> {
    let mut ignored = Ignored::new(house.config.unknown_fields);
    let work = house.turns.run(body.len(), move || {
        let mapped = map(parse(&body, &mut ignored)?, &mut ignored)?;
        Ok((mapped, ignored.into_names()))
    });
    work.await
}

/// The same of what is to be generated; then looks whether its model is served here.
async fn read<B: DeserializeOwned, T: Send + 'static>(
    house: &House,
    body: Bytes,
    map: impl FnOnce(B, &Sampling, &mut Ignored) -> Result<(Wanted, T), ApiError> + Send + 'static,
) -> Result<(Wanted, T), ApiError> {
    let defaults = house.text.defaults().clone();
    let map = move |body, ignored: &mut Ignored| map(body, &defaults, ignored);
    let ((mut wanted, rest), ignored) = parsed(house, body, map).await?;
    wanted.ignored = ignored;
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
    let Route { path, arrived, caller, mut attempt } = route;
    wanted.sharing = caller.sharing();
    let rows = wanted.sources.len() * wanted.choices;
    never(&wanted, caller.requests_max())?;
    // More than the house holds are refused for that.
    let rows = rows.min(house.config.requests_max.get().into());
    let bills = (0..rows).map(|_| house.clients.begin(&caller));
    let bills = bills.collect::<Result<Vec<_>, _>>()?;
    let delivery = wanted.delivery;
    let (choices, mut ignored) = (wanted.choices, std::mem::take(&mut wanted.ignored));
    let tells = wanted.sampling.logprobs.is_some();
    let echo = if wanted.echo { house.shown(&wanted.sources) } else { Vec::new() };
    let came = (path, arrived, attempt.takes_over());
    let admitted = tokio::select! {
        admitted = house.admit(wanted, came, bills) => admitted?,
        () = attempt.superseded() => return Err(ApiError::Superseded),
    };
    let Admitted { choices: running, prompts, thinking, looser } = admitted;
    let running = running.of(attempt);
    ignored.extend(looser);
    let asked = Asked { prompts, thinking, choices, delivery, tells, echo };
    let mut wire = wire(&house.config, asked);
    let mut response = if delivery.stream {
        Sse::new(Events::new(wire, running, house.config.keep_alive())).into_response()
    } else {
        let (replies, told, ends) = running.whole().await?;
        let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        (json, wire.whole(&replies, &told, &ends)).into_response()
    };
    warn(&mut response, &ignored);
    Ok(response)
}

/// Refuses what its key may never have: who is told to come again would do so for ever.
fn never(wanted: &Wanted, requests_max: Option<u32>) -> Result<(), Refusal> {
    let rows = wanted.sources.len() * wanted.choices;
    let most = requests_max.map_or(usize::MAX, |most| most as usize);
    if rows <= most.max(1) {
        return Ok(());
    }
    let field = if wanted.sources.len() > 1 { "prompt" } else { "n" };
    let reason = format!("asks for {rows} answers at once; this key may have {most}");
    Err(Refusal::Invalid { field, reason })
}

/// A small answer, with what was not honoured.
pub(super) fn answered(answer: &Value, ignored: &[String]) -> Response {
    let mut response = Json(answer).into_response();
    warn(&mut response, ignored);
    response
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

/// The model, as a list, in the shapes of OpenAI and Anthropic at once.
#[utoipa::path(get, path = "/v1/models", tag = "OpenAI",
    responses((status = 200, description = "The list.", body = ModelList)))]
pub(super) async fn models(State(house): State<Shared>) -> Json<Value> {
    let id = &house.config.model;
    Json(json!({
        "object": "list", "data": [card(&house)],
        "has_more": false, "first_id": id, "last_id": id,
    }))
}

/// The model by its name or one of its aliases.
#[utoipa::path(get, path = "/v1/models/{id}", tag = "OpenAI",
    params(("id" = String, Path, description = "The name; it may hold slashes.")),
    responses((status = 200, description = "The model.", body = Model),
        (status = 404, description = "Another model is served here.", body = OpenAiError)))]
pub(super) async fn model(
    State(house): State<Shared>,
    Named(asked): Named,
) -> Result<Json<Value>, ApiError> {
    let served = &house.config.model;
    if !house.config.serves(&asked) {
        return Err(ApiError::UnknownModel { asked, served: served.clone() });
    }
    Ok(Json(card(&house)))
}

fn card(house: &House) -> Value {
    let meta = match house.readiness() {
        Readiness::Serving(Served { info, .. }) => json!({
            "context_length": context(&info),
            "mtp": info.depth_max > 0,
            "tier": house.config.tier,
        }),
        Readiness::Between(_) | Readiness::Over(_) => Value::Null,
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

/// Whether requests are served, and when the engine was last seen at work.
#[utoipa::path(get, path = "/health", tag = "house",
    responses((status = 200, description = "They are.", body = Health),
        (status = 503, description = "Not at the moment.", body = Health)))]
pub(super) async fn health(State(house): State<Shared>) -> Response {
    match house.readiness() {
        Readiness::Serving(engine) => Json(healthy(&house, &engine)).into_response(),
        Readiness::Between(reason) | Readiness::Over(reason) => absent(&reason),
    }
}

/// Whether the process lives: whoever gets no answer should start it anew.
#[utoipa::path(get, path = "/livez", tag = "house",
    responses((status = 200, description = "It does.", body = Health)))]
pub(super) async fn livez() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// Whether new requests had better come here: an engine serves, and was seen at work of late.
#[utoipa::path(get, path = "/readyz", tag = "house",
    responses((status = 200, description = "They had.", body = Health),
        (status = 503, description = "Not at the moment.", body = Health)))]
pub(super) async fn readyz(State(house): State<Shared>) -> Response {
    match house.readiness() {
        Readiness::Serving(engine) if engine.heart.age() < READY_AGE_MAX => {
            Json(healthy(&house, &engine)).into_response()
        }
        Readiness::Serving(_) => absent("the engine does not answer"),
        Readiness::Between(reason) | Readiness::Over(reason) => absent(&reason),
    }
}

fn absent(reason: &str) -> Response {
    let retry = [(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S))];
    let body = Json(json!({"status": "unavailable", "reason": reason}));
    (StatusCode::SERVICE_UNAVAILABLE, retry, body).into_response()
}

/// All metrics, as Prometheus reads them.
#[utoipa::path(get, path = "/metrics", tag = "house",
    responses((status = 200, description = "The metrics.", body = String,
        content_type = "text/plain")))]
pub(super) async fn metrics(
    State(house): State<Shared>,
    Extension(render): Extension<RenderMetrics>,
) -> Response {
    metrics::permits(house.taken(), house.config.requests_max.get().into());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], render()).into_response()
}

/// The document, written once.
#[derive(Clone)]
pub(super) struct Document(Bytes);

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "house",
    responses((status = 200, description = "It.", body = serde_json::Value)))]
pub(super) async fn document(Extension(Document(document)): Extension<Document>) -> Response {
    let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    (json, document).into_response()
}

/// This document for people.
#[utoipa::path(get, path = "/docs", tag = "house",
    responses((status = 200, description = "A page.", body = String,
        content_type = "text/html")))]
pub(super) async fn docs() -> Response {
    docs::page()
}

/// Serving; and what of the engine's own kernels failed its trial. Why is for the log.
fn healthy(house: &House, engine: &Served) -> Value {
    let age = engine.heart.age().as_millis();
    let tier = &house.config.tier;
    let mut told = json!({"status": "ok", "heartbeat_age_ms": age, "tier": tier});
    let off = engine.info.kernels.iter().filter(|kernel| kernel.fault.is_some());
    let off: Vec<&str> = off.map(|kernel| kernel.name.as_str()).collect();
    if !off.is_empty() {
        told["kernels_switched_off"] = json!(off);
    }
    if let Some(nodes) = &house.config.nodes {
        let brief = |node: Report| json!({"name": node.name, "state": node.state});
        told["nodes"] = nodes.reports().into_iter().map(brief).collect();
    }
    if !house.restart_needed.is_empty() {
        told["restart_needed"] = json!(house.restart_needed.as_ref());
    }
    if let Some(heat) = thermal::shown() {
        told["heat"] = json!(heat);
    }
    told
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
    let headers = request.headers();
    let id = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default();
    let id = id.get(..REQUEST_ID_MAX).unwrap_or(id);
    let method = request.method();
    // Never the path that a client sent: anything may stand there, and traces leave the house.
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str);
    let span = tracing::info_span!(
        "request", %method, route, id, otel.name = format!("{method} {route}"),
        otel.kind = "server", otel.status_code = Empty, http.response.status_code = Empty
    );
    trace::follow(&span, headers);
    span
}

/// Counts answers by route and code.
async fn count(path: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let code = response.status().as_u16();
    let span = Span::current();
    span.record("http.response.status_code", code);
    if response.status().is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    trace::tell(&span, response.headers_mut());
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

//! Routes for whoever keeps the server: what is warm, and what is to become of it. They exist only
//! where a token is set, and answer only who sends it.
//!
//! | route | what it does |
//! | --- | --- |
//! | `GET /admin/bank` | all states, in memory and on disk |
//! | `GET /admin/bank/{id}` | one as a file |
//! | `POST /admin/bank` | takes such a file |
//! | `DELETE /admin/bank/{id}` | lets one go |
//! | `PUT`, `DELETE /admin/bank/{id}/pin` | keeps one from going by itself, or lets it go again |
//! | `GET /admin/tuner` | what the tuner believes, which depths it chose, and why |
//! | `GET /admin/usage` | what each key used since the start |
//! | `GET /admin/nodes` | the machines that serve, where there are several |
//! | `PUT`, `DELETE /admin/nodes/{name}/drain` | sends one no more, or more again |
//! | `POST /admin/reload` | reads the settings anew, all or none |

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post, put};
use axum::{Json, Router};
use ractor::ActorRef;
use ractor::rpc::CallResult;
use serde::{Deserialize, Deserializer};
use serde_json::json;
use tokio::sync::Semaphore;

use super::admission::{House, Readiness};
use super::body::{Named, announced, whole};
use super::openai::ApiError;
use super::openapi::answers::{Imported, OpenAiError};
use super::reload::reload;
use crate::admission::{Served, Way};
use crate::bank::{self, Command, Failure, Id, Pinned};
use crate::node::{Nodes, Stays};
use crate::tuner;

/// A tuner answers between two reports.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// Files are held in memory whole, so one is carried at a time; whoever comes second waits, and its
/// file stays on its own side meanwhile.
static CARRYING: Semaphore = Semaphore::const_new(1);

/// A token that is compared in constant time and printed by nobody. What is kept is its hash.
#[derive(Clone, Default)]
pub struct Secret(Option<blake3::Hash>);

impl Secret {
    /// The empty one opens nothing.
    #[must_use]
    pub fn new(token: &str) -> Self {
        Self((!token.is_empty()).then(|| blake3::hash(token.as_bytes())))
    }

    /// Whether `token` is it. Hashes of equal length are compared, and blake3 does that in constant
    /// time.
    #[must_use]
    pub fn opens(&self, token: &[u8]) -> bool {
        self.0.is_some_and(|own| own == blake3::hash(token))
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "set" } else { "not set" })
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Self::new(&String::deserialize(from)?))
    }
}

/// The routes, if there are any.
pub(super) fn routes(secret: &Secret) -> Router<Arc<House>> {
    if secret.0.is_none() {
        return Router::new();
    }
    let secret = secret.clone();
    let guard = from_fn(move |request: Request, next: Next| {
        let open = opens(&secret, &request);
        async move {
            if open {
                next.run(request).await
            } else {
                let ask = [(header::WWW_AUTHENTICATE, "Bearer")];
                let body = refusal("authentication_error", "this route wants the admin token");
                (StatusCode::UNAUTHORIZED, ask, body).into_response()
            }
        }
    });
    let app =
        table().into_iter().fold(Router::new(), |app, (path, method)| app.route(path, method));
    app.route_layer(guard)
}

/// What answers at which path.
pub(super) fn table() -> Vec<(&'static str, MethodRouter<Arc<House>>)> {
    vec![
        ("/admin/bank", get(list).post(import)),
        ("/admin/bank/{id}", get(export).delete(forget)),
        ("/admin/bank/{id}/pin", put(pin).delete(unpin)),
        ("/admin/tuner", get(tuned)),
        ("/admin/usage", get(usage)),
        ("/admin/nodes", get(nodes)),
        ("/admin/nodes/{name}/drain", put(drain).delete(resume)),
        ("/admin/reload", post(reload)),
    ]
}

fn opens(secret: &Secret, request: &Request) -> bool {
    let sent = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let token = sent.and_then(|sent| sent.strip_prefix(b"Bearer "));
    token.is_some_and(|token| secret.opens(token))
}

pub(super) fn refusal(kind: &str, message: &str) -> Json<serde_json::Value> {
    Json(json!({"error": {"message": message, "type": kind, "code": null, "param": null}}))
}

/// Why there is nothing else to say.
pub(super) enum Sorry {
    Nobody,
    /// Each node has its own, and this gateway has none.
    Elsewhere,
    NoId,
    NoNode,
    Leaving,
    Body(ApiError),
    Failed(Failure),
    Full,
}

impl IntoResponse for Sorry {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Self::Nobody | Self::Failed(Failure::Gone) => {
                (StatusCode::SERVICE_UNAVAILABLE, Failure::Gone.to_string())
            }
            Self::NoId | Self::Failed(Failure::Unknown) => {
                (StatusCode::NOT_FOUND, Failure::Unknown.to_string())
            }
            Self::Elsewhere => (
                StatusCode::NOT_IMPLEMENTED,
                "no engine runs at this gateway now, and each node keeps its bank and tuner to \
                 itself: GET /metrics at the node (mtplx node --port) has their figures, and \
                 cluster.engine = true gives the gateway an engine of its own"
                    .into(),
            ),
            Self::NoNode => (StatusCode::NOT_FOUND, "no node has this name".into()),
            Self::Leaving => (
                StatusCode::CONFLICT,
                "this node is shutting down; it can join anew once it was started again".into(),
            ),
            Self::Body(error) => return error.into_response(),
            Self::Failed(failure @ Failure::Refused(_)) => {
                (StatusCode::UNPROCESSABLE_ENTITY, failure.to_string())
            }
            Self::Failed(failure @ Failure::NoRoom) => {
                (StatusCode::INSUFFICIENT_STORAGE, failure.to_string())
            }
            Self::Full => (
                StatusCode::INSUFFICIENT_STORAGE,
                "pinned states may take half of bank.bytes_max; unpin another first".into(),
            ),
        };
        let kind = if status.is_server_error() { "server_error" } else { "invalid_request_error" };
        (status, refusal(kind, &text)).into_response()
    }
}

type Shared = State<Arc<House>>;

fn bank(house: &House) -> Result<ActorRef<bank::Message>, Sorry> {
    let bank = match house.readiness() {
        Readiness::Serving(Served { way: Way::One(bank), .. }) => Some(bank),
        Readiness::Serving(Served { way: Way::Several(nodes), .. }) => nodes.own(),
        Readiness::Between(_) | Readiness::Over(_) => None,
    };
    bank.ok_or_else(|| absent(house))
}

/// Where there is no engine to be asked.
fn absent(house: &House) -> Sorry {
    if house.config.nodes.is_some() { Sorry::Elsewhere } else { Sorry::Nobody }
}

fn named(id: &str) -> Result<Id, Sorry> {
    Id::parse(id).ok_or(Sorry::NoId)
}

/// All states, in memory and on disk.
#[utoipa::path(get, path = "/admin/bank", tag = "admin", security(("admin" = [])),
    responses((status = 200, description = "The list.", body = serde_json::Value)))]
pub(super) async fn list(State(house): Shared) -> Result<Response, Sorry> {
    let listing = bank::manage(&bank(&house)?, Command::List).await.ok_or(Sorry::Nobody)?;
    Ok(Json(listing).into_response())
}

/// What the tuner believes of costs and drafts, which depths it chose by that, and why.
#[utoipa::path(get, path = "/admin/tuner", tag = "admin", security(("admin" = [])),
    responses((status = 200, description = "It.", body = tuner::Shown)))]
pub(super) async fn tuned(State(house): Shared) -> Result<Response, Sorry> {
    let Readiness::Serving(Served { tuner: Some(tuner), .. }) = house.readiness() else {
        return Err(absent(&house));
    };
    match tuner.call(tuner::Message::Show, Some(ANSWER_TIME)).await {
        Ok(CallResult::Success(shown)) => Ok(Json(shown).into_response()),
        Ok(CallResult::Timeout | CallResult::SenderError) | Err(_) => Err(Sorry::Nobody),
    }
}

/// What each key used since the start of the server, by name.
#[utoipa::path(get, path = "/admin/usage", tag = "admin", security(("admin" = [])),
    responses((status = 200, description = "It.", body = serde_json::Value)))]
pub(super) async fn usage(State(house): Shared) -> Response {
    Json(json!({"keys": house.clients.used()})).into_response()
}

/// The machines that serve, where there are several.
#[utoipa::path(get, path = "/admin/nodes", tag = "admin", security(("admin" = [])),
    responses((status = 200, description = "The list.", body = serde_json::Value)))]
pub(super) async fn nodes(State(house): Shared) -> Response {
    let nodes = house.config.nodes.as_ref().map_or_else(Vec::new, Nodes::reports);
    Json(json!({"nodes": nodes})).into_response()
}

/// Lets one of them finish what it has, and sends it no more until it is resumed or joins anew.
#[utoipa::path(put, path = "/admin/nodes/{name}/drain", tag = "admin", security(("admin" = [])),
    params(("name" = String, Path, description = "The name of a node.")),
    responses((status = 204, description = "It is drained from now on.")))]
pub(super) async fn drain(State(house): Shared, Named(name): Named) -> Result<Response, Sorry> {
    match house.config.nodes.as_ref().is_some_and(|nodes| nodes.drain(&name)) {
        true => Ok(StatusCode::NO_CONTENT.into_response()),
        false => Err(Sorry::NoNode),
    }
}

/// Sends one that was drained more again.
#[utoipa::path(delete, path = "/admin/nodes/{name}/drain", tag = "admin",
    security(("admin" = [])),
    params(("name" = String, Path, description = "The name of a node.")),
    responses((status = 204, description = "It is not drained any more."),
        (status = 409, description = "Its machine is shutting down.", body = OpenAiError)))]
pub(super) async fn resume(State(house): Shared, Named(name): Named) -> Result<Response, Sorry> {
    let nodes = house.config.nodes.as_ref().ok_or(Sorry::NoNode)?;
    match nodes.resume(&name) {
        Ok(()) => Ok(StatusCode::NO_CONTENT.into_response()),
        Err(Stays::Unknown) => Err(Sorry::NoNode),
        Err(Stays::Leaving) => Err(Sorry::Leaving),
    }
}

/// A state as a file.
#[utoipa::path(get, path = "/admin/bank/{id}", tag = "admin", security(("admin" = [])),
    params(("id" = String, Path, description = "The name of a state.")),
    responses((status = 200, description = "The file.", body = Vec<u8>,
        content_type = "application/octet-stream")))]
pub(super) async fn export(State(house): Shared, Named(id): Named) -> Result<Response, Sorry> {
    let id = named(&id)?;
    let _turn = CARRYING.acquire().await.map_err(|_| Sorry::Nobody)?;
    let told = bank::manage(&bank(&house)?, |port| Command::Export(id, port)).await;
    let bytes = told.ok_or(Sorry::Nobody)?.map_err(Sorry::Failed)?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
}

/// Takes such a file.
#[utoipa::path(post, path = "/admin/bank", tag = "admin", security(("admin" = [])),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 201, description = "It was taken in.", body = Imported),
        (status = 408, description = "It did not come whole.", body = OpenAiError),
        (status = 413, description = "It is too long.", body = OpenAiError),
        (status = 422, description = "It is no such file.", body = OpenAiError)))]
pub(super) async fn import(State(house): Shared, request: Request) -> Result<Response, Sorry> {
    // It is held in memory while it is checked, as one that comes from disk is.
    let most = bank::manage(&bank(&house)?, Command::FileMax).await.ok_or(Sorry::Nobody)?;
    let limit = usize::try_from(most).unwrap_or(usize::MAX);
    // Before anybody waits for it, or any of it is read.
    if announced(request.headers()).is_some_and(|bytes| bytes > limit) {
        return Err(Sorry::Body(ApiError::BodyTooLarge { limit }));
    }
    let _turn = CARRYING.acquire().await.map_err(|_| Sorry::Nobody)?;
    let body = whole(request.into_body(), limit, None).await.map_err(Sorry::Body)?;
    // A large one may have come for longer than a generation lives.
    let told = bank::manage(&bank(&house)?, |port| Command::Import(body.bytes, port)).await;
    let id = told.ok_or(Sorry::Nobody)?.map_err(Sorry::Failed)?;
    Ok((StatusCode::CREATED, Json(json!({"id": id.to_string()}))).into_response())
}

/// Lets a state go.
#[utoipa::path(delete, path = "/admin/bank/{id}", tag = "admin", security(("admin" = [])),
    params(("id" = String, Path, description = "The name of a state.")),
    responses((status = 204, description = "It is gone.")))]
pub(super) async fn forget(State(house): Shared, Named(id): Named) -> Result<Response, Sorry> {
    let id = named(&id)?;
    let told = bank::manage(&bank(&house)?, |port| Command::Drop(id, port)).await;
    match told.ok_or(Sorry::Nobody)? {
        true => Ok(StatusCode::NO_CONTENT.into_response()),
        false => Err(Sorry::NoId),
    }
}

/// Keeps a state from going by itself.
#[utoipa::path(put, path = "/admin/bank/{id}/pin", tag = "admin", security(("admin" = [])),
    params(("id" = String, Path, description = "The name of a state.")),
    responses((status = 204, description = "It is kept.")))]
pub(super) async fn pin(house: Shared, id: Named) -> Result<Response, Sorry> {
    set_pin(house, id, true).await
}

/// Lets a state go by itself again.
#[utoipa::path(delete, path = "/admin/bank/{id}/pin", tag = "admin", security(("admin" = [])),
    params(("id" = String, Path, description = "The name of a state.")),
    responses((status = 204, description = "It may go.")))]
pub(super) async fn unpin(house: Shared, id: Named) -> Result<Response, Sorry> {
    set_pin(house, id, false).await
}

async fn set_pin(State(house): Shared, Named(id): Named, on: bool) -> Result<Response, Sorry> {
    let id = named(&id)?;
    let told = bank::manage(&bank(&house)?, |port| Command::Pin(id, on, port)).await;
    match told.ok_or(Sorry::Nobody)? {
        Pinned::Done => Ok(StatusCode::NO_CONTENT.into_response()),
        Pinned::Unknown => Err(Sorry::NoId),
        Pinned::Full => Err(Sorry::Full),
    }
}

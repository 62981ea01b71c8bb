//! Settings read anew while the door is open. A request goes by the house in which it began: the
//! next one finds another, which shares with it all that is not a setting, and is there in one
//! swap.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use ractor::RpcReplyPort;
use serde::Serialize;
use utoipa::ToSchema;

use super::Config;
use super::admin::refusal;
use super::admission::House;
use super::openapi::answers::OpenAiError;
use super::resize::{most, resize};

/// What came of reading the settings anew.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Reloaded {
    /// Settings that hold otherwise from now on.
    pub changed: Vec<Changed>,
    /// Files whose names stayed and whose contents did not.
    pub read_anew: Vec<String>,
    /// Settings that are written otherwise than they hold: the next start takes them.
    pub restart_needed: Vec<Changed>,
    /// What else is to be known.
    pub remarks: Vec<String>,
}

/// A setting, from what to what, as a file of settings would say it. What is secret is not told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Changed {
    /// Its name, as `server.port`.
    pub setting: String,
    /// What held.
    pub from: String,
    /// What is written now.
    pub to: String,
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} -> {}", self.setting, self.from, self.to)
    }
}

/// Reads the settings anew for whoever may ask for it, or says why nothing changed.
pub type Reload =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Reloaded, String>> + Send>> + Send + Sync>;

/// What the door is told of new settings.
pub struct Anew {
    /// They.
    pub config: Config,
    /// Names of settings that wait for the next start.
    pub restart_needed: Vec<String>,
    /// Told when they hold.
    pub reply: RpcReplyPort<()>,
}

impl fmt::Debug for Anew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Anew").field("config", &self.config).finish_non_exhaustive()
    }
}

/// What reads them.
#[derive(Clone)]
pub struct Reloader(pub Reload);

impl fmt::Debug for Reloader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reloader")
    }
}

impl House {
    /// The same house by other settings. Its bounds change for those of before, too: they share
    /// them.
    pub(super) fn anew(&self, config: Config, restart_needed: Vec<String>) -> Self {
        let (old, new) = (&self.config, &config);
        let requests = |config: &Config| usize::from(config.requests_max.get());
        for places in [&self.permits, &self.asking] {
            resize(places, requests(old), requests(new));
        }
        let tokens = |config: &Config| config.tokens_max.map_or(usize::MAX, |n| n.get());
        resize(&self.tokens, tokens(old), tokens(new));
        let bodies = self.bodies.resized((old.body_room(), new.body_room()), new.body_bytes_max);
        let idle = Duration::from_secs(new.responses_idle_s.into());
        self.responses.resize(new.responses_bytes_max, idle);
        self.trial.allow(new.strikes_max);
        self.clients.replace(new.keys.clone());
        let mut house = self.clone();
        (house.bodies, house.config) = (bodies, config);
        house.restart_needed = restart_needed.into();
        house
    }
}

impl Config {
    /// Bytes of all bodies on their way: one alone may take it all.
    pub(super) fn body_room(&self) -> usize {
        most(self.bytes_max.max(self.body_bytes_max))
    }
}

/// Reads the settings anew, all or none of them, as SIGHUP does. Those that need a restart are
/// named.
#[utoipa::path(post, path = "/admin/reload", tag = "admin", security(("admin" = [])),
    responses((status = 200, description = "They hold.", body = Reloaded),
        (status = 422, description = "They cannot be used, for this reason; nothing changed.",
            body = OpenAiError)))]
pub(super) async fn reload(State(house): State<Arc<House>>) -> Response {
    let Some(Reloader(reload)) = house.reloader.clone() else {
        let text = "this server was started without settings that could be read anew";
        return (StatusCode::SERVICE_UNAVAILABLE, refusal("server_error", text)).into_response();
    };
    match reload().await {
        Ok(reloaded) => Json(reloaded).into_response(),
        Err(reason) => {
            let refused = refusal("invalid_request_error", &reason);
            (StatusCode::UNPROCESSABLE_ENTITY, refused).into_response()
        }
    }
}

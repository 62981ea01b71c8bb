//! What stands before every route: whether a browser was led here, and whose request it is.
//!
//! A page of strangers can make its reader's browser send requests here, and by giving its own name
//! this machine's address (DNS rebinding) even read the answers. Such requests name a host that is
//! none of ours, or an origin that nobody allowed.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer, ExposeHeaders};

use super::Config;
use super::admission::House;
use super::openai::ApiError;

/// What a browser may keep of its question whether it may ask.
const CORS_AGE: Duration = Duration::from_secs(600);

/// Paths that want no key: what watches a server, and what describes it. Below /admin another one
/// is wanted.
#[rustfmt::skip]
const OPEN: [&str; 9] = [
    "/health", "/livez", "/readyz", "/metrics", "/dashboard", "/ui", "/openapi.json", "/docs",
    "/v1/models",
];

/// Lets in whom it may.
pub(super) async fn guard(
    State(house): State<Arc<House>>,
    mut request: Request,
    next: Next,
) -> Response {
    if let Err(error) = came_straight(&house.config, request.headers()) {
        return error.into_response();
    }
    let path = request.uri().path();
    if is_open(path) || path.starts_with("/admin") {
        return next.run(request).await;
    }
    let caller = match house.clients.identify(request.headers()) {
        Ok(caller) => caller,
        Err(error) => return error.into_response(),
    };
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// Whether a path wants no key.
pub(super) fn is_open(path: &str) -> bool {
    let under = |open: &&str| {
        path.strip_prefix(*open).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    path == "/" || OPEN.iter().any(under)
}

/// Whether nobody's page led a browser here.
fn came_straight(config: &Config, headers: &HeaderMap) -> Result<(), ApiError> {
    let host = headers.get(header::HOST);
    let host = host.map(|host| String::from_utf8_lossy(host.as_bytes()).to_ascii_lowercase());
    if let Some(host) = &host
        && !is_ours(config, name_of(host))
    {
        return Err(ApiError::Stranger(format!(
            "this server does not go by the name {host:?}; if it should, add it to server.hosts"
        )));
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = String::from_utf8_lossy(origin.as_bytes()).to_ascii_lowercase();
    let own = origin.split_once("://").is_some_and(|(_, name)| Some(name) == host.as_deref());
    let allowed = |known: &String| known == "*" || known.eq_ignore_ascii_case(&origin);
    if own || config.origins.iter().any(allowed) {
        return Ok(());
    }
    Err(ApiError::Stranger(format!(
        "pages of {origin:?} may not ask this server; if they should, add it to server.origins"
    )))
}

/// A name without its port.
fn name_of(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or_default(),
    }
}

/// An address cannot be made to mean another machine; a name can.
fn is_ours(config: &Config, name: &str) -> bool {
    let literal = name.parse::<IpAddr>().is_ok() || name.parse::<Ipv6Addr>().is_ok();
    let known = config.hosts.iter().any(|known| known.eq_ignore_ascii_case(name));
    // Who is reached from elsewhere has names that it does not know, unless they are told.
    let any = config.hosts.is_empty() && !config.bind.ip().is_loopback();
    // Containers on this machine know it by that name; nobody else can have it.
    let here = ["localhost", "host.docker.internal"].contains(&name);
    literal || here || known || any
}

/// What browsers are told of the origins that may ask, if any may.
pub(super) fn cors(config: &Config) -> Option<CorsLayer> {
    if config.origins.is_empty() {
        return None;
    }
    let origins = if config.origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        let origins = config.origins.iter();
        AllowOrigin::list(origins.filter_map(|origin| HeaderValue::try_from(origin).ok()))
    };
    let shown = ["x-request-id", "request-id", "x-mtplx-warning", "retry-after"];
    let layer = CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(ExposeHeaders::list(shown.map(HeaderName::from_static)))
        .max_age(CORS_AGE);
    Some(layer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingress::tests::harness::config;

    fn headers(host: &str, origin: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        headers
    }

    fn may(config: &Config, host: &str, origin: Option<&str>) -> bool {
        came_straight(config, &headers(host, origin)).is_ok()
    }

    #[test]
    fn at_home_only_names_of_this_machine_are_answered() {
        let config = Config { hosts: vec!["studio.local".into()], ..config() };
        for host in [
            "localhost:8000",
            "127.0.0.1",
            "[::1]:8000",
            "Studio.local:80",
            "LOCALHOST",
            "host.docker.internal:8000",
        ] {
            assert!(may(&config, host, None), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:8000", "127.0.0.1.evil.example", ""] {
            assert!(!may(&config, host, None), "{host}");
        }
        let away = Config { bind: "0.0.0.0:1".parse().unwrap(), hosts: Vec::new(), ..config };
        assert!(may(&away, "studio.office.example", None));
    }

    #[test]
    fn pages_of_others_may_not_ask_unless_they_are_named() {
        let config = Config { origins: vec!["https://chat.example".into()], ..config() };
        assert!(may(&config, "localhost:8000", Some("http://localhost:8000")));
        assert!(may(&config, "localhost:8000", Some("https://chat.example")));
        for origin in ["https://evil.example", "null", "http://localhost:3000"] {
            assert!(!may(&config, "localhost:8000", Some(origin)), "{origin}");
        }
        let any = Config { origins: vec!["*".into()], ..config };
        assert!(may(&any, "localhost", Some("null")));
    }
}

//! What a node says of itself to its own machine: health and metrics, over HTTP. Clients ask the
//! gateway.

use std::io;
use std::net::SocketAddr;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tokio::net::TcpListener;

use super::worker::Handle;
use crate::ingress::RenderMetrics;

/// Answers there from now on; returns where.
///
/// # Errors
/// If the address cannot be had.
pub async fn open(at: SocketAddr, node: Handle, render: RenderMetrics) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(at).await?;
    let address = listener.local_addr()?;
    let health = move || health(node.clone());
    let metrics = move || async move {
        let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
        (kind, render()).into_response()
    };
    let app = Router::new()
        .route("/health", get(health.clone()))
        .route("/readyz", get(health))
        .route("/livez", get(async || Json(json!({"status": "ok"}))))
        .route("/metrics", get(metrics));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, app).await {
            tracing::error!(%error, "health and metrics are not answered any more");
        }
    });
    Ok(address)
}

async fn health(node: Handle) -> Response {
    match node.observe().await {
        Some(seen) if seen.joined && seen.serving => {
            Json(json!({"status": "ok", "node": seen})).into_response()
        }
        seen => {
            let body = json!({"status": "unavailable", "node": seen});
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}

//! Anthropic's Messages API.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::{Asked, MESSAGES, Route, Shared, answer, checked, read, warn};
use crate::ingress::anthropic::MessagesBody;
use crate::ingress::anthropic::answer::Answer;
use crate::ingress::openai::ApiError;

pub(super) async fn messages(
    State(house): State<Shared>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let route = Route::new(MESSAGES, &headers);
    let body = checked(&house, &headers, body)?;
    let map = |body: MessagesBody, defaults: &_| Ok((body.wanted(defaults)?, ()));
    let (wanted, ()) = read(&house, body, map).await?;
    answer(&house, wanted, route, |config, Asked { prompts, thinking, .. }| {
        Box::new(Answer::new(&config.model, prompts.iter().sum(), thinking))
    })
    .await
}

/// How long the prompt of such a request would be; answered whether or not anybody serves.
pub(super) async fn count_tokens(
    State(house): State<Shared>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let body = checked(&house, &headers, body)?;
    let map = |body: MessagesBody, defaults: &_| Ok((body.counted(defaults)?, ()));
    let (wanted, ()) = read(&house, body, map).await?;
    let tokens = house.count(wanted.sources).await?;
    let mut response = Json(json!({"input_tokens": tokens})).into_response();
    warn(&mut response, &wanted.ignored);
    Ok(response)
}

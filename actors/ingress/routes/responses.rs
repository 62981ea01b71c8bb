//! OpenAI's Responses API.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::{Asked, RESPONSES, Route, Shared, answer, checked, read};
use crate::ingress::openai::ApiError;
use crate::ingress::responses::ResponsesBody;
use crate::ingress::responses::answer::Answer;

const ID: &str = "response_id";

pub(super) async fn create(
    State(house): State<Shared>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let route = Route::new(RESPONSES, &headers);
    let body = checked(&house, &headers, body)?;
    let store = Arc::clone(&house.responses);
    let map = move |body: ResponsesBody, defaults: &_| body.wanted(defaults, &store);
    let (wanted, mut echo) = read(&house, body, map).await?;
    // What was not asked for is what the model's authors want.
    for (name, value) in
        [("temperature", wanted.sampling.temperature), ("top_p", wanted.sampling.top_p)]
    {
        echo.fields.insert(name.into(), value.into());
    }
    let store = Arc::clone(&house.responses);
    answer(&house, wanted, route, |config, Asked { prompts, .. }| {
        Box::new(Answer::new(&config.model, prompts.iter().sum(), echo, store))
    })
    .await
}

pub(super) async fn fetch(
    State(house): State<Shared>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let kept = house.responses.kept(&id, ID)?;
    let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    Ok((json, kept.response.clone()).into_response())
}

pub(super) async fn forget(
    State(house): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    if !house.responses.forget(&id) {
        return Err(ApiError::NotKept { param: ID.into(), id });
    }
    Ok(Json(json!({"id": id, "object": "response", "deleted": true})))
}

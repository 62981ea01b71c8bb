//! OpenAI's Responses API.

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use mtplx_core::request::Refusal;
use serde_json::{Value, json};

use super::{Asked, RESPONSES, Route, Shared, answer, read};
use crate::ingress::body::{Asking, Named};
use crate::ingress::clients::Caller;
use crate::ingress::openai::ApiError;
use crate::ingress::openapi::answers::{Forgotten, OpenAiError, ResponseObject, StreamEvent};
use crate::ingress::responses::ResponsesBody;
use crate::ingress::responses::answer::Answer;

const ID: &str = "response_id";

/// Goes on with a conversation of items. With `"stream": true` as events by name.
#[utoipa::path(post, path = "/v1/responses", tag = "OpenAI", request_body = ResponsesBody,
    responses((status = 200, description = "The answer, or events of it.", content(
        (ResponseObject = "application/json"), (StreamEvent = "text/event-stream")))))]
pub(in crate::ingress) async fn create(
    State(house): State<Shared>,
    Extension(caller): Extension<Caller>,
    Asking { body, attempt }: Asking,
) -> Result<Response, ApiError> {
    let own = house.responses.of(caller.sharing().tenant);
    let route = Route::new(RESPONSES, caller, attempt);
    let store = own.clone();
    let map = move |body: ResponsesBody, d: &_, i: &mut _| body.wanted(d, &store, i);
    let (wanted, mut echo) = read(&house, body, map).await?;
    // What was not asked for is what the model's authors want.
    for (name, value) in
        [("temperature", wanted.sampling.temperature), ("top_p", wanted.sampling.top_p)]
    {
        // By its shortest digits: 0.6, and not what is nearest to it in half of the bits.
        let shown = value.to_string().parse::<f64>().unwrap_or_else(|_| value.into());
        echo.fields.insert(name.into(), shown.into());
    }
    answer(&house, wanted, route, |config, Asked { prompts, .. }| {
        Box::new(Answer::new(&config.model, prompts.iter().sum(), echo, own))
    })
    .await
    .map_err(of_items)
}

/// What other APIs call messages is the input here.
fn of_items(mut error: ApiError) -> ApiError {
    if let ApiError::Refused(Refusal::TooLong { field, .. } | Refusal::Invalid { field, .. }) =
        &mut error
        && *field == "messages"
    {
        *field = "input";
    }
    error
}

/// An answer that is kept.
#[utoipa::path(get, path = "/v1/responses/{id}", tag = "OpenAI",
    params(("id" = String, Path, description = "Its name.")),
    responses((status = 200, description = "It.", body = ResponseObject),
        (status = 404, description = "None is kept under this name.", body = OpenAiError)))]
pub(in crate::ingress) async fn fetch(
    State(house): State<Shared>,
    Extension(caller): Extension<Caller>,
    Named(id): Named,
) -> Result<Response, ApiError> {
    let kept = house.responses.of(caller.sharing().tenant).kept(&id, ID)?;
    let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    Ok((json, kept.response().to_owned()).into_response())
}

/// Forgets an answer.
#[utoipa::path(delete, path = "/v1/responses/{id}", tag = "OpenAI",
    params(("id" = String, Path, description = "Its name.")),
    responses((status = 200, description = "It is forgotten.", body = Forgotten),
        (status = 404, description = "None was kept under this name.", body = OpenAiError)))]
pub(in crate::ingress) async fn forget(
    State(house): State<Shared>,
    Extension(caller): Extension<Caller>,
    Named(id): Named,
) -> Result<Json<Value>, ApiError> {
    if !house.responses.of(caller.sharing().tenant).forget(&id) {
        return Err(ApiError::NotKept { param: ID.into(), id });
    }
    Ok(Json(json!({"id": id, "object": "response", "deleted": true})))
}

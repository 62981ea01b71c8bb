//! Anthropic's Messages API.

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use serde_json::json;

use super::{Asked, MESSAGES, Route, Shared, answer, answered, read};
use crate::ingress::anthropic::MessagesBody;
use crate::ingress::anthropic::answer::Answer;
use crate::ingress::body::{Asking, JsonBody};
use crate::ingress::clients::Caller;
use crate::ingress::openai::ApiError;
use crate::ingress::openapi::answers::{MessageObject, StreamEvent, TokenCount};

/// Goes on with a conversation. With `"stream": true` as events by name.
#[utoipa::path(post, path = "/v1/messages", tag = "Anthropic", request_body = MessagesBody,
    responses((status = 200, description = "The answer, or events of it.", content(
        (MessageObject = "application/json"), (StreamEvent = "text/event-stream")))))]
pub(in crate::ingress) async fn messages(
    State(house): State<Shared>,
    Extension(caller): Extension<Caller>,
    Asking { body, attempt }: Asking,
) -> Result<Response, ApiError> {
    let route = Route::new(MESSAGES, caller, attempt);
    let map = |body: MessagesBody, d: &_, i: &mut _| Ok((body.wanted(d, i)?, ()));
    let (wanted, ()) = read(&house, body, map).await?;
    answer(&house, wanted, route, |config, Asked { prompts, thinking, .. }| {
        Box::new(Answer::new(&config.model, prompts.iter().sum(), thinking))
    })
    .await
}

/// How long the prompt of such a request would be; answered whether or not anybody serves.
#[utoipa::path(post, path = "/v1/messages/count_tokens", tag = "Anthropic",
    request_body = MessagesBody,
    responses((status = 200, description = "The length.", body = TokenCount)))]
pub(in crate::ingress) async fn count_tokens(
    State(house): State<Shared>,
    Extension(caller): Extension<Caller>,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let map = |body: MessagesBody, d: &_, i: &mut _| Ok((body.counted(d, i)?, ()));
    let (mut wanted, ()) = read(&house, body, map).await?;
    wanted.sharing = caller.sharing();
    let tokens = house.count(&mut wanted).await?;
    Ok(answered(&json!({"input_tokens": tokens}), &wanted.ignored))
}

//! Texts as tokens and tokens as texts, for clients that count, and what else is small.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use serde_json::json;

use super::admission::{House, Readiness, context, prompt_of};
use super::body::JsonBody;
use super::clients::Caller;
use super::openai::tokenize::{DetokenizeBody, Tokenize, TokenizeBody};
use super::openai::{ApiError, Source};
use super::openapi::answers::{Detokenized, OpenAiError, Tokenized};
use super::routes::{answered, parsed, served};
use super::unknown::Ignored;

/// A text or a conversation as tokens.
#[utoipa::path(post, path = "/tokenize", tag = "house", request_body = TokenizeBody,
    responses((status = 200, description = "Its tokens.", body = Tokenized)))]
pub(super) async fn tokenize(
    State(house): State<Arc<House>>,
    Extension(caller): Extension<Caller>,
    JsonBody(body): JsonBody,
) -> Result<axum::response::Response, ApiError> {
    let _place = house.place()?;
    let text = Arc::clone(&house.text);
    let map = move |mut body: TokenizeBody, ignored: &mut Ignored| {
        let model = body.model.take();
        let Tokenize { mut source, special, strings } = body.wanted(ignored)?;
        if let Source::Chat(chat) = &mut source {
            chat.tenant = caller.sharing().tenant;
        }
        let tokens = prompt_of(&text, source, special)?.tokens;
        let strings: Option<Vec<String>> =
            strings.then(|| tokens.iter().map(|&token| text.spelt(token).text).collect());
        Ok((model, tokens, strings))
    };
    let ((model, tokens, strings), ignored) = parsed(&house, body, map).await?;
    served(&house, model)?;
    let longest = match house.readiness() {
        Readiness::Serving(engine) => Some(context(&engine.info)),
        Readiness::Between(_) | Readiness::Over(_) => None,
    };
    let answer = json!({
        "count": tokens.len(),
        "max_model_len": longest,
        "tokens": tokens,
        "token_strs": strings,
    });
    Ok(answered(&answer, &ignored))
}

/// Tokens as a text.
#[utoipa::path(post, path = "/detokenize", tag = "house", request_body = DetokenizeBody,
    responses((status = 200, description = "Their text.", body = Detokenized)))]
pub(super) async fn detokenize(
    State(house): State<Arc<House>>,
    JsonBody(body): JsonBody,
) -> Result<axum::response::Response, ApiError> {
    let _place = house.place()?;
    let text = Arc::clone(&house.text);
    let map = move |body: DetokenizeBody, _: &mut Ignored| {
        if let Some(token) = body.tokens.iter().find(|&&token| !text.knows(token)) {
            let reason = format!("the tokenizer knows no token {token}");
            return Err(ApiError::invalid("tokens", &reason));
        }
        Ok((body.model, text.decode(&body.tokens)))
    };
    let ((model, text), ignored) = parsed(&house, body, map).await?;
    served(&house, model)?;
    Ok(answered(&json!({"prompt": text}), &ignored))
}

/// Not here: this server generates text and embeds none.
#[utoipa::path(post, path = "/v1/embeddings", tag = "OpenAI",
    responses((status = 501, description = "Always.", body = OpenAiError)))]
pub(super) async fn embeddings() -> ApiError {
    ApiError::NotImplemented("embeddings: this server generates text and embeds none".into())
}

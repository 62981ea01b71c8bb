//! Texts as tokens and tokens as texts, for clients that count, and what else is small.

use std::sync::Arc;

use axum::extract::State;
use serde_json::json;

use super::admission::{House, Readiness, context, prompt_of};
use super::body::JsonBody;
use super::openai::tokenize::{DetokenizeBody, Tokenize, TokenizeBody};
use super::openai::{ApiError, parse};
use super::openapi::answers::{Detokenized, OpenAiError, Tokenized};
use super::routes::{answered, served};
use super::unknown::Ignored;

/// A text or a conversation as tokens.
#[utoipa::path(post, path = "/tokenize", tag = "house", request_body = TokenizeBody,
    responses((status = 200, description = "Its tokens.", body = Tokenized)))]
pub(super) async fn tokenize(
    State(house): State<Arc<House>>,
    JsonBody(body): JsonBody,
) -> Result<axum::response::Response, ApiError> {
    let _place = house.place()?;
    let (text, policy) = (Arc::clone(&house.text), house.config.unknown_fields);
    let work = house.turns.run(body.len(), move || {
        let mut ignored = Ignored::new(policy);
        let mut body: TokenizeBody = parse(&body, &mut ignored)?;
        let model = body.model.take();
        let Tokenize { source, special, strings } = body.wanted(&mut ignored)?;
        let tokens = prompt_of(&text, source, special)?.tokens;
        let strings: Option<Vec<String>> =
            strings.then(|| tokens.iter().map(|&token| text.spelt(token).text).collect());
        Ok::<_, ApiError>((model, tokens, strings, ignored.into_names()))
    });
    let (model, tokens, strings, ignored) = work.await?;
    served(&house, model)?;
    let longest = match house.readiness() {
        Readiness::Serving(_, info) => Some(context(&info)),
        Readiness::Between(_) => None,
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
    let (text, policy) = (Arc::clone(&house.text), house.config.unknown_fields);
    let work = house.turns.run(body.len(), move || {
        let mut ignored = Ignored::new(policy);
        let body: DetokenizeBody = parse(&body, &mut ignored)?;
        if let Some(token) = body.tokens.iter().find(|&&token| !text.knows(token)) {
            let reason = format!("the tokenizer knows no token {token}");
            return Err(ApiError::invalid("tokens", &reason));
        }
        Ok((body.model, text.decode(&body.tokens), ignored.into_names()))
    });
    let (model, text, ignored) = work.await?;
    served(&house, model)?;
    Ok(answered(&json!({"prompt": text}), &ignored))
}

/// Not here: this server generates text and embeds none.
#[utoipa::path(post, path = "/v1/embeddings", tag = "OpenAI",
    responses((status = 501, description = "Always.", body = OpenAiError)))]
pub(super) async fn embeddings() -> ApiError {
    ApiError::NotImplemented("embeddings: this server generates text and embeds none".into())
}

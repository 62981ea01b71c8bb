//! Texts as tokens and tokens as texts, for clients that count, and what else is small.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::HeaderMap;
use serde_json::{Value, json};

use super::admission::{House, Readiness, context, prompt_of};
use super::off_thread;
use super::openai::tokenize::{DetokenizeBody, Tokenize, TokenizeBody};
use super::openai::{ApiError, parse};
use super::routes::{checked, served};

/// `POST /tokenize`.
pub(super) async fn tokenize(
    State(house): State<Arc<House>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, ApiError> {
    let body = checked(&house, &headers, body)?;
    let mut body: TokenizeBody = parse(&body)?;
    served(&house, body.model.take())?;
    let Tokenize { source, special, strings } = body.wanted()?;
    let text = Arc::clone(&house.text);
    let tokens = off_thread(source.size(), move || prompt_of(&text, source, special)).await?.tokens;
    let strings: Option<Vec<String>> =
        strings.then(|| tokens.iter().map(|&token| house.text.spelt(token).text).collect());
    let longest = match house.readiness() {
        Readiness::Serving(_, info) => Some(context(&info)),
        Readiness::Between(_) => None,
    };
    Ok(Json(json!({
        "count": tokens.len(),
        "max_model_len": longest,
        "tokens": tokens,
        "token_strs": strings,
    })))
}

/// `POST /detokenize`.
pub(super) async fn detokenize(
    State(house): State<Arc<House>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, ApiError> {
    let body = checked(&house, &headers, body)?;
    let mut body: DetokenizeBody = parse(&body)?;
    served(&house, body.model.take())?;
    if let Some(token) = body.tokens.iter().find(|&&token| !house.text.knows(token)) {
        let reason = format!("the tokenizer knows no token {token}");
        return Err(ApiError::invalid("tokens", &reason));
    }
    Ok(Json(json!({"prompt": house.text.decode(&body.tokens)})))
}

/// `POST /v1/embeddings`.
pub(super) async fn embeddings() -> ApiError {
    ApiError::NotImplemented("embeddings: this server generates text and embeds none".into())
}

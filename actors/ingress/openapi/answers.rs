//! What is answered, described: answers are written as they are made, in the words of three APIs,
//! and the tests hold these descriptions against them.

#![allow(dead_code, reason = "descriptions are never made")]

use serde_json::Value;
use utoipa::ToSchema;

pub(crate) use super::health::Health;

/// An answer of `/v1/chat/completions`.
#[derive(ToSchema)]
pub(crate) struct ChatCompletion {
    id: String,
    #[schema(pattern = "^chat[.]completion$")]
    object: String,
    /// Seconds since 1970.
    created: u64,
    model: String,
    choices: Vec<ChatChoice>,
    usage: Usage,
    mtp: Mtp,
    timings: Timings,
}

/// One of the answers.
#[derive(ToSchema)]
struct ChatChoice {
    index: u32,
    message: ChatMessage,
    #[schema(required)]
    logprobs: Option<ChatLogprobs>,
    finish_reason: Finish,
}

/// Why a text ended.
#[derive(ToSchema)]
enum Finish {
    #[schema(rename = "stop")]
    Stop,
    #[schema(rename = "length")]
    Length,
    #[schema(rename = "tool_calls")]
    ToolCalls,
}

/// What the assistant says.
#[derive(ToSchema)]
struct ChatMessage {
    #[schema(pattern = "^assistant$")]
    role: String,
    /// Null where there are calls only.
    #[schema(required)]
    content: Option<String>,
    #[schema(required)]
    refusal: Option<String>,
    /// What the model thought before it.
    #[schema(nullable = false)]
    reasoning_content: Option<String>,
    #[schema(nullable = false)]
    tool_calls: Option<Vec<ToolCall>>,
}

/// A call of a tool.
#[derive(ToSchema)]
struct ToolCall {
    id: String,
    #[schema(rename = "type", pattern = "^function$")]
    kind: String,
    function: Function,
}

/// What is called.
#[derive(ToSchema)]
struct Function {
    name: String,
    /// JSON; cut off where the answer was.
    arguments: String,
}

/// What the model thought of each token.
#[derive(ToSchema)]
struct ChatLogprobs {
    content: Vec<TokenLogprob>,
    #[schema(required)]
    refusal: Option<Value>,
}

/// One token.
#[derive(ToSchema)]
struct TokenLogprob {
    token: String,
    logprob: f32,
    #[schema(required)]
    bytes: Option<Vec<u8>>,
    top_logprobs: Vec<TopLogprob>,
}

/// A token that might have been.
#[derive(ToSchema)]
struct TopLogprob {
    token: String,
    logprob: f32,
    #[schema(required)]
    bytes: Option<Vec<u8>>,
}

/// Tokens of a request.
#[derive(ToSchema)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: Cached,
    #[schema(nullable = false)]
    completion_tokens_details: Option<Reasoned>,
}

/// Of the prompt.
#[derive(ToSchema)]
struct Cached {
    /// Were warm.
    cached_tokens: u64,
}

/// Of the answer.
#[derive(ToSchema)]
struct Reasoned {
    /// Were thought.
    reasoning_tokens: u64,
}

/// What speculation gave.
#[derive(ToSchema)]
struct Mtp {
    drafted: u64,
    accepted: u64,
}

/// As llama.cpp's server tells them.
#[derive(ToSchema)]
struct Timings {
    prompt_n: u64,
    prompt_ms: f64,
    prompt_per_token_ms: f64,
    prompt_per_second: f64,
    predicted_n: u64,
    predicted_ms: f64,
    predicted_per_token_ms: f64,
    predicted_per_second: f64,
    cache_n: u64,
    draft_n: u64,
    draft_n_accepted: u64,
}

/// An event of a stream. Its data is JSON; of OpenAI's older two APIs the last is `[DONE]`.
#[derive(ToSchema)]
pub(crate) struct StreamEvent {
    /// What it is, where its API names events.
    #[schema(nullable = false)]
    event: Option<String>,
    data: String,
}

/// An answer of `/v1/completions`.
#[derive(ToSchema)]
pub(crate) struct TextCompletion {
    id: String,
    #[schema(pattern = "^text_completion$")]
    object: String,
    created: u64,
    model: String,
    choices: Vec<TextChoice>,
    usage: Usage,
    mtp: Mtp,
    timings: Timings,
}

/// One of the texts.
#[derive(ToSchema)]
struct TextChoice {
    index: u32,
    text: String,
    #[schema(required)]
    logprobs: Option<TextLogprobs>,
    finish_reason: Finish,
}

/// What the model thought of each token, by columns.
#[derive(ToSchema)]
struct TextLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<std::collections::BTreeMap<String, f32>>,
    text_offset: Vec<u64>,
}

/// An answer of `/v1/responses`.
#[derive(ToSchema)]
pub(crate) struct ResponseObject {
    id: String,
    #[schema(pattern = "^response$")]
    object: String,
    created_at: u64,
    status: Status,
    background: bool,
    #[schema(required)]
    error: Option<ResponseError>,
    #[schema(required)]
    incomplete_details: Option<Incomplete>,
    model: String,
    output: Vec<OutputItem>,
    #[schema(required)]
    usage: Option<ResponseUsage>,
    /// These and the following repeat the request.
    #[schema(required)]
    instructions: Option<String>,
    #[schema(required)]
    max_output_tokens: Option<u64>,
    metadata: Value,
    parallel_tool_calls: bool,
    #[schema(required)]
    previous_response_id: Option<String>,
    reasoning: Value,
    store: bool,
    temperature: f32,
    text: Value,
    tool_choice: Value,
    tools: Vec<Value>,
    top_p: f32,
    truncation: String,
    user: Value,
}

/// How far an answer is.
#[derive(ToSchema)]
enum Status {
    #[schema(rename = "in_progress")]
    InProgress,
    #[schema(rename = "completed")]
    Completed,
    #[schema(rename = "incomplete")]
    Incomplete,
    #[schema(rename = "failed")]
    Failed,
}

/// Why there is no answer.
#[derive(ToSchema)]
struct ResponseError {
    code: String,
    message: String,
}

/// Why it is not all of it.
#[derive(ToSchema)]
struct Incomplete {
    reason: String,
}

/// A thought, a text or a call.
#[derive(ToSchema)]
struct OutputItem {
    id: String,
    #[schema(rename = "type", pattern = "^(reasoning|message|function_call)$")]
    kind: String,
    status: Status,
    #[schema(nullable = false)]
    role: Option<String>,
    #[schema(nullable = false)]
    content: Option<Vec<OutputPart>>,
    #[schema(nullable = false)]
    summary: Option<Vec<Value>>,
    #[schema(nullable = false)]
    call_id: Option<String>,
    #[schema(nullable = false)]
    name: Option<String>,
    #[schema(nullable = false)]
    arguments: Option<String>,
}

/// A part of a thought or a text.
#[derive(ToSchema)]
struct OutputPart {
    #[schema(rename = "type", pattern = "^(reasoning_text|output_text)$")]
    kind: String,
    text: String,
    #[schema(nullable = false)]
    annotations: Option<Vec<Value>>,
    #[schema(nullable = false)]
    logprobs: Option<Vec<Value>>,
}

/// Tokens of a request.
#[derive(ToSchema)]
struct ResponseUsage {
    input_tokens: u64,
    input_tokens_details: Cached,
    output_tokens: u64,
    output_tokens_details: Reasoned,
    total_tokens: u64,
}

/// That an answer was forgotten.
#[derive(ToSchema)]
pub(crate) struct Forgotten {
    id: String,
    #[schema(pattern = "^response$")]
    object: String,
    deleted: bool,
}

/// An answer of `/v1/messages`.
#[derive(ToSchema)]
pub(crate) struct MessageObject {
    id: String,
    #[schema(rename = "type", pattern = "^message$")]
    kind: String,
    #[schema(pattern = "^assistant$")]
    role: String,
    model: String,
    content: Vec<ContentBlock>,
    #[schema(pattern = "^(end_turn|max_tokens|stop_sequence|tool_use)$")]
    stop_reason: String,
    #[schema(required)]
    stop_sequence: Option<String>,
    usage: MessageUsage,
}

/// A thought, a text or a call.
#[derive(ToSchema)]
struct ContentBlock {
    #[schema(rename = "type", pattern = "^(thinking|text|tool_use)$")]
    kind: String,
    #[schema(nullable = false)]
    thinking: Option<String>,
    #[schema(nullable = false)]
    signature: Option<String>,
    #[schema(nullable = false)]
    text: Option<String>,
    #[schema(nullable = false)]
    id: Option<String>,
    #[schema(nullable = false)]
    name: Option<String>,
    #[schema(nullable = false)]
    input: Option<std::collections::BTreeMap<String, Value>>,
}

/// Tokens of a request; those that were warm are not among the input.
#[derive(ToSchema)]
struct MessageUsage {
    input_tokens: u64,
    cache_creation_input_tokens: u64,
    cache_read_input_tokens: u64,
    output_tokens: u64,
}

/// The length of a prompt.
#[derive(ToSchema)]
pub(crate) struct TokenCount {
    input_tokens: u64,
}

/// The models, of which there is one.
#[derive(ToSchema)]
pub(crate) struct ModelList {
    #[schema(pattern = "^list$")]
    object: String,
    data: Vec<Model>,
    has_more: bool,
    first_id: String,
    last_id: String,
}

/// A model, in the words of OpenAI and Anthropic.
#[derive(ToSchema)]
pub(crate) struct Model {
    id: String,
    #[schema(pattern = "^model$")]
    object: String,
    created: u64,
    owned_by: String,
    #[schema(rename = "type", pattern = "^model$")]
    kind: String,
    display_name: String,
    created_at: String,
    /// Null while nobody serves.
    #[schema(required)]
    meta: Option<ModelMeta>,
}

/// What clients plan by.
#[derive(ToSchema)]
struct ModelMeta {
    /// Most tokens of prompt and answer together.
    context_length: u64,
    /// Whether drafts are made.
    mtp: bool,
    /// How much is known of the model: whether it passed the gates of `mtplx verify`.
    #[schema(pattern = "^(verified|unverified|no-mtp|damaged)$")]
    tier: String,
}

/// A text as tokens.
#[derive(ToSchema)]
pub(crate) struct Tokenized {
    count: u64,
    /// Null while nobody serves.
    #[schema(required)]
    max_model_len: Option<u64>,
    tokens: Vec<u32>,
    #[schema(required)]
    token_strs: Option<Vec<String>>,
}

/// Tokens as a text.
#[derive(ToSchema)]
pub(crate) struct Detokenized {
    prompt: String,
}

/// The name of a state that was taken in.
#[derive(ToSchema)]
pub(crate) struct Imported {
    id: String,
}

/// An error as OpenAI writes it.
#[derive(ToSchema)]
pub(crate) struct OpenAiError {
    error: OpenAiErrorInner,
}

/// What is wrong.
#[derive(ToSchema)]
struct OpenAiErrorInner {
    /// What is wrong, and how to mend it.
    message: String,
    #[schema(rename = "type")]
    kind: String,
    /// The path of the field in the body.
    #[schema(required)]
    param: Option<String>,
    #[schema(required)]
    code: Option<String>,
}

/// An error as Anthropic writes it.
#[derive(ToSchema)]
pub(crate) struct AnthropicError {
    #[schema(rename = "type", pattern = "^error$")]
    kind: String,
    error: AnthropicErrorInner,
    #[schema(nullable = false)]
    request_id: Option<String>,
}

/// What is wrong.
#[derive(ToSchema)]
struct AnthropicErrorInner {
    #[schema(rename = "type")]
    kind: String,
    message: String,
}

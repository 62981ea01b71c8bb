//! Parts of requests that are read as plain JSON, field by field, because clients write them in
//! several ways; here they are described.

use serde_json::{Value, json};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{
    AdditionalProperties, Array, ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, SchemaType,
    Type,
};

fn string() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

fn one_of(kinds: impl IntoIterator<Item = RefOr<Schema>>) -> RefOr<Schema> {
    kinds.into_iter().fold(OneOfBuilder::new(), OneOfBuilder::item).into()
}

fn any_object() -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .additional_properties(Some(AdditionalProperties::FreeForm(true)))
}

fn array(items: impl Into<RefOr<Schema>>) -> Array {
    ArrayBuilder::new().items(items.into()).build()
}

fn null() -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::Null).into()
}

/// A string, or some.
pub(crate) fn strings() -> RefOr<Schema> {
    one_of([string().into(), array(string()).into(), null()])
}

/// A text, texts, tokens, or several lists of tokens.
pub(crate) fn prompts() -> RefOr<Schema> {
    let token = || ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0.0));
    let tokens = || array(token());
    let some = OneOfBuilder::new().item(string()).item(tokens()).build();
    one_of([string().into(), array(token()).into(), array(Schema::from(some)).into(), null()])
}

/// Parts of a message, all of them text.
fn parts(kinds: &[&str]) -> RefOr<Schema> {
    let kind = string().enum_values(Some(kinds.iter().copied()));
    let part = any_object().property("type", kind).property("text", string());
    array(part.required("type").required("text")).into()
}

/// A text, or parts of text.
pub(crate) fn content() -> RefOr<Schema> {
    one_of([string().into(), parts(&["text"]), null()])
}

/// A text, or blocks.
pub(crate) fn blocks() -> RefOr<Schema> {
    let kinds = ["text", "thinking", "redacted_thinking", "tool_use", "tool_result", "document"];
    let kind = string().enum_values(Some(kinds));
    let block = any_object().property("type", kind).required("type");
    one_of([string().into(), array(block).into()])
}

/// A text, or blocks of text.
pub(crate) fn system() -> RefOr<Schema> {
    one_of([string().into(), parts(&["text", "document"]), null()])
}

/// A text, or items of a conversation.
pub(crate) fn items() -> RefOr<Schema> {
    let kinds = ["message", "function_call", "function_call_output", "reasoning"];
    let kind = string().enum_values(Some(kinds));
    one_of([string().into(), array(any_object().property("type", kind)).into(), null()])
}

/// A function as chat declares it.
pub(crate) fn chat_tools() -> RefOr<Schema> {
    let kind = string().enum_values(Some(["function"]));
    let tool = any_object().property("type", kind).property("function", function("parameters"));
    optional(array(tool.required("type").required("function")).into())
}

/// A function as responses declare it.
pub(crate) fn flat_tools() -> RefOr<Schema> {
    let kind = string().enum_values(Some(["function"]));
    let tool = function("parameters").property("type", kind).required("type");
    optional(array(tool).into())
}

/// A function as messages declare it.
pub(crate) fn message_tools() -> RefOr<Schema> {
    optional(array(function("input_schema").required("input_schema")).into())
}

fn function(parameters: &str) -> ObjectBuilder {
    any_object()
        .property("name", string().min_length(Some(1)).max_length(Some(256)))
        .property("description", string())
        .property(parameters, any_object())
        .required("name")
}

fn optional(schema: RefOr<Schema>) -> RefOr<Schema> {
    one_of([schema, null()])
}

/// Whether tools are called: a word, or one function.
pub(crate) fn tool_choice() -> RefOr<Schema> {
    let word = string().enum_values(Some(["auto", "none", "required"]));
    let kind = string().enum_values(Some(["function"]));
    let named = any_object().property("type", kind).required("type");
    one_of([word.into(), named.into(), null()])
}

/// What an answer is to be.
pub(crate) fn format() -> RefOr<Schema> {
    let kind = string().enum_values(Some(["text", "json_object", "json_schema"]));
    optional(any_object().property("type", kind).required("type").into())
}

/// A JSON schema, or one written into a string.
pub(crate) fn schema() -> RefOr<Schema> {
    one_of([any_object().into(), string().into(), null()])
}

// What is accepted where it asks for nothing, and else refused.

/// Never.
pub(crate) fn never() -> RefOr<Schema> {
    null()
}

/// Not to be.
pub(crate) fn no() -> RefOr<Schema> {
    only(&[json!(false)])
}

/// An empty list.
pub(crate) fn none_of_them() -> RefOr<Schema> {
    only(&[json!([])])
}

/// No call.
pub(crate) fn no_call() -> RefOr<Schema> {
    only(&[json!("none"), json!("auto")])
}

/// Nothing but text.
pub(crate) fn text_only() -> RefOr<Schema> {
    only(&[json!(["text"])])
}

/// As long as answers are.
pub(crate) fn medium() -> RefOr<Schema> {
    only(&[json!("medium")])
}

/// No text.
pub(crate) fn no_text() -> RefOr<Schema> {
    only(&[json!("")])
}

/// As it is.
pub(crate) fn disabled() -> RefOr<Schema> {
    only(&[json!("disabled")])
}

fn only(values: &[Value]) -> RefOr<Schema> {
    let values = values.iter().cloned().chain([Value::Null]);
    ObjectBuilder::new().schema_type(SchemaType::AnyValue).enum_values(Some(values)).into()
}

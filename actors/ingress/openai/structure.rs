//! What an answer is to be: OpenAI's `response_format`, vLLM's `structured_outputs`, and the
//! `guided_*` that these were before.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{ApiError, Shared};
use crate::ingress::grammar::{Language, Structure};
use crate::ingress::openapi::asked;
use crate::ingress::unknown::Ignored;

/// vLLM's object: one of its languages, and how JSON is written.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
pub(crate) struct StructuredOutputs {
    #[schema(schema_with = asked::schema)]
    json: Option<Value>,
    json_object: Option<bool>,
    regex: Option<String>,
    choice: Option<Vec<String>>,
    grammar: Option<String>,
    disable_any_whitespace: Option<bool>,
}

impl Shared {
    /// The one structure that is asked for, if any is.
    pub(super) fn structure(
        &mut self,
        ignored: &mut Ignored,
    ) -> Result<Option<Structure>, ApiError> {
        let mut asked: Vec<Structure> = Vec::new();
        let format = self.response_format.take();
        let format = format.map(|format| response_format(format, ignored)).transpose()?;
        asked.extend(format.flatten());
        asked.extend(self.structured_outputs.take().map(structured_outputs).transpose()?.flatten());
        let json = self.guided_json.take().map(|schema| json_of("guided_json", schema, false));
        asked.extend(json.transpose()?);
        let regex = self.guided_regex.take().map(Language::Regex);
        asked.extend(regex.map(|language| Structure::new(language, "guided_regex")));
        let choice = self.guided_choice.take().map(|list| choice("guided_choice", list));
        asked.extend(choice.transpose()?);
        let grammar = self.guided_grammar.take().map(Language::Lark);
        asked.extend(grammar.map(|language| Structure::new(language, "guided_grammar")));
        if let [first, second, ..] = &asked[..] {
            let reason = format!("cannot be had together with {}; send one of them", first.field);
            return Err(ApiError::invalid(second.field, &reason));
        }
        let asked = asked.pop();
        if let Some(Structure { field, .. }) = asked.as_ref().filter(|_| self.ignores_eos()) {
            let reason = format!("cannot be had together with {field}, whose answers have an end");
            return Err(ApiError::invalid("ignore_eos", &reason));
        }
        Ok(asked)
    }

    fn ignores_eos(&self) -> bool {
        self.ignore_eos == Some(true)
    }
}

/// What chat calls `response_format`: the schema lies within `json_schema`.
fn response_format(format: Value, ignored: &mut Ignored) -> Result<Option<Structure>, ApiError> {
    let field = "response_format";
    let mut format = object_of(field, format)?;
    if format.get("type").and_then(Value::as_str) != Some("json_schema") {
        return flat(field, format, ignored);
    }
    only(&format, field, &["type", "json_schema"], ignored)?;
    let inner = format.remove("json_schema");
    let Some(Value::Object(inner)) = inner else {
        let reason = "must be an object with name and schema";
        return Err(ApiError::invalid("response_format.json_schema", reason));
    };
    schema_of((field, "response_format.json_schema"), inner, ignored).map(Some)
}

/// The same where the schema lies beside the type: `text.format` of OpenAI's responses, and
/// `output_config.format` of Anthropic's messages.
pub(crate) fn flat_format(
    field: &'static str,
    format: Value,
    ignored: &mut Ignored,
) -> Result<Option<Structure>, ApiError> {
    flat(field, object_of(field, format)?, ignored)
}

fn flat(
    field: &'static str,
    mut format: Map<String, Value>,
    ignored: &mut Ignored,
) -> Result<Option<Structure>, ApiError> {
    match format.remove("type").as_ref().and_then(Value::as_str) {
        Some("text") => only(&format, field, &[], ignored).map(|()| None),
        Some("json_object") => {
            only(&format, field, &[], ignored)?;
            json_of(field, json!({"type": "object"}), false).map(Some)
        }
        Some("json_schema") => schema_of((field, field), format, ignored).map(Some),
        _ => {
            let reason = "must be \"text\", \"json_object\" or \"json_schema\"";
            Err(ApiError::invalid(format!("{field}.type"), reason))
        }
    }
}

fn object_of(field: &'static str, format: Value) -> Result<Map<String, Value>, ApiError> {
    let Value::Object(format) = format else {
        return Err(ApiError::invalid(field, "must be an object with a type"));
    };
    Ok(format)
}

fn schema_of(
    (field, path): (&'static str, &str),
    mut inner: Map<String, Value>,
    ignored: &mut Ignored,
) -> Result<Structure, ApiError> {
    // `strict` or not, it is kept to the letter.
    only(&inner, path, &["name", "description", "schema", "strict"], ignored)?;
    let schema = inner.remove("schema").ok_or_else(|| {
        ApiError::invalid(format!("{path}.schema"), "must be given: a JSON schema")
    })?;
    json_of(field, schema, false)
}

fn structured_outputs(asked: StructuredOutputs) -> Result<Option<Structure>, ApiError> {
    let field = "structured_outputs";
    let compact = asked.disable_any_whitespace == Some(true);
    let object = asked.json_object.filter(|&wanted| wanted).map(|_| json!({"type": "object"}));
    let mut all = Vec::new();
    for schema in asked.json.into_iter().chain(object) {
        all.push(json_of(field, schema, compact)?);
    }
    all.extend(asked.regex.map(|regex| Structure::new(Language::Regex(regex), field)));
    all.extend(asked.choice.map(|list| choice(field, list)).transpose()?);
    all.extend(asked.grammar.map(|lark| Structure::new(Language::Lark(lark), field)));
    if all.len() > 1 {
        let reason = "must hold one of json, json_object, regex, choice and grammar";
        return Err(ApiError::invalid(field, reason));
    }
    Ok(all.pop())
}

/// A schema, or one written into a string.
fn json_of(field: &'static str, schema: Value, compact: bool) -> Result<Structure, ApiError> {
    let schema = match schema.as_str() {
        Some(text) => serde_json::from_str(text)
            .map_err(|e| ApiError::invalid(field, &format!("the string is not JSON: {e}")))?,
        None => schema,
    };
    if !(schema.is_object() || schema.is_boolean()) {
        return Err(ApiError::invalid(field, "a JSON schema is an object"));
    }
    Ok(Structure::new(Language::Json { schema, compact }, field))
}

fn choice(field: &'static str, list: Vec<String>) -> Result<Structure, ApiError> {
    if list.is_empty() || list.iter().any(String::is_empty) {
        return Err(ApiError::invalid(field, "must hold choices, none of them empty"));
    }
    Ok(Structure::new(Language::Choice(list), field))
}

fn only(
    object: &Map<String, Value>,
    path: &str,
    known: &[&str],
    ignored: &mut Ignored,
) -> Result<(), ApiError> {
    ignored.rest(object.keys().filter(|key| !known.contains(&key.as_str())), path)
}

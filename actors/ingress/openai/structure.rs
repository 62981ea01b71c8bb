//! What an answer is to be: OpenAI's `response_format`, vLLM's `structured_outputs`, and the
//! `guided_*` that these were before.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{ApiError, Shared};
use crate::ingress::grammar::{Language, Structure};

/// vLLM's object: one of its languages, and how JSON is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct StructuredOutputs {
    json: Option<Value>,
    json_object: Option<bool>,
    regex: Option<String>,
    choice: Option<Vec<String>>,
    grammar: Option<String>,
    disable_any_whitespace: Option<bool>,
}

impl Shared {
    /// The one structure that is asked for, if any is.
    pub(super) fn structure(&mut self) -> Result<Option<Structure>, ApiError> {
        let mut asked: Vec<Structure> = Vec::new();
        asked.extend(self.response_format.take().map(response_format).transpose()?.flatten());
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

fn response_format(format: Value) -> Result<Option<Structure>, ApiError> {
    let field = "response_format";
    let Value::Object(mut format) = format else {
        return Err(ApiError::invalid(field, "must be an object with a type"));
    };
    let known: &[&str] = match format.get("type").and_then(Value::as_str) {
        Some("text") => return only(&format, field, &["type"]).map(|()| None),
        Some("json_object") => {
            only(&format, field, &["type"])?;
            return json_of(field, json!({"type": "object"}), false).map(Some);
        }
        Some("json_schema") => &["type", "json_schema"],
        _ => {
            let reason = "must be \"text\", \"json_object\" or \"json_schema\"";
            return Err(ApiError::invalid("response_format.type", reason));
        }
    };
    only(&format, field, known)?;
    let Some(Value::Object(mut inner)) = format.remove("json_schema") else {
        let reason = "must be an object with name and schema";
        return Err(ApiError::invalid("response_format.json_schema", reason));
    };
    // `strict` or not, it is kept to the letter.
    only(&inner, "response_format.json_schema", &["name", "description", "schema", "strict"])?;
    let schema = inner.remove("schema").ok_or_else(|| {
        ApiError::invalid("response_format.json_schema.schema", "must be given: a JSON schema")
    })?;
    json_of(field, schema, false).map(Some)
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

/// Refuses what nobody knows.
fn only(object: &Map<String, Value>, path: &str, known: &[&str]) -> Result<(), ApiError> {
    match object.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(ApiError::unknown(format!("{path}.{key}"))),
        None => Ok(()),
    }
}

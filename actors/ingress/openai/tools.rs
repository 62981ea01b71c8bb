//! Tools: what may be called, and what must be.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::error::ApiError;
use crate::ingress::reply::{NAME_MAX, Tools};
use crate::ingress::text::{Chat, Must};
use crate::ingress::unknown::Ignored;

/// How replies to a request are read.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Reading {
    /// Tools that may be called, if any.
    pub(crate) tools: Option<Arc<Tools>>,
    /// Whether one call is all that is wanted.
    pub(crate) one_call: bool,
    /// Whether it is a text without markup: a plain completion.
    pub(crate) plain: bool,
    /// Tools of which one must be called.
    pub(crate) demanded: Vec<Value>,
}

/// Which tools are to be called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum ToolChoice {
    /// As the model thinks best.
    #[default]
    Auto,
    /// None: the model is not told of any.
    None,
    /// Some tool.
    Required,
    /// This one.
    Named(String),
}

impl ToolChoice {
    /// Lays the choice upon a conversation whose tools are declared. A call that must come is begun
    /// in the prompt; that it is gone on with as declared, a grammar sees to.
    pub(crate) fn apply(self, chat: &mut Chat, parallel: Option<bool>) -> Reading {
        if self == Self::None {
            chat.tools.clear();
        }
        let tools = (!chat.tools.is_empty()).then(|| Arc::new(Tools::new(&chat.tools)));
        chat.must = match self {
            Self::Auto | Self::None => Must::Nothing,
            Self::Named(name) => Must::Call(Some(name)),
            Self::Required => Must::Call(match chat.tools.as_slice() {
                [only] => only["function"]["name"].as_str().map(str::to_owned),
                _ => None,
            }),
        };
        let is_named = |tool: &&Value| match &chat.must {
            Must::Call(Some(name)) => tool["function"]["name"] == **name,
            Must::Call(None) => true,
            Must::Nothing | Must::NotThink => false,
        };
        let demanded = chat.tools.iter().filter(is_named).cloned().collect();
        Reading { tools, one_call: parallel == Some(false), plain: false, demanded }
    }
}

/// Tools as a client declares them, made into what templates read.
pub(crate) fn declared(tools: Vec<Value>, ignored: &mut Ignored) -> Result<Vec<Value>, ApiError> {
    let mut out = Vec::new();
    for (i, tool) in tools.into_iter().enumerate() {
        let path = format!("tools[{i}]");
        let Value::Object(mut tool) = tool else {
            return Err(ApiError::invalid(path, "must be an object with type and function"));
        };
        match tool.get("type").and_then(Value::as_str) {
            Some("function") => {}
            Some(kind) => {
                ignored.tool(&path, kind)?;
                continue;
            }
            None => return Err(ApiError::invalid(format!("{path}.type"), "must be \"function\"")),
        }
        let Some(Value::Object(function)) = tool.remove("function") else {
            let path = format!("{path}.function");
            return Err(ApiError::invalid(path, "must be an object with name and parameters"));
        };
        // A hint for caches; ours finds what is warm by itself.
        tool.remove("cache_control");
        ignored.rest(tool.keys().filter(|key| *key != "type"), &path)?;
        out.push(checked(function, &format!("{path}.function"), ignored)?);
    }
    unique(&out)?;
    Ok(out)
}

/// A tool that would have to run here.
pub(crate) fn hosted(path: &str, kind: &str) -> ApiError {
    let why = match kind {
        "custom" => "take a text that is no JSON, which this server does not read; declare",
        _ => "are run by their maker's servers, not by this one; declare",
    };
    let reason =
        format!("tools of type {kind} {why} functions, and turn this tool off in the client");
    let param = format!("{path}.type");
    let message = format!("{param}: {reason}");
    ApiError::Param { param, code: "unsupported_tool", message }
}

/// One function, checked and in the order that templates show.
pub(crate) fn checked(
    mut function: Map<String, Value>,
    path: &str,
    ignored: &mut Ignored,
) -> Result<Value, ApiError> {
    let name = function.remove("name");
    let name = name.as_ref().and_then(Value::as_str).filter(|name| is_name(name));
    let name = name.ok_or_else(|| {
        let reason = format!(
            "must be 1 to {NAME_MAX} characters without white space, quotes and angle brackets"
        );
        ApiError::invalid(format!("{path}.name"), &reason)
    })?;
    let mut out = Map::from_iter([("name".to_owned(), Value::from(name))]);
    for (key, fine) in
        [("description", Value::is_string as fn(&Value) -> bool), ("parameters", Value::is_object)]
    {
        match function.remove(key) {
            Some(value) if fine(&value) => out.insert(key.into(), value),
            Some(Value::Null) | None => None,
            Some(_) => {
                let kind = if key == "parameters" { "a JSON schema" } else { "a string" };
                let reason = format!("must be {kind}");
                return Err(ApiError::invalid(format!("{path}.{key}"), &reason));
            }
        };
    }
    // Arguments are typed by the schema, but not held to it; tools are never put off, so who
    // searches for one finds it; examples and the shape of results are not shown to the model.
    let nothing = [
        ("strict", json!(false)),
        ("defer_loading", json!(false)),
        ("allowed_callers", json!(["direct"])),
        ("input_examples", json!([])),
        ("output_schema", Value::Null),
    ];
    for (hint, nothing) in nothing {
        let asked = function.remove(hint).filter(|value| !value.is_null() && *value != nothing);
        if asked.is_some() {
            ignored.hint(format!("{path}.{hint}"));
        }
    }
    ignored.rest(function.keys(), path)?;
    Ok(json!({"type": "function", "function": out}))
}

fn is_name(name: &str) -> bool {
    let odd = |c: char| c.is_whitespace() || c.is_control() || "<>\"'{}".contains(c);
    (1..=NAME_MAX).contains(&name.len()) && !name.contains(odd)
}

/// Refuses two tools of one name.
pub(crate) fn unique(tools: &[Value]) -> Result<(), ApiError> {
    let mut seen = BTreeSet::new();
    match tools.iter().find(|tool| !seen.insert(tool["function"]["name"].as_str())) {
        Some(twice) => {
            let name = &twice["function"]["name"];
            Err(ApiError::invalid("tools", &format!("two tools have the name {name}")))
        }
        None => Ok(()),
    }
}

/// `tool_choice` as OpenAI's chat writes it, or as its responses do.
pub(crate) fn choice(value: Option<Value>, tools: &[Value]) -> Result<ToolChoice, ApiError> {
    let Some(value) = value else { return Ok(ToolChoice::Auto) };
    let invalid = |reason: &str| Err(ApiError::invalid("tool_choice", reason));
    let choice = match value.as_str() {
        Some("auto") => ToolChoice::Auto,
        Some("none") => ToolChoice::None,
        Some("required") => ToolChoice::Required,
        Some(_) => return invalid("must be \"auto\", \"none\", \"required\" or a function"),
        None if value["type"] == "function" => {
            let name = value.get("name").or_else(|| value.get("function")?.get("name"));
            match name.and_then(Value::as_str) {
                Some(name) => ToolChoice::Named(name.to_owned()),
                None => return invalid("must name the function"),
            }
        }
        None => {
            let reason = "only \"auto\", \"none\", \"required\" and one function are supported";
            return Err(ApiError::unsupported("tool_choice", reason));
        }
    };
    demand_declared(choice, tools, "tool_choice")
}

/// What must be called has to be declared.
pub(crate) fn demand_declared(
    choice: ToolChoice,
    tools: &[Value],
    field: &'static str,
) -> Result<ToolChoice, ApiError> {
    let missing = match &choice {
        ToolChoice::Auto | ToolChoice::None => None,
        ToolChoice::Required => tools.is_empty().then_some("there are no tools to call".to_owned()),
        ToolChoice::Named(name) => {
            let known = tools.iter().any(|tool| tool["function"]["name"] == *name);
            (!known).then(|| format!("no tool is named {}", Value::from(name.as_str())))
        }
    };
    match missing {
        Some(reason) => Err(ApiError::invalid(field, &reason)),
        None => Ok(choice),
    }
}

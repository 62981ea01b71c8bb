//! Grammars of calls: what a model may write where a client demands that it calls a tool. Names are
//! those of the declared tools, arguments are what their schemas describe.

use std::collections::BTreeSet;
use std::fmt::Write;

use mtplx_core::request::Refusal;
use serde_json::{Map, Value, json};

use super::{Language, SOURCE_BYTES_MAX, SPACE};
use crate::ingress::reply::{ALL_VISITS_MAX, Kinds};

/// How a model writes a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Qwen3.5's and Qwen3-Coder's `<function=f><parameter=x>`.
    Tags,
    /// Hermes's and Qwen3's JSON of name and arguments.
    Json,
}

/// What is demanded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Calls<'a> {
    pub(crate) form: Form,
    /// Declared tools, as OpenAI's chat has them; of a named one, that alone.
    pub(crate) tools: &'a [Value],
    /// Whether one call is all there may be.
    pub(crate) one: bool,
    /// Whether `<tool_call>` and `</tool_call>` are tokens of their own.
    pub(crate) marks: bool,
}

impl Calls<'_> {
    /// The language of such a reply: one call, or several on lines of their own.
    pub(crate) fn language(&self) -> Result<Language, Refusal> {
        Ok(Language::Lark(self.lark("start")?))
    }

    /// The same, or an answer of this language; `None` where the two cannot be put together.
    pub(crate) fn or(&self, answer: &Language) -> Result<Option<Language>, Refusal> {
        let answer = match answer {
            Language::Json { schema, compact } => {
                let any = *schema == Value::Bool(true);
                let schema = if any { json!({}) } else { schema.clone() };
                format!("answer: %json {}", bounded(schema, *compact))
            }
            Language::Choice(choices) => {
                let choices: Vec<String> = choices.iter().map(|choice| quoted(choice)).collect();
                format!("answer: ANSWER\nANSWER: {}", choices.join(" | "))
            }
            // They have slashes, names and a start of their own.
            Language::Regex(_) | Language::Lark(_) => return Ok(None),
        };
        let calls = self.lark("calls")?;
        let text = format!("start: answer | calls\n{answer}\n{calls}");
        Ok(Some(Language::Lark(text)))
    }

    fn lark(&self, start: &str) -> Result<String, Refusal> {
        let (open, close) = match self.marks {
            true => ("<tool_call>", "</tool_call>"),
            false => ("\"<tool_call>\"", "\"</tool_call>\""),
        };
        let functions: Vec<String> =
            (0..self.tools.len()).map(|i| format!("function_{i}")).collect();
        let more = if self.one { "" } else { " (\"\\n\" call)*" };
        let mut lark = Lark { text: String::new(), visits: ALL_VISITS_MAX };
        lark.line(&format!("{start}: call{more}"))?;
        lark.line(&format!("call: {open} \"\\n\" function \"\\n\" {close}"))?;
        lark.line(&format!("function: {}", functions.join(" | ")))?;
        for (i, tool) in self.tools.iter().enumerate() {
            let function = tool.get("function").unwrap_or(tool);
            let name = function["name"].as_str().unwrap_or_default();
            let schema = &function["parameters"];
            match self.form {
                Form::Tags => tags(&mut lark, i, name, schema)?,
                Form::Json => object(&mut lark, i, name, schema)?,
            }
        }
        Ok(lark.text)
    }
}

/// The same tool with its parameters named, and nothing said of what they may be.
pub(crate) fn loosened(tool: &Value) -> Value {
    let function = tool.get("function").unwrap_or(tool);
    let parameters = &function["parameters"];
    let names = parameters["properties"].as_object().into_iter().flatten();
    let properties: Map<_, _> = names.map(|(name, _)| (name.clone(), json!({}))).collect();
    let required = parameters["required"].as_array().into_iter().flatten();
    let required: Vec<_> = required.filter(|name| name.is_string()).collect();
    let parameters = json!({"type": "object", "properties": properties, "required": required});
    json!({"name": function["name"], "parameters": parameters})
}

/// A text in the making. Definitions are written for each parameter that refers to them, so a short
/// body may come to an endless text: it is bounded while it is made, not afterwards.
struct Lark {
    text: String,
    /// Schemas that may still be looked at to type parameters.
    visits: usize,
}

impl Lark {
    fn line(&mut self, line: &str) -> Result<(), Refusal> {
        if self.left() <= line.len() {
            return Err(too_long());
        }
        self.text.push_str(line);
        self.text.push('\n');
        Ok(())
    }

    /// Bytes for which there is room.
    fn left(&self) -> usize {
        SOURCE_BYTES_MAX.saturating_sub(self.text.len())
    }
}

fn too_long() -> Refusal {
    let reason = format!("come to a grammar of more than {SOURCE_BYTES_MAX} bytes");
    Refusal::Invalid { field: "tools", reason }
}

/// One function in Hermes's words.
fn object(lark: &mut Lark, i: usize, name: &str, schema: &Value) -> Result<(), Refusal> {
    let any = json!({"type": "object"});
    let schema = if schema.is_object() { schema.clone() } else { any };
    // The name is JSON within JSON.
    let head = format!("{{\"name\": {}, \"arguments\": ", Value::from(name));
    lark.line(&format!("function_{i}: {} arguments_{i} \"}}\"", quoted(&head)))?;
    lark.line(&format!("arguments_{i}: %json {}", bounded(schema, false)))
}

/// One function in Qwen's words: required parameters in the order of their declaration, others
/// between them where they stand.
fn tags(lark: &mut Lark, i: usize, name: &str, schema: &Value) -> Result<(), Refusal> {
    let none = Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&none);
    let required = schema["required"].as_array();
    let is_required = |key: &str| required.is_some_and(|all| all.iter().any(|name| name == key));
    let mut body = String::new();
    for (n, (key, kind)) in properties.iter().enumerate() {
        let optional = if is_required(key) { "" } else { "?" };
        let _ = write!(body, " parameter_{i}_{n}{optional}");
        let open = quoted(&format!("<parameter={key}>\n"));
        lark.line(&format!("parameter_{i}_{n}: {open} value_{i}_{n}"))?;
        value(lark, &format!("value_{i}_{n}"), kind, schema)?;
    }
    let head = quoted(&format!("<function={name}>\n"));
    lark.line(&format!("function_{i}: {head}{body} \"</function>\""))
}

const CLOSE: &str = "\"\\n</parameter>\\n\"";

/// Schemas and values that are looked at for a choice of literals.
const LITERALS_MAX: usize = 1000;

/// Where definitions stand.
const DEFINITIONS: [&str; 2] = ["$defs", "definitions"];

/// A value and its closing tag. What may be a string is written, and read, as it is; all else as
/// JSON.
fn value(lark: &mut Lark, rule: &str, kind: &Value, whole: &Value) -> Result<(), Refusal> {
    if Kinds::sharing(kind, whole, &mut lark.visits).allows_string() {
        let mut literals = Literals { whole, visits: LITERALS_MAX, left: lark.left(), all: vec![] };
        if literals.gather(kind)?.is_some() && !literals.all.is_empty() {
            return lark.line(&format!("{rule}: ({}) {CLOSE}", literals.all.join(" | ")));
        }
        return lark.line(&format!("{rule}[suffix={CLOSE}]: /(?s:.*)/"));
    }
    let mut schema = kind.clone();
    if let Some(schema) = schema.as_object_mut() {
        // What a parameter refers to stands beside the parameters.
        define(schema, whole);
    }
    lark.line(&format!("{rule}: json_{rule} {CLOSE}"))?;
    lark.line(&format!("json_{rule}: %json {}", bounded(schema, false)))
}

/// All that a value may be, where a schema counts it up.
struct Literals<'a> {
    whole: &'a Value,
    /// Schemas and values that may still be looked at.
    visits: usize,
    /// Bytes for which there is room.
    left: usize,
    all: Vec<String>,
}

impl Literals<'_> {
    /// `None` where the schema does not count them up, or counts too many.
    fn gather(&mut self, schema: &Value) -> Result<Option<()>, Refusal> {
        if !self.visit(1) {
            return Ok(None);
        }
        if let Some(values) = schema["enum"].as_array() {
            if !self.visit(values.len()) {
                return Ok(None);
            }
            values.iter().try_for_each(|value| self.add(value))?;
        } else if let Some(value) = schema.get("const") {
            self.add(value)?;
        } else if schema["type"] == "null" {
            self.add(&Value::Null)?;
        } else if let Some(some) = schema["anyOf"].as_array().or(schema["oneOf"].as_array()) {
            for schema in some {
                if self.gather(schema)?.is_none() {
                    return Ok(None);
                }
            }
        } else {
            let path = schema["$ref"].as_str().and_then(|path| path.strip_prefix('#'));
            let Some(target) = path.and_then(|path| self.whole.pointer(path)) else {
                return Ok(None);
            };
            return self.gather(target);
        }
        Ok(Some(()))
    }

    fn visit(&mut self, count: usize) -> bool {
        let left = self.visits.checked_sub(count);
        self.visits = left.unwrap_or(0);
        left.is_some()
    }

    fn add(&mut self, value: &Value) -> Result<(), Refusal> {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let text = quoted(&text);
        self.left = self.left.checked_sub(text.len()).ok_or_else(too_long)?;
        self.all.push(text);
        Ok(())
    }
}

/// Adds what a schema refers to, directly or by way of a definition, and no more.
fn define(schema: &mut Map<String, Value>, whole: &Value) {
    let mut named = BTreeSet::new();
    let mut new = Vec::new();
    schema.values().for_each(|value| references(value, &mut new));
    new.extend(schema.get("$ref").and_then(Value::as_str).map(str::to_owned));
    let mut found: [Map<String, Value>; 2] = Default::default();
    while let Some(path) = new.pop() {
        for (place, found) in DEFINITIONS.iter().zip(&mut found) {
            let rest = path.strip_prefix("#/").and_then(|path| path.strip_prefix(place));
            let Some(rest) = rest.and_then(|rest| rest.strip_prefix('/')) else { continue };
            let name = rest.split('/').next().unwrap_or_default();
            let name = name.replace("~1", "/").replace("~0", "~");
            let Some(definition) = whole[place].get(&name) else { continue };
            if named.insert((*place, name.clone())) {
                references(definition, &mut new);
                found.insert(name, definition.clone());
            }
        }
    }
    for (place, found) in DEFINITIONS.into_iter().zip(found) {
        if !found.is_empty() {
            schema.entry(place).or_insert(Value::Object(found));
        }
    }
}

/// All references within a schema.
fn references(schema: &Value, out: &mut Vec<String>) {
    match schema {
        Value::Object(map) => {
            out.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
            map.values().for_each(|value| references(value, out));
        }
        Value::Array(list) => list.iter().for_each(|value| references(value, out)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A schema whose texts hold no endless space, or none at all.
fn bounded(mut schema: Value, compact: bool) -> Value {
    if let Some(schema) = schema.as_object_mut() {
        let options = match compact {
            true => json!({"whitespace_flexible": false, "coerce_one_of": true}),
            false => json!({"whitespace_pattern": SPACE, "coerce_one_of": true}),
        };
        schema.insert("x-guidance".into(), options);
    }
    schema
}

/// As a literal of Lark.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

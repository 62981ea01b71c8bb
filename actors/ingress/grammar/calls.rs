//! Grammars of calls: what a model may write where a client demands that it calls a tool. Names are
//! those of the declared tools, arguments are what their schemas describe.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::{Language, SPACE};
use crate::ingress::reply::Kinds;

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
    pub(crate) fn language(&self) -> Language {
        Language::Lark(self.lark("start"))
    }

    /// The same, or an answer of this language; `None` where the two cannot be put together.
    pub(crate) fn or(&self, answer: &Language) -> Option<Language> {
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
            Language::Regex(_) | Language::Lark(_) => return None,
        };
        let calls = self.lark("calls");
        Some(Language::Lark(format!("start: answer | calls\n{answer}\n{calls}")))
    }

    fn lark(&self, start: &str) -> String {
        let (open, close) = match self.marks {
            true => ("<tool_call>", "</tool_call>"),
            false => ("\"<tool_call>\"", "\"</tool_call>\""),
        };
        let functions: Vec<String> =
            (0..self.tools.len()).map(|i| format!("function_{i}")).collect();
        let more = if self.one { "" } else { " (\"\\n\" call)*" };
        let mut lark = format!(
            "{start}: call{more}\ncall: {open} \"\\n\" function \"\\n\" {close}\nfunction: {}\n",
            functions.join(" | ")
        );
        for (i, tool) in self.tools.iter().enumerate() {
            let function = tool.get("function").unwrap_or(tool);
            let name = function["name"].as_str().unwrap_or_default();
            let schema = function.get("parameters").cloned().unwrap_or(Value::Null);
            match self.form {
                Form::Tags => tags(&mut lark, i, name, &schema),
                Form::Json => object(&mut lark, i, name, schema),
            }
        }
        lark
    }
}

/// One function in Hermes's words.
fn object(lark: &mut String, i: usize, name: &str, schema: Value) {
    let any = json!({"type": "object"});
    let schema = if schema.is_object() { schema } else { any };
    // The name is JSON within JSON.
    let head = format!("{{\"name\": {}, \"arguments\": ", Value::from(name));
    line(lark, &format!("function_{i}: {} arguments_{i} \"}}\"", quoted(&head)));
    line(lark, &format!("arguments_{i}: %json {}", bounded(schema, false)));
}

/// One function in Qwen's words: required parameters in the order of their declaration, others
/// between them where they stand.
fn tags(lark: &mut String, i: usize, name: &str, schema: &Value) {
    let none = Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&none);
    let required = schema["required"].as_array();
    let is_required = |key: &str| required.is_some_and(|all| all.iter().any(|name| name == key));
    let mut body = String::new();
    for (n, (key, kind)) in properties.iter().enumerate() {
        let optional = if is_required(key) { "" } else { "?" };
        let _ = write!(body, " parameter_{i}_{n}{optional}");
        let open = quoted(&format!("<parameter={key}>\n"));
        line(lark, &format!("parameter_{i}_{n}: {open} value_{i}_{n}"));
        value(lark, &format!("value_{i}_{n}"), kind, schema);
    }
    let head = quoted(&format!("<function={name}>\n"));
    line(lark, &format!("function_{i}: {head}{body} \"</function>\""));
}

const CLOSE: &str = "\"\\n</parameter>\\n\"";

/// Schemas and values that are looked at for a choice of literals.
const LITERALS_MAX: usize = 1000;

/// A value and its closing tag. What may be a string is written, and read, as it is; all else as
/// JSON.
fn value(lark: &mut String, rule: &str, kind: &Value, whole: &Value) {
    if Kinds::of(kind, whole).allows_string() {
        let mut choices = Vec::new();
        let few = literals(kind, whole, &mut LITERALS_MAX.clone(), &mut choices);
        if few.is_some() && !choices.is_empty() {
            line(lark, &format!("{rule}: ({}) {CLOSE}", choices.join(" | ")));
        } else {
            line(lark, &format!("{rule}[suffix={CLOSE}]: /(?s:.*)/"));
        }
    } else {
        let mut schema = kind.clone();
        // What a parameter refers to stands beside the parameters.
        for key in ["$defs", "definitions"] {
            if let (Some(schema), Some(defs)) = (schema.as_object_mut(), whole.get(key)) {
                schema.entry(key).or_insert_with(|| defs.clone());
            }
        }
        line(lark, &format!("{rule}: json_{rule} {CLOSE}"));
        line(lark, &format!("json_{rule}: %json {}", bounded(schema, false)));
    }
}

/// All that a value may be, where a schema counts it up.
fn literals(schema: &Value, whole: &Value, left: &mut usize, out: &mut Vec<String>) -> Option<()> {
    *left = left.checked_sub(1)?;
    let mut literal = |value: &Value| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        out.push(quoted(&text));
    };
    if let Some(values) = schema["enum"].as_array() {
        *left = left.checked_sub(values.len())?;
        values.iter().for_each(&mut literal);
    } else if let Some(value) = schema.get("const") {
        literal(value);
    } else if schema["type"] == "null" {
        literal(&Value::Null);
    } else if let Some(some) = schema["anyOf"].as_array().or_else(|| schema["oneOf"].as_array()) {
        for schema in some {
            literals(schema, whole, left, out)?;
        }
    } else {
        let path = schema["$ref"].as_str()?.strip_prefix('#')?;
        literals(whole.pointer(path)?, whole, left, out)?;
    }
    Some(())
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

fn line(lark: &mut String, text: &str) {
    lark.push_str(text);
    lark.push('\n');
}

//! Chat templates as transformers renders them: Jinja with trimmed blocks, Python's methods on
//! strings and maps, Python's JSON, `raise_exception` and `strftime_now`.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde_json::{Map, Value as Json};

use super::{Chat, TextError, clock, python};

const NAME: &str = "chat_template";

/// What the caller may not set: these are the renderer's own.
pub(crate) const RESERVED: [&str; 3] = ["messages", "tools", "add_generation_prompt"];

/// A compiled chat template.
pub(super) struct Renderer {
    environment: Environment<'static>,
    special_tokens: Value,
    thinks: bool,
    /// Whether calls are written with tags for every parameter, rather than as JSON.
    tags: bool,
}

/// One rendering.
pub(super) struct Scene<'a> {
    pub(super) chat: &'a Chat,
    /// Whether the assistant's turn is begun.
    pub(super) generation_prompt: bool,
}

impl Renderer {
    pub(super) fn new(source: String, special: Map<String, Json>) -> Result<Self, TextError> {
        let unusable =
            |e: Error| TextError::File { file: "chat_template.jinja", reason: explain(&e) };
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(unusable)?);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        let (thinks, tags) = (source.contains("</think>"), source.contains("<function="));
        environment.add_template_owned(NAME, source).map_err(unusable)?;
        Ok(Self { environment, special_tokens: Value::from(Serde(special)), thinks, tags })
    }

    /// Whether the template marks what was thought.
    pub(super) fn thinks(&self) -> bool {
        self.thinks
    }

    /// Whether calls are written with tags for every parameter.
    pub(super) fn tags(&self) -> bool {
        self.tags
    }

    /// The beginning of a call, as this model writes it.
    pub(super) fn call(&self, name: Option<&str>) -> String {
        let (open, close) = if self.tags {
            ("<tool_call>\n<function=", ">\n")
        } else {
            ("<tool_call>\n{\"name\": \"", "\", \"arguments\": ")
        };
        match name {
            Some(name) => format!("{open}{name}{close}"),
            None => open.to_owned(),
        }
    }

    /// Renders, or says in the template's words why it cannot.
    pub(super) fn render(&self, scene: &Scene<'_>) -> Result<String, String> {
        let Chat { messages, tools, kwargs, .. } = scene.chat;
        let own = context! {
            messages => Serde(messages),
            tools => if tools.is_empty() { Value::UNDEFINED } else { Value::from(Serde(tools)) },
            add_generation_prompt => scene.generation_prompt,
        };
        let kwargs = Value::from(Serde(kwargs));
        let context = context! { ..own, ..kwargs, ..self.special_tokens.clone() };
        let template = self.environment.get_template(NAME).map_err(|e| explain(&e))?;
        template.render(context).map_err(|e| explain(&e))
    }
}

/// One line: the innermost cause is what the template's author wrote.
fn explain(error: &Error) -> String {
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

fn strftime_now(format: String) -> Result<String, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    clock::strftime(&format, now).map_err(|e| Error::new(ErrorKind::InvalidOperation, e))
}

fn tojson(value: Value, options: Kwargs) -> Result<String, Error> {
    let style = python::Style {
        indent: options.get::<Option<usize>>("indent")?,
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    python::json(&value, style).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))
}

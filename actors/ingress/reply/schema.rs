//! The tools of a request, as far as reading their calls goes: names, and the types of parameters.

use std::collections::BTreeMap;

use serde_json::Value;

/// Most bytes of a tool's name.
pub(crate) const NAME_MAX: usize = 256;
/// References and alternatives are followed so deep.
const DEPTH_MAX: usize = 8;

/// Declared tools.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Tools(BTreeMap<String, BTreeMap<String, Kinds>>);

impl Tools {
    /// Of tools as templates read them; they were checked.
    pub(crate) fn new(tools: &[Value]) -> Self {
        let entries = tools.iter().filter_map(|tool| {
            let function = &tool["function"];
            let schema = &function["parameters"];
            let properties = schema["properties"].as_object().into_iter().flatten();
            let kinds = properties.map(|(key, of)| (key.clone(), Kinds::of(of, schema)));
            Some((function["name"].as_str()?.to_owned(), kinds.collect()))
        });
        Self(entries.collect())
    }

    pub(crate) fn knows(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// What a parameter may be; anything, if nobody said.
    pub(super) fn kinds(&self, tool: &str, key: &str) -> Kinds {
        self.0.get(tool).and_then(|keys| keys.get(key)).copied().unwrap_or(Kinds::ANY)
    }
}

/// A set of JSON's types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kinds(u8);

impl Kinds {
    pub(super) const STRING: Self = Self(1);
    const NUMBER: Self = Self(2);
    const BOOLEAN: Self = Self(4);
    const NULL: Self = Self(8);
    const OBJECT: Self = Self(16);
    const ARRAY: Self = Self(32);
    /// Nothing was declared.
    pub(super) const ANY: Self = Self(63);

    /// The types that a schema allows; `root` is where its references begin.
    pub(super) fn of(schema: &Value, root: &Value) -> Self {
        match Self::said(schema, root, DEPTH_MAX) {
            Self(0) => Self::ANY,
            some => some,
        }
    }

    fn said(schema: &Value, root: &Value, depth: usize) -> Self {
        if depth == 0 {
            return Self(0);
        }
        let mut kinds = Self(0);
        let named = &schema["type"];
        let names = named.as_array().into_iter().flatten().chain([named]);
        names.filter_map(Value::as_str).for_each(|name| kinds.add(Self::named(name)));
        if kinds != Self(0) {
            return kinds;
        }
        let values = schema["enum"].as_array().into_iter().flatten().chain(schema.get("const"));
        values.for_each(|value| kinds.add(Self::kind(value)));
        for key in ["anyOf", "oneOf", "allOf"] {
            let inner = schema[key].as_array().into_iter().flatten();
            inner.for_each(|s| kinds.add(Self::said(s, root, depth - 1)));
        }
        let target = schema["$ref"].as_str().and_then(|path| root.pointer(path.strip_prefix('#')?));
        target.iter().for_each(|s| kinds.add(Self::said(s, root, depth - 1)));
        if schema.get("properties").is_some() {
            kinds.add(Self::OBJECT);
        }
        if schema.get("items").is_some() {
            kinds.add(Self::ARRAY);
        }
        kinds
    }

    fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }

    fn named(name: &str) -> Self {
        match name {
            "string" => Self::STRING,
            "number" | "integer" => Self::NUMBER,
            "boolean" => Self::BOOLEAN,
            "null" => Self::NULL,
            "object" => Self::OBJECT,
            "array" => Self::ARRAY,
            _ => Self(0),
        }
    }

    fn kind(value: &Value) -> Self {
        match value {
            Value::String(_) => Self::STRING,
            Value::Number(_) => Self::NUMBER,
            Value::Bool(_) => Self::BOOLEAN,
            Value::Null => Self::NULL,
            Value::Object(_) => Self::OBJECT,
            Value::Array(_) => Self::ARRAY,
        }
    }

    /// Whether the value may be this, which is no string: strings are never written as JSON.
    pub(super) fn allows(self, value: &Value) -> bool {
        !value.is_string() && self.0 & Self::kind(value).0 != 0
    }

    pub(super) fn allows_null(self) -> bool {
        self.0 & Self::NULL.0 != 0
    }

    /// Whether it is a string or nothing.
    pub(super) fn is_string(self) -> bool {
        self.0 & !Self::NULL.0 == Self::STRING.0
    }
}

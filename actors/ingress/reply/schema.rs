//! The tools of a request, as far as reading their calls goes: names, and the types of parameters.

use std::collections::BTreeMap;

use serde_json::Value;

/// Most bytes of a tool's name.
pub(crate) const NAME_MAX: usize = 256;
/// References and alternatives are followed so deep.
const DEPTH_MAX: usize = 8;
/// Schemas that are looked at to type one parameter, and all of a request. References may go in
/// circles, so that a short text comes to any number of them.
const VISITS_MAX: usize = 1000;
pub(crate) const ALL_VISITS_MAX: usize = 100_000;

/// Declared tools.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Tools(BTreeMap<String, BTreeMap<String, Kinds>>);

impl Tools {
    /// Of tools as templates read them; they were checked.
    pub(crate) fn new(tools: &[Value]) -> Self {
        let mut all = ALL_VISITS_MAX;
        let entries = tools.iter().filter_map(|tool| {
            let function = &tool["function"];
            let schema = &function["parameters"];
            let properties = schema["properties"].as_object().into_iter().flatten();
            let kinds =
                properties.map(|(key, of)| (key.clone(), Kinds::sharing(of, schema, &mut all)));
            let kinds = kinds.collect();
            Some((function["name"].as_str()?.to_owned(), kinds))
        });
        Self(entries.collect())
    }

    pub(crate) fn knows(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Whether somebody said what this parameter may be.
    pub(super) fn declares(&self, tool: &str, key: &str) -> bool {
        self.0.get(tool).is_some_and(|keys| keys.contains_key(key))
    }

    /// What a parameter may be; anything, if nobody said.
    pub(super) fn kinds(&self, tool: &str, key: &str) -> Kinds {
        self.0.get(tool).and_then(|keys| keys.get(key)).copied().unwrap_or(Kinds::ANY)
    }
}

/// A set of JSON's types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kinds(u8);

impl Kinds {
    pub(super) const STRING: Self = Self(1);
    const NUMBER: Self = Self(2);
    const BOOLEAN: Self = Self(4);
    const NULL: Self = Self(8);
    const OBJECT: Self = Self(16);
    const ARRAY: Self = Self(32);
    /// Nothing was declared.
    pub(super) const ANY: Self = Self(63);

    /// The types that a schema allows, as tests ask for them.
    #[cfg(test)]
    pub(super) fn of(schema: &Value, root: &Value) -> Self {
        Self::within(schema, root, &mut VISITS_MAX.clone())
    }

    /// The types that a schema allows; `root` is where its references begin, `all` the visits that
    /// are left to its request.
    pub(crate) fn sharing(schema: &Value, root: &Value, all: &mut usize) -> Self {
        let most = VISITS_MAX.min(*all);
        let mut left = most;
        let kinds = Self::within(schema, root, &mut left);
        *all -= most - left;
        kinds
    }

    /// The same by so many visits at most: where they do not suffice, it may be anything.
    fn within(schema: &Value, root: &Value, left: &mut usize) -> Self {
        let mut kinds = Self(0);
        kinds.learn(schema, root, (DEPTH_MAX, left));
        if kinds == Self(0) { Self::ANY } else { kinds }
    }

    /// Adds what a schema says, until nothing can be added any more.
    fn learn(&mut self, schema: &Value, root: &Value, (depth, left): (usize, &mut usize)) {
        if depth == 0 || *self == Self::ANY {
            return;
        }
        if *left == 0 {
            *self = Self::ANY;
            return;
        }
        *left -= 1;
        let named = &schema["type"];
        let names = named.as_array().into_iter().flatten().chain([named]);
        let mut said = Self(0);
        names.filter_map(Value::as_str).for_each(|name| said.add(Self::named(name)));
        if said != Self(0) {
            return self.add(said);
        }
        let values = schema["enum"].as_array().into_iter().flatten().chain(schema.get("const"));
        values.for_each(|value| self.add(Self::kind(value)));
        for key in ["anyOf", "oneOf", "allOf"] {
            for inner in schema[key].as_array().into_iter().flatten() {
                self.learn(inner, root, (depth - 1, left));
                if *self == Self::ANY {
                    return;
                }
            }
        }
        let target = schema["$ref"].as_str().and_then(|path| root.pointer(path.strip_prefix('#')?));
        if let Some(target) = target {
            self.learn(target, root, (depth - 1, left));
        }
        if schema.get("properties").is_some() {
            self.add(Self::OBJECT);
        }
        if schema.get("items").is_some() {
            self.add(Self::ARRAY);
        }
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

    /// Whether it may be a string, among others.
    pub(crate) fn allows_string(self) -> bool {
        self.0 & Self::STRING.0 != 0
    }

    pub(super) fn allows_null(self) -> bool {
        self.0 & Self::NULL.0 != 0
    }

    /// Whether it is a string or nothing.
    pub(super) fn is_string(self) -> bool {
        self.0 & !Self::NULL.0 == Self::STRING.0
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use serde_json::json;

    use super::*;

    #[test]
    fn references_in_circles_are_not_walked_for_ever() {
        let circle = json!({"$ref": "#/a"});
        let parameters = json!({
            "a": {"anyOf": vec![circle.clone(); 240]},
            "properties": {"x": circle, "y": {"type": "integer"}},
        });
        let function = json!({"name": "f", "parameters": parameters});
        let began = Instant::now();
        let tools = Tools::new(&[json!({"type": "function", "function": function})]);
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        assert_eq!(tools.kinds("f", "x"), Kinds::ANY);
        assert_eq!(tools.kinds("f", "y"), Kinds::NUMBER);
    }

    #[test]
    fn many_parameters_share_the_visits_of_a_request() {
        let circle = json!({"$ref": "#/a"});
        let properties: serde_json::Map<String, Value> =
            (0..20_000).map(|i| (format!("p{i}"), circle.clone())).collect();
        let parameters = json!({"a": {"anyOf": vec![circle; 240]}, "properties": properties});
        let function = json!({"name": "f", "parameters": parameters});
        let began = Instant::now();
        let tools = Tools::new(&[json!({"type": "function", "function": function})]);
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        assert_eq!(tools.kinds("f", "p9"), Kinds::ANY);
    }
}

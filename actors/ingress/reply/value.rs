//! The value of a parameter, from the text between its tags to JSON of the declared type. Strings
//! are passed on as they come; of all others the type can be told only at the end.

use super::Delta;
use super::call::argue;
use super::schema::Kinds;

/// A value in the making.
#[derive(Debug)]
pub(super) enum Value {
    /// Passed on, once it has begun.
    String { begun: bool },
    /// A string, unless it turns out to be nothing.
    Nullable(String),
    /// Judged when it is whole.
    Whole(Kinds, String),
    /// Not wanted.
    Dropped,
}

const NOTHINGS: [&str; 2] = ["null", "None"];

impl Value {
    pub(super) fn new(kinds: Kinds) -> Self {
        match (kinds.is_string(), kinds.allows_null()) {
            (true, false) => Self::String { begun: false },
            (true, true) => Self::Nullable(String::new()),
            (false, _) => Self::Whole(kinds, String::new()),
        }
    }

    pub(super) fn push(&mut self, text: &str, out: &mut Vec<Delta>) {
        match self {
            Self::String { begun } => {
                if !std::mem::replace(begun, true) {
                    argue(out, "\"");
                }
                argue(out, &escaped(text));
            }
            Self::Nullable(so_far) => {
                so_far.push_str(text);
                if !NOTHINGS.iter().any(|nothing| nothing.starts_with(so_far.as_str())) {
                    let text = std::mem::take(so_far);
                    *self = Self::String { begun: false };
                    self.push(&text, out);
                }
            }
            Self::Whole(_, so_far) => so_far.push_str(text),
            Self::Dropped => {}
        }
    }

    pub(super) fn finish(&mut self, out: &mut Vec<Delta>) {
        match self {
            Self::String { begun: true } => argue(out, "\""),
            Self::String { begun: false } => argue(out, "\"\""),
            Self::Nullable(text) if NOTHINGS.contains(&text.as_str()) => argue(out, "null"),
            Self::Nullable(text) => argue(out, &format!("\"{}\"", escaped(text))),
            Self::Whole(kinds, text) => argue(out, &typed(*kinds, text)),
            Self::Dropped => {}
        }
    }
}

/// The inside of a JSON string.
fn escaped(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

/// JSON of a declared type, else a string: the model said something else than was declared, and
/// the tool will say so.
fn typed(kinds: Kinds, text: &str) -> String {
    let trimmed = text.trim();
    // As Python's templates and many models write them.
    let word = match trimmed {
        "True" => "true",
        "False" => "false",
        "None" => "null",
        other => other,
    };
    match serde_json::from_str::<serde_json::Value>(word) {
        Ok(value) if kinds.allows(&value) => word.to_owned(),
        Ok(_) | Err(_) => format!("\"{}\"", escaped(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_what_was_declared() {
        let of = |schema: serde_json::Value, text: &str| typed(Kinds::of(&schema, &schema), text);
        let is = |kind: &str, text: &str| of(serde_json::json!({"type": kind}), text);
        assert_eq!(is("integer", " 5 "), "5");
        assert_eq!(is("integer", "12345678901234567890123"), "12345678901234567890123");
        assert_eq!(is("number", "0.10"), "0.10");
        assert_eq!(is("boolean", "True"), "true");
        assert_eq!(is("object", "{\"a\": [1]}"), "{\"a\": [1]}");
        assert_eq!(is("array", "[1, 2"), "\"[1, 2\"", "what is no JSON stays text");
        assert_eq!(is("array", "5"), "\"5\"", "what is of another type stays text");
        assert_eq!(is("string", "5"), "\"5\"");
        assert_eq!(of(serde_json::json!({}), "5"), "5");
        assert_eq!(of(serde_json::json!({}), "five"), "\"five\"");
        assert_eq!(of(serde_json::json!({"enum": [1, 2]}), "2"), "2");
        assert_eq!(of(serde_json::json!({"enum": ["1", "2"]}), "2"), "\"2\"");
        let either = serde_json::json!({"anyOf": [{"type": "integer"}, {"type": "null"}]});
        assert_eq!(of(either.clone(), "None"), "null");
        assert_eq!(of(either, "7"), "7");
        let named = serde_json::json!({"$ref": "#/$defs/N", "$defs": {"N": {"type": "integer"}}});
        assert_eq!(of(named, "7"), "7");
        assert_eq!(of(serde_json::json!({"properties": {}}), "{}"), "{}");
    }
}

//! Fields that nobody here knows: refused, or left out and told to the client in a header.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::openai::ApiError;
use super::openai::error::UNKNOWN;

/// More unknown fields than this are no oversight.
const IGNORED_MAX: usize = 64;

/// What becomes of a field that is not known here.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownFields {
    /// The request is refused with its name.
    #[default]
    Refuse,
    /// It is left out, and named in the header `x-mtplx-warning`.
    Warn,
}

impl UnknownFields {
    /// Reads a body; what was read, and the fields that were left out of it.
    pub(crate) fn read<T>(
        self,
        body: &[u8],
        read: impl Fn(&[u8]) -> Result<T, ApiError>,
    ) -> Result<(T, Vec<String>), ApiError> {
        let mut refused = match read(body) {
            Ok(read) => return Ok((read, Vec::new())),
            Err(refused) => refused,
        };
        let mut ignored = Vec::new();
        if self == Self::Refuse {
            return Err(refused);
        }
        let Ok(mut value) = serde_json::from_slice::<Value>(body) else { return Err(refused) };
        while ignored.len() < IGNORED_MAX {
            let ApiError::Param { param, code: UNKNOWN, .. } = &refused else { break };
            if !remove(&mut value, param) {
                break;
            }
            ignored.push(param.clone());
            match read(value.to_string().as_bytes()) {
                Ok(read) => return Ok((read, ignored)),
                Err(next) => refused = next,
            }
        }
        Err(refused)
    }
}

/// Removes what a path like `messages[0].colour` names. Names may hold dots and brackets.
fn remove(value: &mut Value, path: &str) -> bool {
    match value {
        Value::Object(map) => {
            if map.shift_remove(path).is_some() {
                return true;
            }
            map.iter_mut().any(|(key, inner)| {
                let rest = path.strip_prefix(key.as_str());
                let rest = rest.and_then(|rest| match rest.strip_prefix('.') {
                    None => rest.starts_with('[').then_some(rest),
                    dotted => dotted,
                });
                rest.is_some_and(|rest| remove(inner, rest))
            })
        }
        Value::Array(items) => {
            let inner = path.strip_prefix('[').and_then(|rest| rest.split_once(']'));
            let Some((index, rest)) = inner else { return false };
            let item = index.parse().ok().and_then(|index: usize| items.get_mut(index));
            item.is_some_and(|item| remove(item, rest.strip_prefix('.').unwrap_or(rest)))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_path_names_is_removed() {
        let mut value = json!({"a": [{"b.c": 1, "d": {"e": 2}}], "f": 3});
        assert!(remove(&mut value, "a[0].b.c"));
        assert!(remove(&mut value, "a[0].d.e"));
        assert!(remove(&mut value, "f"));
        assert!(!remove(&mut value, "f") && !remove(&mut value, "a[9].x"));
        assert_eq!(value, json!({"a": [{"d": {}}]}));
    }
}

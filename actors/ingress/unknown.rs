//! Fields that nobody here knows: refused, or left out and told to the client in a header.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::openai::ApiError;
use super::openai::error::{HOSTED, UNKNOWN};

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
            let ApiError::Param { param, code, .. } = &refused else { break };
            let path = match *code {
                UNKNOWN => param.as_str(),
                // All of the tool, not only its type.
                HOSTED => param.trim_end_matches(".type"),
                _ => break,
            };
            let Some(removed) = remove(&mut value, path) else { break };
            ignored.push(match removed["type"].as_str() {
                Some(kind) => format!("{path} {kind}"),
                None => path.to_owned(),
            });
            match read(value.to_string().as_bytes()) {
                Ok(read) => return Ok((read, ignored)),
                Err(next) => refused = next,
            }
        }
        Err(refused)
    }
}

/// Takes out what a path like `messages[0].colour` names. Names may hold dots and brackets.
fn remove(value: &mut Value, path: &str) -> Option<Value> {
    match value {
        Value::Object(map) => {
            if let Some(removed) = map.shift_remove(path) {
                return Some(removed);
            }
            map.iter_mut().find_map(|(key, inner)| {
                let rest = path.strip_prefix(key.as_str());
                let rest = rest.and_then(|rest| match rest.strip_prefix('.') {
                    None => rest.starts_with('[').then_some(rest),
                    dotted => dotted,
                });
                remove(inner, rest?)
            })
        }
        Value::Array(items) => {
            let (index, rest) = path.strip_prefix('[')?.split_once(']')?;
            let index = index.parse().ok().filter(|&index: &usize| index < items.len())?;
            if rest.is_empty() {
                return Some(items.remove(index));
            }
            remove(&mut items[index], rest.strip_prefix('.').unwrap_or(rest))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_path_names_is_removed() {
        let mut value = json!({"a": [{"b.c": 1, "d": {"e": 2}}, 5], "f": 3});
        for (path, removed) in [("a[0].b.c", 1), ("a[0].d.e", 2), ("f", 3), ("a[1]", 5)] {
            assert_eq!(remove(&mut value, path), Some(json!(removed)));
        }
        for path in ["f", "a[1]", "a[9].x", "a[x]", ""] {
            assert_eq!(remove(&mut value, path), None);
        }
        assert_eq!(value, json!({"a": [{"d": {}}]}));
    }
}

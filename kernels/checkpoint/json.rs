//! JSON objects read key by key, with errors that name the key.

use serde_json::{Map, Value};

use super::error::{DOWNLOAD, shown};
use super::{Error, Files};

/// Far above any real configuration; a guard against a file that is something else.
pub(super) const JSON_BYTES_MAX: usize = 4 << 20;

/// The JSON file `name`; `None` where there is none.
pub(super) fn read(files: &Files, name: &str) -> Result<Option<Value>, Error> {
    let Some(bytes) = files.open(name)? else { return Ok(None) };
    let file = files.path_of(name);
    if bytes.len() > JSON_BYTES_MAX {
        let problem = format!("has {} bytes, too many for a configuration", bytes.len());
        return Err(Error::file(&file, problem, DOWNLOAD));
    }
    let broken = |e| Error::file(&file, format!("is no valid JSON: {e}"), DOWNLOAD);
    serde_json::from_slice(&bytes).map(Some).map_err(broken)
}

/// An object of a JSON file and where it stands. A null counts as absent, as it does in Python's
/// configurations.
#[derive(Clone, Debug)]
pub(super) struct Object<'a> {
    file: &'a str,
    at: String,
    map: &'a Map<String, Value>,
}

impl<'a> Object<'a> {
    /// The whole of `file`, which must be an object.
    pub(super) fn root(file: &'a str, value: &'a Value) -> Result<Self, Error> {
        match value.as_object() {
            Some(map) => Ok(Self { file, at: String::new(), map }),
            None => Err(Error::file(file, "holds no JSON object", DOWNLOAD)),
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn members(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.map.iter()
    }

    pub(super) fn object(&self, key: &str) -> Result<Option<Self>, Error> {
        let inner = |value: &'a Value| {
            let map = value.as_object()?;
            Some(Self { file: self.file, at: self.path(key), map })
        };
        self.read(key, inner, "an object")
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        self.read(key, Value::as_str, "a text")
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        self.read(key, Value::as_bool, "true or false")
    }

    pub(super) fn list(&self, key: &str) -> Result<Option<&'a Vec<Value>>, Error> {
        self.read(key, Value::as_array, "a list")
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, Error> {
        self.read(key, Value::as_f64, "a number")
    }

    /// A whole number of at most `max`.
    pub(super) fn count(&self, key: &str, max: usize) -> Result<Option<usize>, Error> {
        let inner = |value: &Value| usize::try_from(value.as_u64()?).ok().filter(|&n| n <= max);
        self.read(key, inner, &format!("a whole number of at most {max}"))
    }

    /// A whole number from 1 to `max` that must be there.
    pub(super) fn size(&self, key: &str, max: usize) -> Result<usize, Error> {
        match self.count(key, max)? {
            Some(0) => Err(self.wrong(key, &format!("a whole number from 1 to {max}"))),
            Some(n) => Ok(n),
            None => Err(self.wrong(key, "a whole number")),
        }
    }

    fn read<T>(
        &self,
        key: &str,
        inner: impl FnOnce(&'a Value) -> Option<T>,
        expected: &str,
    ) -> Result<Option<T>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => inner(value).map(Some).ok_or_else(|| self.wrong(key, expected)),
        }
    }

    /// The error that `key` is missing, or is not `expected`.
    pub(super) fn wrong(&self, key: &str, expected: &str) -> Error {
        let problem = match self.get(key) {
            None => format!("is missing, expected {expected}"),
            Some(value) => format!("is {}, expected {expected}", shown(value)),
        };
        self.error(key, problem)
    }

    /// The error that something about `key` is not as it should be.
    pub(super) fn error(&self, key: &str, problem: impl Into<String>) -> Error {
        Error::Config {
            file: self.file.to_owned(),
            key: self.path(key),
            problem: problem.into(),
            mend: "mend the file or fetch it again".to_owned(),
        }
    }

    /// The refusal of what `key` says.
    pub(super) fn unsupported(&self, key: &str, supported: impl Into<String>) -> Error {
        let value = self.get(key).map_or_else(|| "null".to_owned(), shown);
        Error::Unsupported {
            file: self.file.to_owned(),
            found: format!("{} = {value}", self.path(key)),
            supported: supported.into(),
        }
    }

    fn path(&self, key: &str) -> String {
        match self.at.as_str() {
            "" => shown(key),
            at => format!("{at}.{}", shown(key)),
        }
    }
}

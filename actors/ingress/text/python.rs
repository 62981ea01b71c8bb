//! JSON as Python's `json.dumps` writes it, which is what models were trained on: a space after
//! commas and colons, nothing sorted, floats by `repr`.

use std::fmt::Write as _;
use std::io;

use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// The arguments of `json.dumps` that templates use.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Style {
    /// One item a line, by this many spaces.
    pub(super) indent: Option<usize>,
    /// Escape whatever is not ASCII.
    pub(super) ascii: bool,
}

/// Writes `value`.
pub(super) fn json(value: &impl Serialize, style: Style) -> serde_json::Result<String> {
    let mut out = Vec::new();
    match style.indent {
        None => value.serialize(&mut Serializer::with_formatter(&mut out, OneLine))?,
        Some(n) => {
            let indent = " ".repeat(n);
            let pretty = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, pretty))?;
        }
    }
    let text = String::from_utf8(out).map_err(serde::ser::Error::custom)?;
    Ok(if style.ascii { escape(&text) } else { text })
}

struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        w.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        w.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }

    fn write_f64<W: ?Sized + io::Write>(&mut self, w: &mut W, value: f64) -> io::Result<()> {
        w.write_all(repr(value).as_bytes())
    }
}

/// Python's `repr` of a finite float: the shortest digits, an exponent outside 1e-4..1e16.
fn repr(value: f64) -> String {
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..16).contains(&exponent) || value == 0.0 {
        let plain = format!("{value}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// Only strings can hold anything but ASCII, so the whole text may be escaped at once.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_read_as_python_writes_them() {
        for (value, text) in [
            (1.0, "1.0"),
            (0.0, "0.0"),
            (-0.5, "-0.5"),
            (1e16, "1e+16"),
            (123_456_789_012_345_680.0, "1.2345678901234568e+17"),
            (1e15, "1000000000000000.0"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (2.5e-300, "2.5e-300"),
        ] {
            assert_eq!(repr(value), text);
        }
    }

    #[test]
    fn json_reads_as_python_writes_it() {
        let value = serde_json::json!({"z": [1, "ä<"], "a": {}, "n": null});
        let line = json(&value, Style::default()).unwrap();
        assert_eq!(line, r#"{"z": [1, "ä<"], "a": {}, "n": null}"#);
        let ascii = json(&"ä😀", Style { ascii: true, indent: None }).unwrap();
        assert_eq!(ascii, r#""\u00e4\ud83d\ude00""#);
        let lines = json(&value, Style { indent: Some(1), ascii: false }).unwrap();
        assert_eq!(lines, "{\n \"z\": [\n  1,\n  \"ä<\"\n ],\n \"a\": {},\n \"n\": null\n}");
    }
}

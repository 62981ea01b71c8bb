//! Calls as the Hermes format writes them: `{"name": "f", "arguments": {…}}`. The arguments are
//! passed on as they come; bare line breaks within strings, which are no JSON, are mended.

use serde_json::{Map, Value};

use super::Delta;
use super::call::{Step, argue, object};

/// A call in the making.
#[derive(Debug, Default)]
pub(super) struct Hermes {
    stage: Stage,
    key: String,
    /// The value being read, unless it is passed on.
    raw: String,
    /// Whether the value goes out as it comes: an object of arguments, the tool's name known.
    passing: bool,
    /// What closes the brackets that are open within the value.
    closers: Vec<char>,
    string: bool,
    escaped: bool,
    /// Whether the call has been announced.
    named: bool,
    /// Arguments that came before the name.
    early: Option<String>,
    argued: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Before the object's brace.
    #[default]
    Open,
    BeforeKey,
    Key,
    AfterKey,
    BeforeValue,
    Value,
    Done,
}

impl Hermes {
    pub(super) fn step(&mut self, held: &mut String, out: &mut Vec<Delta>) -> Step {
        let mut read = 0;
        for c in held.chars() {
            // A tag outside of strings: the object lacks its end.
            if c == '<' && !self.string {
                held.drain(..read);
                self.finish(out);
                return Step::End;
            }
            self.take(c, out);
            read += c.len_utf8();
            if self.stage == Stage::Done {
                held.drain(..read);
                self.close(out);
                return Step::End;
            }
        }
        held.clear();
        Step::More
    }

    fn take(&mut self, c: char, out: &mut Vec<Delta>) {
        match self.stage {
            Stage::Open => self.stage = Stage::BeforeKey,
            Stage::BeforeKey => match c {
                '"' => {
                    self.key.clear();
                    (self.stage, self.string) = (Stage::Key, true);
                }
                '}' => self.stage = Stage::Done,
                _ => {}
            },
            Stage::Key => match c {
                '"' => (self.stage, self.string) = (Stage::AfterKey, false),
                c => self.key.push(c),
            },
            Stage::AfterKey => {
                if c == ':' {
                    self.stage = Stage::BeforeValue;
                }
            }
            Stage::BeforeValue => {
                if !c.is_whitespace() {
                    self.stage = Stage::Value;
                    self.passing = c == '{' && self.named && self.is_arguments() && !self.argued;
                    self.value(c, out);
                }
            }
            Stage::Value => self.value(c, out),
            Stage::Done => {}
        }
    }

    /// A character of a value.
    fn value(&mut self, c: char, out: &mut Vec<Delta>) {
        if self.string {
            match c {
                '\n' => self.keep("\\n", out),
                '\r' => self.keep("\\r", out),
                '\t' => self.keep("\\t", out),
                _ => self.keep(c.encode_utf8(&mut [0; 4]), out),
            }
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => {
                    self.string = false;
                    self.end_value_if_closed(out);
                }
                _ => {}
            }
            return;
        }
        let closes = matches!(c, '}' | ']');
        if self.closers.is_empty() && (closes || c == ',') {
            // The end of a bare word is the object's own.
            self.end_value(out);
            return self.take(c, out);
        }
        match c {
            '"' => self.string = true,
            '{' => self.closers.push('}'),
            '[' => self.closers.push(']'),
            _ => {}
        }
        self.keep(c.encode_utf8(&mut [0; 4]), out);
        if closes {
            self.closers.pop();
            self.end_value_if_closed(out);
        }
    }

    fn keep(&mut self, text: &str, out: &mut Vec<Delta>) {
        if self.passing { argue(out, text) } else { self.raw.push_str(text) }
    }

    fn end_value_if_closed(&mut self, out: &mut Vec<Delta>) {
        if self.closers.is_empty() {
            self.end_value(out);
        }
    }

    fn is_arguments(&self) -> bool {
        matches!(self.key.as_str(), "arguments" | "parameters")
    }

    fn end_value(&mut self, out: &mut Vec<Delta>) {
        self.stage = Stage::BeforeKey;
        let raw = std::mem::take(&mut self.raw);
        if std::mem::take(&mut self.passing) {
            self.argued = true;
        } else if self.key == "name" && !self.named {
            let name: Option<String> = serde_json::from_str(&raw).ok();
            let Some(name) = name else { return };
            self.named = true;
            out.push(Delta::Call(name));
            if let Some(early) = self.early.take() {
                self.argued = true;
                argue(out, &early);
            }
        } else if self.is_arguments() && !self.argued {
            // Some write the object as a string.
            let inner: Option<String> = serde_json::from_str(&raw).ok();
            let raw = inner.unwrap_or(raw);
            let is_object = serde_json::from_str::<Map<String, Value>>(&raw).is_ok();
            let json = if is_object { raw } else { object(&raw).to_string() };
            if self.named {
                self.argued = true;
                argue(out, &json);
            } else {
                self.early = Some(json);
            }
        }
    }

    fn close(&mut self, out: &mut Vec<Delta>) {
        if !self.named {
            // Nobody can tell what was to be called.
            return;
        }
        if !self.argued {
            argue(out, "{}");
        }
        out.push(Delta::Called);
    }

    /// The object ended here, whatever was still open.
    pub(super) fn finish(&mut self, out: &mut Vec<Delta>) {
        if self.stage == Stage::Value {
            if std::mem::take(&mut self.string) {
                self.keep("\"", out);
            }
            while let Some(closer) = self.closers.pop() {
                self.keep(closer.encode_utf8(&mut [0; 4]), out);
            }
            self.end_value(out);
        }
        self.stage = Stage::Done;
        self.close(out);
    }
}

//! Calls as the Hermes format writes them: `{"name": "f", "arguments": {…}}`. The arguments are
//! passed on as they come. What is no JSON, but can be read in one way only, is mended: bare
//! control characters and wrong escapes within strings, Python's words, commas before a closer,
//! brackets that were forgotten. What is broken otherwise is passed on as it is: nobody takes it
//! for whole.

use super::call::{Step, argue, object};
use super::scan::is_beginning;
use super::{CALL, CALLED, Delta};

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
    /// An escape within a string, as far as it was read.
    escape: String,
    /// Words, commas and white space between strings and brackets of a value.
    between: String,
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
            if c == '<' {
                match self.is_over(&held[read..]) {
                    None => {
                        held.drain(..read);
                        return Step::More;
                    }
                    Some(true) => {
                        held.drain(..read);
                        self.finish(out);
                        return Step::End;
                    }
                    Some(false) => {}
                }
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

    /// Whether `rest`, which begins with a bracket, says that the object lacks its end: by a tag
    /// outside of strings, or within one by a closer and then the end or another call. Nothing if
    /// that cannot be told yet.
    fn is_over(&self, rest: &str) -> Option<bool> {
        if let Some(after) = rest.strip_prefix(CALLED).filter(|_| self.string) {
            let after = after.trim_start();
            return if is_beginning(after, CALL) { None } else { Some(after.starts_with(CALL)) };
        }
        let tags: &[&str] = if self.string { &[CALLED] } else { &[CALLED, CALL] };
        let open = tags.iter().any(|tag| is_beginning(rest, tag));
        if open { None } else { Some(tags.iter().any(|tag| rest.starts_with(tag))) }
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
            return self.quoted(c, out);
        }
        let closes = matches!(c, '}' | ']');
        if self.closers.is_empty() && (closes || c == ',') {
            // The end of a bare word is the object's own.
            self.flush(false, out);
            self.end_value(out);
            return self.take(c, out);
        }
        match c {
            '"' => self.string = true,
            '{' => self.closers.push('}'),
            '[' => self.closers.push(']'),
            '}' | ']' | ':' => {}
            _ => return self.between.push(c),
        }
        self.flush(closes, out);
        if closes && self.closers.contains(&c) {
            while let Some(closer) = self.closers.pop() {
                self.keep(closer.encode_utf8(&mut [0; 4]), out);
                if closer == c {
                    break;
                }
            }
            return self.end_value_if_closed(out);
        }
        self.keep(c.encode_utf8(&mut [0; 4]), out);
    }

    /// A character of a string.
    fn quoted(&mut self, c: char, out: &mut Vec<Delta>) {
        match self.escape.len() {
            0 => {}
            1 if c == 'u' => return self.escape.push(c),
            1 if matches!(c, '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't') => {
                self.escape.clear();
                return self.keep(&format!("\\{c}"), out);
            }
            2..6 if c.is_ascii_hexdigit() => {
                self.escape.push(c);
                if self.escape.len() == 6 {
                    let escape = std::mem::take(&mut self.escape);
                    self.keep(&escape, out);
                }
                return;
            }
            _ => self.end_escape(c, out),
        }
        match c {
            '\\' => self.escape.push(c),
            '"' => {
                self.string = false;
                self.keep("\"", out);
                self.end_value_if_closed(out);
            }
            c if c.is_ascii_control() => self.keep(&escaped(c), out),
            c => self.keep(c.encode_utf8(&mut [0; 4]), out),
        }
    }

    /// Ends an escape that is none: a backslash before a quotation mark of another kind is not
    /// wanted, any other was meant as such.
    fn end_escape(&mut self, next: char, out: &mut Vec<Delta>) {
        let escape = std::mem::take(&mut self.escape);
        let unwanted = escape == "\\" && next == '\'';
        if !escape.is_empty() && !unwanted {
            self.keep(&format!("\\{escape}"), out);
        }
    }

    /// Passes on what stands between strings and brackets; `closes` if a closing one follows.
    fn flush(&mut self, closes: bool, out: &mut Vec<Delta>) {
        let between = std::mem::take(&mut self.between);
        let shown = between.trim_end();
        let blank = &between[shown.len()..];
        let shown = if closes { shown.strip_suffix(',').unwrap_or(shown) } else { shown };
        for piece in shown.split_inclusive([',', ' ', '\n', '\r', '\t']) {
            let word = piece.trim_end_matches([',', ' ', '\n', '\r', '\t']);
            let json = match word {
                "True" => "true",
                "False" => "false",
                "None" => "null",
                other => other,
            };
            self.keep(json, out);
            self.keep(&piece[word.len()..], out);
        }
        self.keep(blank, out);
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
            let json = if raw.starts_with('{') { raw } else { object(&raw).to_string() };
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
                self.end_escape('"', out);
                self.keep("\"", out);
            }
            self.flush(true, out);
            while let Some(closer) = self.closers.pop() {
                self.keep(closer.encode_utf8(&mut [0; 4]), out);
            }
            self.end_value(out);
        }
        self.stage = Stage::Done;
        self.close(out);
    }
}

/// A control character within a JSON string.
fn escaped(c: char) -> String {
    match c {
        '\n' => "\\n".into(),
        '\r' => "\\r".into(),
        '\t' => "\\t".into(),
        c => format!("\\u{:04x}", u32::from(c)),
    }
}

//! Calls as Qwen3.5 and its kin write them:
//!
//! ```text
//! <function=name>
//! <parameter=key>
//! value
//! </parameter>
//! </function>
//! ```
//!
//! A value is the text between the tags without one line break at either end. What is written into
//! files holds such tags, too, so a tag alone ends nothing: a closer does where a tag of the call
//! or the end of the text follows it. Where closers are missing, the next parameter ends a value if
//! it was declared and not yet given, and the end of the call does if all of it is there, or the
//! next function is a declared one. A reply that ends with the closer of a call that began within
//! the value has not ended this call.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::call::{Step, argue};
use super::scan::{Found, find, is_beginning};
use super::schema::{Kinds, NAME_MAX, Tools};
use super::value::Value;
use super::{CALL, CALLED, Delta, FUNCTION};

const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";
const END: &str = "</function>";
const BETWEEN: [&str; 5] = [PARAMETER, END, CALLED, FUNCTION, CALL];
/// What may end a value.
const AFTER: [(&str, Tag); 6] = [
    ("\n</parameter>", Tag::Closer),
    ("</parameter>", Tag::Closer),
    ("\n<parameter=", Tag::Next),
    ("\n</function>", Tag::End),
    ("\n</tool_call>", Tag::Called),
    (CALL, Tag::Opener),
];
/// More white space than this between two tags makes them text.
const BLANK_MAX: usize = 64;

/// A tag that may end a value, or says of another that it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag {
    Closer,
    Next,
    End,
    Called,
    /// Of a call that is told of in the value.
    Opener,
}

/// Whether a tag ends the value before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It does.
    Ends,
    /// It is part of the value.
    Text,
    /// What follows will tell.
    Open,
}

/// A call in the making.
#[derive(Debug, Default)]
pub(super) struct Xml {
    pub(super) tools: Option<Arc<Tools>>,
    stage: Stage,
    name: String,
    keys: BTreeSet<String>,
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Name,
    Between,
    Key,
    Value {
        value: Value,
        /// Whether nothing of it was read.
        fresh: bool,
        /// Calls that began within it, and have not ended.
        inner: usize,
    },
    /// The text ended within a value.
    Torn,
    Done,
}

impl Xml {
    pub(super) fn step(&mut self, held: &mut String, out: &mut Vec<Delta>) -> Step {
        match &mut self.stage {
            Stage::Name => {
                let Some(name) = tag(held) else { return Step::More };
                self.name = name;
                out.push(Delta::Call(self.name.clone()));
                argue(out, "{");
                self.stage = Stage::Between;
                Step::Again
            }
            Stage::Between => self.between(held, out),
            Stage::Key => {
                let Some(key) = tag(held) else { return Step::More };
                self.open(key, out);
                Step::Again
            }
            Stage::Value { fresh, .. } => {
                if *fresh {
                    if held.is_empty() {
                        return Step::More;
                    }
                    if held.starts_with('\n') {
                        held.remove(0);
                    }
                    *fresh = false;
                }
                self.read(held, out)
            }
            Stage::Torn | Stage::Done => Step::End,
        }
    }

    /// Reads on in a value.
    fn read(&mut self, held: &mut String, out: &mut Vec<Delta>) -> Step {
        let markers = AFTER.map(|(marker, _)| marker);
        let mut from = 0;
        let (until, verdict) = loop {
            match find(&held[from..], &markers) {
                Found::Marker { at, which } => {
                    let at = from + at;
                    match self.verdict(&held[at..], AFTER[which]) {
                        // All begin with one byte.
                        Verdict::Text => {
                            self.note(AFTER[which].1);
                            from = at + 1;
                        }
                        verdict @ (Verdict::Ends | Verdict::Open) => break (at, verdict),
                    }
                }
                Found::Safe(len) => break (from + len, Verdict::Open),
            }
        };
        let Stage::Value { value, .. } = &mut self.stage else { return Step::Again };
        value.push(&held[..until], out);
        held.drain(..until);
        if verdict == Verdict::Open {
            return Step::More;
        }
        value.finish(out);
        self.stage = Stage::Between;
        Step::Again
    }

    /// Whether `rest`, which begins with this tag, goes on as a call does.
    fn verdict(&self, rest: &str, (marker, tag): (&str, Tag)) -> Verdict {
        let rest = &rest[marker.len()..];
        match tag {
            Tag::Closer => followed(rest, &BETWEEN),
            Tag::End => match followed(rest, &[CALLED]) {
                Verdict::Text => self.goes_on(rest),
                verdict @ (Verdict::Ends | Verdict::Open) => verdict,
            },
            // Within a call that the value tells of it ends that one, and another follows there.
            Tag::Called => match followed(rest, &[CALL]) {
                Verdict::Ends if self.inner() > 0 => Verdict::Text,
                verdict @ (Verdict::Ends | Verdict::Text | Verdict::Open) => verdict,
            },
            Tag::Opener => Verdict::Text,
            Tag::Next => match rest.find(['>', '\n', '<']) {
                Some(end) if rest[end..].starts_with('>') && self.is_due(&rest[..end]) => {
                    Verdict::Ends
                }
                None if rest.len() <= NAME_MAX => Verdict::Open,
                Some(_) | None => Verdict::Text,
            },
        }
    }

    /// Calls that began within the value, and have not ended.
    fn inner(&self) -> usize {
        match self.stage {
            Stage::Value { inner, .. } => inner,
            Stage::Name | Stage::Between | Stage::Key | Stage::Torn | Stage::Done => 0,
        }
    }

    /// Keeps count of the calls that a value tells of.
    fn note(&mut self, tag: Tag) {
        if let Stage::Value { inner, .. } = &mut self.stage {
            match tag {
                Tag::Opener => *inner += 1,
                Tag::Called => *inner = inner.saturating_sub(1),
                Tag::Closer | Tag::Next | Tag::End => {}
            }
        }
    }

    /// Whether the next function of this call follows, one that was declared.
    fn goes_on(&self, rest: &str) -> Verdict {
        let verdict = followed(rest, &[FUNCTION]);
        if verdict != Verdict::Ends {
            return verdict;
        }
        let name = &rest.trim_start()[FUNCTION.len()..];
        match name.find(['>', '\n', '<']) {
            Some(end) if name[end..].starts_with('>') => {
                let known = self.tools.as_ref().is_some_and(|tools| tools.knows(&name[..end]));
                if known { Verdict::Ends } else { Verdict::Text }
            }
            None if name.len() <= NAME_MAX => Verdict::Open,
            Some(_) | None => Verdict::Text,
        }
    }

    /// Whether a parameter was declared, and not yet given.
    fn is_due(&self, key: &str) -> bool {
        let declared = self.tools.as_ref().is_some_and(|t| t.declares(&self.name, key));
        declared && !self.keys.contains(key)
    }

    fn between(&mut self, held: &mut String, out: &mut Vec<Delta>) -> Step {
        match find(held, &BETWEEN) {
            Found::Marker { at, which } => {
                let marker = BETWEEN[which];
                // Closers and openers of calls are for whoever reads what is around this one.
                let read = if matches!(marker, PARAMETER | END) { marker.len() } else { 0 };
                held.drain(..at + read);
                if marker == PARAMETER {
                    self.stage = Stage::Key;
                    return Step::Again;
                }
                self.close(out);
                Step::End
            }
            Found::Safe(len) => {
                held.drain(..len);
                Step::More
            }
        }
    }

    fn open(&mut self, key: String, out: &mut Vec<Delta>) {
        let kinds = self.tools.as_ref().map_or(Kinds::ANY, |t| t.kinds(&self.name, &key));
        // What was streamed cannot be taken back, so the first of two values with one name stays.
        let value = if self.keys.contains(&key) {
            Value::Dropped
        } else {
            let comma = if self.keys.is_empty() { "" } else { ", " };
            let name = serde_json::Value::from(key.as_str());
            argue(out, &format!("{comma}{name}: "));
            Value::new(kinds)
        };
        self.keys.insert(key);
        self.stage = Stage::Value { value, fresh: true, inner: 0 };
    }

    fn close(&mut self, out: &mut Vec<Delta>) {
        argue(out, "}");
        out.push(Delta::Called);
        self.stage = Stage::Done;
    }

    /// The text ended with what is held.
    pub(super) fn cut(&mut self, held: &str, out: &mut Vec<Delta>) {
        if let Stage::Value { value, inner, .. } = &mut self.stage {
            let closer = held.strip_prefix('\n').unwrap_or(held);
            if closer.starts_with(PARAMETER_END) {
                value.finish(out);
                self.stage = Stage::Between;
            } else if closer.starts_with(CALLED) && *inner > 0 {
                value.push(held, out);
                self.stage = Stage::Torn;
            }
        }
    }

    pub(super) fn finish(&mut self, out: &mut Vec<Delta>) {
        match &mut self.stage {
            // Nobody may run half of it.
            Stage::Name | Stage::Torn | Stage::Done => return,
            // A closer that was begun belongs to no value, and was not added.
            Stage::Value { value, .. } => value.finish(out),
            Stage::Between | Stage::Key => {}
        }
        self.close(out);
    }
}

/// Whether white space and one of these tags follow.
fn followed(rest: &str, tags: &[&str]) -> Verdict {
    let tag = rest.trim_start();
    if rest.len() - tag.len() > BLANK_MAX {
        Verdict::Text
    } else if tags.iter().any(|t| tag.starts_with(t)) {
        Verdict::Ends
    } else if tags.iter().any(|t| is_beginning(tag, t)) {
        Verdict::Open
    } else {
        Verdict::Text
    }
}

/// The rest of an opening tag: up to its bracket, or to the end of a line that forgot it.
fn tag(held: &mut String) -> Option<String> {
    let end = held.find(['>', '\n'])?;
    let tag: String = held.drain(..=end).collect();
    let name = tag[..end].trim().trim_matches(['"', '\'']);
    if tag.ends_with('\n') {
        held.insert(0, '\n');
    }
    Some(name.to_owned())
}

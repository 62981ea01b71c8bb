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
//! A value is the text between the tags without one line break at either end. Its closer ends it;
//! where that is missing, a tag at the beginning of a line does.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::call::{Step, argue};
use super::scan::{Found, find};
use super::schema::{Kinds, Tools};
use super::value::Value;
use super::{CALL, CALLED, Delta, FUNCTION};

const PARAMETER: &str = "<parameter=";
const END: &str = "</function>";
const BETWEEN: [&str; 5] = [PARAMETER, END, CALLED, FUNCTION, CALL];
/// What ends a value, and how much of it is read with the value.
const AFTER: [(&str, usize); 5] = [
    ("\n</parameter>", 13),
    ("</parameter>", 12),
    ("\n<parameter=", 1),
    ("\n</function>", 1),
    ("\n</tool_call>", 1),
];

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
    },
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
            Stage::Value { value, fresh } => {
                if *fresh {
                    if held.is_empty() {
                        return Step::More;
                    }
                    if held.starts_with('\n') {
                        held.remove(0);
                    }
                    *fresh = false;
                }
                match find(held, &AFTER.map(|(marker, _)| marker)) {
                    Found::Marker { at, which } => {
                        value.push(&held[..at], out);
                        value.finish(out);
                        held.drain(..at + AFTER[which].1);
                        self.stage = Stage::Between;
                        Step::Again
                    }
                    Found::Safe(len) => {
                        value.push(&held[..len], out);
                        held.drain(..len);
                        Step::More
                    }
                }
            }
            Stage::Done => Step::End,
        }
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
        self.stage = Stage::Value { value, fresh: true };
    }

    fn close(&mut self, out: &mut Vec<Delta>) {
        argue(out, "}");
        out.push(Delta::Called);
        self.stage = Stage::Done;
    }

    pub(super) fn finish(&mut self, out: &mut Vec<Delta>) {
        match &mut self.stage {
            Stage::Name | Stage::Done => return,
            // A closer that was begun belongs to no value, and was not added.
            Stage::Value { value, .. } => value.finish(out),
            Stage::Between | Stage::Key => {}
        }
        self.close(out);
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

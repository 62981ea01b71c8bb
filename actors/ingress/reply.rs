//! What a model's text means: thinking, answer, calls of tools. Read piece by piece as it is
//! generated; wherever the pieces are cut, the same deltas come out, put together. Every wire
//! format renders these deltas, whole or streamed.
//!
//! Markup is never shown. Calls are read where tools were declared, thinking where the model's
//! template knows it, and nothing at all in plain completions.

use std::sync::Arc;

mod call;
mod gathered;
mod hermes;
mod scan;
mod schema;
mod value;
mod xml;

use self::call::{Call, Step};
pub(crate) use self::call::{object, recalled};
pub(crate) use self::gathered::{Block, Reply};
use self::scan::{Found, find, is_beginning};
pub(crate) use self::schema::{ALL_VISITS_MAX, Kinds, NAME_MAX, Tools};

const THINK: &str = "<think>";
const THOUGHT: &str = "</think>";
const CALL: &str = "<tool_call>";
const CALLED: &str = "</tool_call>";
const FUNCTION: &str = "<function=";
/// White space before a call is no part of the answer; more than this is.
const BLANK_MAX: usize = 64;

/// A piece of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Delta {
    /// More of what was thought.
    Reasoning(String),
    /// More of the answer.
    Text(String),
    /// A call of this tool begins.
    Call(String),
    /// More of its arguments, which in the end are a JSON object.
    Arguments(String),
    /// The call is complete.
    Called,
}

/// How a reply is to be read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Manner {
    /// Whether the prompt ends within thinking.
    pub(crate) begins_thinking: bool,
    /// Whether the prompt has closed it: then another end of it is text.
    pub(crate) thought: bool,
    /// Whether this model marks what it thinks.
    pub(crate) thinks: bool,
    /// The tools that may be called, if any.
    pub(crate) tools: Option<Arc<Tools>>,
    /// Whether the reply ends with its first call.
    pub(crate) one_call: bool,
    /// What the prompt put into the model's mouth; read as if it had been generated.
    pub(crate) prefill: String,
}

/// Where the reader stands.
#[derive(Debug)]
enum State {
    /// Nothing but white space so far: thinking may begin.
    Start,
    Reasoning,
    Text,
    /// After the opener of a call: does one follow? Else it is of this part.
    Opened {
        thinking: bool,
    },
    Call(Call),
    /// After a function's end: its closer, or another function.
    CallEnd,
    /// The reply is over, whatever may follow.
    Over,
}

/// Reads one reply.
pub(crate) struct Parser {
    state: State,
    held: String,
    tools: Option<Arc<Tools>>,
    thinks: bool,
    one_call: bool,
    /// Whether leading white space is still to be dropped.
    fresh: bool,
    /// Whether thinking has been closed, or an end without a beginning has been forgiven.
    thought: bool,
    called: bool,
    out: Vec<Delta>,
}

impl Parser {
    /// A reader, and what it makes of the prefill.
    pub(crate) fn new(manner: &Manner) -> (Self, Vec<Delta>) {
        let Manner { begins_thinking, thought, thinks, tools, one_call, prefill } = manner;
        let state = if *begins_thinking {
            State::Reasoning
        } else if *thinks {
            State::Start
        } else {
            State::Text
        };
        let mut parser = Self {
            state,
            held: String::new(),
            tools: tools.clone(),
            thinks: *thinks,
            one_call: *one_call,
            fresh: *begins_thinking,
            thought: *thought,
            called: false,
            out: Vec::new(),
        };
        let deltas = parser.push(prefill);
        (parser, deltas)
    }

    /// Whether what comes next is thought.
    pub(crate) fn is_thinking(&self) -> bool {
        matches!(self.state, State::Reasoning | State::Opened { thinking: true })
    }

    /// Whether a call is complete.
    pub(crate) fn has_called(&self) -> bool {
        self.called
    }

    /// Whether nothing more is wanted: the only call that was allowed is complete.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// Reads more text.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Delta> {
        self.held.push_str(text);
        while self.step() {}
        std::mem::take(&mut self.out)
    }

    /// The end of the text. `complete` if the model ended it itself: then a call that lacks its
    /// closers is complete too. One that was cut off stays as it is: nobody must run half of it.
    pub(crate) fn finish(&mut self, complete: bool) -> Vec<Delta> {
        let held = std::mem::take(&mut self.held);
        if let State::Call(call) = &mut self.state {
            call.cut(&held, &mut self.out);
        }
        match std::mem::replace(&mut self.state, State::Over) {
            State::Start | State::Text => self.text(&held),
            State::Reasoning => {
                let shown = if self.fresh { held.trim_start() } else { &held };
                self.reasoning(shown);
            }
            State::Opened { thinking: true } => self.reasoning(&format!("{CALL}{held}")),
            State::Call(mut call) if complete => {
                call.finish(&mut self.out);
                self.called |= self.out.last() == Some(&Delta::Called);
            }
            State::Opened { thinking: false } | State::Call(_) | State::CallEnd | State::Over => {}
        }
        std::mem::take(&mut self.out)
    }

    /// Takes one step; false if more text is needed.
    fn step(&mut self) -> bool {
        match &mut self.state {
            State::Start => self.start(),
            State::Reasoning => self.think(),
            State::Text => self.answer(),
            &mut State::Opened { thinking } => self.opened(thinking),
            State::Call(call) => match call.step(&mut self.held, &mut self.out) {
                Step::More => false,
                Step::Again => true,
                Step::End => {
                    self.end_call();
                    true
                }
            },
            State::CallEnd => self.after_call(),
            State::Over => {
                self.held.clear();
                false
            }
        }
    }

    fn start(&mut self) -> bool {
        let shown = self.held.trim_start();
        if let Some(rest) = shown.strip_prefix(THINK) {
            self.held = rest.to_owned();
            (self.state, self.fresh) = (State::Reasoning, true);
            return true;
        }
        if is_beginning(shown, THINK) {
            return false;
        }
        self.state = State::Text;
        true
    }

    fn think(&mut self) -> bool {
        if self.fresh {
            let shown = self.held.trim_start();
            self.held.drain(..self.held.len() - shown.len());
        }
        let markers: &[&str] = if self.tools.is_some() { &[THOUGHT, CALL] } else { &[THOUGHT] };
        match find(&self.held, markers) {
            Found::Marker { at, which } => {
                let mut before: String = self.held.drain(..at + markers[which].len()).collect();
                before.truncate(at);
                if which == 0 {
                    self.reasoning(before.trim_end());
                    (self.state, self.fresh, self.thought) = (State::Text, true, true);
                } else {
                    // The white space before it is kept, in case that no call follows.
                    self.reasoning(&before);
                    self.state = State::Opened { thinking: true };
                }
                true
            }
            Found::Safe(len) => {
                let safe: String = self.held.drain(..blank_before(&self.held, len)).collect();
                self.reasoning(&safe);
                false
            }
        }
    }

    fn answer(&mut self) -> bool {
        if self.fresh {
            let shown = self.held.trim_start();
            self.held.drain(..self.held.len() - shown.len());
        }
        let mut markers = Vec::new();
        if self.thinks && !self.thought {
            markers.push(THOUGHT);
        }
        if self.tools.is_some() {
            markers.extend([CALL, FUNCTION, CALLED]);
        }
        match find(&self.held, &markers) {
            Found::Marker { at, which } => self.markup(at, markers[which]),
            Found::Safe(len) => {
                let len = if self.tools.is_some() { blank_before(&self.held, len) } else { len };
                let safe: String = self.held.drain(..len).collect();
                self.text(&safe);
                false
            }
        }
    }

    /// Markup within the answer, at this byte.
    fn markup(&mut self, at: usize, marker: &str) -> bool {
        if marker == FUNCTION {
            return self.bare_function(at);
        }
        let blank = blank_before(&self.held, at);
        let mut before: String = self.held.drain(..at + marker.len()).collect();
        before.truncate(blank);
        self.text(&before);
        match marker {
            CALL => self.state = State::Opened { thinking: false },
            // An end without a beginning.
            THOUGHT => (self.thought, self.fresh) = (true, true),
            _ => self.fresh = true,
        }
        true
    }

    /// A function outside of a call counts if it names a tool: its opener is missing.
    fn bare_function(&mut self, at: usize) -> bool {
        let name = &self.held[at + FUNCTION.len()..];
        let known = match name.find(['>', '\n', '<']) {
            Some(end) => {
                let tools = self.tools.as_ref();
                name[end..].starts_with('>') && tools.is_some_and(|t| t.knows(&name[..end]))
            }
            None if name.len() > schema::NAME_MAX => false,
            None => {
                let before: String = self.held.drain(..blank_before(&self.held, at)).collect();
                self.text(&before);
                return false;
            }
        };
        if known {
            let blank = blank_before(&self.held, at);
            let mut before: String = self.held.drain(..at + FUNCTION.len()).collect();
            before.truncate(blank);
            self.text(&before);
            self.begin(Call::xml());
        } else {
            // It is only talked about.
            let shown: String = self.held.drain(..at + 1).collect();
            self.text(&shown);
        }
        true
    }

    fn opened(&mut self, thinking: bool) -> bool {
        let body = self.held.trim_start();
        let blank = self.held.len() - body.len();
        if body.starts_with('{') {
            self.held.drain(..blank);
            self.begin(Call::hermes());
        } else if body.starts_with(FUNCTION) {
            self.held.drain(..blank + FUNCTION.len());
            self.begin(Call::xml());
        } else if is_beginning(body, FUNCTION) {
            return false;
        } else if thinking {
            // It is only thought about.
            self.state = State::Reasoning;
            self.reasoning(CALL);
        } else {
            (self.state, self.fresh) = (State::Text, true);
        }
        true
    }

    fn begin(&mut self, mut call: Call) {
        call.learn(self.tools.clone());
        self.state = State::Call(call);
    }

    fn end_call(&mut self) {
        self.called |= self.out.last() == Some(&Delta::Called);
        self.state = if self.called && self.one_call { State::Over } else { State::CallEnd };
    }

    fn after_call(&mut self) -> bool {
        let rest = self.held.trim_start();
        let blank = self.held.len() - rest.len();
        // Brackets that close nothing are part of a call in JSON, and no text.
        let closer = rest.trim_start_matches(|c: char| matches!(c, '}' | ']') || c.is_whitespace());
        if closer.starts_with(CALLED) {
            self.held.drain(..self.held.len() - closer.len() + CALLED.len());
            (self.state, self.fresh) = (State::Text, true);
        } else if rest.starts_with(FUNCTION) {
            self.held.drain(..blank + FUNCTION.len());
            self.begin(Call::xml());
        } else if is_beginning(closer, CALLED) || is_beginning(rest, FUNCTION) {
            return false;
        } else {
            (self.state, self.fresh) = (State::Text, true);
        }
        true
    }

    fn reasoning(&mut self, text: &str) {
        if !text.is_empty() {
            self.fresh = false;
            emit(&mut self.out, Delta::Reasoning(text.to_owned()));
        }
    }

    fn text(&mut self, text: &str) {
        let text = if self.fresh { text.trim_start() } else { text };
        if !text.is_empty() {
            self.fresh = false;
            emit(&mut self.out, Delta::Text(text.to_owned()));
        }
    }
}

/// Where the white space before byte `end` begins, as far as it may be dropped.
fn blank_before(text: &str, end: usize) -> usize {
    let begins = text[..end].trim_end().len();
    let mut kept = begins.max(end.saturating_sub(BLANK_MAX));
    while !text.is_char_boundary(kept) {
        kept += 1;
    }
    kept
}

/// Adds deltas, so that none follows one of its own kind.
pub(crate) fn add(out: &mut Vec<Delta>, more: Vec<Delta>) {
    more.into_iter().for_each(|delta| emit(out, delta));
}

/// Adds a delta, to the last one if it is of the same kind.
fn emit(out: &mut Vec<Delta>, delta: Delta) {
    match (out.last_mut(), &delta) {
        (Some(Delta::Reasoning(last)), Delta::Reasoning(more))
        | (Some(Delta::Text(last)), Delta::Text(more))
        | (Some(Delta::Arguments(last)), Delta::Arguments(more)) => last.push_str(more),
        _ => out.push(delta),
    }
}

#[cfg(test)]
mod tests;

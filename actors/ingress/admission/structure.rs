//! What an answer is to be: as a client says, or calls that it demands, or either; as a grammar.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mtplx_core::engine::EngineInfo;
use mtplx_core::grammar::{Constraint, Mask};
use mtplx_core::request::Refusal;
use serde_json::Value;
use tokio::time::Instant;

use super::House;
use crate::ingress::grammar::{Bound, Cache, Compiled, Grammars, Language, Structure, calls};
use crate::ingress::openai::{Source, Wanted};
use crate::ingress::text::{Prompt, Text};
use crate::ingress::work::off_thread;

/// Grammars compiled at once; compiling one takes a processor.
pub(super) const COMPILING_MAX: usize = 2;
/// Longest time that a grammar may take to be compiled, with the waiting for its turn.
const COMPILE_TIME_MAX: Duration = Duration::from_secs(20);

/// A grammar, and the parameter that asked for it.
pub(super) type Asked = (Arc<Compiled>, &'static str);

/// What is to be compiled.
pub(super) struct Plan {
    structure: Structure,
    /// The calls within it, if there are any.
    calls: Option<Calls>,
}

/// Calls that may or must be made.
struct Calls {
    tools: Vec<Value>,
    /// Of these, those whose schemas are not kept to.
    loose: Vec<usize>,
    /// Whether one call is all there may be.
    one: bool,
    /// What may be answered instead; where there is nothing, a call is demanded.
    instead: Option<Language>,
}

impl Calls {
    /// Their language; `None` where they cannot stand beside what may be answered instead. Where
    /// no call is demanded and all tools come to too long a text, the largest are read loosely:
    /// that calls are possible must not make a request fail which asked for something else.
    fn language(&mut self, text: &Text) -> Result<Option<Language>, Refusal> {
        loop {
            let calls = text.calls(&self.tools, self.one);
            let language = match &self.instead {
                None => return calls.language().map(Some),
                Some(answer) => calls.or(answer),
            };
            match language {
                Err(refusal) if !self.loosen_more() => return Err(refusal),
                Err(_) => {}
                language => return language,
            }
        }
    }

    fn loosen(&mut self, i: usize) {
        self.tools[i] = calls::loosened(&self.tools[i]);
        self.loose.push(i);
    }

    /// Reads the largest loosely, as many again as are read so, which bounds how often this is
    /// tried; false where none is left.
    fn loosen_more(&mut self) -> bool {
        let strict = (0..self.tools.len()).filter(|i| !self.loose.contains(i));
        let mut strict: Vec<_> = strict.map(|i| (self.tools[i].to_string().len(), i)).collect();
        strict.sort_unstable_by(|a, b| b.cmp(a));
        strict.truncate(self.loose.len().max(1));
        strict.iter().for_each(|&(_, i)| self.loosen(i));
        !strict.is_empty()
    }

    /// Names of those that are read loosely, in the order of their declaration.
    fn loose(&self) -> Vec<String> {
        let all: BTreeSet<_> = self.loose.iter().collect();
        all.into_iter().map(|&i| name_of(&self.tools[i]).to_owned()).collect()
    }

    /// What is to be done where they cannot be compiled: where a call is demanded, the tool is
    /// named whose schema it is. Else such a schema is not kept to, nor are the largest where only
    /// all of them together are too much.
    fn mended(
        &mut self,
        (text, grammars): (&Text, &Grammars),
        (structure, deadline): (&Structure, Instant),
        refusal: Refusal,
    ) -> Result<Compiled, Refusal> {
        if let Some(answer) = self.instead.clone() {
            // What is wrong with the answer itself is no tool's fault.
            grammars.compile(&Structure { language: answer, ..structure.clone() })?;
        }
        let before = self.loose.len();
        for i in 0..self.tools.len() {
            if Instant::now() >= deadline {
                // Nobody waits for it any more, and others do for the turn.
                return Err(refusal);
            }
            let tool = &self.tools[i];
            let language = text.calls(std::slice::from_ref(tool), true).language()?;
            let Err(fault) = grammars.compile(&Structure::new(language, "tools")) else { continue };
            match (&self.instead, fault) {
                (None, Refusal::Invalid { field, reason }) => {
                    let reason = format!("the schema of `{}` {reason}", name_of(tool));
                    return Err(Refusal::Invalid { field, reason });
                }
                (None, fault) => return Err(fault),
                (Some(_), _) => self.loosen(i),
            }
        }
        if self.instead.is_none() || self.loose.len() == before && !self.loosen_more() {
            return Err(refusal);
        }
        loop {
            let language = self.language(text)?.ok_or_else(|| refusal.clone())?;
            let loose = self.loose();
            let compiled = grammars.compile(&Structure { language, loose, ..structure.clone() });
            match compiled {
                Err(_) if Instant::now() >= deadline || !self.loosen_more() => return Err(refusal),
                Err(_) => {}
                compiled => return compiled,
            }
        }
    }
}

fn name_of(tool: &Value) -> &str {
    tool.get("function").unwrap_or(tool)["name"].as_str().unwrap_or_default()
}

impl House {
    /// What the answer is to be: as the client says, or a call that it demands.
    pub(super) async fn demanded(
        &self,
        wanted: &mut Wanted,
        prompts: &[Prompt],
        declared: Vec<Value>,
    ) -> Result<Option<Plan>, Refusal> {
        let asked = wanted.structure.take();
        let tools = std::mem::take(&mut wanted.reading.demanded);
        let one = wanted.reading.one_call;
        let calls_of = |tools, instead| Calls { tools, loose: Vec::new(), one, instead };
        let (mut calls, field, written) = match asked {
            Some(Structure { field, language, written, loose }) if tools.is_empty() => {
                if declared.is_empty() {
                    let structure = Structure { field, language, written, loose };
                    return Ok(Some(Plan { structure, calls: None }));
                }
                // Either the answer or calls.
                (calls_of(declared, Some(language)), field, written)
            }
            None if tools.is_empty() => return Ok(None),
            Some(Structure { field: other, .. }) => {
                let reason =
                    format!("demands a call, and {other} another answer; send one of them");
                return Err(Refusal::Invalid { field: "tool_choice", reason });
            }
            None => {
                // All prompts of a conversation begin it alike.
                let written = prompts.first().map(|prompt| prompt.prefill.clone());
                (calls_of(tools, None), "tool_choice", written.unwrap_or_default())
            }
        };
        let text = Arc::clone(&self.text);
        let work = move || (calls.language(&text), calls);
        let (language, calls) = self.turns.run(usize::MAX, work).await;
        let language = language?.ok_or_else(|| {
            let reason = "leaves no room for calls of the tools; set tool_choice to \"none\", or \
                          leave this or the tools out";
            Refusal::Invalid { field, reason: reason.into() }
        })?;
        let structure = Structure { field, language, written, loose: calls.loose() };
        Ok(Some(Plan { structure, calls: Some(calls) }))
    }

    /// Compiles what the answer is to be, off all threads that others wait for.
    pub(super) async fn compiled(
        &self,
        plan: Option<Plan>,
        vocab: usize,
    ) -> Result<Option<Asked>, Refusal> {
        let Some(Plan { structure, calls }) = plan else { return Ok(None) };
        let field = structure.field;
        let key = Cache::key(&structure, vocab);
        if let Some(compiled) = self.grammars.get(&key) {
            return Ok(Some((compiled, field)));
        }
        let cache = Arc::clone(&self.grammars);
        let text = Arc::clone(&self.text);
        let deadline = Instant::now() + COMPILE_TIME_MAX;
        // Who waits for an equal one holds no turn that another could use.
        let alone = tokio::time::timeout_at(deadline, cache.alone(key)).await;
        let alone = alone.map_err(|_| self.overloaded())?;
        if let Some(compiled) = cache.get(&key) {
            return Ok(Some((compiled, field)));
        }
        let turn = Arc::clone(&self.compiling).acquire_owned();
        let turn = tokio::time::timeout_at(deadline, turn).await.map_err(|_| self.overloaded())?;
        let work = off_thread(turn.ok(), move || {
            let grammars = text.grammars(vocab).map_err(|unusable| {
                let reason = format!("this model's tokens cannot be constrained: {}", unusable.0);
                Refusal::Invalid { field, reason }
            })?;
            let compiled = match (grammars.compile(&structure), calls) {
                (Err(refusal), Some(mut calls)) => {
                    calls.mended((&text, grammars), (&structure, deadline), refusal)
                }
                (compiled, _) => compiled,
            }?;
            let kept = cache.keep(key, compiled);
            drop(alone);
            Ok(kept)
        });
        let compiled = tokio::time::timeout_at(deadline, work).await;
        compiled
            .unwrap_or_else(|_| {
                let reason = "takes too long to compile; make it simpler".into();
                Err(Refusal::Invalid { field, reason })
            })
            .map(|compiled| Some((compiled, field)))
    }

    /// The grammar of one answer to this prompt. Where that leaves the model thinking, it holds
    /// from the end of the thoughts on, and the text cannot end before.
    pub(super) fn constraint(
        &self,
        (compiled, field): &Asked,
        prompt: &Prompt,
        info: &EngineInfo,
    ) -> (Constraint, Bound) {
        let (grammar, bound) = compiled.bind(field);
        let constraint = Constraint::new(Arc::new(grammar));
        let constraint = match self.text.thinking_ends() {
            Some(end) if prompt.thinking => {
                let stops = self.text.stop_tokens().iter().copied();
                constraint.after([end].into(), Mask::all_but(info.vocab, stops))
            }
            Some(_) | None => constraint,
        };
        (constraint, bound)
    }
}

/// The tools that may be called beside an answer whose structure is asked for; they are rendered
/// with their conversation, so they are copied only where they are needed once more.
pub(super) fn declared(wanted: &Wanted, sources: &[Source]) -> Vec<Value> {
    let both = wanted.structure.is_some() && wanted.reading.tools.is_some();
    match sources {
        [Source::Chat(chat), ..] if both => chat.tools.clone(),
        _ => Vec::new(),
    }
}

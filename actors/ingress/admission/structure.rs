//! What an answer is to be: as a client says, or calls that it demands, or either; as a grammar.

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
#[derive(Clone)]
struct Calls {
    tools: Arc<[Value]>,
    /// Whether one call is all there may be.
    one: bool,
    /// What may be answered instead; where there is nothing, a call is demanded.
    instead: Option<Language>,
}

impl Calls {
    /// Their language; `None` where they cannot stand beside what may be answered instead.
    fn language(&self, text: &Text, tools: &[Value]) -> Result<Option<Language>, Refusal> {
        let calls = text.calls(tools, self.one);
        match &self.instead {
            None => calls.language().map(Some),
            Some(answer) => calls.or(answer),
        }
    }

    /// What is to be done where they cannot be compiled: where a call is demanded, the tool is
    /// named whose schema it is. Else such a schema is not kept to: that calls are possible must
    /// not make a request fail which asked for something else.
    fn mended(
        &self,
        (text, grammars): (&Text, &Grammars),
        (structure, deadline): (&Structure, Instant),
        refusal: Refusal,
    ) -> Result<Compiled, Refusal> {
        let (mut tools, mut loose) = (self.tools.to_vec(), Vec::new());
        for tool in &mut tools {
            if Instant::now() >= deadline {
                // Nobody waits for it any more, and others do for the turn.
                return Err(refusal);
            }
            let language = text.calls(std::slice::from_ref(tool), true).language()?;
            let Err(fault) = grammars.compile(&Structure::new(language, "tools")) else { continue };
            let function = tool.get("function").unwrap_or(tool);
            let name = function["name"].as_str().unwrap_or_default().to_owned();
            match (&self.instead, fault) {
                (None, Refusal::Invalid { field, reason }) => {
                    let reason = format!("the schema of `{name}` {reason}");
                    return Err(Refusal::Invalid { field, reason });
                }
                (None, fault) => return Err(fault),
                (Some(_), _) => *tool = calls::loosened(tool),
            }
            loose.push(name);
        }
        if loose.is_empty() {
            return Err(refusal);
        }
        let language = self.language(text, &tools)?.ok_or(refusal)?;
        let mut compiled = grammars.compile(&Structure { language, ..structure.clone() })?;
        compiled.loose = loose;
        Ok(compiled)
    }
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
        let (calls, field, written) = match asked {
            Some(Structure { field, language, written }) if tools.is_empty() => {
                if declared.is_empty() {
                    let structure = Structure { field, language, written };
                    return Ok(Some(Plan { structure, calls: None }));
                }
                // Either the answer or calls.
                (Calls { tools: declared.into(), one, instead: Some(language) }, field, written)
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
                let calls = Calls { tools: tools.into(), one, instead: None };
                (calls, "tool_choice", written.unwrap_or_default())
            }
        };
        let (text, of) = (Arc::clone(&self.text), calls.clone());
        let work = move || of.language(&text, &of.tools);
        let language = self.turns.run(usize::MAX, work).await?.ok_or_else(|| {
            let reason = "leaves no room for calls of the tools; set tool_choice to \"none\", or \
                          leave this or the tools out";
            Refusal::Invalid { field, reason: reason.into() }
        })?;
        let structure = Structure { field, language, written };
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
        let turn = Arc::clone(&self.compiling).acquire_owned();
        let turn = tokio::time::timeout_at(deadline, turn).await.map_err(|_| self.overloaded())?;
        let work = off_thread(turn.ok(), move || {
            let grammars = text.grammars(vocab).map_err(|unusable| {
                let reason = format!("this model's tokens cannot be constrained: {}", unusable.0);
                Refusal::Invalid { field, reason }
            })?;
            // Whoever waited for a turn may find that it was compiled meanwhile.
            cache.get_or(key, || match (grammars.compile(&structure), calls) {
                (Err(refusal), Some(calls)) => {
                    calls.mended((&text, grammars), (&structure, deadline), refusal)
                }
                (compiled, _) => compiled,
            })
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

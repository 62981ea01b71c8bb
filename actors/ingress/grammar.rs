//! Grammars of answers: what a client may ask for, compiled with llguidance into sets of allowed
//! tokens that the core asks for place by place.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{InferenceCapabilities, TokEnv};
use llguidance::{Matcher, ParserFactory};
use mtplx_core::Token;
use mtplx_core::request::Refusal;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

mod cache;
pub(crate) mod calls;
pub(crate) mod elsewhere;
mod matched;
#[cfg(test)]
mod tests;

pub(crate) use self::cache::Cache;
use self::matched::Matched;

/// Longest source of a grammar.
const SOURCE_BYTES_MAX: usize = 256 * 1024;
/// Longest beginning that leaves no choice: at every place of such a run all the rest of it is cut
/// into tokens anew.
const FORCED_BYTES_MAX: usize = 16 * 1024;
/// Tools that are told by name: a header has little room.
const LOOSE_TOLD_MAX: usize = 10;
/// Longest reason that is told: some quote the source.
const REASON_CHARS_MAX: usize = 300;
/// Stack for compiling: parsers of nested sources call themselves. Only what is used takes memory.
const STACK_BYTES: usize = 256 << 20;
/// Room between two elements of JSON. Without a bound a model may write spaces for ever.
const SPACE: &str = r"[\x20\x0A\x0D\x09]{1,40}";

/// What an answer is to be.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Structure {
    /// Its language.
    pub(crate) language: Language,
    /// The parameter that asked for it.
    pub(crate) field: &'static str,
    /// How it begins, as far as the prompt holds that already.
    pub(crate) written: String,
    /// Tools in it whose schemas are not kept to.
    pub(crate) loose: Vec<String>,
}

impl Structure {
    /// All of it is to be written.
    pub(crate) fn new(language: Language, field: &'static str) -> Self {
        Self { language, field, written: String::new(), loose: Vec::new() }
    }

    /// It as a text, for another machine.
    pub(crate) fn source(&self) -> String {
        json!([self.language, self.written, self.loose]).to_string()
    }

    /// What [`Self::source`] wrote.
    pub(crate) fn of_source(source: &str) -> Option<Self> {
        let (language, written, loose) = serde_json::from_str(source).ok()?;
        Some(Self { language, field: "response_format", written, loose })
    }
}

/// A language, by its source.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) enum Language {
    /// JSON that a schema describes; `compact` is without any space that is not in a string.
    Json { schema: Value, compact: bool },
    /// What a regular expression matches as a whole.
    Regex(String),
    /// One of these.
    Choice(Vec<String>),
    /// Lark, as llguidance reads it.
    Lark(String),
}

/// Why no grammar can be had of this model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unusable(pub(crate) String);

/// Compiles grammars for one vocabulary.
pub(crate) struct Grammars {
    factory: ParserFactory,
    ends: Arc<BTreeSet<Token>>,
}

/// A grammar that compiled: any number of sequences can be made after it.
pub(crate) struct Compiled {
    /// Copied only, never moved on; a lock because a parser may not be looked at by two threads.
    fresh: Mutex<Matcher>,
    ends: Arc<BTreeSet<Token>>,
    /// Whether alternatives of which one only may hold are read as any of them.
    any_of: bool,
    /// Tools whose schemas are not kept to.
    loose: Vec<String>,
    /// The structure, as [`Structure::source`] writes it.
    source: Arc<str>,
}

/// What a reply is kept to.
#[derive(Debug)]
pub(crate) struct Bound {
    /// The parameter that asked for it.
    pub(crate) field: &'static str,
    gave_up: Arc<OnceLock<String>>,
}

impl Bound {
    /// Why it did not come there, if it did not.
    pub(crate) fn why(&self) -> Option<&str> {
        self.gave_up.get().map(String::as_str)
    }

    /// Whether the grammar did not come to the reply's end.
    pub(crate) fn gave_up(&self) -> bool {
        self.gave_up.get().is_some()
    }
}

impl Grammars {
    /// `ends` are the tokens that end a text.
    pub(crate) fn new(env: TokEnv, ends: &Arc<BTreeSet<Token>>) -> Result<Self, Unusable> {
        let capabilities = InferenceCapabilities::default();
        let slices = SlicedBiasComputer::json_slices();
        let factory = ParserFactory::new(&env, capabilities, &slices);
        let mut factory = factory.map_err(|e| Unusable(e.to_string()))?;
        factory.quiet();
        // A mask is made on the thread that every stream waits for: one that needs more than some
        // milliseconds ends its sequence instead.
        *factory.limits_mut() = ParserLimits {
            max_items_in_row: 2000,
            initial_lexer_fuel: 1_000_000,
            step_lexer_fuel: 100_000,
            step_max_items: 25_000,
            max_lexer_states: 20_000,
            max_grammar_size: 250_000,
            precompute_large_lexemes: true,
            verbose_errors: false,
        };
        Ok(Self { factory, ends: Arc::clone(ends) })
    }

    /// Compiles a language; what is wrong with it is told by the parameter that holds it.
    pub(crate) fn compile(&self, structure: &Structure) -> Result<Compiled, Refusal> {
        let Structure { language, field, written, loose } = structure;
        let written = self.factory.tok_env().tokenize_special(written);
        let wrong = |reason: String| Refusal::Invalid { field, reason };
        let (size, grammar) = source(language);
        if size > SOURCE_BYTES_MAX {
            return Err(wrong(format!("must be at most {SOURCE_BYTES_MAX} bytes, got {size}")));
        }
        // On a stack that the deepest source of that length fits into.
        let compiled = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
            let work = || {
                let mut fresh = Matcher::new(self.factory.create_parser(grammar));
                fresh.consume_tokens(&written).map_err(|e| e.to_string())?;
                // What the first place allows is known by the time the prompt is computed.
                let first = fresh.compute_mask_or_eos().map_err(|e| e.to_string())?;
                if first.is_zero() {
                    return Err("it allows no text".into());
                }
                match fresh.compute_ff_bytes().len() {
                    0..=FORCED_BYTES_MAX => Ok(fresh),
                    bytes => Err(format!("{bytes} bytes of the answer are given from the start")),
                }
            };
            let spawned = thread.spawn_scoped(scope, work).map_err(|e| e.to_string())?;
            spawned.join().unwrap_or_else(|_| Err("it makes the compiler fail".into()))
        });
        let fresh = compiled.map_err(|error: String| {
            let first = error.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
            let short: String = first.chars().take(REASON_CHARS_MAX).collect();
            wrong(format!("cannot be compiled: {short}"))
        })?;
        let mut fresh = fresh;
        // The only thing that is read more loosely than it is written.
        let any_of = fresh.grammar_warnings().iter().any(|warning| warning.contains("oneOf"));
        let (ends, loose) = (Arc::clone(&self.ends), loose.clone());
        let source = structure.source().into();
        Ok(Compiled { fresh: Mutex::new(fresh), ends, any_of, loose, source })
    }
}

impl Compiled {
    /// The grammar of one sequence. It shares nothing with others, so what it allows depends on
    /// its text alone.
    pub(crate) fn open(&self) -> Matched {
        let fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        Matched::new(fresh.deep_clone(), Arc::clone(&self.ends), Arc::clone(&self.source))
    }

    /// Where it takes more than this parameter asked for, in words.
    pub(crate) fn looser(&self, field: &str) -> Vec<String> {
        let any_of = self.any_of.then(|| format!("{field} oneOf (read as anyOf)"));
        let loose = self.loose.iter().map(|tool| format!("tools {tool} (read as any object)"));
        let more = self.loose.len().saturating_sub(LOOSE_TOLD_MAX);
        let more = (more > 0).then(|| format!("... and {more} more tools"));
        any_of.into_iter().chain(loose.take(LOOSE_TOLD_MAX)).chain(more).collect()
    }

    /// The same, with the knowledge of whether it will have given up.
    pub(crate) fn bind(&self, field: &'static str) -> (Matched, Bound) {
        let matched = self.open();
        let gave_up = matched.gave_up();
        (matched, Bound { field, gave_up })
    }
}

/// The length of a source, and what llguidance is given.
fn source(language: &Language) -> (usize, TopLevelGrammar) {
    match language {
        Language::Json { schema, compact } => {
            let size = schema.to_string().len();
            let options = match compact {
                true => json!({"whitespace_flexible": false}),
                false => json!({"whitespace_pattern": SPACE}),
            };
            // `true` and `{}` are schemas too.
            let any = *schema == Value::Bool(true);
            let mut schema = if any { json!({}) } else { schema.clone() };
            if let Some(schema) = schema.as_object_mut() {
                // `oneOf` is read as `anyOf` where the choices cannot be told apart.
                let mut all = json!({"coerce_one_of": true});
                for options in [options, schema.remove("x-guidance").unwrap_or(json!({}))] {
                    if let (Some(all), Value::Object(options)) = (all.as_object_mut(), options) {
                        all.extend(options);
                    }
                }
                schema.insert("x-guidance".into(), all);
            }
            (size, TopLevelGrammar::from_json_schema(schema))
        }
        Language::Regex(regex) => (regex.len(), TopLevelGrammar::from_regex(regex)),
        Language::Choice(choices) => {
            let quoted = |choice: &String| Value::from(choice.as_str()).to_string();
            let choices: Vec<String> = choices.iter().map(quoted).collect();
            // As one word of the language: thousands of words at one place would be too many.
            let lark = format!("start: CHOICE\nCHOICE: {}", choices.join(" | "));
            (lark.len(), lark_of(lark))
        }
        Language::Lark(lark) => (lark.len(), lark_of(lark.clone())),
    }
}

fn lark_of(lark: String) -> TopLevelGrammar {
    TopLevelGrammar::from_grammar(GrammarWithLexer::from_lark(lark))
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars").finish_non_exhaustive()
    }
}

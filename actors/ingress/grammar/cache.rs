//! Grammars that were compiled lately: a client asks for the same structure again and again.

use std::sync::Arc;

use mtplx_core::request::Refusal;

use super::{Compiled, Language, Structure};

/// Grammars kept. Each may hold some megabytes of automata by the bounds of its compiler.
const KEPT_MAX: u64 = 32;

/// What a grammar is found by.
type Key = [u8; 32];

/// The grammars of one model's text.
pub(crate) struct Cache(moka::sync::Cache<Key, Arc<Compiled>>);

impl Cache {
    pub(crate) fn new() -> Self {
        let policy = moka::policy::EvictionPolicy::lru();
        let cache = moka::sync::Cache::builder().max_capacity(KEPT_MAX);
        Self(cache.eviction_policy(policy).build())
    }

    /// The name of a structure over a vocabulary: what it says, not who asked for it.
    pub(crate) fn key(structure: &Structure, vocab: usize) -> Key {
        let Structure { language, written, .. } = structure;
        let (kind, source) = match language {
            Language::Json { schema, compact: false } => ("json", schema.to_string()),
            Language::Json { schema, compact: true } => ("compact json", schema.to_string()),
            Language::Regex(regex) => ("regex", regex.clone()),
            Language::Choice(choices) => ("choice", format!("{choices:?}")),
            Language::Lark(lark) => ("lark", lark.clone()),
        };
        let mut hasher = blake3::Hasher::new();
        for part in [kind, &vocab.to_string(), written, &source] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        hasher.finalize().into()
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<Compiled>> {
        self.0.get(key)
    }

    /// The grammar of this name, or what `compile` makes; of callers at once one compiles, and the
    /// others wait for it.
    pub(crate) fn get_or(
        &self,
        key: Key,
        compile: impl FnOnce() -> Result<Compiled, Refusal>,
    ) -> Result<Arc<Compiled>, Refusal> {
        let compiled = self.0.try_get_with(key, || compile().map(Arc::new));
        self.0.run_pending_tasks();
        compiled.map_err(|refusal| (*refusal).clone())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_grammar_is_found_by_all_that_it_says_and_by_nothing_else() {
        let schema = json!({"type": "integer"});
        let languages = [
            Language::Json { schema: schema.clone(), compact: false },
            Language::Json { schema: schema.clone(), compact: true },
            Language::Regex(schema.to_string()),
            Language::Lark(schema.to_string()),
            Language::Choice(vec!["a".into(), "b".into()]),
            Language::Choice(vec!["a\", \"b".into()]),
        ];
        let mut keys = std::collections::BTreeSet::new();
        for language in &languages {
            let structure = Structure::new(language.clone(), "response_format");
            let begun = Structure { written: "<tool_call>".into(), ..structure.clone() };
            for (structure, vocab) in [(&structure, 8192), (&structure, 9000), (&begun, 8192)] {
                assert!(keys.insert(Cache::key(structure, vocab)), "{structure:?} over {vocab}");
            }
            let other = Structure { field: "guided_json", ..structure };
            assert!(!keys.insert(Cache::key(&other, 8192)), "who asked does not matter");
        }
    }
}

//! Grammars that were compiled lately: a client asks for the same structure again and again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

use super::{Compiled, Language, Structure};

/// Grammars kept. Each may hold some megabytes of automata by the bounds of its compiler.
const KEPT_MAX: u64 = 32;

/// What a grammar is found by.
type Key = [u8; 32];

/// The grammars of one model's text.
pub(crate) struct Cache {
    kept: moka::sync::Cache<Key, Arc<Compiled>>,
    /// Those that are being compiled.
    making: Mutex<HashMap<Key, Weak<tokio::sync::Mutex<()>>>>,
}

impl Cache {
    pub(crate) fn new() -> Self {
        let policy = moka::policy::EvictionPolicy::lru();
        let cache = moka::sync::Cache::builder().max_capacity(KEPT_MAX);
        Self { kept: cache.eviction_policy(policy).build(), making: Mutex::default() }
    }

    /// The name of a structure over a vocabulary: what it says, not who asked for it.
    pub(crate) fn key(structure: &Structure, vocab: usize) -> Key {
        let Structure { language, written, loose, .. } = structure;
        let (kind, source) = match language {
            Language::Json { schema, compact: false } => ("json", schema.to_string()),
            Language::Json { schema, compact: true } => ("compact json", schema.to_string()),
            Language::Regex(regex) => ("regex", regex.clone()),
            Language::Choice(choices) => ("choice", format!("{choices:?}")),
            Language::Lark(lark) => ("lark", lark.clone()),
        };
        let mut hasher = blake3::Hasher::new();
        let vocab = vocab.to_string();
        let parts = [kind, &vocab, written, &source].into_iter();
        for part in parts.chain(loose.iter().map(String::as_str)) {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        hasher.finalize().into()
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<Compiled>> {
        self.kept.get(key)
    }

    /// Waits until nobody else compiles the grammar of this name. Whoever was waited for may have
    /// kept it, or failed for reasons of its own: its time, its parameter.
    pub(crate) async fn alone(&self, key: Key) -> OwnedMutexGuard<()> {
        let mine = {
            let mut making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
            making.retain(|_, one| one.strong_count() > 0);
            making.get(&key).and_then(Weak::upgrade).unwrap_or_else(|| {
                let new = Arc::default();
                making.insert(key, Arc::downgrade(&new));
                new
            })
        };
        mine.lock_owned().await
    }

    pub(crate) fn keep(&self, key: Key, compiled: Compiled) -> Arc<Compiled> {
        let compiled = Arc::new(compiled);
        self.kept.insert(key, Arc::clone(&compiled));
        self.kept.run_pending_tasks();
        compiled
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

    #[tokio::test]
    async fn of_those_who_ask_for_one_at_once_each_waits_for_the_one_before() {
        let cache = Cache::new();
        let first = cache.alone([1; 32]).await;
        let other = cache.alone([2; 32]);
        tokio::time::timeout(std::time::Duration::from_secs(9), other).await.expect("is another");
        let mut second = std::pin::pin!(cache.alone([1; 32]));
        let soon = std::time::Duration::from_millis(20);
        assert!(tokio::time::timeout(soon, second.as_mut()).await.is_err());
        drop(first);
        drop(second.await);
        drop(cache.alone([3; 32]).await);
        assert_eq!(cache.making.lock().unwrap().len(), 1, "those before are forgotten");
    }
}

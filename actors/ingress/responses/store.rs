//! Answers that clients may go on from, or fetch again: in memory only, bounded in bytes and time.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use serde_json::Value;

use crate::ingress::openai::ApiError;

/// An answer that is kept.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    /// The conversation up to and with it, without instructions.
    pub(crate) messages: Vec<Value>,
    /// As it was sent.
    pub(crate) response: String,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Store(Cache<String, Arc<Kept>>);

impl Store {
    /// Holds so many bytes, each answer for so long.
    pub(crate) fn new(bytes_max: u64, idle: Duration) -> Self {
        let size = |_: &String, kept: &Arc<Kept>| {
            let messages: usize = kept.messages.iter().map(|m| m.to_string().len()).sum();
            u32::try_from(messages + kept.response.len()).unwrap_or(u32::MAX)
        };
        // The newest matter most: with moka's own policy a full store would refuse newcomers.
        let policy = moka::policy::EvictionPolicy::lru();
        let cache = Cache::builder().max_capacity(bytes_max).weigher(size).time_to_idle(idle);
        Self(cache.eviction_policy(policy).build())
    }

    pub(crate) fn keep(&self, id: &str, kept: Kept) {
        self.0.insert(id.to_owned(), Arc::new(kept));
    }

    /// The conversation that ends with this answer.
    pub(crate) fn conversation(&self, id: &str) -> Result<Vec<Value>, ApiError> {
        Ok(self.kept(id, "previous_response_id")?.messages.clone())
    }

    /// The answer of this name.
    pub(crate) fn kept(&self, id: &str, param: &str) -> Result<Arc<Kept>, ApiError> {
        self.0
            .get(id)
            .ok_or_else(|| ApiError::NotKept { param: param.to_owned(), id: id.to_owned() })
    }

    /// Forgets the answer; false if there was none.
    pub(crate) fn forget(&self, id: &str) -> bool {
        self.0.remove(id).is_some()
    }
}

//! Answers that clients may go on from, or fetch again: in memory only, bounded in bytes and time.
//! Each is its tenant's: for others there is none of this name.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use moka::sync::Cache;
use mtplx_core::Tenant;
use serde_json::Value;

use crate::ingress::openai::ApiError;

/// What the index takes for an answer, besides its texts.
const ENTRY_BYTES: usize = 512;

/// An answer that is kept. Both are texts, so that their lengths are what they take: as trees they
/// would take several times as much.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    /// The conversation up to and with it, without instructions.
    messages: Box<str>,
    /// As it was sent.
    response: Box<str>,
}

impl Kept {
    pub(crate) fn new(messages: Vec<Value>, response: &Value) -> Self {
        let messages = Value::Array(messages).to_string().into_boxed_str();
        Self { messages, response: response.to_string().into_boxed_str() }
    }

    pub(crate) fn response(&self) -> &str {
        &self.response
    }
}

type All = Cache<(Tenant, String), Arc<Kept>>;

/// All of them, as one tenant sees them.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    all: Arc<RwLock<All>>,
    tenant: Tenant,
}

impl Store {
    /// Holds so many bytes of all tenants, each answer for so long.
    pub(crate) fn new(bytes_max: u64, idle: Duration) -> Self {
        let all = Arc::new(RwLock::new(Self::cache(bytes_max, idle)));
        Self { all, tenant: Tenant::default() }
    }

    /// Holds so many and for so long from now on, for every tenant. moka cannot be resized, so what
    /// is kept moves, as long as there is room.
    pub(crate) fn resize(&self, bytes_max: u64, idle: Duration) {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        let policy = all.policy();
        if (policy.max_capacity(), policy.time_to_idle()) == (Some(bytes_max), Some(idle)) {
            return;
        }
        let new = Self::cache(bytes_max, idle);
        all.iter().for_each(|(id, kept)| new.insert((*id).clone(), kept));
        new.run_pending_tasks();
        *all = new;
    }

    fn cache(bytes_max: u64, idle: Duration) -> All {
        let size = |(_, id): &(Tenant, String), kept: &Arc<Kept>| {
            let texts = kept.messages.len() + kept.response.len();
            u32::try_from(texts + id.len() + ENTRY_BYTES).unwrap_or(u32::MAX)
        };
        // The newest matter most: with moka's own policy a full store would refuse newcomers.
        let policy = moka::policy::EvictionPolicy::lru();
        let cache = Cache::builder().max_capacity(bytes_max).weigher(size).time_to_idle(idle);
        cache.eviction_policy(policy).build()
    }

    fn all(&self) -> RwLockReadGuard<'_, All> {
        self.all.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same answers, as this tenant sees them.
    pub(crate) fn of(&self, tenant: Tenant) -> Self {
        Self { all: Arc::clone(&self.all), tenant }
    }

    fn name(&self, id: &str) -> (Tenant, String) {
        (self.tenant, id.to_owned())
    }

    pub(crate) fn keep(&self, id: &str, kept: Kept) {
        let all = self.all();
        all.insert(self.name(id), Arc::new(kept));
        // At once, not with some later insert: till then there would be more than may be.
        all.run_pending_tasks();
    }

    /// The conversation that ends with this answer.
    pub(crate) fn conversation(&self, id: &str) -> Result<Vec<Value>, ApiError> {
        let kept = self.kept(id, "previous_response_id")?;
        Ok(serde_json::from_str(&kept.messages).expect("it was written from messages"))
    }

    /// The answer of this name.
    pub(crate) fn kept(&self, id: &str, param: &str) -> Result<Arc<Kept>, ApiError> {
        self.all()
            .get(&self.name(id))
            .ok_or_else(|| ApiError::NotKept { param: param.to_owned(), id: id.to_owned() })
    }

    /// Forgets the answer; false if there was none.
    pub(crate) fn forget(&self, id: &str) -> bool {
        self.all().remove(&self.name(id)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_bytes_of_all_answers_together_are_bounded_at_once() {
        let store = Store::new(100_000, Duration::from_secs(60));
        let said = || vec![json!({"role": "user", "content": "x".repeat(10_000)})];
        for i in 0..50 {
            store.keep(&format!("resp_{i}"), Kept::new(said(), &json!({"id": i})));
            assert!(store.all().weighted_size() <= 100_000, "{}", store.all().weighted_size());
        }
        assert_eq!(store.conversation("resp_49").unwrap(), said(), "the newest are kept");
        assert!(store.conversation("resp_0").is_err(), "the oldest go");
        store.of(Tenant(7)).resize(50_000, Duration::from_secs(60));
        let size = store.all().weighted_size();
        assert!((30_000..=50_000).contains(&size), "what has room stays: {size}");
        // One that is larger than all the room is not kept at all.
        let huge = vec![json!("x".repeat(200_000))];
        store.keep("huge", Kept::new(huge, &json!({})));
        assert!(store.kept("huge", "response_id").is_err());
    }
}

//! Bounds of the files, which may change while the store and its writer go by them.

use std::sync::{Arc, PoisonError, RwLock};

use super::Config;

/// What holds now.
#[derive(Clone, Debug)]
pub(super) struct Bounds(Arc<RwLock<Arc<Config>>>);

impl Bounds {
    pub(super) fn new(config: Config) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(config))))
    }

    pub(super) fn get(&self) -> Arc<Config> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// All but the folder: that is held as long as the process lives.
    pub(super) fn set(&self, config: Config) {
        let mut now = self.0.write().unwrap_or_else(PoisonError::into_inner);
        *now = Arc::new(Config { path: now.path.clone(), ..config });
    }
}

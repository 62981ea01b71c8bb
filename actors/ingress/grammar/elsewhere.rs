//! Grammars that another machine's door asked for: compiled anew from their sources by the one that
//! runs the row, over the same tokens, so they allow the same.

use std::sync::Arc;

use mtplx_core::grammar::{Constraint, Mask};
use tokio::sync::Semaphore;

use super::{Bound, Cache, Structure};
use crate::ingress::text::Text;
use crate::ingress::work::off_thread;

/// Grammars compiled at once; compiling one takes a processor.
const COMPILING_MAX: usize = 2;

/// Makes them.
pub(crate) struct Grammarian {
    text: Arc<Text>,
    kept: Arc<Cache>,
    compiling: Arc<Semaphore>,
}

impl Grammarian {
    pub(crate) fn new(text: Arc<Text>) -> Self {
        let compiling = Arc::new(Semaphore::new(COMPILING_MAX));
        Self { text, kept: Arc::new(Cache::new()), compiling }
    }

    /// The grammar of one row; `late` says that it holds from the end of the thoughts on. `None` if
    /// it is none.
    pub(crate) async fn constraint(
        &self,
        (source, late): (String, bool),
        vocab: usize,
    ) -> Option<(Constraint, Bound)> {
        let structure = Structure::of_source(&source)?;
        let key = Cache::key(&structure, vocab);
        let alone = self.kept.alone(key).await;
        let compiled = match self.kept.get(&key) {
            Some(compiled) => compiled,
            None => {
                let turn = Arc::clone(&self.compiling).acquire_owned().await.ok();
                let (text, kept) = (Arc::clone(&self.text), Arc::clone(&self.kept));
                off_thread(turn, move || {
                    let compiled = text.grammars(vocab).ok()?.compile(&structure).ok()?;
                    let compiled = kept.keep(key, compiled);
                    drop(alone);
                    Some(compiled)
                })
                .await?
            }
        };
        let (grammar, bound) = compiled.bind("response_format");
        let constraint = Constraint::new(Arc::new(grammar));
        let constraint = match self.text.thinking_ends().filter(|_| late) {
            Some(end) => {
                let stops = self.text.stop_tokens().iter().copied();
                constraint.after([end].into(), Mask::all_but(vocab, stops))
            }
            None => constraint,
        };
        Some((constraint, bound))
    }
}

impl std::fmt::Debug for Grammarian {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammarian").finish_non_exhaustive()
    }
}

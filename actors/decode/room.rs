//! Room for rows that could have a slot but find no pages: they have precedence over warm prefixes
//! that nobody uses, and in the last resort over their own.

use mtplx_core::engine::Engine;
use ractor::ActorProcessingErr;

use super::State;
use crate::bank;

/// Whether the bank was asked to let a prefix go and has not answered yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    No,
    /// While rows ran, whose end may bring pages too.
    Running,
    /// When nothing ran.
    Stalled,
}

impl<E: Engine> State<E> {
    /// Asks the bank for pages if somebody waits for nothing else.
    pub(super) fn make_room(
        &mut self,
        rows_max: usize,
        idle: bool,
    ) -> Result<(), ActorProcessingErr> {
        let (slots_free, _) = self.batch.ledger().free();
        let seats = rows_max.max(1).saturating_sub(self.batch.rows().len()).min(slots_free);
        if self.asked == Asked::No
            && seats > 0
            && self.batch.waiting() > 0
            && let Some(home) = &self.home
        {
            self.asked = if idle { Asked::Stalled } else { Asked::Running };
            home.cast(bank::Message::Reclaim)?;
        }
        Ok(())
    }

    /// The bank answered. If nothing runs and it has nothing left, the pages are held by those who
    /// wait, for the warm states they hope to start from: the newest of them will start cold.
    pub(super) fn reclaimed(&mut self, found: bool) {
        let asked = std::mem::replace(&mut self.asked, Asked::No);
        if found || asked != Asked::Stalled || !self.batch.rows().is_empty() {
            return;
        }
        if let Some(request) = self.streams.cool() {
            self.batch.cancel(request.id);
            self.batch.admit(request, None);
        } else if let Some(id) = self.streams.fault() {
            // All pages are free, so this one would wait for ever.
            tracing::error!(request = id.0, "a request does not fit into the engine's pages");
            self.batch.cancel(id);
        }
    }
}

//! Room for rows that could have a slot but find no pages or no memory: they have precedence over
//! warm prefixes that nobody uses. Whether a waiting row gives its own warm start up is the batch's
//! decision.

use mtplx_core::engine::Engine;
use ractor::ActorProcessingErr;

use super::State;
use crate::{bank, metrics};

/// Cycles between two looks at memory while nobody waits.
const METRIC_CYCLES: u64 = 64;

impl<E: Engine> State<E> {
    /// Sees what memory is in use where that decides about somebody, and now and then for the
    /// metrics.
    pub(super) fn measure(&mut self) {
        if self.batch.waiting() == 0 && !self.cycles.is_multiple_of(METRIC_CYCLES) {
            return;
        }
        self.batch.measured(self.engine.memory());
        // Buffers that were given back are wanted again by the next steps: not at every one.
        let look = self.batch.rows().is_empty() || self.cycles.is_multiple_of(METRIC_CYCLES);
        if self.batch.shortage().is_some() && look {
            self.engine.trim();
            self.batch.measured(self.engine.memory());
        }
        metrics::memory(self.batch.used(), self.engine.info().budget.bytes);
    }

    /// Asks the bank for room if somebody waits for nothing else, or for a row to be parked, and
    /// its states could make it.
    pub(super) fn make_room(&mut self, rows_max: usize) -> Result<(), ActorProcessingErr> {
        let (slots_free, _) = self.batch.ledger().free();
        let seats = rows_max.max(1).saturating_sub(self.batch.rows().len()).min(slots_free);
        let wanted = seats > 0 && self.batch.letting_go_helps() || self.batch.is_cramped();
        if !self.reclaiming
            && !self.is_making_room()
            && wanted
            && let Some(home) = &self.home
        {
            self.reclaiming = true;
            home.cast(bank::Message::Reclaim)?;
        }
        Ok(())
    }

    /// The bank answered. If it has nothing left and nothing runs, nobody will bring more pages.
    pub(super) fn reclaimed(&mut self, found: bool) {
        self.reclaiming = false;
        if !found && let Some((id, event)) = self.batch.give_up() {
            tracing::info!(request = id.0, ?event, "a request does not fit into the engine");
            // Its stream is empty yet.
            let _ = self.streams.publish(id, event);
        }
    }
}

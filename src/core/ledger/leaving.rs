//! What there would be if a row were parked: it keeps the pages it has taken, and gives back those
//! it was promised.

use super::{Holding, Ledger};

impl Ledger {
    /// Whether a row that needs `own` pages could be opened in place of one that is parked.
    #[must_use]
    pub fn opens_without(&self, leaving: &Holding, own: usize) -> bool {
        let free = self.pages_free.len() - (self.promised - leaving.promised);
        own <= free && self.owned - leaving.own + own <= self.owned_max
    }

    /// As [`Ledger::rise_after`], in place of one that is parked.
    #[must_use]
    pub fn rise_without(&self, leaving: &Holding, own: usize) -> usize {
        let held = self.holders.len() - self.pages_free.len();
        (held + self.promised - leaving.promised + own).saturating_sub(self.highest)
    }
}

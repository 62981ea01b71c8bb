//! Parked states: who holds them, and which of them a prompt may start from.

use super::{BTreeMap, CopyOnWrite, Holding, Ledger, Page, Parked, Prefix, SnapshotId};
use super::{Tenant, Token};
use crate::engine::Parcel;

impl Ledger {
    /// Parks the beginning of a row under a new name, held once (by the bank).
    pub fn park(&mut self, holding: &Holding, prefix: Prefix) -> SnapshotId {
        let pages = holding.pages[..prefix.tokens.len().div_ceil(self.page_tokens)].to_vec();
        for &page in &pages {
            *self.holder(page) += 1;
        }
        self.name(pages, prefix)
    }

    /// Takes pages for a state that comes from outside, held once (by the bank); nobody finds it
    /// before [`Self::arrived`]. `None` if too few are free that nobody was promised.
    pub fn import(&mut self, prefix: Prefix) -> Option<SnapshotId> {
        let own = prefix.tokens.len().div_ceil(self.page_tokens);
        if own > self.pages_free.len().saturating_sub(self.promised) {
            return None;
        }
        self.promised += own;
        let mut holding = Holding { pages: Vec::new(), promised: own, own: 0 };
        self.grow(&mut holding, prefix.tokens.len());
        let id = self.name(holding.pages, prefix);
        if let Some(parked) = self.snapshots.get_mut(&id) {
            parked.arriving = true;
        }
        Some(id)
    }

    /// A state from outside is all there.
    pub fn arrived(&mut self, id: SnapshotId) {
        if let Some(parked) = self.snapshots.get_mut(&id) {
            parked.arriving = false;
            // Who has looked already may look again.
            self.snapshot_next += 1;
        }
    }

    /// Whether a state of exactly this prefix is being brought in.
    #[must_use]
    pub fn is_arriving(&self, prefix: &Prefix) -> bool {
        self.snapshots.values().any(|p| p.arriving && p.prefix == *prefix)
    }

    fn name(&mut self, pages: Vec<Page>, prefix: Prefix) -> SnapshotId {
        self.snapshot_next += 1;
        let id = SnapshotId(self.snapshot_next);
        self.snapshots
            .insert(id, Parked { pages, prefix, holds: 1, banked: true, arriving: false });
        id
    }

    /// Holds a snapshot for a row to come; `None` if it is gone. Returns its length in tokens.
    pub fn hold(&mut self, id: SnapshotId) -> Option<usize> {
        let parked = self.snapshots.get_mut(&id)?;
        parked.holds += 1;
        Some(parked.len())
    }

    /// Gives back one hold; true if it was the last, so that the engine may forget the snapshot.
    pub fn release(&mut self, id: SnapshotId) -> bool {
        let Some(parked) = self.snapshots.get_mut(&id) else { return false };
        parked.holds -= 1;
        if parked.holds > 0 {
            return false;
        }
        if let Some(parked) = self.snapshots.remove(&id) {
            for page in parked.pages {
                self.drop_page(page);
            }
        }
        true
    }

    /// Whether the bank holds it.
    #[must_use]
    pub fn is_banked(&self, id: SnapshotId) -> bool {
        self.snapshots.get(&id).is_some_and(|parked| parked.banked)
    }

    /// Gives back the bank's hold: nobody else will start from it. True as for [`Self::release`].
    pub fn unbank(&mut self, id: SnapshotId) -> bool {
        if let Some(parked) = self.snapshots.get_mut(&id) {
            parked.banked = false;
        }
        self.release(id)
    }

    /// The longest state of this tenant that covers a beginning of `prompt`, which may be all of
    /// it, and its length.
    #[must_use]
    pub fn find(&self, tenant: Tenant, prompt: &[Token]) -> Option<(SnapshotId, usize)> {
        let mut best: Option<(SnapshotId, usize)> = None;
        for (&id, parked) in &self.snapshots {
            let longer = parked.len() > best.map_or(0, |(_, len)| len);
            if parked.is_found()
                && longer
                && parked.prefix.tenant == tenant
                && prompt.starts_with(&parked.prefix.tokens)
            {
                best = Some((id, parked.len()));
            }
        }
        best
    }

    /// The state of exactly this prefix.
    #[must_use]
    pub fn same(&self, prefix: &Prefix) -> Option<SnapshotId> {
        let mut parked = self.snapshots.iter();
        parked.find(|(_, p)| p.is_found() && p.prefix == *prefix).map(|(&id, _)| id)
    }

    /// Names given so far: while this stays, so does what [`Self::find`] can find, or it is less.
    #[must_use]
    pub fn named(&self) -> u64 {
        self.snapshot_next
    }

    /// Lets a running row go on from a snapshot that covers more than it has: it shares the
    /// snapshot's whole pages, and what it had goes back. It needs fewer pages of its own than it
    /// was promised, so there are always enough.
    ///
    /// # Panics
    /// If the snapshot is gone: whoever asks has seen it parked.
    pub fn take_over(
        &mut self,
        holding: &mut Holding,
        tokens_max: usize,
        id: SnapshotId,
    ) -> Option<CopyOnWrite> {
        let parked = &self.snapshots[&id];
        let whole = parked.len() / self.page_tokens;
        let shared = parked.pages[..whole].to_vec();
        let partial = parked.pages.get(whole).copied();
        for &page in &shared {
            *self.holder(page) += 1;
        }
        self.promised -= holding.promised;
        self.owned -= holding.own;
        for page in std::mem::take(holding).pages {
            self.drop_page(page);
        }
        let own = tokens_max.div_ceil(self.page_tokens).saturating_sub(whole);
        (self.promised, self.owned) = (self.promised + own, self.owned + own);
        *holding = Holding { pages: shared, promised: own, own };
        self.own_partial(partial, holding)
    }

    /// Where a snapshot is, for the engine.
    #[must_use]
    pub fn parcel(&self, id: SnapshotId) -> Option<Parcel<'_>> {
        let parked = self.snapshots.get(&id)?;
        Some(Parcel { snapshot: id, tokens: parked.len(), pages: &parked.pages })
    }

    /// Snapshots alive.
    #[must_use]
    pub fn snapshots(&self) -> usize {
        self.snapshots.len()
    }

    /// States that nobody but the bank holds, and the pages that would come free with all of them.
    #[must_use]
    pub fn idle(&self) -> (usize, usize) {
        let mut states = 0;
        let mut holders = vec![0_u32; self.holders.len()];
        for parked in self.snapshots.values().filter(|p| p.is_found() && p.holds == 1) {
            states += 1;
            parked.pages.iter().for_each(|page| holders[page.0 as usize] += 1);
        }
        let alone =
            holders.iter().zip(&self.holders).filter(|(idle, all)| **idle > 0 && idle == all);
        (states, alone.count())
    }

    pub(super) fn parked(&self) -> &BTreeMap<SnapshotId, Parked> {
        &self.snapshots
    }
}

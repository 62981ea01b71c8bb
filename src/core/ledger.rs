//! Who holds what: slots, KV pages and snapshots. Every change goes through here, and
//! [`Ledger::check_integrity`] proves at any time that nothing is lost or held twice (L3, L4).

use std::collections::{BTreeMap, BTreeSet};

use crate::prefix::Prefix;
use crate::{Page, Slot, SnapshotId, Tenant, Token};

mod leaving;
mod parked;

/// The books of one engine generation.
#[derive(Clone, Debug)]
pub struct Ledger {
    page_tokens: usize,
    slots_free: BTreeSet<Slot>,
    slots: usize,
    /// How many rows and snapshots hold each page.
    holders: Vec<u32>,
    pages_free: BTreeSet<Page>,
    /// Pages promised to running rows and not yet taken.
    promised: usize,
    /// Pages that running rows were ever promised, taken or not; and how many may be.
    owned: usize,
    owned_max: usize,
    /// Pages up to the highest ever taken: the engine has memory for these.
    highest: usize,
    snapshots: BTreeMap<SnapshotId, Parked>,
    snapshot_next: u64,
}

#[derive(Clone, Debug)]
struct Parked {
    pages: Vec<Page>,
    prefix: Prefix,
    /// The bank's hold and one for each admitted row that has not restored it yet.
    holds: u32,
    /// Whether the bank's is among them: only what it keeps is found by others.
    banked: bool,
    /// Whether it is still being brought in: nobody may start from it yet.
    arriving: bool,
}

impl Parked {
    fn len(&self) -> usize {
        self.prefix.tokens.len()
    }

    fn is_found(&self) -> bool {
        self.banked && !self.arriving
    }
}

/// Pages of a row: what it has and what it may still take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    pages: Vec<Page>,
    promised: usize,
    /// Of its own, taken or promised, beside those that it shares with where it started.
    own: usize,
}

impl Holding {
    /// Pages in order of position.
    #[must_use]
    pub fn pages(&self) -> &[Page] {
        &self.pages
    }
}

/// A page that two would write to is copied first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyOnWrite {
    /// The shared page.
    pub from: Page,
    /// The row's own.
    pub to: Page,
}

impl Ledger {
    /// Books with everything free.
    #[must_use]
    pub fn new(slots: usize, page_tokens: usize, pages_max: usize) -> Self {
        let slot = |i: usize| Slot(u16::try_from(i).expect("fewer than 65 536 slots"));
        let page = |i: usize| Page(u32::try_from(i).expect("fewer than 2^32 pages"));
        Self {
            page_tokens,
            slots_free: (0..slots).map(slot).collect(),
            slots,
            holders: vec![0; pages_max],
            pages_free: (0..pages_max).map(page).collect(),
            promised: 0,
            owned: 0,
            owned_max: usize::MAX,
            highest: 0,
            snapshots: BTreeMap::new(),
            snapshot_next: 0,
        }
    }

    /// Bounds the pages that running rows have for themselves.
    #[must_use]
    pub fn with_rows_max(mut self, pages: usize) -> Self {
        self.owned_max = pages;
        self
    }

    /// Whether running rows may have so many more pages for themselves.
    #[must_use]
    pub fn may_own(&self, pages: usize) -> bool {
        self.owned + pages <= self.owned_max
    }

    /// Takes a slot and the promise of pages for `tokens_max` tokens, the first `len` of them from
    /// `snapshot` if given. `None` if either is not free now.
    pub fn open(
        &mut self,
        tokens_max: usize,
        warm: Option<SnapshotId>,
    ) -> Option<(Slot, Holding, Option<CopyOnWrite>)> {
        let parked = warm.map(|id| &self.snapshots[&id]);
        let len = parked.map_or(0, Parked::len);
        let whole = len / self.page_tokens;
        let own = tokens_max.div_ceil(self.page_tokens).saturating_sub(whole);
        if own > self.pages_free.len().saturating_sub(self.promised) || !self.may_own(own) {
            return None;
        }
        let slot = self.slots_free.pop_first()?;
        let shared = parked.map_or(Vec::new(), |p| p.pages[..whole].to_vec());
        let partial = parked.and_then(|p| p.pages.get(whole).copied());
        for &page in &shared {
            *self.holder(page) += 1;
        }
        (self.promised, self.owned) = (self.promised + own, self.owned + own);
        let mut holding = Holding { pages: shared, promised: own, own };
        let copy = self.own_partial(partial, &mut holding);
        Some((slot, holding, copy))
    }

    /// Pages for which the engine has no memory yet and will want some if a row for `tokens_max`
    /// tokens is opened: its own and those promised to others. What it shares is counted once.
    #[must_use]
    pub fn rise(&self, tokens_max: usize, warm: Option<SnapshotId>) -> usize {
        self.rise_after(0, self.own(tokens_max, warm))
    }

    /// The same for a row that needs `own` pages, once so many that are held have come free.
    #[must_use]
    pub fn rise_after(&self, freed: usize, own: usize) -> usize {
        let held = self.holders.len() - self.pages_free.len();
        (held + self.promised + own).saturating_sub(self.highest + freed)
    }

    /// Pages that a row for `tokens_max` tokens needs beside those it shares with `warm`.
    #[must_use]
    pub fn own(&self, tokens_max: usize, warm: Option<SnapshotId>) -> usize {
        let len = warm.and_then(|id| self.snapshots.get(&id)).map_or(0, Parked::len);
        tokens_max.div_ceil(self.page_tokens).saturating_sub(len / self.page_tokens)
    }

    /// Pages up to the highest ever taken, and states parked: what the engine has memory for.
    #[must_use]
    pub fn touched(&self) -> (usize, usize) {
        (self.highest, self.snapshots.len())
    }

    /// Grows a row's pages to cover `tokens`, within its promise.
    ///
    /// # Panics
    /// If the row asks for more than it was promised: a bug of the scheduler.
    pub fn grow(&mut self, holding: &mut Holding, tokens: usize) {
        while holding.pages.len() * self.page_tokens < tokens {
            self.take_page(holding);
        }
    }

    /// A page of the row's own in place of the one that a snapshot ends in.
    fn own_partial(&mut self, partial: Option<Page>, holding: &mut Holding) -> Option<CopyOnWrite> {
        let from = partial?;
        self.take_page(holding);
        holding.pages.last().map(|&to| CopyOnWrite { from, to })
    }

    fn take_page(&mut self, holding: &mut Holding) {
        assert!(holding.promised > 0, "a row stays within the pages it was promised");
        let page = self.pages_free.pop_first().expect("promised pages are free");
        *self.holder(page) = 1;
        self.highest = self.highest.max(page.0 as usize + 1);
        holding.pages.push(page);
        holding.promised -= 1;
        self.promised -= 1;
    }

    /// Gives back a row's slot, pages and promises.
    pub fn close(&mut self, slot: Slot, holding: Holding) {
        assert!(self.slots_free.insert(slot), "a slot is given back once");
        self.promised -= holding.promised;
        self.owned -= holding.own;
        for page in holding.pages {
            self.drop_page(page);
        }
    }

    /// Slots and pages nobody has and nobody was promised.
    #[must_use]
    pub fn free(&self) -> (usize, usize) {
        (self.slots_free.len(), self.pages_free.len() - self.promised)
    }

    /// Proves L3 and L4 against the rows that run.
    ///
    /// # Errors
    /// The first contradiction found, in words.
    pub fn check_integrity<'a>(
        &self,
        rows: impl Iterator<Item = (Slot, &'a Holding)>,
    ) -> Result<(), String> {
        let mut holders = vec![0_u32; self.holders.len()];
        let (mut promised, mut owned) = (0, 0);
        let mut used = BTreeSet::new();
        for (slot, holding) in rows {
            if self.slots_free.contains(&slot) || !used.insert(slot) {
                return Err(format!("{slot:?} is free or used twice"));
            }
            promised += holding.promised;
            owned += holding.own;
            holding.pages.iter().for_each(|p| holders[p.0 as usize] += 1);
        }
        for parked in self.parked().values() {
            parked.pages.iter().for_each(|p| holders[p.0 as usize] += 1);
        }
        if used.len() + self.slots_free.len() != self.slots {
            return Err(format!("{} slots used, {} free", used.len(), self.slots_free.len()));
        }
        if promised != self.promised || promised > self.pages_free.len() {
            return Err(format!("{promised} pages promised, {} booked", self.promised));
        }
        if owned != self.owned || owned > self.owned_max {
            return Err(format!("{owned} pages are rows' own, {} booked", self.owned));
        }
        for (i, (&want, &have)) in holders.iter().zip(&self.holders).enumerate() {
            let page = Page(u32::try_from(i).map_err(|e| e.to_string())?);
            if want != have || (have == 0) != self.pages_free.contains(&page) {
                return Err(format!("{page:?} has {want} holders, {have} booked"));
            }
        }
        Ok(())
    }

    fn holder(&mut self, page: Page) -> &mut u32 {
        &mut self.holders[page.0 as usize]
    }

    fn drop_page(&mut self, page: Page) {
        let holders = self.holder(page);
        *holders -= 1;
        if *holders == 0 {
            self.pages_free.insert(page);
        }
    }
}

#[cfg(test)]
mod tests;

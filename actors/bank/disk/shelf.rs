//! Which states are on disk: enough to find the longest for a prompt and the one to go first. Their
//! tokens are not held: whoever reads one compares them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mtplx_core::Tenant;
use mtplx_core::batch::Kind;
use mtplx_core::prefix::Lengths;

use super::format::Id;

/// A file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::bank) struct File {
    pub(in crate::bank) identity: Arc<str>,
    pub(in crate::bank) tenant: Tenant,
    pub(in crate::bank) kind: Kind,
    pub(in crate::bank) hash: u64,
    pub(in crate::bank) tokens: usize,
    pub(in crate::bank) bytes: u64,
}

#[derive(Debug, Default)]
pub(super) struct Shelf {
    /// With the use at which it was last touched.
    files: BTreeMap<Id, (File, u64)>,
    by_use: BTreeMap<u64, Id>,
    by_hash: BTreeMap<(Tenant, u64, usize), BTreeSet<Id>>,
    lengths: Lengths,
    uses: u64,
    bytes: u64,
}

impl Shelf {
    pub(super) fn has(&self, id: Id) -> bool {
        self.files.contains_key(&id)
    }

    /// Bytes of a file; 0 if it is not here.
    pub(super) fn size_of(&self, id: Id) -> u64 {
        self.files.get(&id).map_or(0, |(file, _)| file.bytes)
    }

    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (Id, &File)> {
        self.files.iter().map(|(&id, (file, _))| (id, file))
    }

    pub(super) fn add(&mut self, id: Id, file: File) {
        self.remove(id);
        self.uses += 1;
        self.bytes += file.bytes;
        self.lengths.add(file.tokens);
        self.by_hash.entry((file.tenant, file.hash, file.tokens)).or_default().insert(id);
        self.by_use.insert(self.uses, id);
        self.files.insert(id, (file, self.uses));
    }

    pub(super) fn remove(&mut self, id: Id) -> Option<File> {
        let (file, used) = self.files.remove(&id)?;
        self.bytes -= file.bytes;
        self.lengths.remove(file.tokens);
        self.by_use.remove(&used);
        let key = (file.tenant, file.hash, file.tokens);
        if let Some(ids) = self.by_hash.get_mut(&key) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_hash.remove(&key);
            }
        }
        Some(file)
    }

    pub(super) fn touch(&mut self, id: Id) {
        if let Some((_, used)) = self.files.get_mut(&id) {
            self.uses += 1;
            self.by_use.remove(used);
            *used = self.uses;
            self.by_use.insert(self.uses, id);
        }
    }

    /// The one that was not used for longest.
    pub(super) fn oldest(&self) -> Option<Id> {
        self.by_use.first_key_value().map(|(_, &id)| id)
    }

    /// The longest file of a tenant for a prompt with these hashes that covers more than `above`
    /// tokens; of this identity, or of any other.
    pub(super) fn longest(
        &self,
        (identity, own): (&str, bool),
        tenant: Tenant,
        chain: &[u64],
        above: usize,
    ) -> Option<(Id, usize)> {
        let lengths = self.lengths.descending(chain.len() - 1).take_while(|&len| len > above);
        lengths.into_iter().find_map(|len| {
            let ids = self.by_hash.get(&(tenant, chain[len], len))?;
            let fits = |id: &&Id| (*self.files[*id].0.identity == *identity) == own;
            ids.iter().find(fits).map(|&id| (id, len))
        })
    }
}

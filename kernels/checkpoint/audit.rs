//! What was read of a checkpoint, how much of it, and a name that tells it from others.

use std::collections::BTreeSet;

use super::shards::{Inventory, Stored};

/// The account of one loading.
#[derive(Debug)]
pub(super) struct Audit {
    /// Names of the tensors that nobody read, as their files have them.
    pub(super) unused: Vec<String>,
    /// Bytes of the tensors that were read.
    pub(super) bytes_total: usize,
    identity: Fnv,
}

impl Audit {
    pub(super) fn new() -> Self {
        Self { unused: vec![], bytes_total: 0, identity: Fnv::new() }
    }

    /// Counts the file `content` towards the identity.
    pub(super) fn add_file(&mut self, content: &[u8]) {
        self.identity.add(content);
    }

    /// Accounts for all of `inventory`, of which the tensors `taken` were read.
    pub(super) fn add(&mut self, inventory: &Inventory, taken: &BTreeSet<String>) {
        for (name, stored) in inventory.iter() {
            if taken.contains(name) {
                self.bytes_total += stored.entry.bytes.len();
                self.identity.add_tensor(name, stored);
            } else {
                self.unused.push(stored.entry.name.clone());
            }
        }
        self.unused.sort();
    }

    /// 32 hexadecimal digits: the same on every machine for the same files.
    pub(super) fn identity(&self) -> String {
        format!("{:032x}", self.identity.0)
    }
}

/// FNV-1a over 128 bits: stable across builds, and no defence against malice.
#[derive(Debug)]
struct Fnv(u128);

impl Fnv {
    fn new() -> Self {
        Self(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }

    /// Adds length and content, so that parts cannot flow into each other.
    fn add(&mut self, bytes: &[u8]) {
        const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
        for byte in (bytes.len() as u64).to_le_bytes().iter().chain(bytes) {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul(PRIME);
        }
    }

    /// Adds name, type, shape and three short samples: fine-tunes of one model differ in nothing
    /// but the elements, and to add them all would be to read the whole file.
    fn add_tensor(&mut self, name: &str, stored: &Stored) {
        const SAMPLE_BYTES: usize = 64;
        let entry = &stored.entry;
        self.add(name.as_bytes());
        self.add(entry.dtype.as_bytes());
        for size in &entry.shape {
            self.add(&(*size as u64).to_le_bytes());
        }
        let last = entry.bytes.len().saturating_sub(SAMPLE_BYTES);
        for start in [0, last / 2, last] {
            let end = entry.bytes.len().min(start + SAMPLE_BYTES);
            self.add(entry.bytes.get(start..end).unwrap_or_default());
        }
    }
}

//! The tensors of a checkpoint, gathered from its files under their inner names.

use std::collections::btree_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;

use super::error::{DOWNLOAD, shown};
use super::header::{self, Entry, Pairs};
use super::{Error, Files, names};

pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Tensors of one or several files, by inner name.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    tensors: BTreeMap<String, Stored>,
    /// The names of the files they came from.
    pub(super) files: BTreeSet<String>,
}

/// A tensor and the file it stands in.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) file: Arc<str>,
    pub(super) entry: Entry,
}

#[derive(Deserialize)]
struct Index {
    weight_map: Pairs<String>,
}

impl Inventory {
    /// The tensors of the trunk's shards: those that the index names, else every
    /// `model*.safetensors` that is not one of `sidecars`.
    pub(super) fn of_trunk(files: &Files, sidecars: &[&str]) -> Result<Self, Error> {
        match files.open(INDEX)? {
            Some(index) => Self::of_index(files, &index),
            None => Self::of_names(files, sidecars),
        }
    }

    /// The tensors of the one file `name`; `None` where there is none.
    pub(super) fn of_file(files: &Files, name: &str) -> Result<Option<Self>, Error> {
        let mut inventory = Self::default();
        Ok(inventory.add(files, name)?.is_some().then_some(inventory))
    }

    fn of_index(files: &Files, index: &[u8]) -> Result<Self, Error> {
        let path = files.path_of(INDEX);
        let broken = |problem: String| Error::file(&path, problem, DOWNLOAD);
        let index: Index = serde_json::from_slice(index)
            .map_err(|e| broken(format!("is no valid index of shards: {e}")))?;
        let mut shards: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for (tensor, shard) in &index.weight_map.0 {
            if !seen.insert(tensor) {
                return Err(broken(format!("names the tensor {} twice", shown(tensor))));
            }
            shards.entry(shard).or_default().insert(tensor);
        }
        if shards.is_empty() {
            return Err(broken("names no tensors".to_owned()));
        }
        let mut inventory = Self::default();
        for (shard, tensors) in shards {
            let Some(held) = inventory.add(files, shard)? else {
                let problem = format!("names the shard {}, which is missing", shown(shard));
                let mend = "fetch it; or delete the index if it is left over from other shards";
                return Err(Error::file(&path, problem, mend));
            };
            if let Some(absent) = tensors.into_iter().find(|&name| !held.contains(name)) {
                let (absent, shard) = (shown(absent), shown(shard));
                let problem = format!("puts {absent} into {shard}, which does not hold it");
                return Err(broken(problem));
            }
        }
        Ok(inventory)
    }

    fn of_names(files: &Files, sidecars: &[&str]) -> Result<Self, Error> {
        let names = files.names()?;
        let is_shard = |name: &&String| {
            name.starts_with("model")
                && name.ends_with(".safetensors")
                && !sidecars.contains(&name.as_str())
        };
        let shards: Vec<&String> = names.iter().filter(is_shard).collect();
        if shards.is_empty() {
            let mend = match names.iter().find(|n| n.ends_with(".gguf") || n.ends_with(".bin")) {
                Some(other) => format!(
                    "{} is of a kind that cannot be read: fetch the safetensors form",
                    shown(other)
                ),
                None => "give the folder of a checkpoint in safetensors form".to_owned(),
            };
            return Err(Error::file(files.label(), "holds no model*.safetensors", mend));
        }
        let mut inventory = Self::default();
        for shard in &shards {
            if let Some(missing) = missing_sibling(shard, &shards) {
                let problem = format!("is missing beside {}", shown(shard));
                return Err(Error::file(&files.path_of(&missing), problem, DOWNLOAD));
            }
            inventory.add(files, shard)?;
        }
        Ok(inventory)
    }

    /// Adds the tensors of the file `name` and says which it held; `None` where there is no file.
    fn add(&mut self, files: &Files, name: &str) -> Result<Option<BTreeSet<String>>, Error> {
        let Some(bytes) = files.open(name)? else { return Ok(None) };
        let path: Arc<str> = files.path_of(name).into();
        let mut held = BTreeSet::new();
        for entry in header::entries(&path, &bytes)? {
            held.insert(entry.name.clone());
            let Some(inner) = names::inner(&entry.name).map(str::to_owned) else { continue };
            match self.tensors.entry(inner) {
                Slot::Vacant(slot) => drop(slot.insert(Stored { file: path.clone(), entry })),
                Slot::Occupied(slot) => return Err(same(&path, &entry, slot.get())),
            }
        }
        self.files.insert(name.to_owned());
        Ok(Some(held))
    }

    pub(super) fn get(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Stored)> {
        self.tensors.iter().map(|(name, stored)| (name.as_str(), stored))
    }
}

fn same(path: &str, entry: &Entry, other: &Stored) -> Error {
    let (name, twin) = (shown(&entry.name), shown(&other.entry.name));
    let problem = format!("tensor {name} is the same as {twin} of {}", other.file);
    Error::file(path, problem, "keep one copy of the weights in the folder")
}

/// The first name missing from the numbered set that `shard` belongs to, as
/// `model-00002-of-00003.safetensors` does.
fn missing_sibling(shard: &str, shards: &[&String]) -> Option<String> {
    let (start, total) = shard.strip_suffix(".safetensors")?.split_once("-of-")?;
    let (stem, number) = start.rsplit_once('-')?;
    let count: usize = total.parse().ok()?;
    let width = number.len();
    // One of the first len + 1 names must be missing if any is.
    (1..=count.min(shards.len() + 1))
        .map(|i| format!("{stem}-{i:0width$}-of-{total}.safetensors"))
        .find(|name| !shards.contains(&name))
}

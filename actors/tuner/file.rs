//! What was learnt, as a small file: for the next generation and the next process to begin with.
//!
//! It is of one model, hardware, MLX and set of settings, named by `key`, and of one version; any
//! other is passed over with a word in the log, as is one that is damaged: all of it can be learnt
//! again. It is written beside its place and then moved there, so that it is never half there.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use mtplx_core::tune::{Learnt, LearntCost};
use serde::{Deserialize, Serialize};

/// Of the fields below; one that means something else wants another number.
const VERSION: u32 = 1;
/// No such file is longer.
const BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u32,
    /// Model, numerics, hardware and settings, for people: what `key` is the hash of.
    of: String,
    key: String,
    /// By band of temperature and position: judged drafts, and how many stood.
    acceptance: [Vec<(f64, f64)>; 3],
    costs: Vec<Cost>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Cost {
    rows: usize,
    context_max: Option<usize>,
    depth: u8,
    ratios: Vec<Option<f64>>,
}

/// Where it is, and of what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shelf {
    path: PathBuf,
    of: String,
}

impl Shelf {
    /// A file in this folder; `of` names all that it depends on.
    #[must_use]
    pub fn new(folder: &Path, of: String) -> Self {
        let path = folder.join(format!("tuner-{}.json", &key(&of)[..12]));
        Self { path, of }
    }

    /// Its folder.
    pub(super) fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    fn key(&self) -> String {
        key(&self.of)
    }

    /// What stands there, if it is for us.
    #[must_use]
    pub fn read(&self) -> Option<Learnt> {
        let path = self.path.display();
        match self.load() {
            Ok(learnt) => {
                tracing::info!(%path, costs = learnt.costs.len(), "the tuner has a file");
                Some(learnt)
            }
            Err(Unread::Absent) => None,
            Err(Unread::Stale(why)) => {
                tracing::info!(%path, why, "what the tuner learnt before is not of this set-up");
                None
            }
            Err(Unread::Damaged(error)) => {
                tracing::warn!(%path, %error, "the tuner's file cannot be read: it begins anew");
                None
            }
        }
    }

    fn load(&self) -> Result<Learnt, Unread> {
        let damaged = |error: &dyn std::error::Error| Unread::Damaged(error.to_string());
        match std::fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Unread::Absent),
            Err(error) => return Err(damaged(&error)),
            Ok(meta) if meta.len() > BYTES_MAX => return Err(Unread::Damaged("too long".into())),
            Ok(_) => {}
        }
        let text = std::fs::read(&self.path).map_err(|error| damaged(&error))?;
        let written: serde_json::Value =
            serde_json::from_slice(&text).map_err(|error| damaged(&error))?;
        if written.get("version").and_then(serde_json::Value::as_u64) != Some(VERSION.into()) {
            return Err(Unread::Stale("version"));
        }
        let written: Written = serde_json::from_value(written).map_err(|error| damaged(&error))?;
        if written.key != self.key() {
            return Err(Unread::Stale("model, hardware, MLX or settings"));
        }
        let costs = written.costs.into_iter().map(|c| LearntCost {
            rows: c.rows,
            context_max: c.context_max,
            depth: c.depth,
            ratios: c.ratios,
        });
        Ok(Learnt { acceptance: written.acceptance, costs: costs.collect() })
    }

    /// Writes it.
    ///
    /// # Errors
    /// Those of the system.
    pub fn write(&self, learnt: &Learnt) -> io::Result<()> {
        let costs = learnt.costs.iter().map(|c| Cost {
            rows: c.rows,
            context_max: c.context_max,
            depth: c.depth,
            ratios: c.ratios.clone(),
        });
        let written = Written {
            version: VERSION,
            of: self.of.clone(),
            key: self.key(),
            acceptance: learnt.acceptance.clone(),
            costs: costs.collect(),
        };
        std::fs::create_dir_all(self.folder())?;
        // Two servers may have one folder.
        let own = format!("writing-{}", std::process::id());
        let beside = self.path.with_extension(own);
        let mut file = std::fs::File::create(&beside)?;
        file.write_all(serde_json::to_string_pretty(&written)?.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, &self.path)
    }
}

fn key(of: &str) -> String {
    blake3::hash(of.as_bytes()).to_hex().as_str()[..32].to_owned()
}

enum Unread {
    Absent,
    Stale(&'static str),
    Damaged(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learnt() -> Learnt {
        let ratios = vec![Some(1.0), Some(1.25), None];
        let cost = LearntCost { rows: 8, context_max: Some(4096), depth: 0, ratios };
        let acceptance = [vec![], vec![(20.0, 15.0), (7.5, 3.25)], vec![]];
        Learnt { acceptance, costs: vec![cost] }
    }

    #[test]
    fn what_was_written_is_read_again_by_the_same_set_up_alone() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("deep");
        let shelf = |of: &str| Shelf::new(&folder, of.into());
        assert_eq!(shelf("a").read(), None);
        shelf("a").write(&learnt()).unwrap();
        assert_eq!(shelf("a").read(), Some(learnt()));
        assert_eq!(shelf("b").read(), None);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "nothing is left beside it");
        let moved = Shelf { path: shelf("a").path, of: "b".into() };
        assert_eq!(moved.read(), None, "under the name of another");
    }

    #[test]
    fn what_is_damaged_or_of_another_version_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(dir.path(), "a".into());
        let path = shelf.path.clone();
        shelf.write(&learnt()).unwrap();
        let whole = std::fs::read_to_string(&path).unwrap();
        for wrong in [
            whole[..whole.len() / 2].to_owned(),
            whole.replace("\"version\": 1", "\"version\": 2"),
            whole.replace("\"costs\"", "\"coasts\""),
            String::new(),
            "[]".into(),
            "x".repeat(2 << 20),
        ] {
            std::fs::write(&path, wrong).unwrap();
            assert_eq!(shelf.read(), None);
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_eq!(shelf.read(), None);
        assert!(shelf.write(&learnt()).is_err());
    }
}

//! How files are written: whole or not at all, and never over what nobody meant.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use tempfile::{Builder, NamedTempFile};

/// A new file for its owner alone, which must not be there.
pub(crate) fn make(path: &Path) -> Result<File> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(taken(path)),
        made => made.with_context(|| format!("cannot make {}", path.display())),
    }
}

/// A file for its owner alone that is still to be written, and to be called so, which must not be
/// there.
pub(crate) fn unfinished(path: &Path) -> Result<NamedTempFile> {
    if path.symlink_metadata().is_ok() {
        return Err(taken(path));
    }
    beside(path, 0o600)
}

fn taken(path: &Path) -> anyhow::Error {
    anyhow!("{} is there already: name a new file", path.display())
}

/// Gives it its name.
pub(crate) fn finish(new: NamedTempFile, path: &Path) -> Result<()> {
    new.as_file().sync_all()?;
    new.persist_noclobber(path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(())
}

/// A file in the same folder, which goes when nobody keeps it.
fn beside(path: &Path, mode: u32) -> Result<NamedTempFile> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let new = Builder::new().permissions(Permissions::from_mode(mode)).tempfile_in(folder);
    new.with_context(|| format!("cannot write in {}", folder.display()))
}

/// Puts a text in place of somebody's own file. Its owner and rights stay, as whoever reads it must
/// still be able to whoever edits it, and so does a link that leads to it; a new one is its owner's
/// alone.
pub(crate) fn replace(path: &Path, text: &str) -> Result<()> {
    let real = path.canonicalize();
    let path = real.as_deref().unwrap_or(path);
    let new = written(path, text, 0o600)?;
    if let Ok(old) = std::fs::metadata(path) {
        let may = "its owner could not be kept: run this as whoever owns it";
        let own = new.as_file().metadata()?;
        if (own.uid(), own.gid()) != (old.uid(), old.gid()) {
            fchown(new.as_file(), Some(old.uid()), Some(old.gid()))
                .with_context(|| format!("{}: {may}", path.display()))?;
        }
        new.as_file().set_permissions(old.permissions())?;
    }
    put(new, path)
}

/// Puts a text in place of a file of a model, which everybody may read. A link gives way to it:
/// what it leads to in a cache may belong to other models, too.
pub(crate) fn replace_shared(path: &Path, text: &str) -> Result<()> {
    put(written(path, text, 0o644)?, path)
}

fn written(path: &Path, text: &str, mode: u32) -> Result<NamedTempFile> {
    let mut new = beside(path, mode)?;
    new.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(new)
}

fn put(new: NamedTempFile, path: &Path) -> Result<()> {
    new.as_file().sync_all()?;
    new.persist(path).with_context(|| format!("cannot replace {}", path.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn rights(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_file_keeps_its_rights_and_the_link_that_leads_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let [file, link] = ["file", "link"].map(|name| dir.path().join(name));
        replace(&file, "a").unwrap();
        assert_eq!(rights(&file), 0o600);
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        symlink(&file, &link).unwrap();
        replace(&link, "b").unwrap();
        assert_eq!((fs::read_to_string(&file).unwrap().as_str(), rights(&file)), ("b", 0o640));
        assert!(link.is_symlink() && fs::read_dir(dir.path()).unwrap().count() == 2);
    }

    #[test]
    fn what_a_shared_link_leads_to_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let [blob, link] = ["blob", "link"].map(|name| dir.path().join(name));
        fs::write(&blob, "a").unwrap();
        symlink(&blob, &link).unwrap();
        replace_shared(&link, "b").unwrap();
        assert_eq!(fs::read_to_string(&blob).unwrap(), "a");
        assert!(!link.is_symlink() && rights(&link) & 0o400 != 0);
        assert_eq!(rights(&link) & 0o133, 0, "nobody but its owner writes it, nobody runs it");
    }

    #[test]
    fn what_is_there_is_not_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        drop(make(&file).unwrap());
        assert_eq!(rights(&file), 0o600);
        let error = make(&file).unwrap_err().to_string();
        assert!(error.ends_with("is there already: name a new file"), "{error}");
        assert!(replace(&dir.path().join("none/file"), "").is_err());
    }
}

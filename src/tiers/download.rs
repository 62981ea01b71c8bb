//! Signs of a download that has not come to its end.

use std::path::Path;

/// More names than these are not looked at.
const NAMES_MAX: usize = 4096;
/// What programs call a file that they have not got all of.
const ENDS: [&str; 5] = [".incomplete", ".part", ".crdownload", ".aria2", ".download"];

/// The first file that somebody was still fetching for the folder `path`.
pub(super) fn sign(path: &Path) -> Option<String> {
    let of_hub = path.parent().filter(|parent| parent.ends_with("snapshots"));
    let blobs = of_hub.and_then(Path::parent).map(|repository| repository.join("blobs"));
    let own = path.join(".cache/huggingface/download");
    let folders = [Some(path.to_owned()), Some(own), blobs];
    folders.into_iter().flatten().find_map(|folder| {
        let entries = std::fs::read_dir(folder).ok()?;
        let mut names = entries.take(NAMES_MAX).filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            ENDS.iter().any(|end| name.ends_with(end)).then_some(name)
        });
        names.next()
    })
}

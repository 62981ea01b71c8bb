//! `mtplx pull`: a model from a hub into the cache that other tools share. What is cut off is taken
//! up again where it ended, what is whole is checked before it gets its name, and nothing is begun
//! that would fill the disk.

#![allow(clippy::print_stdout, reason = "a command prints what it did")]

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::exit::Stop;

pub mod cache;
mod fetch;
mod hub;

use self::cache::Cache;
use self::hub::{File, Hub, Listing};

/// What to fetch.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  mtplx pull Qwen/Qwen3.5-0.8B\n  \
    mtplx pull owner/model@v1.0 --json\n  \
    HF_ENDPOINT=https://mirror.example mtplx pull owner/model\n\n\
    HF_TOKEN opens gated models; HF_HOME and HF_HUB_CACHE say where models are kept.")]
pub struct PullArgs {
    /// owner/name of the model; after an @ a branch, a tag or a commit.
    #[arg(value_name = "REPO[@REVISION]")]
    repo: String,
    /// Every file, also weights in forms that nobody here reads.
    #[arg(long)]
    all: bool,
    /// Begin even if the disk has less room than it should.
    #[arg(long)]
    force_space: bool,
    /// Only say what would be fetched.
    #[arg(long)]
    dry_run: bool,
    /// What was done as JSON, by `mtplx schema pull`; how far it is goes to stderr.
    #[arg(long)]
    json: bool,
}

const GIB: u64 = 1 << 30;

/// Fetches it.
///
/// # Errors
/// What is wrong with the name, the hub's answer, the disk or the file that came.
pub fn run(args: &PullArgs) -> Result<()> {
    let (repo, revision) = args.repo.split_once('@').unwrap_or((&args.repo, "main"));
    hub::check_repo(repo)?;
    hub::check_revision(revision)?;
    let start = Instant::now();
    let hub = Hub::of_environment()?;
    let listing = hub.list(repo, revision)?;
    let cache = Cache::of_environment()?;
    let place = cache.model(repo);
    let files: Vec<&File> =
        listing.files.iter().filter(|file| args.all || is_wanted(&file.name)).collect();
    if !files.iter().any(|file| file.name == "config.json") {
        bail!("{repo} has no config.json: it is no model that can be served");
    }
    // Equal files have one blob.
    let blobs: BTreeMap<&str, &File> = files.iter().map(|file| (&*file.blob, *file)).collect();
    let bytes = total(blobs.values().map(|file| file.bytes))?;
    let here = total(blobs.values().map(|file| place.have(file).min(file.bytes)))?;
    let missing = bytes - here;
    let path = place.snapshot(&listing.commit);
    if args.dry_run {
        return told(args, &listing, &path, (&files, bytes, missing), None);
    }
    check_room(&cache, missing, args.force_space)?;
    let bar = bar(bytes, here);
    for file in blobs.values() {
        bar.set_message(file.name.clone());
        fetch::file(&hub, &listing, file, &place, &bar)
            .with_context(|| format!("{}: what came stays, pull again to go on", file.name))?;
        if bar.is_hidden() {
            eprintln!("{}  {}", file.name, HumanBytes(file.bytes));
        }
    }
    place.publish(&listing, &files, revision)?;
    bar.finish_and_clear();
    told(args, &listing, &path, (&files, bytes, missing), Some(start.elapsed()))
}

/// Sums that a hub's answer cannot make overflow.
fn total(sizes: impl Iterator<Item = u64>) -> Result<u64> {
    let mut sizes = sizes;
    sizes.try_fold(0_u64, u64::checked_add).context("the hub names sizes beyond what any disk has")
}

/// Configuration, text side and weights as safetensors; not the same weights for other programs.
pub(crate) fn is_wanted(name: &str) -> bool {
    let path = Path::new(name);
    let ends = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let known = ["json", "jinja", "md", "model", "safetensors", "tiktoken", "txt"];
    let plain = !name.contains('/') || name.starts_with("mtp/");
    plain && (known.contains(&ends) || ends.is_empty() && !name.starts_with('.'))
}

/// Room for the files, for a conversion of them, and for everybody else.
fn needed(bytes: u64) -> u64 {
    (bytes / 2).saturating_mul(5).max(bytes.saturating_add(20 * GIB))
}

fn check_room(cache: &Cache, missing: u64, forced: bool) -> Result<()> {
    let (room, needed) = (cache.room()?, needed(missing));
    if missing == 0 || room >= needed {
        return Ok(());
    }
    let (folder, missing) = (cache.folder().display(), HumanBytes(missing));
    let (room, needed) = (HumanBytes(room), HumanBytes(needed));
    let said = format!(
        "{missing} are to come and {folder} has {room} free, but should have {needed} (2.5 times \
         the download, or 20 GiB beyond it): make room, name another disk with HF_HOME, or say \
         --force-space"
    );
    match forced {
        true => eprintln!("mtplx: {said}; going on as told"),
        false => return Err(Stop::Refused(said).into()),
    }
    Ok(())
}

/// How far it is, for a person who looks.
pub(crate) fn bar(bytes: u64, here: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr_with_hz(8));
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let line =
        "{bar:24} {percent:>3}%  {bytes}/{total_bytes}  {binary_bytes_per_sec}  {eta}  {msg}";
    // The line is a constant: nothing but a mistake in it can be refused.
    let style = ProgressStyle::with_template(line).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("━╸─"));
    bar.set_position(here);
    bar.reset_eta();
    bar
}

/// Says what was done, or would be.
fn told(
    args: &PullArgs,
    listing: &Listing,
    path: &Path,
    (files, bytes, missing): (&[&File], u64, u64),
    took: Option<Duration>,
) -> Result<()> {
    if args.json {
        let report = json!({
            "repo": listing.repo,
            "revision": listing.revision,
            "commit": listing.commit,
            "path": path,
            "files": files.len(),
            "bytes": bytes,
            "fetched_bytes": if took.is_some() { missing } else { 0 },
            "missing_bytes": if took.is_some() { 0 } else { missing },
            "seconds": took.map(|t| (t.as_secs_f64() * 1e3).round() / 1e3),
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    let (count, total, missing) = (files.len(), HumanBytes(bytes), HumanBytes(missing));
    match took {
        None => println!("{count} files, {total}, of which {missing} are to come"),
        Some(_) => {
            println!("{}", path.display());
            eprintln!("{count} files, {total}. Serve it with: mtplx serve --model {}", args.repo);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_wanted_beyond_what_is_fetched() {
        assert_eq!(needed(GIB), 21 * GIB);
        assert_eq!(needed(100 * GIB), 250 * GIB);
        assert!(needed(u64::MAX) > 100 * GIB);
    }

    #[test]
    fn weights_for_other_programs_are_left_where_they_are() {
        let wanted = |names: &[&str]| names.iter().all(|name| is_wanted(name));
        assert!(wanted(&[
            "config.json",
            "model-00001-of-00002.safetensors",
            "mtp/weights.safetensors"
        ]));
        assert!(wanted(&["chat_template.jinja", "LICENSE", "merges.txt", "README.md"]));
        let others = ["pytorch_model.bin", "model.gguf", "onnx/model.onnx", ".gitattributes"];
        assert!(!others.iter().any(|name| is_wanted(name)));
    }
}

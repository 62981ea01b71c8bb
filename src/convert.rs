//! `mtplx convert`: a checkpoint as it was published becomes one in the layout that MLX and this
//! server read, in codes where that is wanted. It grows in a folder beside its own and gets its
//! name when it is whole and has been read; whatever ends it before leaves nothing,
//! but for kill -9.

#![allow(clippy::print_stdout, reason = "a command prints what it did")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::HumanBytes;
use mtplx_kernels::checkpoint::{Checkpoint, Conversion, Dtype, Failure, Files, Recipe};
use schemars::JsonSchema;
use serde::Serialize;
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::Stop;
use crate::pull::{self, cache};
use crate::tiers::contract;

/// What becomes what.
#[derive(Args, Debug, Clone)]
#[command(
    after_help = "Types: qwen3_5, qwen3_5_moe and qwen3_next, in safetensors files as published. \
    With --bits matrices become MLX's affine codes, routers of experts in 8 bits; norms, \
    convolutions and decays stay numbers, and the MTP head is kept in --mtp-bits. Afterwards: \
    mtplx verify DEST.\n\n\
    Examples:\n  mtplx convert ~/models/qwen ~/models/qwen-q4 --bits 4\n  \
    mtplx convert owner/name ./qwen-q8 --bits 8 --mtp-bits 16 --json"
)]
pub struct ConvertArgs {
    /// Folder of a checkpoint, or owner/name of a model that was pulled.
    pub source: PathBuf,
    /// The new folder, which must not be there yet.
    pub dest: PathBuf,
    /// Bits of a matrix's element; without it matrices stay numbers.
    #[arg(long, value_parser = ["4", "8"])]
    pub bits: Option<String>,
    /// Elements that share a scale.
    #[arg(long, default_value = "64", value_parser = ["32", "64", "128"])]
    pub group_size: String,
    /// Bits of the MTP head's elements; 16 leaves it as numbers. 8 with --bits, else 16.
    #[arg(long, value_parser = ["8", "16"])]
    pub mtp_bits: Option<String>,
    /// The type of what stays numbers, and of scales; that of config.json without it.
    #[arg(long, value_parser = ["bf16", "f16", "f32"])]
    pub dtype: Option<String>,
    /// What was done as JSON; `mtplx schema convert` describes it.
    #[arg(long)]
    pub json: bool,
}

impl ConvertArgs {
    /// The parser has let nothing but numbers pass.
    fn recipe(&self) -> Recipe {
        let number = |text: &String| text.parse().ok();
        let bits = self.bits.as_ref().and_then(number);
        let head_bits: Option<usize> = match &self.mtp_bits {
            Some(bits) => number(bits),
            None => bits.map(|_| 8),
        };
        let default = Recipe::default();
        Recipe {
            bits,
            head_bits: head_bits.filter(|&bits| bits < 16),
            group: number(&self.group_size).unwrap_or(default.group),
            dtype: self.dtype.as_deref().and_then(Dtype::spoken),
            ..default
        }
    }
}

/// What `mtplx convert --json` prints.
#[derive(Clone, Debug, JsonSchema, PartialEq, Serialize)]
pub struct Report {
    /// The folder that was read.
    pub source: PathBuf,
    /// The folder that was made.
    pub path: PathBuf,
    /// Bits of the trunk's matrices; null where they are numbers.
    pub bits: Option<usize>,
    /// Elements that share a scale.
    pub group_size: usize,
    /// Bits of the MTP head's matrices; null where there is no head.
    pub mtp_bits: Option<usize>,
    /// The size of the source's tensors.
    pub bytes_read: u64,
    /// The size of the new folder's weights and settings.
    pub bytes: u64,
    /// Tensors in the new folder.
    pub tensors: usize,
    /// Files of the new folder, sorted.
    pub files: Vec<String>,
    /// Matrices that stayed numbers because no whole groups fit their rows.
    pub uncoded: Vec<String>,
    /// Tensors of the source that no model of this type reads: they were left behind, as those for
    /// images are, which are not named.
    pub unused: Vec<String>,
    /// Why there is no MTP head; null where there is one.
    pub headless: Option<String>,
    /// How long it took.
    pub seconds: f64,
}

/// Beyond what is written, for everybody else.
const SPARE_BYTES: u64 = 1 << 30;

/// Converts it.
///
/// # Errors
/// What is wrong with the source, the new folder's place or the disk.
pub fn run(args: &ConvertArgs) -> Result<()> {
    let start = Instant::now();
    let stopped = until_stopped()?;
    let source = cache::fetched(&args.source).unwrap_or_else(|| args.source.clone());
    check_absent(&args.dest)?;
    let recipe = args.recipe();
    let plan = Conversion::plan(&Files::folder(&source)?, &recipe)?;
    let companions = companions(&source)?;
    let parent = parent(&args.dest)?;
    let sizes = companions.iter().map(|path| fs::metadata(path).map(|found| found.len()));
    let texts: u64 = sizes.sum::<std::io::Result<_>>().context("cannot read the source")?;
    check_room(&parent, plan.bytes_total() + texts)?;
    let folder = beside(&args.dest, &parent)?;
    write(&plan, folder.path(), &stopped)?;
    for path in &companions {
        let name = path.file_name().context("it has a name")?;
        let copy = folder.path().join(name);
        let copied = fs::copy(path, &copy).and_then(|_| fs::File::open(&copy)?.sync_all());
        copied.with_context(|| format!("cannot copy {}", path.display()))?;
    }
    let made = Checkpoint::load(&Files::folder(folder.path())?)
        .context("what was written cannot be read: this is a fault of mtplx, or of the disk")?;
    if let (Err(why), None) = (&made.mtp, &plan.headless) {
        bail!(
            "the MTP head that was written cannot be read: {why}: a fault of mtplx, or of the disk"
        );
    }
    if stopped.load(Ordering::Relaxed) {
        return Err(Stop::Interrupted.into());
    }
    let files = Files::folder(folder.path())?.names()?;
    settle(folder, &args.dest)?;
    let mtp_bits = made.mtp.is_ok().then_some(recipe.head_bits.unwrap_or(16));
    report(
        args,
        Report {
            source,
            path: args.dest.clone(),
            bits: recipe.bits,
            group_size: recipe.group,
            mtp_bits,
            bytes_read: plan.bytes_read,
            bytes: plan.bytes_total(),
            tensors: plan.tensors(),
            files,
            uncoded: plan.uncoded,
            unused: plan.unused,
            headless: plan.headless,
            seconds: (start.elapsed().as_secs_f64() * 1e3).round() / 1e3,
        },
    )
}

/// Becomes true when somebody presses Ctrl-C or closes the terminal, or a service is stopped.
fn until_stopped() -> Result<Arc<AtomicBool>> {
    let stopped = Arc::new(AtomicBool::new(false));
    let (told, (tell, ready)) = (Arc::clone(&stopped), std::sync::mpsc::channel());
    std::thread::spawn(move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        runtime.block_on(async {
            let mut interrupt = signal(SignalKind::interrupt())?;
            let mut terminate = signal(SignalKind::terminate())?;
            let mut hangup = signal(SignalKind::hangup())?;
            tell.send(())?;
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            told.store(true, Ordering::Relaxed);
            Ok(())
        })
    });
    ready.recv().context("cannot listen for signals")?;
    Ok(stopped)
}

fn check_absent(dest: &Path) -> Result<()> {
    match fs::symlink_metadata(dest) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| dest.display().to_string()),
        Ok(_) => bail!("{} is there already: name a new folder, or remove it", dest.display()),
    }
}

/// The folder in which the new one is to be.
fn parent(dest: &Path) -> Result<PathBuf> {
    let all = std::path::absolute(dest)?;
    let parent = all.parent().filter(|_| dest.file_name().is_some());
    let parent = parent.with_context(|| format!("{} names no new folder", dest.display()))?;
    match parent.is_dir() {
        true => Ok(parent.to_owned()),
        false => bail!("{} is no folder: make it first", parent.display()),
    }
}

fn check_room(parent: &Path, bytes: u64) -> Result<()> {
    let (room, needed) = (cache::room(parent)?, bytes.saturating_add(SPARE_BYTES));
    if room >= needed {
        return Ok(());
    }
    let (bytes, room, needed) = (HumanBytes(bytes), HumanBytes(room), HumanBytes(needed));
    let parent = parent.display();
    let told = format!(
        "{bytes} are to be written and {parent} has {room} free, but should have {needed}: make \
         room, name a folder on another disk, or take fewer --bits"
    );
    Err(Stop::Refused(told).into())
}

/// A folder that goes when nobody keeps it.
fn beside(dest: &Path, parent: &Path) -> Result<TempDir> {
    let name = dest.file_name().unwrap_or_default().to_string_lossy();
    // What the user's mask leaves of it, as of any folder.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    tempfile::Builder::new()
        .prefix(&format!(".{name}."))
        .suffix(".partial")
        .permissions(mode)
        .tempdir_in(parent)
        .with_context(|| format!("cannot make a folder in {}", parent.display()))
}

fn write(plan: &Conversion, folder: &Path, stopped: &AtomicBool) -> Result<()> {
    let bar = pull::bar(plan.bytes_total(), 0);
    bar.set_message("weights");
    let mut told = |bytes| {
        bar.inc(bytes);
        !stopped.load(Ordering::Relaxed)
    };
    let done = plan.write(folder, &mut told);
    bar.finish_and_clear();
    match done {
        Err(Failure::Stopped) => Err(Stop::Interrupted.into()),
        done => Ok(done?),
    }
}

/// What goes along: the text side and whatever a person should read, but nothing that speaks of the
/// weights as they were.
fn companions(source: &Path) -> Result<Vec<PathBuf>> {
    let mut all = vec![];
    let told = || format!("cannot read {}", source.display());
    for entry in fs::read_dir(source).with_context(told)? {
        let path = entry.with_context(told)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let of_weights = name.ends_with(".safetensors")
            || name.ends_with(".index.json")
            || ["config.json", contract::FILE].contains(&name);
        if !of_weights && pull::is_wanted(name) && path.is_file() {
            all.push(path);
        }
    }
    all.sort();
    Ok(all)
}

/// Gives the folder its name.
fn settle(folder: TempDir, dest: &Path) -> Result<()> {
    check_absent(dest)?;
    fs::rename(folder.path(), dest).with_context(|| format!("cannot make {}", dest.display()))?;
    // It is no more where it would be removed from.
    drop(folder.keep());
    Ok(())
}

fn report(args: &ConvertArgs, report: Report) -> Result<()> {
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    println!("{}", report.path.display());
    let named = |names: &[String]| match names {
        [only] => only.clone(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
        [] => String::new(),
    };
    if !report.uncoded.is_empty() {
        let (names, group) = (named(&report.uncoded), report.group_size);
        eprintln!("left as numbers, since no whole groups of {group} fit their rows: {names}");
    }
    if !report.unused.is_empty() {
        eprintln!("left behind, since nobody reads them: {}", named(&report.unused));
    }
    match &report.headless {
        Some(why) => eprintln!("without an MTP head: {why}"),
        None => eprintln!("then: mtplx verify {}", args.dest.display()),
    }
    let (read, made) = (HumanBytes(report.bytes_read), HumanBytes(report.bytes));
    eprintln!("{} tensors, {made} of {read}, in {:.1} s", report.tensors, report.seconds);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_folder_needs_a_name_a_place_and_room() {
        let ground = tempfile::tempdir().unwrap();
        assert!(check_absent(ground.path()).unwrap_err().to_string().contains("there already"));
        assert!(check_absent(&ground.path().join("new")).is_ok());
        assert!(parent(Path::new("/")).is_err() && parent(Path::new("..")).is_err());
        let deep = ground.path().join("no/where");
        assert!(parent(&deep).unwrap_err().to_string().contains("make it first"));
        assert_eq!(parent(&ground.path().join("new")).unwrap(), ground.path());
        let error = check_room(ground.path(), u64::MAX - SPARE_BYTES).unwrap_err();
        assert_eq!(crate::exit::code_of(&error), 3);
        assert!(check_room(ground.path(), 0).is_ok());
    }

    #[test]
    fn a_folder_that_nobody_keeps_goes_and_one_that_is_settled_stays() {
        let ground = tempfile::tempdir().unwrap();
        let dest = ground.path().join("new");
        drop(beside(&dest, ground.path()).unwrap());
        assert_eq!(fs::read_dir(ground.path()).unwrap().count(), 0);
        let folder = beside(&dest, ground.path()).unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        settle(folder, &dest).unwrap();
        assert!(dest.join("file").exists());
        assert_eq!(fs::read_dir(ground.path()).unwrap().count(), 1);
    }
}

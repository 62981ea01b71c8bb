//! One file from the hub to its blob: taken up where it was cut off, checked, then named.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use indicatif::ProgressBar;
use sha2::{Digest, Sha256};
use ureq::http::{HeaderMap, StatusCode};

use super::cache::Place;
use super::hub::{File, Hub, Listing};
use crate::exit::Stop;

/// Failures in a row, none of which brought a byte, after which it is given up.
const TRIES: u32 = 6;

/// Before the second try; it doubles.
const PAUSE: Duration = Duration::from_millis(250);

/// No hub is waited for longer at once.
const PAUSE_MAX: Duration = Duration::from_secs(60);

const CHUNK: usize = 1 << 20;

/// Fetches what is missing of a file.
pub(super) fn file(
    hub: &Hub,
    listing: &Listing,
    file: &File,
    place: &Place,
    bar: &ProgressBar,
) -> Result<()> {
    let blob = place.blob(file);
    if fs::metadata(&blob).is_ok_and(|there| there.len() == file.bytes) {
        return Ok(());
    }
    let folder = blob.parent().context("it stands below blobs")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = place.partial(file);
    let mut options = OpenOptions::new();
    let mut part = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    if part.try_lock().is_err() {
        return Err(Stop::Refused("somebody else is fetching it".into()).into());
    }
    let mut resumed = part.metadata()?.len() > 0;
    loop {
        complete(hub, listing, file, &mut part, bar)?;
        match check(file, &mut part) {
            Ok(()) => break,
            // What an earlier run left may be to blame: once more from the start.
            Err(_) if resumed => {
                bar.set_position(bar.position().saturating_sub(file.bytes));
                part.set_len(0)?;
                resumed = false;
            }
            Err(error) => {
                fs::remove_file(&path)?;
                return Err(error);
            }
        }
    }
    part.sync_all()?;
    fs::rename(&path, &blob).with_context(|| format!("cannot make {}", blob.display()))
}

/// Until all bytes are here. A try that brought some was none in vain.
fn complete(
    hub: &Hub,
    listing: &Listing,
    file: &File,
    part: &mut fs::File,
    bar: &ProgressBar,
) -> Result<()> {
    let mut vain = 0;
    loop {
        let mut have = part.metadata()?.len();
        if have > file.bytes {
            part.set_len(0)?;
            bar.set_position(bar.position().saturating_sub(file.bytes));
            have = 0;
        }
        if have == file.bytes {
            return Ok(());
        }
        part.seek(SeekFrom::Start(have))?;
        let failed = match stretch(hub, listing, file, have, part, bar) {
            Ok(()) => None,
            Err(Failed::Final(error)) => return Err(error),
            Err(Failed::Passing(error, pause)) => Some((error, pause)),
        };
        let Some((error, pause)) = failed else { continue };
        vain = if part.metadata()?.len() > have { 1 } else { vain + 1 };
        if vain >= TRIES {
            return Err(error.context(format!("tried {TRIES} times in vain")));
        }
        let backoff = PAUSE * 2_u32.pow(vain - 1);
        std::thread::sleep(pause.unwrap_or(backoff).min(PAUSE_MAX));
    }
}

enum Failed {
    /// Asking again is of no use.
    Final(anyhow::Error),
    /// It may be, after a pause if the hub names one.
    Passing(anyhow::Error, Option<Duration>),
}

/// What one answer brings.
fn stretch(
    hub: &Hub,
    listing: &Listing,
    file: &File,
    have: u64,
    part: &mut fs::File,
    bar: &ProgressBar,
) -> Result<(), Failed> {
    let asked = hub.open(listing, file, have);
    let answer = asked.map_err(|error| match error.downcast_ref::<Stop>() {
        Some(Stop::Nobody(_)) => Failed::Passing(error, None),
        _ => Failed::Final(error),
    })?;
    let status = answer.status();
    let mut at = have;
    match status {
        StatusCode::PARTIAL_CONTENT if begins(answer.headers()) == Some(have) => {}
        StatusCode::OK => {
            // It begins from the start, whatever was asked for.
            rewind(part).map_err(Failed::Final)?;
            bar.set_position(bar.position().saturating_sub(have));
            at = 0;
        }
        StatusCode::TOO_MANY_REQUESTS => {
            let after =
                answer.headers().get("retry-after").and_then(|v| v.to_str().ok()?.parse().ok());
            let pause = after.map(Duration::from_secs);
            return Err(Failed::Passing(anyhow!("the hub has too much to do"), pause));
        }
        _ if status.is_server_error() || status == StatusCode::PARTIAL_CONTENT => {
            return Err(Failed::Passing(anyhow!("the hub answered {status}"), None));
        }
        _ => return Err(Failed::Final(anyhow!("the hub answered {status}"))),
    }
    let mut body = answer.into_body().into_reader();
    let mut chunk = vec![0; CHUNK];
    loop {
        let cut = |e: std::io::Error| Failed::Passing(anyhow!("cut off: {e}"), None);
        let read = match body.read(&mut chunk) {
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            read => read.map_err(cut)?,
        };
        if read == 0 && at == file.bytes {
            return Ok(());
        }
        if read == 0 {
            return Err(Failed::Passing(anyhow!("cut off after {at} bytes"), None));
        }
        at += read as u64;
        if at > file.bytes {
            let said = format!("more comes than the {} bytes that were announced", file.bytes);
            return Err(Failed::Final(anyhow!(said)));
        }
        part.write_all(&chunk[..read]).context("cannot write").map_err(Failed::Final)?;
        bar.inc(read as u64);
    }
}

fn rewind(part: &mut fs::File) -> Result<()> {
    part.set_len(0)?;
    part.seek(SeekFrom::Start(0))?;
    Ok(())
}

/// The first byte of a part, by `bytes FIRST-LAST/ALL`.
fn begins(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get("content-range")?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// Small files have no digest of their own that is known beforehand but their length.
fn check(file: &File, part: &mut fs::File) -> Result<()> {
    ensure!(part.metadata()?.len() == file.bytes, "it is not as long as was announced");
    let Some(announced) = &file.sha256 else { return Ok(()) };
    part.seek(SeekFrom::Start(0))?;
    let (mut digest, mut chunk) = (Sha256::new(), vec![0; CHUNK]);
    loop {
        match part.read(&mut chunk)? {
            0 => break,
            read => digest.update(&chunk[..read]),
        }
    }
    let found: String = digest.finalize().iter().map(|b| format!("{b:02x}")).collect();
    if found != *announced {
        bail!("its sha256 is {found}, not {announced}: it is not kept");
    }
    Ok(())
}

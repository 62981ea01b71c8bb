//! The flight recorder: what the last cycles of an engine were asked to do, written to a file when
//! the engine fails. Shapes only: which rows, positions and lengths, never a token or a text.
//!
//! Decode notes each plan before it runs, so that the one that broke the engine is the last; the
//! root writes, as a thread that hangs within the device writes nothing.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mtplx_core::batch::Report;
use mtplx_core::engine::{Plan, Rows};
use mtplx_core::{RequestId, Slot};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{ingress, metrics};

/// What is kept, and where it goes.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Folder of the files; empty for none.
    pub path: PathBuf,
    /// Cycles that are kept.
    pub cycles: usize,
    /// Files that are kept; the oldest goes first.
    pub files_max: usize,
}

/// The last cycles of one engine, shared by decode and the root.
#[derive(Clone, Debug)]
pub struct Recorder {
    most: usize,
    cycles: Arc<Mutex<VecDeque<Cycle>>>,
}

#[derive(Debug)]
struct Cycle {
    unix_ms: u64,
    plan: Plan,
    requests: Vec<(Slot, RequestId)>,
    /// What it came to, if it came back.
    ran: Option<Ran>,
}

#[derive(Debug)]
struct Ran {
    engine: Duration,
    report: Report,
}

/// A generation that failed.
#[derive(Clone, Copy, Debug)]
pub struct Failure<'a> {
    /// Which it was.
    pub generation: u64,
    /// The part that failed.
    pub part: &'static str,
    /// Why, as the log says.
    pub reason: &'a str,
    /// What it ran on.
    pub device: &'a str,
}

impl Recorder {
    /// One that keeps so many cycles.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, cycles: Arc::default() }
    }

    /// This is about to run.
    pub fn begins(&self, plan: &Plan, rows: &Rows) {
        if self.most == 0 {
            return;
        }
        let requests = rows.iter().map(|(&slot, row)| (slot, row.request().id)).collect();
        let cycle = Cycle { unix_ms: now_ms(), plan: plan.clone(), requests, ran: None };
        let mut cycles = self.held();
        if cycles.len() == self.most {
            cycles.pop_front();
        }
        cycles.push_back(cycle);
    }

    /// The last one came back.
    pub fn ran(&self, report: &Report, engine: Duration) {
        if let Some(last) = self.held().back_mut() {
            last.ran = Some(Ran { engine, report: report.clone() });
        }
    }

    /// Writes what is known of a failure, or without a folder tells its last cycle to the log.
    pub fn write(&self, config: &Config, failure: Failure<'_>) {
        let lines: Vec<Value> = self.held().iter().map(Cycle::told).collect();
        if config.path.as_os_str().is_empty() {
            if let Some(last) = lines.last() {
                tracing::error!(cycle = %last, "the last cycle; flight.path would keep more");
            }
            return;
        }
        match write(config, failure, &lines) {
            Ok(file) => {
                metrics::flight_written();
                tracing::error!(file = %file.display(), "the last cycles were written");
            }
            Err(error) => tracing::error!(%error, "the last cycles could not be written"),
        }
    }

    fn held(&self) -> MutexGuard<'_, VecDeque<Cycle>> {
        // Whatever panicked, what was noted before is what is wanted now.
        self.cycles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cycle {
    fn told(&self) -> Value {
        let Plan { step, moves, prefill, verify } = &self.plan;
        let moves: Vec<String> = moves.iter().map(|m| format!("{m:?}")).collect();
        let prefill: Vec<Value> = prefill
            .iter()
            .map(|p| json!({"slot": p.slot.0, "start": p.start, "end": p.end, "sample": p.sample}))
            .collect();
        let verify: Vec<Value> = verify
            .iter()
            .map(|v| json!({"slot": v.slot.0, "position": v.position, "depth": v.depth}))
            .collect();
        let requests: Vec<Value> = self
            .requests
            .iter()
            .map(|(slot, id)| json!({"slot": slot.0, "request": id.0}))
            .collect();
        let ran = self.ran.as_ref().map(|Ran { engine, report }| {
            let accepted: u32 = report.positions.iter().map(|p| p.accepted).sum();
            json!({
                "engine_us": u64::try_from(engine.as_micros()).unwrap_or(u64::MAX),
                "device_us": report.phases.device_us,
                "emitted": report.emitted,
                "accepted": accepted,
            })
        });
        json!({
            "unix_ms": self.unix_ms, "step": step, "moves": moves, "prefill": prefill,
            "verify": verify, "rows": requests, "ran": ran,
        })
    }
}

/// One file a failure: a line on it, then a line a cycle, the last one last.
fn write(config: &Config, failure: Failure<'_>, lines: &[Value]) -> io::Result<PathBuf> {
    fs::create_dir_all(&config.path)?;
    let unix_ms = now_ms();
    let Failure { generation, part, reason, device } = failure;
    let head = json!({
        "at": ingress::date(unix_ms / 1000), "generation": generation, "part": part,
        "reason": reason, "device": device, "version": env!("CARGO_PKG_VERSION"),
        "cycles": lines.len(),
    });
    let mut text = String::new();
    for line in std::iter::once(&head).chain(lines) {
        text += &format!("{line}\n");
    }
    // So that names rise with time.
    let name = format!("flight-{unix_ms:014}-{generation}.jsonl");
    let file = config.path.join(name);
    let part = file.with_extension("part");
    let mut out = fs::File::create(&part)?;
    out.write_all(text.as_bytes())?;
    out.sync_all()?;
    fs::rename(&part, &file)?;
    clear(&config.path, config.files_max.max(1))?;
    Ok(file)
}

/// Lets the oldest files go. Others in the folder are none of ours.
fn clear(folder: &Path, most: usize) -> io::Result<()> {
    let mut ours: Vec<PathBuf> = fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with("flight-") && name.ends_with(".jsonl")
        })
        .collect();
    ours.sort();
    for old in &ours[..ours.len().saturating_sub(most)] {
        fs::remove_file(old)?;
    }
    Ok(())
}

fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use mtplx_core::engine::Verify;

    use super::*;

    const FAILURE: Failure<'_> =
        Failure { generation: 3, part: "decode", reason: "it broke", device: "scripted" };

    fn plan(step: u64) -> Plan {
        let verify = vec![Verify { slot: Slot(1), position: 40, depth: 2 }];
        Plan { step, verify, ..Plan::default() }
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        let mut files: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    #[test]
    fn the_last_cycles_are_written_and_the_one_that_broke_it_is_last() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { path: folder.path().join("new"), cycles: 4, files_max: 2 };
        let recorder = Recorder::new(config.cycles);
        for step in 1..=9 {
            recorder.begins(&plan(step), &Rows::new());
            if step < 9 {
                let report = Report { emitted: 2, ..Report::default() };
                recorder.ran(&report, Duration::from_micros(700));
            }
        }
        recorder.write(&config, FAILURE);
        let file = files(&config.path).remove(0);
        let text = fs::read_to_string(file).unwrap();
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(
            (&lines[0]["part"], &lines[0]["reason"]),
            (&json!("decode"), &json!("it broke"))
        );
        let steps: Vec<_> = lines[1..].iter().map(|line| line["step"].as_u64().unwrap()).collect();
        assert_eq!(steps, [6, 7, 8, 9]);
        assert_eq!(lines[3]["ran"]["emitted"], 2);
        assert_eq!(lines[4]["ran"], Value::Null);
        assert_eq!(lines[4]["verify"], json!([{"slot": 1, "position": 40, "depth": 2}]));
    }

    #[test]
    fn no_more_files_are_kept_than_are_wanted_and_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { path: folder.path().to_owned(), cycles: 4, files_max: 2 };
        fs::write(folder.path().join("notes.txt"), "mine").unwrap();
        fs::write(folder.path().join("flight-00000000000001-1.jsonl"), "").unwrap();
        for generation in 1..=3 {
            let recorder = Recorder::new(4);
            recorder.begins(&plan(1), &Rows::new());
            recorder.write(&config, Failure { generation, ..FAILURE });
            std::thread::sleep(Duration::from_millis(2));
        }
        let left = files(folder.path());
        assert_eq!(left.len(), 3, "{left:?}");
        assert!(left[0].to_string_lossy().ends_with("-2.jsonl"), "{left:?}");
    }
}

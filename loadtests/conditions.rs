//! Under which conditions figures were taken: without them a figure says nothing.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::gauges::Gauges;
use crate::server::Server;

/// Labels of this metric say what the engine is.
const ENGINE: &str = "mtplx_engine_info";

/// The machine, the commit, and the time.
pub(crate) fn of_this_machine() -> Value {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    json!({
        "cpu": cpu().unwrap_or_else(|| "unknown".into()),
        "cores": cores,
        "memory_gib": memory_gib(),
        "system": said("uname", &["-sm"]),
        "commit": commit(),
        "time": said("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
    })
}

/// What a server tells about itself; little of a peer.
pub(crate) async fn of(server: &Server, settings: &toml::Table) -> Value {
    let gauges = server.gauges().await.unwrap_or_default();
    let label = |metric, label| gauges.label(metric, label);
    json!({
        "url": server.url,
        "version": label("mtplx_build_info", "version"),
        "device": label(ENGINE, "device"),
        "mtp": label(ENGINE, "mtp"),
        "models": server.models().await,
        "settings": settings,
    })
}

/// Accepted and judged drafts so far, where the server tells.
pub(crate) fn drafts(gauges: &Gauges) -> Option<(f64, f64)> {
    let of = |name| gauges.get(name);
    Some((of("mtplx_draft_accepted_tokens_total")?, of("mtplx_draft_judged_tokens_total")?))
}

/// In one line, for people.
pub(crate) fn line(machine: &Value) -> String {
    let word = |name: &str| machine[name].as_str().unwrap_or("?").to_owned();
    format!(
        "{}, {} cores, {} GiB, {}; commit {}; {}",
        word("cpu"),
        machine["cores"],
        machine["memory_gib"],
        word("system"),
        word("commit"),
        word("time"),
    )
}

fn said(program: &str, args: &[&str]) -> Option<String> {
    let done = Command::new(program).args(args).output().ok().filter(|d| d.status.success())?;
    let text = String::from_utf8(done.stdout).ok()?;
    Some(text.trim().to_owned())
}

/// Of the sources beside us, with a word if they are not as they were committed.
fn commit() -> Option<String> {
    let commit = said("git", &["rev-parse", "--short=12", "HEAD"])?;
    let changed = said("git", &["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changed.is_empty() { commit } else { commit + " with changes" })
}

fn cpu() -> Option<String> {
    if !Path::new("/proc/cpuinfo").exists() {
        return said("sysctl", &["-n", "machdep.cpu.brand_string"]);
    }
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn memory_gib() -> Option<u64> {
    let Ok(text) = std::fs::read_to_string("/proc/meminfo") else {
        return said("sysctl", &["-n", "hw.memsize"])?.parse().ok().map(|bytes: u64| bytes >> 30);
    };
    let line = text.lines().find(|line| line.starts_with("MemTotal"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_told_in_one_line() {
        let machine = of_this_machine();
        assert!(machine["cores"].as_u64().is_some_and(|cores| cores > 0), "{machine}");
        assert!(machine["memory_gib"].as_u64().is_some_and(|gib| gib > 0), "{machine}");
        assert!(line(&machine).contains(" cores, "));
    }
}

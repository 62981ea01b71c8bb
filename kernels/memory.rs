//! Memory as MLX and the system count it.

use std::path::{Path, PathBuf};

use mlx_rs::{Device, DeviceType, memory};
use mtplx_core::guard::Budget;

use crate::error::Result;

/// Bytes that MLX holds, all engines of the process together, by what becomes of them. Weights and
/// scratch of the Rust kernels are outside MLX and not among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrays {
    /// In arrays that are alive.
    pub active: usize,
    /// Kept for arrays to come.
    pub cached: usize,
    /// The most that was ever active.
    pub peak: usize,
    /// Beyond which MLX waits for some to come back.
    pub limit: usize,
}

/// What MLX holds now; may be asked on any thread.
///
/// # Errors
/// When MLX cannot tell.
pub fn arrays() -> Result<Arrays> {
    let (active, cached) = (memory::active_memory()?, memory::cache_memory()?);
    Ok(Arrays { active, cached, peak: memory::peak_memory()?, limit: memory::memory_limit()? })
}

/// Bytes in use: on a GPU MLX's arrays and the buffers it keeps for the next ones, or what the
/// system counts as this process's own, whichever is more. Without one the system's count alone:
/// parts of arrays that were never written to take no memory.
#[must_use]
pub fn used() -> u64 {
    let mlx = memory::active_memory().unwrap_or(0) + memory::cache_memory().unwrap_or(0);
    match footprint() {
        Some(bytes) if !has_gpu() => bytes,
        footprint => (mlx as u64).max(footprint.unwrap_or(0)),
    }
}

/// Bytes that this machine, the group of processes it was put into and its device allow.
#[must_use]
pub fn machine() -> u64 {
    [device(), installed(), allowed()].into_iter().flatten().min().unwrap_or(u64::MAX)
}

/// A GPU's bound. Without one, MLX's limit is a share of the machine, not a fact about it.
fn device() -> Option<u64> {
    let limit = if has_gpu() { memory::memory_limit().ok()? } else { 0 };
    (limit > 0).then_some(limit as u64)
}

fn has_gpu() -> bool {
    let kind = Device::try_default().and_then(|device| device.get_type());
    matches!(kind, Ok(DeviceType::Gpu))
}

/// The budget where none is set: three quarters of `machine`. The rest is for everybody else on it
/// and for what grows by doubling.
#[must_use]
pub fn budget_of(machine: u64) -> u64 {
    machine / 4 * 3
}

/// Lets MLX keep what a step needs for buffers to come, and on a GPU, where new ones are dear, an
/// eighth of what the budget leaves: else it keeps all it ever had, and each new size adds to it.
pub fn limit_cache(budget: &Budget) {
    let spare = if has_gpu() { budget.bytes.saturating_sub(budget.base) / 8 } else { 0 };
    let most = spare.max(budget.step);
    // Without a bound the budget still holds, by trimming.
    let _ = memory::set_cache_limit(usize::try_from(most).unwrap_or(usize::MAX));
}

/// Gives back the buffers that MLX keeps, and what the allocator keeps of freed memory.
pub fn trim() {
    // Nothing depends on it: what is in use is measured afterwards.
    let _ = memory::clear_cache();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes no memory of ours, and other threads may allocate meanwhile.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Pages that only this process holds. Mapped files are not among them: the system takes those
/// back when it needs them. Elsewhere than on Linux MLX's own count is all there is.
fn footprint() -> Option<u64> {
    kib_in("/proc/self/status", "RssAnon:")
}

/// What the system's own tools show of this process: what it alone holds on Linux, the physical
/// footprint on macOS, which counts the GPU's buffers, too. For people: nothing is decided by it.
#[must_use]
pub fn shown() -> Option<u64> {
    #[cfg(target_os = "macos")]
    {
        // SAFETY: zeroes are such a struct, and the call fills in no more than it has room for.
        let mut info: libc::rusage_info_v2 = unsafe { std::mem::zeroed() };
        let to: *mut libc::rusage_info_t = (&raw mut info).cast();
        // SAFETY: the flavour is that of the struct; our own process may always be asked about.
        let failed = unsafe { libc::proc_pid_rusage(libc::getpid(), libc::RUSAGE_INFO_V2, to) };
        (failed == 0).then_some(info.ri_phys_footprint)
    }
    #[cfg(not(target_os = "macos"))]
    footprint()
}

fn installed() -> Option<u64> {
    kib_in("/proc/meminfo", "MemTotal:")
}

/// The least bound of the groups of processes that this one is in: a container's, a service's.
fn allowed() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    groups
        .lines()
        .filter_map(group_files)
        .flatten()
        .filter_map(|file| {
            // The word "max" is no bound.
            std::fs::read_to_string(file).ok()?.trim().parse().ok()
        })
        .min()
}

/// Where the bounds of a line of /proc/self/cgroup stand, from its group up to the root. A
/// container may show its own group as the root, so that is always among them.
fn group_files(line: &str) -> Option<impl Iterator<Item = PathBuf> + use<>> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, group) = (fields.next()?, fields.next()?);
    let (root, file) = match controllers {
        "" => ("/sys/fs/cgroup", "memory.max"),
        "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        _ => return None,
    };
    let group = PathBuf::from(group.trim_start_matches('/'));
    let groups: Vec<PathBuf> = group.ancestors().map(|g| Path::new(root).join(g)).collect();
    Some(groups.into_iter().map(move |group| group.join(file)))
}

fn kib_in(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(value.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_seen() {
        let held = vec![1_u8; 64 << 20];
        assert!(used() >= held.iter().map(|&b| u64::from(b)).sum());
        assert!(used() < machine());
    }

    #[test]
    fn every_group_up_to_the_root_may_bound_a_process() {
        let files = |line| group_files(line).map(|files| files.collect::<Vec<_>>());
        let two = ["/sys/fs/cgroup/a/b/memory.max", "/sys/fs/cgroup/a/memory.max"];
        let all: Vec<PathBuf> =
            two.into_iter().chain(["/sys/fs/cgroup/memory.max"]).map(PathBuf::from).collect();
        assert_eq!(files("0::/a/b"), Some(all));
        let old = vec![PathBuf::from("/sys/fs/cgroup/memory/memory.limit_in_bytes")];
        assert_eq!(files("9:memory:/"), Some(old));
        assert_eq!(files("3:cpu,cpuacct:/a"), None);
        assert_eq!(files("nonsense"), None);
    }
}

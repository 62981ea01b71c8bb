//! Memory as MLX and the system count it.

use mlx_rs::memory;

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
}

/// What MLX holds now; may be asked on any thread.
///
/// # Errors
/// When MLX cannot tell.
pub fn arrays() -> Result<Arrays> {
    let (active, cached) = (memory::active_memory()?, memory::cache_memory()?);
    Ok(Arrays { active, cached, peak: memory::peak_memory()? })
}

/// Bytes in use: MLX's arrays and the buffers it keeps for the next ones, or what the system counts
/// as this process's own, whichever is more.
#[must_use]
pub fn used() -> u64 {
    let mlx = memory::active_memory().unwrap_or(0) + memory::cache_memory().unwrap_or(0);
    (mlx as u64).max(footprint().unwrap_or(0))
}

/// Bytes that this machine, the group of processes it was put into and its device allow.
#[must_use]
pub fn machine() -> u64 {
    let device = memory::memory_limit().ok().map(|bytes| bytes as u64).filter(|&n| n > 0);
    [device, installed(), allowed()].into_iter().flatten().min().unwrap_or(u64::MAX)
}

/// The budget where none is set: three quarters of `machine`. The rest is for everybody else on it
/// and for what grows by doubling.
#[must_use]
pub fn budget_of(machine: u64) -> u64 {
    machine / 4 * 3
}

/// Gives back the buffers that MLX keeps.
pub fn trim() {
    // Nothing depends on it: what is in use is measured afterwards.
    let _ = memory::clear_cache();
}

/// Pages that only this process holds. Mapped files are not among them: the system takes those
/// back when it needs them. Elsewhere than on Linux MLX's own count is all there is.
fn footprint() -> Option<u64> {
    kib_in("/proc/self/status", "RssAnon:")
}

fn installed() -> Option<u64> {
    kib_in("/proc/meminfo", "MemTotal:")
}

/// The bound of a container, if there is one.
fn allowed() -> Option<u64> {
    let files = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    files.iter().find_map(|file| std::fs::read_to_string(file).ok()?.trim().parse().ok())
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
        let before = used();
        let held = vec![1_u8; 64 << 20];
        assert!(used() >= before.max(held.iter().map(|&b| u64::from(b)).sum()));
        assert!(used() < machine());
    }
}

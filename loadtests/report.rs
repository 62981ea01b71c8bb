//! From what clients saw to a table.

use std::fmt::Write;
use std::time::Duration;

use crate::client::Seen;

/// One round at one width.
pub(crate) struct Width {
    clients: usize,
    tokens_per_s: f64,
    first_p50: Duration,
    first_p95: Duration,
    gap_p50: Duration,
    gap_p99: Duration,
    gap_max: Duration,
}

impl Width {
    pub(crate) fn new(clients: usize, wall: Duration, seen: &[Seen]) -> Self {
        let tokens: u64 = seen.iter().map(|s| s.tokens).sum();
        let mut first: Vec<Duration> = seen.iter().map(|s| s.first).collect();
        let mut gaps: Vec<Duration> = seen.iter().flat_map(|s| s.gaps.iter().copied()).collect();
        first.sort_unstable();
        gaps.sort_unstable();
        Self {
            clients,
            tokens_per_s: tokens as f64 / wall.as_secs_f64(),
            first_p50: percentile(&first, 50),
            first_p95: percentile(&first, 95),
            gap_p50: percentile(&gaps, 50),
            gap_p99: percentile(&gaps, 99),
            gap_max: percentile(&gaps, 100),
        }
    }
}

/// The round with the median throughput.
pub(crate) fn median(mut rounds: Vec<Width>) -> Width {
    rounds.sort_by(|a, b| a.tokens_per_s.total_cmp(&b.tokens_per_s));
    let middle = rounds.len() / 2;
    rounds.swap_remove(middle)
}

/// Rows of figures; the first width is what the others are compared with.
pub(crate) fn table(widths: Vec<Width>) -> String {
    let base = widths.first().map_or(1.0, |w| w.tokens_per_s);
    let mut out = String::from(
        "clients  tokens/s  ratio  TTFT p50  TTFT p95  gap p50  gap p99  gap max   (ms)\n",
    );
    for w in &widths {
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{:>7} {:>9.1} {:>5.2}x {:>9.1} {:>9.1} {:>8.1} {:>8.1} {:>8.1}",
            w.clients,
            w.tokens_per_s,
            w.tokens_per_s / base,
            ms(w.first_p50),
            ms(w.first_p95),
            ms(w.gap_p50),
            ms(w.gap_p99),
            ms(w.gap_max),
        );
    }
    out
}

/// Nearest rank of a sorted list.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

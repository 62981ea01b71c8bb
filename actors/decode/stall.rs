//! What prompts cost those who read along.

use std::time::Duration;

use mtplx_core::batch::Report;

use crate::metrics;

/// Weight of a new cycle in what they usually take: one part in so many.
const MEMORY: u32 = 8;

/// What cycles take of late that only decode.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stall {
    usual: Option<Duration>,
}

impl Stall {
    /// A cycle took so long.
    pub(super) fn cycled(&mut self, report: &Report, wall: Duration) {
        match (report.rows, report.prefilled, self.usual) {
            (0, _, _) | (_, 1.., None) => {}
            (_, 0, None) => self.usual = Some(wall),
            (_, 0, Some(usual)) => self.usual = Some((usual * (MEMORY - 1) + wall) / MEMORY),
            (_, _, Some(usual)) => metrics::decode_stalled(wall.saturating_sub(usual)),
        }
    }
}

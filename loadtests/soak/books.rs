//! The server's books at one moment, and what must be true of them.

use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::tally::Tally;
use crate::server::Server;

/// Most growth of the engine's memory after the first requests.
const GROWTH_MAX: f64 = 0.02;

/// What the server told at one moment. Counts are whole numbers.
#[derive(Clone, Debug)]
pub(super) struct Books {
    /// Seconds since the test began.
    pub(super) at_s: f64,
    pub(super) active: f64,
    cached: f64,
    peak: f64,
    /// Memory of the whole process, where it can be seen.
    pub(super) resident: Option<u64>,
    running: f64,
    waiting: f64,
    permits: f64,
    slots_free: f64,
    pages_free: f64,
    pages_max: f64,
    snapshots: f64,
    pub(super) entries: f64,
    /// Generations by how they ended, and books found wrong.
    finished: f64,
    cancelled: f64,
    faults: f64,
    contradictions: f64,
    engines_lost: f64,
}

impl Books {
    pub(super) async fn read(server: &Server, began: Instant) -> Result<Self> {
        let gauges = server.gauges().await?;
        let get = |name: &str| {
            gauges.get(name).with_context(|| format!("the server does not tell {name}"))
        };
        let ended = |how: &str| {
            let label = format!("finish=\"{how}\"");
            gauges.with("mtplx_requests_total", &label).context("mtplx_requests_total is missing")
        };
        Ok(Self {
            at_s: began.elapsed().as_secs_f64(),
            active: get("mtplx_engine_active_bytes")?,
            cached: get("mtplx_engine_cached_bytes")?,
            peak: get("mtplx_engine_peak_bytes")?,
            resident: server.resident_bytes(),
            running: get("mtplx_rows_running")?,
            waiting: get("mtplx_rows_waiting")?,
            permits: get("mtplx_permits_taken")?,
            slots_free: get("mtplx_slots_free")?,
            pages_free: get("mtplx_pages_free")?,
            pages_max: get("mtplx_pages_max")?,
            snapshots: get("mtplx_snapshots_alive")?,
            // Nobody has told of a bank that has never been asked.
            entries: gauges.get("mtplx_bank_entries").unwrap_or(0.0),
            finished: ended("stop")? + ended("length")?,
            cancelled: ended("cancelled")?,
            faults: ended("fault")?,
            contradictions: get("mtplx_integrity_failures_total")?,
            engines_lost: get("mtplx_generations_ended_total")?,
        })
    }

    /// Nobody is in the house, and parked states are the bank's alone.
    pub(super) fn clear(&self) -> bool {
        let nobody = self.running == 0.0 && self.waiting == 0.0 && self.permits == 0.0;
        nobody && self.snapshots == self.entries
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "at_s": self.at_s, "active_bytes": self.active, "cached_bytes": self.cached,
            "peak_bytes": self.peak, "resident_bytes": self.resident, "running": self.running,
            "waiting": self.waiting, "pages_free": self.pages_free, "pages_max": self.pages_max,
            "snapshots": self.snapshots, "bank_entries": self.entries, "finished": self.finished,
            "cancelled": self.cancelled, "faults": self.faults,
        })
    }

    /// For people.
    pub(super) fn line(&self) -> String {
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        let resident = self.resident.map_or("?".into(), |r| format!("{:.1}", mib(r as f64)));
        format!(
            "active {:7.1} MiB, cached {:7.1}, peak {:7.1}, process {resident:>7}; {} parked \
             states, {} prefixes in the bank, {} of {} pages free",
            mib(self.active),
            mib(self.cached),
            mib(self.peak),
            self.snapshots,
            self.entries,
            self.pages_free,
            self.pages_max,
        )
    }
}

/// The books when nobody is served: with what the bank holds, and after it has let go of all.
#[derive(Clone, Debug)]
pub(super) struct Rest {
    pub(super) full: Books,
    /// Nothing if the bank kept something to the end of our patience.
    pub(super) empty: Option<Books>,
}

/// Growth of the engine's memory between two moments of rest, as a share.
pub(super) fn growth(early: &Books, late: &Books) -> f64 {
    late.active / early.active - 1.0
}

/// Everything that is not as it must be, in words.
pub(super) fn judge(early: &Rest, late: &Rest, tally: &Tally) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut must = |fact: bool, word: String| {
        if !fact {
            wrong.push(word);
        }
    };
    for (name, rest) in [("the first requests", early), ("the last request", late)] {
        match &rest.empty {
            None => must(false, format!("the bank never emptied itself after {name}")),
            Some(books) => {
                let (free, max) = (books.pages_free, books.pages_max);
                must(free == max, format!("{} pages stay taken after {name}", max - free));
            }
        }
    }
    let slots = (early.full.slots_free, late.full.slots_free);
    must(slots.0 == slots.1, format!("free slots went from {} to {}", slots.0, slots.1));
    if let (Some(early), Some(late)) = (&early.empty, &late.empty) {
        let growth = growth(early, late);
        must(growth <= GROWTH_MAX, format!("active memory grew by {:.1} %", growth * 100.0));
    }
    let end = &late.full;
    must(end.faults == 0.0, format!("{} generations ended by a fault", end.faults));
    must(end.contradictions == 0.0, format!("the ledger was wrong {} times", end.contradictions));
    must(end.engines_lost == 0.0, format!("{} engines were lost", end.engines_lost));
    // Who leaves may do so when all was said, so the server may have finished a few more.
    let (stayed, left) = (tally.stayed() as f64, tally.left() as f64);
    let fits = end.finished >= stayed && end.finished + end.cancelled <= stayed + left;
    must(
        fits,
        format!(
            "{} finished and {} cancelled by the server's count, where {stayed} stayed \
        and {left} left",
            end.finished, end.cancelled
        ),
    );
    must(
        tally.failures() == 0,
        format!("{} requests did not end as they should", tally.failures()),
    );
    wrong
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::soak) fn books() -> Books {
        Books {
            at_s: 0.0,
            active: 1000.0,
            cached: 0.0,
            peak: 0.0,
            resident: None,
            running: 0.0,
            waiting: 0.0,
            permits: 0.0,
            slots_free: 8.0,
            pages_free: 90.0,
            pages_max: 100.0,
            snapshots: 3.0,
            entries: 3.0,
            finished: 0.0,
            cancelled: 0.0,
            faults: 0.0,
            contradictions: 0.0,
            engines_lost: 0.0,
        }
    }

    fn rest() -> Rest {
        let empty = Books { pages_free: 100.0, snapshots: 0.0, entries: 0.0, ..books() };
        Rest { full: books(), empty: Some(empty) }
    }

    fn wrong(change: impl Fn(&mut Rest)) -> Vec<String> {
        let mut late = rest();
        change(&mut late);
        judge(&rest(), &late, &Tally::default())
    }

    #[test]
    fn a_server_that_is_as_it_was_is_right() {
        assert!(wrong(|_| ()).is_empty());
        let grown = |by: f64| wrong(|late| late.empty.as_mut().unwrap().active *= 1.0 + by);
        assert!(grown(0.019).is_empty() && grown(-0.5).is_empty());
        assert_eq!(grown(0.03), ["active memory grew by 3.0 %"]);
    }

    #[test]
    fn what_is_lost_or_kept_is_named() {
        assert_eq!(wrong(|late| late.empty.as_mut().unwrap().pages_free = 99.0).len(), 1);
        assert_eq!(wrong(|late| late.empty = None).len(), 1);
        assert_eq!(wrong(|late| late.full.slots_free = 7.0).len(), 1);
        assert_eq!(wrong(|late| late.full.faults = 1.0).len(), 1);
        assert_eq!(wrong(|late| late.full.finished = 1.0).len(), 1);
    }

    #[test]
    fn a_state_that_the_bank_does_not_know_is_not_rest() {
        assert!(books().clear());
        assert!(!Books { snapshots: 4.0, ..books() }.clear());
        assert!(!Books { waiting: 1.0, ..books() }.clear());
    }
}

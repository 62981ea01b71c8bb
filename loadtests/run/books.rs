//! The server's books at one moment, and what must be true of them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::time::sleep;

use super::tally::Tally;
use crate::server::Server;

/// Longest wait until nobody is in the house any more.
const CLEAR: Duration = Duration::from_secs(60);
/// … and, where unused prefixes leave the bank within seconds, until it is empty.
const EMPTY: Duration = Duration::from_secs(60);

/// What the server told at one moment. Counts are whole numbers.
#[derive(Clone, Debug)]
pub(super) struct Books {
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
    pub(super) async fn read(server: &Server) -> Result<Self> {
        let gauges = server.gauges().await?;
        let get = |name: &str| {
            gauges.get(name).with_context(|| format!("the server does not tell {name}"))
        };
        let ended = |how: &str| {
            let label = format!("finish=\"{how}\"");
            gauges.with("mtplx_requests_total", &label).context("mtplx_requests_total is missing")
        };
        Ok(Self {
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
}

/// The books when nobody is served: with what the bank holds, and after it has let go of all.
#[derive(Clone, Debug)]
pub(super) struct Rest {
    pub(super) full: Books,
    /// Nothing if the bank kept something to the end of our patience.
    pub(super) empty: Option<Books>,
}

/// Waits until nobody is in the house, then until the bank has let everything go.
pub(super) async fn rest(server: &Server) -> Result<Rest> {
    let full = until(server, CLEAR, Books::clear).await?;
    let Some(full) = full else {
        bail!("rows or permits were still taken {CLEAR:?} after the last request had ended");
    };
    let empty = until(server, EMPTY, |b| b.clear() && b.entries == 0.0).await?;
    Ok(Rest { full, empty })
}

async fn until(
    server: &Server,
    patience: Duration,
    fact: impl Fn(&Books) -> bool,
) -> Result<Option<Books>> {
    let start = Instant::now();
    loop {
        let books = Books::read(server).await?;
        if fact(&books) {
            return Ok(Some(books));
        }
        if start.elapsed() > patience {
            return Ok(None);
        }
        sleep(Duration::from_millis(250)).await;
    }
}

/// Everything that is not as it must be, in words.
pub(super) fn judge(early: &Books, late: &Rest, tally: &Tally) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut must = |fact: bool, word: String| {
        if !fact {
            wrong.push(word);
        }
    };
    match &late.empty {
        None => must(false, "the bank never emptied itself".into()),
        Some(books) => {
            let (free, max) = (books.pages_free, books.pages_max);
            must(free == max, format!("{} pages stay taken", max - free));
        }
    }
    let end = &late.full;
    let slots = (early.slots_free, end.slots_free);
    must(slots.0 == slots.1, format!("free slots went from {} to {}", slots.0, slots.1));
    must(end.faults == 0.0, format!("{} generations ended by a fault", end.faults));
    must(end.contradictions == 0.0, format!("the ledger was wrong {} times", end.contradictions));
    must(end.engines_lost == 0.0, format!("{} engines were lost", end.engines_lost));
    // Who leaves may do so when all was said, so the server may have finished a few more.
    let (stayed, left) = (tally.stayed as f64, tally.left as f64);
    let (finished, cancelled) = (end.finished - early.finished, end.cancelled - early.cancelled);
    must(
        finished >= stayed && finished + cancelled <= stayed + left,
        format!(
            "{finished} finished and {cancelled} cancelled by the server's count, where {stayed} \
             stayed and {left} left"
        ),
    );
    wrong
}

#[cfg(test)]
mod tests {
    use super::super::scenario::tests::{SMALL, parse};
    use super::*;

    fn books() -> Books {
        Books {
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
        judge(&books(), &late, &Tally::new(&parse(SMALL).unwrap()))
    }

    #[test]
    fn a_server_that_is_as_it_was_is_right() {
        assert!(wrong(|_| ()).is_empty());
    }

    #[test]
    fn what_is_lost_or_kept_is_named() {
        assert_eq!(wrong(|late| late.empty.as_mut().unwrap().pages_free = 99.0).len(), 1);
        assert_eq!(wrong(|late| late.empty = None).len(), 1);
        assert_eq!(wrong(|late| late.full.slots_free = 7.0).len(), 1);
        assert_eq!(wrong(|late| late.full.faults = 1.0).len(), 1);
        assert_eq!(wrong(|late| late.full.contradictions = 1.0).len(), 1);
        assert_eq!(wrong(|late| late.full.finished = 1.0).len(), 1);
    }

    #[test]
    fn a_state_that_the_bank_does_not_know_is_not_rest() {
        assert!(books().clear());
        assert!(!Books { snapshots: 4.0, ..books() }.clear());
        assert!(!Books { waiting: 1.0, ..books() }.clear());
    }
}

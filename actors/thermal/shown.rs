//! What is shown of the heat at `/health`. Heat and fans are the machine's, not a house's, so, as
//! for metrics, there is one for the process; and the door need not wait for an actor to say it.

use std::sync::{PoisonError, RwLock};

use serde::Serialize;

/// Heat and fans for people.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Shown {
    /// How many rows: `full`, `reduced`, `low`.
    pub ceiling: &'static str,
    /// Share of the time for pauses.
    pub pause: f32,
    /// Why: `target`, `warm`, `hot`, `pressure`, `silence`.
    pub reasons: Vec<&'static str>,
    /// The hottest sensor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub celsius: Option<f32>,
    /// What the system says: `nominal`, `fair`, `serious`, `critical`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pressure: Option<&'static str>,
    /// What the fans do: `auto`, `max`, `idle` (auto until the next request), `off`, or `failed`.
    pub fans: &'static str,
}

static SHOWN: RwLock<Option<Shown>> = RwLock::new(None);

/// What is known; `None` before the first look.
#[must_use]
pub fn shown() -> Option<Shown> {
    SHOWN.read().unwrap_or_else(PoisonError::into_inner).clone()
}

fn change(change: impl FnOnce(&mut Shown)) {
    let mut shown = SHOWN.write().unwrap_or_else(PoisonError::into_inner);
    let nothing = Shown { ceiling: "full", fans: "auto", ..Shown::default() };
    change(shown.get_or_insert(nothing));
}

/// Shows the heat.
pub(super) fn show(heat: Shown) {
    change(|shown| *shown = Shown { fans: shown.fans, ..heat });
}

/// Shows what the fans do.
pub fn show_fans(fans: &'static str) {
    change(|shown| shown.fans = fans);
}

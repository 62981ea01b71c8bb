//! What a scenario found: for people, for programs, and whether its bars held.

use serde_json::Value;

/// The end of a scenario.
pub(crate) struct Report {
    /// A table and what it means.
    pub(crate) text: String,
    /// The same in full.
    pub(crate) json: Value,
    /// Whether all that was to hold did.
    pub(crate) held: bool,
}

impl Report {
    pub(crate) fn print(&self, as_json: bool) {
        if as_json {
            println!("{:#}", self.json);
        } else {
            println!("{}", self.text.trim_end());
        }
    }
}

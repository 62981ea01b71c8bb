//! One line that says how far it is, for people at a terminal; nobody else gets to see it.

use std::io::{IsTerminal, Write, stderr};

/// Replaces the line. An empty text takes it away.
pub(crate) fn say(text: &str) {
    let mut out = stderr();
    if out.is_terminal() {
        // Whoever closed the terminal does not read it.
        let _ = write!(out, "\r\x1b[K{text}");
        let _ = out.flush();
    }
}

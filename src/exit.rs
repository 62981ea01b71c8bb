//! How commands end: what a script learns from the exit code alone. 0: done; 1: it failed; 2: the
//! command line makes no sense; and those of [`Stop`].

use thiserror::Error;

/// What `mtplx --help` ends with: of the codes, for every command at once.
pub const HELP: &str = "Examples:\n  mtplx start\n  mtplx serve --model owner/name\n  \
                         mtplx schema models\n\n\
                         Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused for want of room \
                         or of consent, 4 access denied, 5 nobody answers there, 130 interrupted.";

/// An end that deserves a code of its own.
#[derive(Debug, Error)]
pub enum Stop {
    /// It could be done, but wants room, or somebody's word.
    #[error("{0}")]
    Refused(String),
    /// A key or token is missing, or opens nothing.
    #[error("{0}")]
    Denied(String),
    /// No server, no hub.
    #[error("{0}")]
    Nobody(String),
    /// Somebody pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

impl Stop {
    fn code(&self) -> u8 {
        match self {
            Self::Refused(_) => 3,
            Self::Denied(_) => 4,
            Self::Nobody(_) => 5,
            Self::Interrupted => 130,
        }
    }
}

/// The exit code of an error.
#[must_use]
pub fn code_of(error: &anyhow::Error) -> u8 {
    error.chain().find_map(|cause| cause.downcast_ref::<Stop>()).map_or(1, Stop::code)
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn the_code_is_found_below_what_was_said_on_top() {
        let error = Err::<(), _>(Stop::Denied("no".into())).context("while asking").unwrap_err();
        assert_eq!((code_of(&error), code_of(&anyhow::anyhow!("so"))), (4, 1));
    }
}

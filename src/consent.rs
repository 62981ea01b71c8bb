//! A word from whoever sits at the terminal, before something is written or deleted.

use std::io::{ErrorKind, IsTerminal};

use anyhow::Result;
use dialoguer::{Confirm, Error};

use crate::exit::Stop;

/// Whether they say yes; everything else is a no. `nobody` is said where nobody can be asked.
pub(crate) fn given(question: &str, nobody: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(Stop::Refused(nobody.into()).into());
    }
    match Confirm::new().with_prompt(question).default(false).interact_opt() {
        Ok(said) => Ok(said == Some(true)),
        // Ctrl-C, where that does not end us.
        Err(Error::IO(e)) if e.kind() == ErrorKind::Interrupted => Err(Stop::Interrupted.into()),
        Err(error) => Err(error.into()),
    }
}

//! Places in the house: for answers, for their tokens, for those who only have a text looked at.
//! Whoever finds none is told when to come again.

use std::sync::Arc;

use mtplx_core::request::Refusal;
use tokio::sync::OwnedSemaphorePermit;

use super::{House, Wanted};

impl House {
    /// A place for one who has a text looked at without asking for an answer, of which there are as
    /// many as of answers.
    pub(crate) fn place(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        Arc::clone(&self.asking).try_acquire_owned().map_err(|_| self.overloaded())
    }

    /// A place for the tokens of an answer: its prompt, and what was asked for.
    pub(super) fn tokens(
        &self,
        prompt: usize,
        wanted: &Wanted,
    ) -> Result<Option<OwnedSemaphorePermit>, Refusal> {
        let all = self.config.tokens_max.map_or(usize::MAX, |n| n.get());
        let asked = wanted.new_tokens_max.map(|(n, _)| n).or(wanted.new_tokens_default);
        let tokens = prompt.saturating_add(asked.unwrap_or(0)).min(all);
        let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
        let place = Arc::clone(&self.tokens).try_acquire_many_owned(tokens);
        place.map(Some).map_err(|_| self.overloaded())
    }

    /// The house is full, for as long as it lately took until one left.
    pub(super) fn overloaded(&self) -> Refusal {
        Refusal::Overloaded { retry_after_s: self.clients.retry_after_s() }
    }

    /// One for each choice, all or none: a request that got half of them could wait forever.
    pub(super) fn permits(&self, wanted: &Wanted) -> Result<OwnedSemaphorePermit, Refusal> {
        let rows = wanted.sources.len() * wanted.choices;
        let most = usize::from(self.config.requests_max.get());
        if rows > most {
            let field = if wanted.sources.len() > 1 { "prompt" } else { "n" };
            let reason = format!("asks for {rows} answers at once; this server holds {most}");
            return Err(Refusal::Invalid { field, reason });
        }
        let rows = u32::try_from(rows).map_err(|_| self.overloaded())?;
        Arc::clone(&self.permits).try_acquire_many_owned(rows).map_err(|_| self.overloaded())
    }
}

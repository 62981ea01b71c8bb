//! Places in the house: for answers, for their tokens, for those who only have a text looked at.
//! Whoever finds none is told when to come again.

use std::sync::Arc;

use mtplx_core::fairness::Client;
use mtplx_core::request::Refusal;
use tokio::sync::OwnedSemaphorePermit;

use super::{House, Wanted};
use crate::ingress::clients::Caller;
use crate::ingress::openai::ApiError;
use crate::ingress::retry::HANDOVER;

impl House {
    /// Who would be refused whatever is in the body hears so before anybody looks into it: of far
    /// more requests than can be served most are refused, and that must not take what serving the
    /// others takes.
    pub(crate) fn look(&self, caller: &Caller) -> Result<(), ApiError> {
        self.clients.look(caller, self.permits.available_permits())
    }

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

    /// One for each choice, all or none: a request that got half of them could wait forever. One
    /// that takes the place of another waits until that is free.
    pub(super) async fn permits(
        &self,
        wanted: &Wanted,
        (client, takes_over): (Client, bool),
    ) -> Result<OwnedSemaphorePermit, ApiError> {
        let rows = wanted.sources.len() * wanted.choices;
        let most = usize::from(self.config.requests_max.get());
        if rows > most {
            let field = if wanted.sources.len() > 1 { "prompt" } else { "n" };
            let reason = format!("asks for {rows} answers at once; this server holds {most}");
            return Err(Refusal::Invalid { field, reason }.into());
        }
        if !takes_over {
            let free = self.permits.available_permits();
            self.clients.leaves_places(client, (rows, rows), free)?;
        }
        let rows = u32::try_from(rows).map_err(|_| self.overloaded())?;
        let permits = Arc::clone(&self.permits);
        let permits = if takes_over {
            let handover = tokio::time::timeout(HANDOVER, permits.acquire_many_owned(rows));
            handover.await.ok().and_then(Result::ok)
        } else {
            permits.try_acquire_many_owned(rows).ok()
        };
        permits.ok_or_else(|| self.overloaded().into())
    }
}

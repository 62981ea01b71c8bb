//! A running sequence: what it was asked, where it stands, what may come next.

use super::share::Follow;
use super::{
    Drafts, Holding, Logprobs, Mask, NotFinite, PASSED, Page, Request, RequestId, Seen, Slot,
    Token, Usage,
};
use crate::sample::Dist;

/// A running sequence.
#[derive(Clone, Debug)]
pub struct Row {
    pub(super) request: Request,
    pub(super) tokens: Vec<Token>,
    pub(super) computed: usize,
    pub(super) holding: Holding,
    pub(super) seen: Seen,
    pub(super) usage: Usage,
    /// Tokens of its prompt that were fed.
    pub(super) fed: usize,
    /// Prompt tokens that had been fed to everybody when it got its slot.
    pub(super) since: u64,
    /// Whose state it waits for, instead of computing the same.
    pub(super) follows: Option<Follow>,
    /// Positions at which others wait for its state.
    pub(super) stops: Vec<usize>,
    /// Whether it was seen whom it could wait for, since it last went on from a state.
    pub(super) looked: bool,
}

impl Row {
    /// The request it serves.
    #[must_use]
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Prompt and all tokens settled so far.
    #[must_use]
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// KV pages in order of position; they cover every position the plan writes.
    #[must_use]
    pub fn pages(&self) -> &[Page] {
        self.holding.pages()
    }

    /// What penalties count.
    #[must_use]
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// What its grammar, if it has one, allows after its text and the drafts `ahead`.
    ///
    /// # Errors
    /// [`NotFinite`] if the grammar gives up: the row ends as one whose device talks nonsense.
    pub fn mask(&self, ahead: &[Token]) -> Result<Option<Mask>, NotFinite> {
        let Some(grammar) = &self.request.sampling.grammar else { return Ok(None) };
        let text = self.text();
        let mask = match ahead {
            [] => grammar.allowed(text),
            ahead => grammar.allowed(&[text, ahead].concat()),
        };
        mask.map(Some).map_err(|_| NotFinite)
    }

    /// The tokens that its grammar leaves no choice about, at most `most`.
    #[must_use]
    pub fn forced(&self, most: usize) -> Vec<Token> {
        let grammar = self.request.sampling.grammar.as_ref();
        grammar.map_or(Vec::new(), |grammar| grammar.forced(self.text(), most))
    }

    /// The answer so far, with what rows before this one made of it.
    fn text(&self) -> &[Token] {
        &self.tokens[self.request.prompt.len() - self.request.resumed..]
    }

    /// The distribution that its request makes of one row of `logits` [vocab], after its text and
    /// the drafts `ahead`.
    ///
    /// # Errors
    /// As [`Dist::masked`] and [`Self::mask`].
    pub fn dist(&self, logits: &[f32], ahead: &[Token]) -> Result<Dist, NotFinite> {
        let mask = self.mask(ahead)?;
        Dist::masked(logits, &self.request.sampling, (&self.seen, ahead), mask.as_ref())
    }

    /// What the model thought of `token` by its row of `logits` [vocab], if its request asks.
    #[must_use]
    pub fn logprobs(&self, logits: &[f32], token: Token) -> Option<Logprobs> {
        let most = self.request.sampling.logprobs?;
        Some(Logprobs::of(logits, token, most))
    }

    pub(super) fn is_decoding(&self) -> bool {
        self.tokens.len() > self.request.prompt.len()
    }
}

impl Row {
    pub(super) fn start(request: Request, holding: Holding, cached: usize, since: u64) -> Self {
        let tokens = request.prompt.to_vec();
        let usage = Usage { prompt: tokens.len(), cached, ..Usage::default() };
        let mut seen = Seen::default();
        if request.sampling.has_penalties() {
            let (prompt, output) = tokens.split_at(tokens.len() - request.resumed);
            seen.add_prompt(prompt);
            seen.add_output(output);
        }
        Self {
            request,
            tokens,
            computed: cached,
            holding,
            seen,
            usage,
            fed: 0,
            since,
            follows: None,
            stops: Vec::new(),
            looked: false,
        }
    }

    /// How many drafts are sure of being accepted, as its grammar allows nothing else: these are
    /// made whatever the tuner says, unless the request itself says how many.
    pub(super) fn sure(&self, most: u8) -> u8 {
        match self.request.draft_tokens {
            Drafts::Exactly(_) => 0,
            Drafts::Tuned | Drafts::AtLeast(_) => {
                u8::try_from(self.forced(most.into()).len()).unwrap_or(most)
            }
        }
    }

    /// Its place among the prompts that are fed: those that a snapshot covers cost nothing and are
    /// first. `None` if its prompt is done.
    pub(super) fn turn(&self, slot: Slot) -> Option<(bool, u64, RequestId, Slot)> {
        let left = self.request.prompt.len() - self.computed.min(self.request.prompt.len());
        let due = self.since + PASSED * left as u64;
        (!self.is_decoding()).then_some((left > 0, due, self.request.id, slot))
    }

    /// Whether its state after `at` tokens of its prompt is to be kept.
    pub(super) fn is_kept_at(&self, at: usize) -> bool {
        !self.request.sharing.background && self.places().any(|place| place == at)
    }

    /// Positions of its prompt at which its state is worth keeping, to later requests or to others
    /// that wait for it.
    fn places(&self) -> impl Iterator<Item = usize> {
        self.request.boundaries.iter().chain(&self.stops).copied()
    }

    /// Where a chunk from `start` on ends: at a multiple of the grain, a boundary to keep, or the
    /// prompt's end; not beyond the budget, unless nothing would be fed and something must.
    pub(super) fn chunk_end(
        &self,
        start: usize,
        budget: usize,
        (must, grain): (bool, usize),
    ) -> usize {
        let prompt = self.request.prompt.len();
        let boundary = self.places().filter(|&place| place > start).min();
        let stop = boundary.unwrap_or(prompt).min(prompt);
        let on_grain = (start + budget) / grain * grain;
        if start + budget >= stop {
            stop
        } else if on_grain > start || !must {
            on_grain.max(start)
        } else {
            (start / grain + 1) * grain
        }
        .min(stop)
    }
}

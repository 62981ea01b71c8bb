//! A running sequence: what it was asked, where it stands, what may come next.

use super::share::Follow;
use super::{
    Class, Drafts, Holding, Logprobs, Mask, NotFinite, PASSED, Page, Request, RequestId, Seen,
    Slot, Token, Usage,
};
use crate::sample::Dist;

/// Its place among the prompts that are fed: those that a state covers cost nothing and are first;
/// then by its client's rank, its own age, its name.
pub(super) type Turn = (bool, (Class, u64), u64, RequestId, Slot);

/// Where a sequence stood that stepped back: all that its text depends on, beside its state.
#[derive(Clone, Debug)]
pub(super) struct Begun {
    pub(super) tokens: Vec<Token>,
    pub(super) seen: Seen,
    pub(super) usage: Usage,
    pub(super) reached: usize,
    pub(super) firm: bool,
}

/// A running sequence.
#[derive(Clone, Debug)]
pub struct Row {
    pub(super) request: Request,
    pub(super) tokens: Vec<Token>,
    pub(super) computed: usize,
    pub(super) holding: Holding,
    pub(super) seen: Seen,
    pub(super) usage: Usage,
    /// Tokens that were known when it got its slot: its prompt, and what it had said before it
    /// stepped back, if it did. It decodes what comes after them.
    pub(super) start: usize,
    /// Of these, tokens that were fed since.
    pub(super) fed: usize,
    /// And tokens that states brought.
    pub(super) restored: usize,
    /// Tokens of its prompt that were ever fed or restored.
    pub(super) reached: usize,
    /// Prompt tokens that had been fed to its client when it got its slot.
    pub(super) since: u64,
    /// The time by which it ages, of its arrival.
    pub(super) arrived: u64,
    /// Whether it keeps its slot, because it once lost what it had when it stepped back.
    pub(super) firm: bool,
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
        self.tokens.len() > self.start
    }
}

impl Begun {
    fn new(request: &Request) -> Self {
        let tokens = request.prompt.to_vec();
        let usage = Usage { prompt: tokens.len(), ..Usage::default() };
        let mut seen = Seen::default();
        if request.sampling.has_penalties() {
            let (prompt, output) = tokens.split_at(tokens.len() - request.resumed);
            seen.add_prompt(prompt);
            seen.add_output(output);
        }
        Self { tokens, seen, usage, reached: 0, firm: false }
    }
}

impl Row {
    /// Begins, or goes on where it stood, from a state of `restored` tokens.
    pub(super) fn start(
        (request, begun, arrived): (Request, Option<Begun>, u64),
        holding: Holding,
        restored: usize,
        since: u64,
    ) -> Self {
        let begun = begun.unwrap_or_else(|| Begun::new(&request));
        let Begun { tokens, seen, mut usage, reached, firm } = begun;
        usage.cached += restored.min(request.prompt.len()).saturating_sub(reached);
        Self {
            start: tokens.len(),
            reached: reached.max(restored).min(request.prompt.len()),
            request,
            tokens,
            computed: restored,
            holding,
            seen,
            usage,
            fed: 0,
            restored,
            since,
            arrived,
            firm,
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

    /// Its turn to be fed; `None` if it has all.
    pub(super) fn turn(&self, slot: Slot, rank: (Class, u64)) -> Option<Turn> {
        let left = self.start - self.computed.min(self.start);
        let due = self.since + PASSED * left as u64;
        (!self.is_decoding()).then_some((left > 0, rank, due, self.request.id, slot))
    }

    /// It goes on from a state that came while it ran.
    pub(super) fn go_on(&mut self, len: usize) {
        self.restored += len - self.computed;
        let reached = len.min(self.request.prompt.len()).max(self.reached);
        self.usage.cached += reached - self.reached;
        self.reached = reached;
        (self.computed, self.follows, self.looked) = (len, None, false);
    }

    /// Books a chunk of it up to `end`; how many tokens of its prompt it brought for the first
    /// time.
    pub(super) fn feed(&mut self, end: usize) -> usize {
        self.fed += end - self.computed;
        self.computed = end;
        let reached = end.min(self.request.prompt.len()).max(self.reached);
        let new = reached - self.reached;
        self.reached = reached;
        new
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

    /// Where a chunk from `start` on ends: at a multiple of the grain, a boundary to keep, or where
    /// it decodes; not beyond the budget, unless nothing would be fed and something must.
    pub(super) fn chunk_end(
        &self,
        start: usize,
        budget: usize,
        (must, grain): (bool, usize),
    ) -> usize {
        let boundary = self.places().filter(|&place| place > start).min();
        let stop = boundary.unwrap_or(self.start).min(self.start);
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

//! The acceptance law of a verify cycle: what the target distribution p, the drafts and the
//! distributions q they were drawn from become.
//!
//! [`Rule::Ratio`] is speculative sampling (Leviathan et al. 2023, Chen et al. 2023): a draft d is
//! accepted with probability min(1, p(d)/q(d)); at the first rejection a token is drawn from
//! (p − q)+ normalised. The emitted tokens follow p exactly, and no rule that judges token by token
//! accepts more often.
//!
//! [`Rule::Coupled`] draws draft and target with the same Gumbel noise (Daliri et al. 2024): the
//! emitted token is the target's own draw, whatever was drafted, so the text is a function of the
//! seed alone; a draft counts as accepted when it happens to be that token. It accepts a little
//! less often and is what a request with an explicit seed gets.

use crate::Token;
use crate::random::{Purpose, gumbel, uniform};
use crate::sample::{Dist, NotFinite};

/// How drafts are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Probability ratio with residual correction: most tokens a cycle.
    Ratio,
    /// Shared noise: the text depends on the seed alone, not on the drafts.
    Coupled,
}

/// What a verify cycle decided for one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// How many drafts stand, counted from the first.
    pub accepted: usize,
    /// The token after them: residual draw, or the bonus draw when all stand.
    pub next: Token,
}

/// Proposes the token at `position` from the head's distribution `q`.
#[must_use]
pub fn draft(rule: Rule, seed: u64, position: u64, q: &Dist) -> Token {
    match rule {
        Rule::Ratio => q.quantile(uniform(seed, position, Purpose::Draft)),
        Rule::Coupled => noisy_argmax(seed, position, q),
    }
}

/// Draws the token at `position` from `p` where nothing was proposed.
#[must_use]
pub fn draw(rule: Rule, seed: u64, position: u64, p: &Dist) -> Token {
    match rule {
        Rule::Ratio => p.quantile(uniform(seed, position, Purpose::Draw)),
        Rule::Coupled => noisy_argmax(seed, position, p),
    }
}

/// Decides over `drafts` [K], proposed from `q` [K] for the positions from `position` on. `p(i)`
/// gives the target distribution of the i-th of K+1 rows and is asked only for rows that matter.
///
/// Where `p` reports nonsense after some drafts stand, these are what the cycle gives: so a text
/// ends before the same token whatever was drafted.
///
/// # Errors
/// [`NotFinite`] as `p` reports it for the first row.
pub fn verdict(
    rule: Rule,
    seed: u64,
    position: u64,
    (drafts, q): (&[Token], &[Dist]),
    mut p: impl FnMut(usize) -> Result<Dist, NotFinite>,
) -> Result<Verdict, NotFinite> {
    debug_assert_eq!(drafts.len(), q.len(), "every draft has its distribution");
    for (i, (&d, q)) in drafts.iter().zip(q).enumerate() {
        let at = position + i as u64;
        let p = match p(i) {
            Err(NotFinite) if i > 0 => return Ok(standing(&drafts[..i])),
            p => p?,
        };
        let next = match rule {
            Rule::Ratio => ratio_step(seed, at, d, &p, q),
            Rule::Coupled => Some(noisy_argmax(seed, at, &p)).filter(|&x| x != d),
        };
        if let Some(next) = next {
            return Ok(Verdict { accepted: i, next });
        }
    }
    let k = drafts.len();
    let p = match p(k) {
        Err(NotFinite) if k > 0 => return Ok(standing(drafts)),
        p => p?,
    };
    Ok(Verdict { accepted: k, next: draw(rule, seed, position + k as u64, &p) })
}

/// All of these stand and nothing can be drawn after them: the last of them is the last token.
fn standing(drafts: &[Token]) -> Verdict {
    let accepted = drafts.len() - 1;
    Verdict { accepted, next: drafts[accepted] }
}

/// `None` if the draft stands, else the residual draw.
fn ratio_step(seed: u64, position: u64, d: Token, p: &Dist, q: &Dist) -> Option<Token> {
    let u = uniform(seed, position, Purpose::Accept);
    if u * f64::from(q.prob(d)) < f64::from(p.prob(d)) {
        return None;
    }
    let residual = residual(p, q).unwrap_or_else(|| p.clone());
    Some(residual.quantile(uniform(seed, position, Purpose::Draw)))
}

/// max(p − q, 0) normalised; `None` where it vanishes, which only rounding can cause.
fn residual(p: &Dist, q: &Dist) -> Option<Dist> {
    let mut qs = q.ids().iter().zip(q.probs()).peekable();
    let mut rest = Vec::with_capacity(p.ids().len());
    for (&id, &pp) in p.ids().iter().zip(p.probs()) {
        while qs.next_if(|&(&qid, _)| qid < id).is_some() {}
        let qp = qs.next_if(|&(&qid, _)| qid == id).map_or(0.0, |(_, &qp)| qp);
        if pp > qp {
            rest.push((id, pp - qp));
        }
    }
    Dist::from_weights(rest).ok()
}

/// argmax over the support of log p + Gumbel noise: a draw from p (Gumbel 1954).
fn noisy_argmax(seed: u64, position: u64, p: &Dist) -> Token {
    let mut best = (p.ids()[0], f64::NEG_INFINITY);
    for (&id, &prob) in p.ids().iter().zip(p.probs()) {
        if prob > 0.0 {
            let score = f64::from(prob).ln() + gumbel(seed, position, id);
            if score > best.1 {
                best = (id, score);
            }
        }
    }
    best.0
}

#[cfg(test)]
mod tests;

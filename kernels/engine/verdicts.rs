//! Acceptance within the graph: where a GPU draws from the largest logits for all rows of a cycle,
//! the host learns which drafts stand and what follows them, and no logits.
//!
//! One row whose law needs more (penalties, a bias, a grammar, logprobs, all logits) has the host
//! decide for all rows of its cycle.

use mtplx_core::batch::Row;
use mtplx_core::engine::{Emitted, Prefill, RowOutcome};
use mtplx_core::random::Purpose;

use super::Result;
use super::cycle::forced_length;
use super::drafts::Drafted;
use super::draws::Draws;
use super::scores::Asked;
use crate::gpu::accept::{self, Case, DRAFTS_MAX, Decided, Judged, Verdicts};
use crate::gpu::{draw, gpu};

/// Adds the verdicts on a cycle's rows to the graph, the starting ones first; `None` where the host
/// is to decide.
///
/// # Errors
/// When MLX fails.
pub(super) fn add(
    asked: &Asked,
    (verify, prefill): (&[Drafted<'_>], &[(&Prefill, &Row)]),
    draws: &Draws,
    forced: &[f64],
) -> Result<Option<Verdicts>> {
    let (Some(found), Some(heads)) = (asked.found(), draws.heads()) else { return Ok(None) };
    let starting = || prefill.iter().filter(|(c, _)| c.sample).map(|&(_, row)| row);
    let plain = |row: &Row| {
        let s = &row.request().sampling;
        s.grammar.is_none() && s.logprobs.is_none()
    };
    // What the host drew has a distribution that the device does not know.
    let certain = |d: &Drafted<'_>| d.q.iter().all(|q| q.ids().len() == 1);
    let judged = |d: &Drafted<'_>| d.depth() <= DRAFTS_MAX && plain(d.row) && certain(d);
    let gpu = gpu();
    if !starting().all(plain)
        || !verify.iter().all(judged)
        || !accept::serves(&gpu, asked.logits().dtype())
    {
        return Ok(None);
    }
    let stand = |d: &Drafted<'_>| {
        let rates = &forced[..d.depth().min(forced.len())];
        let seed = d.row.tokens().len() as u64 ^ d.row.request().sampling.seed;
        (!forced.is_empty()).then(|| forced_length(seed, rates))
    };
    let drafts = |(i, d): (usize, &Drafted<'_>)| -> Vec<Judged> {
        let known = || d.drafts.iter().copied().map(Judged::Known).collect();
        let drawn = || (0..d.depth()).map(|depth| Judged::Drawn(draws.place(i, depth))).collect();
        if d.drawn.is_empty() { known() } else { drawn() }
    };
    let rows = starting()
        .map(|row| (row, Vec::new(), None))
        .chain(verify.iter().enumerate().map(|(i, d)| (d.row, drafts((i, d)), stand(d))));
    let (mut cases, mut settings) = (Vec::new(), Vec::new());
    for (row, drafts, forced) in rows {
        let (sampling, position) = (&row.request().sampling, row.tokens().len() as u64);
        let (first, positions) = (settings.len(), position..=position + drafts.len() as u64);
        settings.extend(positions.map(|at| draw::settings(sampling, at, Purpose::Draw)));
        cases.push(Case { sampling, position, first, drafts, forced });
    }
    let trunk = draw::add_to(&gpu, found.clone(), &settings)?;
    accept::add(&gpu, &trunk, &heads, &cases).map(Some)
}

/// What comes of the rows by their verdicts, and what was fed for those that verified.
pub(super) fn outcomes(
    decided: Vec<Decided>,
    verify: &mut [Drafted<'_>],
    prefill: &[(&Prefill, &Row)],
) -> Vec<RowOutcome> {
    let slots: Vec<_> = prefill.iter().filter(|(c, _)| c.sample).map(|(c, _)| c.slot).collect();
    let starting = slots.len();
    let slots = slots.into_iter().chain(verify.iter().map(|d| d.plan.slot)).collect::<Vec<_>>();
    for (d, decided) in verify.iter_mut().zip(&decided[starting..]) {
        if !d.drawn.is_empty() {
            d.fed.clone_from(&decided.drafts);
        }
    }
    let emitted = |decided: Decided| {
        let Decided { mut drafts, accepted, next } = decided;
        let drafted = drafts.len();
        drafts.truncate(accepted);
        drafts.push(next);
        Emitted { tokens: drafts, drafted, logprobs: Vec::new() }
    };
    let told = slots.into_iter().zip(decided);
    told.map(|(slot, decided)| RowOutcome { slot, result: Ok(emitted(decided)) }).collect()
}

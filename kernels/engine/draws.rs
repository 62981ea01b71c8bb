//! Drafts drawn within the graph: the token that one pass of the head gives is the next pass's
//! input, and the trunk's, before the host has seen it. So a cycle is one graph and has one
//! synchronisation, after which the host learns what was drafted and from which distributions.

use std::sync::OnceLock;

use mlx_rs::Array;
use mtplx_core::Token;
use mtplx_core::accept::draft;
use mtplx_core::sample::{Dist, NotFinite, Sampling};
use rayon::prelude::*;

use super::drafts::{Drafted, is_little};
use super::{Arc, Result};
use crate::draft::DraftIds;
use crate::place::Place;

/// A draft and what it was drawn from; or nothing, where the head gave nonsense.
pub(super) type Proposal = Result<(Token, Dist), NotFinite>;

/// All drafts of a cycle that are on their way.
#[derive(Default)]
pub(super) struct Draws {
    /// u32 [rows], one for every depth.
    tokens: Vec<Array>,
    told: Vec<Told>,
    len: usize,
}

/// What the host will learn of one depth.
struct Told {
    /// Which verify rows.
    rows: Vec<usize>,
    proposals: Arc<OnceLock<Vec<Proposal>>>,
}

/// What a row's draw depends on besides its logits.
struct Draw {
    sampling: Sampling,
    position: u64,
}

impl Draws {
    /// Whether these rows can be drawn for at `place` before the host has seen the drafts so far.
    pub(super) fn serve(place: Place, rows: &[Drafted<'_>]) -> bool {
        let plain = |s: &Sampling| !s.has_penalties() && s.grammar.is_none();
        match place {
            #[cfg(target_os = "linux")]
            Place::Host => rows.iter().all(|d| plain(&d.row.request().sampling)),
            Place::Mlx(_) => false,
        }
    }

    /// Draws the next draft of each row in `active` from its `logits`, fp32 [active, ids].
    ///
    /// # Errors
    /// When MLX fails.
    pub(super) fn add(
        &mut self,
        rows: &mut [Drafted<'_>],
        active: &[usize],
        (logits, ids): (&Array, DraftIds),
    ) -> Result<()> {
        let draws = active.iter().map(|&i| {
            let Drafted { row, drawn, .. } = &rows[i];
            let position = (row.tokens().len() + drawn.len()) as u64;
            Draw { sampling: row.request().sampling.clone(), position }
        });
        let proposals = Arc::default();
        self.tokens.push(in_graph(logits, ids, draws.collect(), Arc::clone(&proposals))?);
        for (place, &i) in active.iter().enumerate() {
            rows[i].drawn.push(self.len + place);
        }
        self.len += active.len();
        self.told.push(Told { rows: active.to_vec(), proposals });
        Ok(())
    }

    /// The drafts, depth by depth.
    pub(super) fn tokens(&self) -> &[Array] {
        &self.tokens
    }

    /// Once evaluated: tells every row its drafts, up to where its head gave nonsense; and all
    /// tokens that were fed for it.
    pub(super) fn settle(&self, rows: &mut [Drafted<'_>]) {
        for (depth, told) in self.told.iter().enumerate() {
            let proposals = told.proposals.get().map_or(&[][..], Vec::as_slice);
            for (&i, proposal) in told.rows.iter().zip(proposals) {
                let row = &mut rows[i];
                row.fed.push(token_of(proposal));
                if let Ok((token, q)) = proposal
                    && row.drafts.len() == depth
                {
                    row.drafts.push(*token);
                    row.q.push(q.clone());
                }
            }
        }
    }
}

/// What is fed for a draft; the trunk's word after one that is nonsense is not listened to.
fn token_of(proposal: &Proposal) -> Token {
    proposal.as_ref().map_or(0, |&(token, _)| token)
}

#[cfg(target_os = "linux")]
fn in_graph(
    logits: &Array,
    ids: DraftIds,
    draws: Vec<Draw>,
    told: Arc<OnceLock<Vec<Proposal>>>,
) -> Result<Array> {
    use mlx_rs::Dtype;

    use crate::host::{Input, Output, OutputSpec, call};
    let draw = move |logits: &[f32], draw: &Draw| {
        let Draw { sampling, position } = draw;
        let q = ids.plain(logits, sampling)?;
        Ok((draft(sampling.rule, sampling.seed, *position, &q), q))
    };
    let shape = [draws.len() as i32];
    let f = move |inputs: &[Input<'_>], outputs: &mut [Output<'_>]| {
        let all: &[f32] = inputs[0].as_slice()?;
        let width = (all.len() / draws.len()).max(1);
        let rows = draws.len() * usize::from(is_little(all.len()));
        let proposals: Vec<Proposal> = match rows {
            0 => all.par_chunks_exact(width).zip(&draws).map(|(l, d)| draw(l, d)).collect(),
            _ => all.chunks_exact(width).zip(&draws).map(|(l, d)| draw(l, d)).collect(),
        };
        for (to, proposal) in outputs[0].as_mut_slice::<u32>()?.iter_mut().zip(&proposals) {
            *to = token_of(proposal);
        }
        // A graph that is evaluated again draws the same.
        let _ = told.set(proposals);
        Ok(())
    };
    let [tokens] = call(&[logits], [OutputSpec::new(&shape, Dtype::Uint32)], f)?;
    Ok(tokens)
}

#[cfg(not(target_os = "linux"))]
fn in_graph(
    _: &Array,
    _: DraftIds,
    _: Vec<Draw>,
    _: Arc<OnceLock<Vec<Proposal>>>,
) -> Result<Array> {
    Err(super::Error::Plan("drafts are drawn within the graph on Linux alone".into()))
}

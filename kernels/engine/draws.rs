//! Drafts drawn within the graph: the token that one pass of the head gives is the next pass's
//! input, and the trunk's, before the host has seen it. So a cycle is one graph and has one
//! synchronisation, after which the host learns what was drafted and from which distributions.
//!
//! One row whose draws depend on the drafts before (penalties, a grammar), or on a GPU on more than
//! the largest logits, lets the host draw for all rows of its cycle.

use std::sync::{Mutex, PoisonError};

use mlx_rs::Array;
use mtplx_core::Token;
use mtplx_core::accept::draft;
use mtplx_core::random::Purpose;
use mtplx_core::sample::{Dist, NotFinite, Sampling};
use rayon::prelude::*;

use super::drafts::{Drafted, is_little};
use super::scores::is_content_with_top;
use super::{Arc, Result};
use crate::draft::DraftIds;
use crate::gpu::draw::{self, Drawn};
use crate::gpu::gpu;
use crate::place::Place;

/// A draft and what it was drawn from; or nothing, where the head gave nonsense.
pub(super) type Proposal = Result<(Token, Dist), NotFinite>;

/// All drafts of a cycle that are on their way.
#[derive(Default)]
pub(super) struct Draws {
    depths: Vec<Depth>,
    len: usize,
}

/// The drafts of one depth.
struct Depth {
    /// Which verify rows.
    rows: Vec<usize>,
    /// u32 or i32 [rows].
    tokens: Array,
    told: Told,
}

/// Where the host will learn of them.
enum Told {
    #[cfg(target_os = "linux")]
    Host(Arc<Mutex<Vec<Proposal>>>),
    Device(Drawn),
}

/// What a row's draw depends on besides its logits.
struct Draw {
    sampling: Sampling,
    position: u64,
}

impl Draws {
    /// Whether these rows can be drawn for at `place` before the host has seen the drafts so far.
    pub(super) fn serve(place: Place, ids: DraftIds, rows: &[Drafted<'_>]) -> bool {
        let free = |s: &Sampling| !s.has_penalties() && s.grammar.is_none();
        let asking = rows.iter().filter(|d| !d.has_all());
        let mut all = asking.map(|d| &d.row.request().sampling);
        match place {
            #[cfg(target_os = "linux")]
            Place::Host => all.all(free),
            Place::Mlx(dtype) => {
                let plain = all.all(|s| free(s) && is_content_with_top(s));
                plain && ids.are_all() && draw::can(&gpu(), dtype, ids.vocab())
            }
        }
    }

    /// Draws the next draft of each row in `active` from its `logits`, [active, ids].
    ///
    /// # Errors
    /// When MLX fails.
    pub(super) fn add(
        &mut self,
        rows: &mut [Drafted<'_>],
        active: &[usize],
        (logits, ids): (&Array, DraftIds),
    ) -> Result<()> {
        let draws: Vec<Draw> = active
            .iter()
            .map(|&i| {
                let Drafted { row, drawn, .. } = &rows[i];
                let position = (row.tokens().len() + drawn.len()) as u64;
                Draw { sampling: row.request().sampling.clone(), position }
            })
            .collect();
        let (tokens, told) = in_graph(logits, ids, draws)?;
        for (place, &i) in active.iter().enumerate() {
            rows[i].drawn.push(self.len + place);
        }
        self.len += active.len();
        self.depths.push(Depth { rows: active.to_vec(), tokens, told });
        Ok(())
    }

    /// The drafts, depth by depth.
    pub(super) fn tokens(&self) -> Vec<Array> {
        self.depths.iter().map(|depth| depth.tokens.clone()).collect()
    }

    /// The draws of every depth, where a device makes them.
    pub(super) fn heads(&self) -> Option<Vec<&Drawn>> {
        let told = self.depths.iter().map(|depth| match &depth.told {
            #[cfg(target_os = "linux")]
            Told::Host(_) => None,
            Told::Device(drawn) => Some(drawn),
        });
        told.collect()
    }

    /// Which of a depth's draws is that of verify row `row`.
    pub(super) fn place(&self, row: usize, depth: usize) -> usize {
        self.depths[depth].rows.iter().take_while(|&&i| i != row).count()
    }

    /// What must be evaluated before [`Self::settle`].
    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.depths.iter().flat_map(|depth| match &depth.told {
            #[cfg(target_os = "linux")]
            Told::Host(_) => vec![&depth.tokens],
            Told::Device(drawn) => drawn.arrays().to_vec(),
        })
    }

    /// Tells every row its drafts, up to where its head gave nonsense; and all tokens that were fed
    /// for it.
    pub(super) fn settle(self, rows: &mut [Drafted<'_>]) {
        for (at, depth) in self.depths.into_iter().enumerate() {
            for (&i, (token, q)) in depth.rows.iter().zip(depth.told.read()) {
                let row = &mut rows[i];
                row.fed.push(token);
                if let Ok(q) = q
                    && row.drafts.len() == at
                {
                    row.drafts.push(token);
                    row.q.push(q);
                }
            }
        }
    }
}

impl Told {
    /// The tokens that were fed, and what each was drawn from.
    fn read(self) -> Vec<(Token, Result<Dist, NotFinite>)> {
        match self {
            #[cfg(target_os = "linux")]
            Self::Host(told) => {
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                let proposals = std::mem::take(&mut *told).into_iter();
                proposals.map(|p| (token_of(&p), p.map(|(_, q)| q))).collect()
            }
            Self::Device(drawn) => drawn.read(),
        }
    }
}

/// What is fed for a draft; the trunk's word after one that is nonsense is not listened to.
fn token_of(proposal: &Proposal) -> Token {
    proposal.as_ref().map_or(0, |&(token, _)| token)
}

fn in_graph(logits: &Array, ids: DraftIds, draws: Vec<Draw>) -> Result<(Array, Told)> {
    #[cfg(target_os = "linux")]
    if !gpu().serves(logits.dtype()) {
        return on_host(logits, ids, draws);
    }
    let _ = ids;
    let rows: Vec<_> =
        draws.iter().map(|d| draw::settings(&d.sampling, d.position, Purpose::Draft)).collect();
    let drawn = draw::add(&gpu(), logits, &rows)?;
    Ok((drawn.tokens.clone(), Told::Device(drawn)))
}

#[cfg(target_os = "linux")]
fn on_host(logits: &Array, ids: DraftIds, draws: Vec<Draw>) -> Result<(Array, Told)> {
    use mlx_rs::Dtype;

    use crate::host::{Input, Output, OutputSpec, call};
    let draw = move |logits: &[f32], draw: &Draw| {
        let Draw { sampling, position } = draw;
        let q = ids.plain(logits, sampling)?;
        Ok((draft(sampling.rule, sampling.seed, *position, &q), q))
    };
    let shape = [draws.len() as i32];
    let told: Arc<Mutex<Vec<Proposal>>> = Arc::default();
    let learnt = Arc::clone(&told);
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
        *learnt.lock().unwrap_or_else(PoisonError::into_inner) = proposals;
        Ok(())
    };
    let [tokens] = call(&[logits], [OutputSpec::new(&shape, Dtype::Uint32)], f)?;
    Ok((tokens, Told::Host(told)))
}

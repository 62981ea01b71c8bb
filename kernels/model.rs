//! The model's forward pass, top to bottom: a ragged batch of tokens in, hidden states out. Rows of
//! any length travel in one pass; nothing is padded here.

use std::sync::Arc;

use mlx_rs::Array;
use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::TryIndexOp;

use crate::attention::{Attention, AttentionRow, KvPool};
use crate::checkpoint::{self, Checkpoint, Mixer, ModelConfig};
use crate::draft::{DraftHead, DraftHeadOptions, DraftIds};
use crate::error::Result;
use crate::ffn::Ffn;
use crate::gdn::{Gdn, GdnPool, GdnRow};
use crate::linear::{Ids, Matrix};
use crate::norm::Norm;
use crate::pair::PairInput;
use crate::place::Place;

/// Layers whose graph is handed to a GPU at once, so that it works while the next ones are put
/// together. Measured on CUDA; 8 and 2 are slower there.
const LAYERS_AHEAD: usize = 4;

/// Weights of trunk and MTP head, prepared for a place. Immutable once loaded.
#[derive(Debug)]
pub struct Model {
    embed: Matrix,
    layers: Vec<Layer>,
    norm: Norm,
    /// `None` when tied to `embed`.
    head: Option<Matrix>,
    mtp: Option<MtpHead>,
    /// For drafts; `None` where the head above serves them too.
    draft_head: Option<DraftHead>,
    vocab: usize,
    /// Layers after which a GPU begins while later ones are still put together; 0 for never.
    ahead: usize,
}

#[derive(Debug)]
struct Layer {
    mixer: LayerMixer,
    ffn: Ffn,
}

#[derive(Debug)]
enum LayerMixer {
    Gdn(Gdn),
    Attention(Attention),
}

#[derive(Debug)]
struct MtpHead {
    input: PairInput,
    attention: Attention,
    ffn: Ffn,
    norm: Norm,
}

/// What outlives a pass: recurrent states by slot, keys and values by page.
#[derive(Debug)]
pub struct Pools {
    /// One for every GDN layer, in order.
    pub gdn: Vec<GdnPool>,
    /// One for every attention layer, in order.
    pub kv: Vec<KvPool>,
    /// The MTP head's.
    pub mtp: Option<KvPool>,
}

/// One row of a pass: tokens `start..start + len` of the batch.
#[derive(Clone, Debug)]
pub struct FeedRow {
    /// Slot of its recurrent state; unused by the MTP head.
    pub slot: usize,
    /// First token in the batch.
    pub start: usize,
    /// Tokens.
    pub len: usize,
    /// Index of the first token in its sequence.
    pub position: usize,
    /// Tape entries accepted since the last pass.
    pub keep: usize,
    /// Whether the tokens stand at once (prefill) or wait for a verdict.
    pub commit: bool,
    /// After so many of its tokens its recurrent state is set aside.
    pub mark: Option<usize>,
    /// Its KV pages.
    pub pages: Arc<[u32]>,
}

impl FeedRow {
    fn attention(&self) -> AttentionRow {
        let (start, len, position) = (self.start, self.len, self.position);
        AttentionRow { start, len, position, pages: Arc::clone(&self.pages) }
    }

    fn gdn(&self) -> GdnRow {
        let Self { slot, start, len, keep, commit, mark, .. } = *self;
        GdnRow { slot, start, len, keep, commit, mark }
    }
}

impl Model {
    /// Prepares a checkpoint for a place. `verify_max` is the longest verify row.
    ///
    /// # Errors
    /// When weights cannot be prepared.
    pub fn load(
        place: Place,
        checkpoint: &Checkpoint,
        page_tokens: usize,
        verify_max: usize,
    ) -> Result<Self> {
        let config = &checkpoint.config;
        let layers = checkpoint
            .layers
            .iter()
            .map(|layer| Layer::load(place, layer, config, page_tokens, verify_max))
            .collect::<Result<_>>()?;
        let mtp = checkpoint.mtp.as_ref().ok();
        let mtp = mtp.map(|w| MtpHead::load(place, w, config, page_tokens)).transpose()?;
        Ok(Self {
            embed: Matrix::load(place, &[&checkpoint.embed])?,
            layers,
            norm: Norm::load(place, &checkpoint.norm, config.norm_eps)?,
            head: checkpoint.head.as_ref().map(|h| Matrix::load(place, &[h])).transpose()?,
            mtp,
            draft_head: None,
            vocab: config.vocab,
            ahead: if crate::gpu::gpu().serves(place.dtype()) { LAYERS_AHEAD } else { 0 },
        })
    }

    /// Gives drafts a head of their own, if there are any and the options ask for one.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn with_draft_head(
        mut self,
        place: Place,
        checkpoint: &Checkpoint,
        options: DraftHeadOptions,
    ) -> Result<Self> {
        if self.has_mtp() {
            self.draft_head = DraftHead::load(place, checkpoint.output_head(), options)?;
        }
        Ok(self)
    }

    /// Empty state for `slots` sequences and `pages` pages.
    ///
    /// # Errors
    /// When MLX cannot allocate.
    pub fn pools(&self, slots: usize, pages: usize) -> Result<Pools> {
        let (mut gdn, mut kv) = (Vec::new(), Vec::new());
        for layer in &self.layers {
            match &layer.mixer {
                LayerMixer::Gdn(g) => gdn.push(g.pool(slots)?),
                LayerMixer::Attention(a) => kv.push(a.pool(pages)?),
            }
        }
        let mtp = self.mtp.as_ref().map(|m| m.attention.pool(pages)).transpose()?;
        Ok(Pools { gdn, kv, mtp })
    }

    /// Whether there is an MTP head.
    #[must_use]
    pub fn has_mtp(&self) -> bool {
        self.mtp.is_some()
    }

    /// The trunk: `tokens` [M] → hidden states after the final norm, `[M, H]`.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn trunk(&self, tokens: &Ids, rows: &[FeedRow], pools: &mut Pools) -> Result<Array> {
        let gdn_rows: Vec<GdnRow> = rows.iter().map(FeedRow::gdn).collect();
        let kv_rows: Vec<AttentionRow> = rows.iter().map(FeedRow::attention).collect();
        let (mut gdn, mut kv) = (pools.gdn.iter_mut(), pools.kv.iter_mut());
        let mut x = self.embed.gather(tokens)?;
        for (i, layer) in self.layers.iter().enumerate() {
            if self.ahead > 0 && i > 0 && i % self.ahead == 0 {
                mlx_rs::transforms::async_eval([&x])?;
            }
            x = match &layer.mixer {
                LayerMixer::Gdn(g) => {
                    g.apply(&x, &gdn_rows, gdn.next().expect("a pool for every GDN layer"))?
                }
                LayerMixer::Attention(a) => {
                    a.apply(&x, &kv_rows, kv.next().expect("a pool for every attention layer"))?
                }
            };
            x = layer.ffn.apply(&x)?;
        }
        self.norm.apply(&x)
    }

    /// Hidden states `[M, H]` of trunk or head → logits `[M, V]`.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn logits(&self, hidden: &Array) -> Result<Array> {
        self.head.as_ref().unwrap_or(&self.embed).apply(hidden)
    }

    /// Hidden states `[M, H]` of the MTP head → logits of [`Self::draft_ids`].
    ///
    /// # Errors
    /// When MLX fails.
    pub fn draft_logits(&self, hidden: &Array) -> Result<Array> {
        match &self.draft_head {
            Some(head) => head.logits(hidden),
            None => self.logits(hidden),
        }
    }

    /// The tokens that drafts come from.
    #[must_use]
    pub fn draft_ids(&self) -> DraftIds {
        self.draft_head.as_ref().map_or(DraftIds::new(self.vocab, 1.0), DraftHead::ids)
    }

    /// Folds the accepted part of a slot's tapes into its state.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn fold(&self, slot: usize, keep: usize, pools: &mut Pools) -> Result<()> {
        let gdn = self.layers.iter().filter_map(|l| match &l.mixer {
            LayerMixer::Gdn(g) => Some(g),
            LayerMixer::Attention(_) => None,
        });
        for (layer, pool) in gdn.zip(&mut pools.gdn) {
            layer.fold(slot, keep, pool)?;
        }
        Ok(())
    }

    /// The MTP head: pairs (hidden state before a token, the token) → its own hidden states after
    /// its final norm, `[M, H]`. A pair stands at its token's index.
    ///
    /// # Errors
    /// When MLX fails or there is no head.
    pub fn draft(
        &self,
        hidden: &Array,
        tokens: &Ids,
        rows: &[FeedRow],
        pools: &mut Pools,
    ) -> Result<Array> {
        let (mtp, pool) = self.mtp_parts(&mut pools.mtp)?;
        let x = mtp.input.apply(&self.embed.gather(tokens)?, hidden)?;
        let rows: Vec<AttentionRow> = rows.iter().map(FeedRow::attention).collect();
        let x = mtp.attention.apply(&x, &rows, pool)?;
        mtp.norm.apply(&mtp.ffn.apply(&x)?)
    }

    /// Fills the MTP head's cache with pairs that nobody drafts from: keys and values only.
    ///
    /// # Errors
    /// When MLX fails or there is no head.
    pub fn remember(
        &self,
        hidden: &Array,
        tokens: &Ids,
        rows: &[FeedRow],
        pools: &mut Pools,
    ) -> Result<()> {
        let (mtp, pool) = self.mtp_parts(&mut pools.mtp)?;
        let x = mtp.input.apply(&self.embed.gather(tokens)?, hidden)?;
        let rows: Vec<AttentionRow> = rows.iter().map(FeedRow::attention).collect();
        mtp.attention.append(&x, &rows, pool)
    }

    fn mtp_parts<'a>(
        &'a self,
        pool: &'a mut Option<KvPool>,
    ) -> Result<(&'a MtpHead, &'a mut KvPool)> {
        let parts = self.mtp.as_ref().zip(pool.as_mut());
        parts.ok_or_else(|| crate::error::Error::Plan("this model has no MTP head".into()))
    }
}

impl Layer {
    fn load(
        place: Place,
        w: &checkpoint::Layer,
        config: &ModelConfig,
        page_tokens: usize,
        verify_max: usize,
    ) -> Result<Self> {
        let gain = &w.input_norm;
        let mixer = match &w.mixer {
            Mixer::Gdn(g) => LayerMixer::Gdn(Gdn::load(place, gain, g, config, verify_max)?),
            Mixer::Attention(a) => {
                let kind = (page_tokens, false);
                LayerMixer::Attention(Attention::load(place, gain, a, config, kind)?)
            }
        };
        Ok(Self { mixer, ffn: Ffn::load(place, &w.post_norm, &w.mlp, config)? })
    }
}

impl MtpHead {
    fn load(
        place: Place,
        w: &checkpoint::MtpWeights,
        config: &ModelConfig,
        page_tokens: usize,
    ) -> Result<Self> {
        let refuse = |reason: &str| crate::error::Error::Plan(format!("MTP head: {reason}"));
        let layer = w.layers.first().ok_or_else(|| refuse("no layer"))?;
        let Mixer::Attention(attention) = &layer.mixer else {
            return Err(refuse("its layer is not of the attention kind"));
        };
        let gain = &layer.input_norm;
        Ok(Self {
            input: PairInput::load(place, w, config.norm_eps)?,
            attention: Attention::load(place, gain, attention, config, (page_tokens, true))?,
            ffn: Ffn::load(place, &layer.post_norm, &layer.mlp, config)?,
            norm: Norm::load(place, &w.norm, config.norm_eps)?,
        })
    }
}

impl Pools {
    /// Arrays to evaluate so that no graph outlives its cycle.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = &Array> {
        let gdn = self.gdn.iter().flat_map(GdnPool::arrays);
        gdn.chain(self.kv_pools().flat_map(KvPool::arrays))
    }

    /// Pages there is room for.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.kv_pools().map(KvPool::pages).min().unwrap_or(usize::MAX)
    }

    /// A cache: the attention layers' in order, then the MTP head's.
    pub(crate) fn cache_mut(&mut self, cache: usize) -> Option<&mut KvPool> {
        self.kv.iter_mut().chain(&mut self.mtp).nth(cache)
    }

    /// Makes room for `pages` pages in every cache.
    ///
    /// # Errors
    /// When MLX cannot allocate.
    pub fn grow(&mut self, pages: usize) -> Result<()> {
        self.kv.iter_mut().chain(&mut self.mtp).try_for_each(|pool| pool.grow(pages))
    }

    /// Copies a page of every cache.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn copy_page(&mut self, from: usize, to: usize) -> Result<()> {
        self.kv.iter_mut().chain(&mut self.mtp).try_for_each(|pool| pool.copy(from, to))
    }

    /// All caches, in the order of [`Self::cache_mut`].
    pub(crate) fn kv_pools(&self) -> impl Iterator<Item = &KvPool> {
        self.kv.iter().chain(&self.mtp)
    }
}

/// Fewer rows of a batch than this may be kept whole for the sake of some of them.
const KEPT_WHOLE: i32 = 65;

/// Rows `index` of `x [M, H]`.
///
/// # Errors
/// When MLX fails.
pub fn take_rows(x: &Array, index: &[i32]) -> Result<Array> {
    let gpu = crate::gpu::gpu();
    if let &[first, .., last] = index
        && gpu.serves(x.dtype())
    {
        // An index that the host fills lies in memory that both sides page: a pass that needs one
        // for every row of its batch waits for as many pages.
        if x.dim(0) < KEPT_WHOLE && index.iter().copied().eq(first..=last) {
            return Ok(x.try_index(first..=last)?);
        }
        let at = gpu.numbers(index.to_vec())?.try_index(..index.len() as i32)?;
        return Ok(x.take_axis(at, 0)?);
    }
    Ok(x.take_axis(Array::from_slice(index, &[index.len() as i32]), 0)?)
}

/// Rows of several `[m, H]` as one batch.
///
/// # Errors
/// When MLX fails.
pub fn join_rows(parts: &[Array]) -> Result<Array> {
    match parts {
        [only] => Ok(only.clone()),
        _ => Ok(concatenate(parts, 0)?),
    }
}

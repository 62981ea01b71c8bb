//! From a checkpoint to an engine: what it can hold and what that costs.

use mlx_rs::Dtype;
use mtplx_core::engine::{EngineInfo, Phases};

use super::{BTreeMap, Checkpoint, MlxEngine, Model, Place, Result, SlotState};
use crate::checkpoint::{self, Format, LayerKind};

/// How large an engine is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Sequences that run at once.
    pub slots: usize,
    /// Positions of a KV page.
    pub page_tokens: usize,
    /// Most tokens to draft a cycle.
    pub depth_max: u8,
    /// Most tokens of one sequence; the model's own bound if `None`.
    pub context_tokens_max: Option<usize>,
    /// Bytes of KV pages that snapshots may hold beyond those of running rows.
    pub bank_bytes: u64,
    /// Where to run; the best place if `None`.
    pub place: Option<Place>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            slots: 8,
            page_tokens: 32,
            depth_max: 4,
            context_tokens_max: None,
            bank_bytes: 256 << 20,
            place: None,
        }
    }
}

impl MlxEngine {
    pub(super) fn open(
        checkpoint: &Checkpoint,
        place: Place,
        options: &EngineOptions,
    ) -> Result<Self> {
        let mtp_absent = checkpoint.mtp.as_ref().err().cloned();
        let depth_max = if mtp_absent.is_some() { 0 } else { options.depth_max };
        let verify_max = usize::from(depth_max) + 1;
        let model = Model::load(place, checkpoint, options.page_tokens, verify_max)?;
        let info = facts(checkpoint, place, options, depth_max, mtp_absent);
        // A few pages to begin with; they grow with the tokens in use.
        let pools = model.pools(info.slots, info.slots.min(info.pages_max))?;
        crate::place::eval(pools.arrays())?;
        let slots = (0..info.slots).map(|_| SlotState::default()).collect();
        let (snapshots, phases) = (BTreeMap::new(), Phases::default());
        Ok(Self { info, model, pools, slots, snapshots, phases })
    }
}

fn facts(
    checkpoint: &Checkpoint,
    place: Place,
    options: &EngineOptions,
    depth_max: u8,
    mtp_absent: Option<String>,
) -> EngineInfo {
    let config = &checkpoint.config;
    let float = if place.dtype() == Dtype::Float32 { 4 } else { 2 };
    let count = |kind| config.layers.iter().filter(|&&k| k == kind).count();
    let (gdn, attention) = (count(LayerKind::Gdn), count(LayerKind::Attention));
    let caches = attention + usize::from(mtp_absent.is_none());
    let token = 2 * config.attention.kv_heads * config.attention.head_dim * float;
    let page_bytes = (caches * token * options.page_tokens) as u64;
    let g = &config.gdn;
    let state = g.value_heads * g.value_dim * g.key_dim * 4 + 3 * g.channels() * float;
    let context = options.context_tokens_max.unwrap_or(usize::MAX).min(config.positions_max);
    let rows_pages = options.slots * context.div_ceil(options.page_tokens);
    let bank_pages = usize::try_from(options.bank_bytes / page_bytes.max(1)).unwrap_or(usize::MAX);
    EngineInfo {
        vocab: config.vocab,
        context_tokens_max: context,
        slots: options.slots,
        page_tokens: options.page_tokens,
        pages_max: rows_pages.saturating_add(bank_pages).min(u32::MAX as usize),
        page_bytes,
        snapshot_bytes: (gdn * state + config.hidden * float) as u64,
        depth_max,
        mtp_absent,
        device: place.name(),
    }
}

/// The type in which the checkpoint's own activations run: that of its norms' neighbours.
pub(super) fn checkpoint_dtype(checkpoint: &Checkpoint) -> Dtype {
    let dtype = match &checkpoint.embed.format {
        Format::Dense(tensor) => tensor.dtype(),
        Format::Affine { scales, .. } => scales.dtype(),
    };
    match dtype {
        checkpoint::Dtype::F16 => Dtype::Float16,
        checkpoint::Dtype::BF16 => Dtype::Bfloat16,
        checkpoint::Dtype::F32 | checkpoint::Dtype::U32 => Dtype::Float32,
    }
}

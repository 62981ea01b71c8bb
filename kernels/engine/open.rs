//! From a checkpoint to an engine: what it can hold and what that costs.

use mlx_rs::Dtype;
use mtplx_core::engine::{EngineInfo, Phases};
use mtplx_core::guard::Budget;
use mtplx_core::preflight::{Wish, estimate};

use super::{BTreeMap, Checkpoint, MlxEngine, Model, Place, Result, SlotState};
use crate::checkpoint::{self, Format};
use crate::draft::DraftHeadOptions;
use crate::{memory, preflight};

/// How large an engine is to be.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineOptions {
    /// Sequences that run at once.
    pub slots: usize,
    /// Positions of a KV page.
    pub page_tokens: usize,
    /// Most tokens to draft a cycle.
    pub depth_max: u8,
    /// Most tokens of one sequence; the model's own bound if `None`.
    pub context_tokens_max: Option<usize>,
    /// Most bytes of KV pages, running rows and snapshots together; what they can need if `None`.
    pub kv_bytes_max: Option<u64>,
    /// Bytes of KV pages that snapshots may hold beyond those of running rows.
    pub bank_bytes: u64,
    /// What drafts are read off.
    pub draft_head: DraftHeadOptions,
    /// Most bytes that the process may use; a share of the machine if `None`.
    pub memory_budget: Option<u64>,
    /// Most tokens that one step feeds, which decides what it needs while it runs.
    pub step_tokens: usize,
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
            kv_bytes_max: None,
            bank_bytes: 256 << 20,
            draft_head: DraftHeadOptions::default(),
            memory_budget: None,
            step_tokens: 512,
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
        let model = model.with_draft_head(place, checkpoint, options.draft_head)?;
        let mut info = facts(checkpoint, place, options, depth_max, mtp_absent);
        let pools = model.pools(info.slots, first_pages(place, &info))?;
        crate::place::eval(pools.arrays())?;
        info.kernels = crate::gpu::tried(place.dtype());
        // Buffers that loading left behind can be had back; they are no part of what stays.
        memory::trim();
        info.budget.base = memory::used();
        memory::limit_cache(&info.budget);
        let slots = (0..info.slots).map(|_| SlotState::default()).collect();
        let (snapshots, phases) = (BTreeMap::new(), Phases::default());
        let (forced, made_up) = (Vec::new(), None);
        let hidden = checkpoint.config.hidden;
        Ok(Self { info, place, model, pools, slots, snapshots, hidden, phases, forced, made_up })
    }
}

/// Pages to begin with. On the host all that there may ever be: the system gives them memory when
/// they are first written to, and no row waits while a cache is moved. A GPU's allocator commits at
/// once, so there a few, and they grow with the tokens in use.
fn first_pages(place: Place, info: &EngineInfo) -> usize {
    match place {
        #[cfg(target_os = "linux")]
        Place::Host => info.pages_max,
        Place::Mlx(_) => info.slots.min(info.pages_max),
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
    let one = wish(options, options.page_tokens, depth_max);
    let one = Wish { clients: 1, snapshots: 1, ..one };
    let one =
        estimate(&preflight::shape(checkpoint), &preflight::precision(checkpoint, place), &one);
    let page_bytes = one.kv;
    let context = options.context_tokens_max.unwrap_or(usize::MAX).min(config.positions_max);
    let rows_pages = options.slots * context.div_ceil(options.page_tokens);
    let pages = |bytes: u64| usize::try_from(bytes / page_bytes.max(1)).unwrap_or(usize::MAX);
    let needed = rows_pages.saturating_add(pages(options.bank_bytes));
    // One page at least: none would leave nothing to index, and its few KiB break no bound.
    let bound = options.kv_bytes_max.map_or(usize::MAX, pages).clamp(1, u32::MAX as usize);
    let pages_max = needed.min(bound);
    // A sequence that needs more pages than there are would wait for ever.
    let context = context.min(pages_max.saturating_mul(options.page_tokens));
    let budget = budget(checkpoint, place, options, (context, depth_max));
    EngineInfo {
        vocab: config.vocab,
        context_tokens_max: context,
        slots: options.slots,
        page_tokens: options.page_tokens,
        pages_max,
        page_bytes,
        snapshot_bytes: one.snapshots,
        budget,
        depth_max,
        mtp_absent,
        device: place.name(),
        kernels: Vec::new(),
        identity: identity(checkpoint, place, options),
    }
}

/// All slots taken by sequences of `context_tokens`.
fn wish(options: &EngineOptions, context_tokens: usize, depth_max: u8) -> Wish {
    Wish {
        context_tokens,
        clients: options.slots,
        snapshots: 0,
        depth: depth_max.into(),
        step_tokens: options.step_tokens,
        page_tokens: options.page_tokens,
    }
}

/// The checkpoint, and all that decides about bits: where and by which kernels it runs, and the
/// layout of pages.
fn identity(checkpoint: &Checkpoint, place: Place, options: &EngineOptions) -> String {
    #[cfg(target_os = "linux")]
    let kernels = crate::cpu::numerics();
    #[cfg(not(target_os = "linux"))]
    let kernels = "mlx";
    let version = env!("CARGO_PKG_VERSION");
    let (checkpoint, place) = (&checkpoint.identity, place.name());
    format!("{checkpoint} {place} {kernels} {version} pages of {}", options.page_tokens)
}

/// What may be used, and what the largest step needs of it.
fn budget(
    checkpoint: &Checkpoint,
    place: Place,
    options: &EngineOptions,
    (context_tokens, depth_max): (usize, u8),
) -> Budget {
    let precision = preflight::precision(checkpoint, place);
    let wish = wish(options, context_tokens, depth_max);
    let estimate = estimate(&preflight::shape(checkpoint), &precision, &wish);
    // The kernels of this house walk over keys without keeping scores.
    let scores = if matches!(place, Place::Mlx(_)) { estimate.scores } else { 0 };
    let bytes = options.memory_budget.unwrap_or_else(|| memory::budget_of(memory::machine()));
    Budget { bytes, base: 0, step: estimate.activations.saturating_add(scores) }
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

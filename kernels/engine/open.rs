//! From a checkpoint to an engine: what it can hold and what that costs.

use mlx_rs::Dtype;
use mtplx_core::engine::{EngineInfo, Kernel, Phases};
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
    /// Most bytes of KV pages of running rows; what they can need if `None`.
    pub kv_bytes_max: Option<u64>,
    /// Bytes of KV pages on top, for what snapshots hold.
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
        let slots = info.slots + preflight::spare_slots(place);
        let pools = model.pools(slots, first_pages(place, &info))?;
        crate::place::eval(pools.arrays())?;
        info.kernels = crate::gpu::tried(place.dtype());
        info.identity = identity(checkpoint, place, options, &info.kernels);
        // Buffers that loading left behind can be had back; they are no part of what stays.
        memory::trim();
        info.budget.base = memory::used();
        memory::limit_cache(&info.budget);
        let slots = (0..info.slots).map(|_| SlotState::default()).collect();
        let (snapshots, phases) = (BTreeMap::new(), Phases::default());
        let (forced, made_up, aside) = (Vec::new(), None, None);
        let hidden = checkpoint.config.hidden;
        Ok(Self {
            info,
            place,
            model,
            pools,
            slots,
            snapshots,
            arriving: Vec::new(),
            aside,
            hidden,
            phases,
            forced,
            made_up,
        })
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
    // One page at least: none would leave nothing to index, and its few KiB break no bound.
    let bound = options.kv_bytes_max.map_or(usize::MAX, pages).clamp(1, u32::MAX as usize / 2);
    let rows_pages = rows_pages.min(bound);
    let bank_pages = pages(options.bank_bytes).min(u32::MAX as usize / 2);
    // A sequence that needs more pages than there are would wait for ever.
    let context = context.min(rows_pages.saturating_mul(options.page_tokens));
    let budget = budget(checkpoint, place, options, (context, depth_max));
    EngineInfo {
        vocab: config.vocab,
        context_tokens_max: context,
        slots: options.slots,
        page_tokens: options.page_tokens,
        pages_max: rows_pages + bank_pages,
        rows_pages_max: rows_pages,
        page_bytes,
        snapshot_bytes: one.snapshots,
        budget,
        depth_max,
        marks: preflight::spare_slots(place) > 0,
        mtp_absent,
        device: place.name(),
        kernels: Vec::new(),
        identity: String::new(),
    }
}

/// All slots taken by sequences of `context_tokens`.
fn wish(options: &EngineOptions, context_tokens: usize, depth_max: u8) -> Wish {
    Wish {
        context_tokens,
        clients: options.slots,
        spare_slots: 0,
        snapshots: 0,
        depth: depth_max.into(),
        step_tokens: options.step_tokens,
        page_tokens: options.page_tokens,
    }
}

/// The checkpoint, and all that decides about bits: where and by which kernels it runs, and the
/// layout of pages.
fn identity(
    checkpoint: &Checkpoint,
    place: Place,
    options: &EngineOptions,
    tried: &[Kernel],
) -> String {
    let kernels = match place {
        #[cfg(target_os = "linux")]
        Place::Host => crate::cpu::numerics().to_owned(),
        Place::Mlx(_) => on_device(tried),
    };
    let version = env!("CARGO_PKG_VERSION");
    let (checkpoint, place) = (&checkpoint.identity, place.name());
    format!("{checkpoint} {place} {kernels} {version} pages of {}", options.page_tokens)
}

/// MLX and its device, whose own operations give other bits on another, and the kernels in force.
fn on_device(tried: &[Kernel]) -> String {
    let device = crate::shape::device_name().unwrap_or_default();
    format!("{device}, {}, {}", crate::shape::mlx_version(), in_force(tried))
}

/// The house's own kernels that passed their trial: beside each stands a plain path, whose bits may
/// be others.
fn in_force(tried: &[Kernel]) -> String {
    let passed = tried.iter().filter(|kernel| kernel.fault.is_none());
    let mut names: Vec<&str> = passed.map(|kernel| kernel.name.as_str()).collect();
    names.sort_unstable();
    format!("with [{}]", names.join("; "))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::{Noise, Scheme, preset};

    #[test]
    fn activations_on_a_gpu_are_of_the_type_of_the_checkpoints_scales() {
        let config = preset("small", Some(1)).unwrap();
        for (half, dtype) in [(false, Dtype::Bfloat16), (true, Dtype::Float16)] {
            let noise =
                Noise::new(config.vocab * config.hidden, Scheme { bits: 8, group: 64, half });
            assert_eq!(checkpoint_dtype(&noise.checkpoint(&config)), dtype);
        }
    }

    #[test]
    fn a_kernel_that_is_switched_off_makes_another_identity() {
        let kernel = |name: &str, fault: Option<&str>| Kernel {
            name: name.into(),
            fault: fault.map(str::to_owned),
        };
        let both = in_force(&[kernel("b", None), kernel("a", None)]);
        assert_eq!(both, in_force(&[kernel("a", None), kernel("b", None)]));
        assert_ne!(both, in_force(&[kernel("a", None), kernel("b", Some("wrong by 1"))]));
        assert_eq!(in_force(&[]), in_force(&[kernel("a", Some("absent"))]));
        assert!(on_device(&[kernel("a", None)]).contains("[a]"));
        assert!(on_device(&[]).contains(&crate::shape::mlx_version()));
    }
}

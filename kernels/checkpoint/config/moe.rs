//! The settings of a mixture of experts.

use super::{Family, SIZE_MAX};
use crate::checkpoint::Error;
use crate::checkpoint::json::Object;

const EXPERTS_MAX: usize = 1 << 16;

/// Experts of the layers that have them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoeShape {
    /// E, of which a token is routed to some.
    pub experts: usize,
    /// K, to how many.
    pub per_token: usize,
    /// Width inside an expert.
    pub ffn: usize,
    /// Width inside the expert that every token has.
    pub shared_ffn: usize,
    /// Whether the weights of a token's experts are made to sum to one.
    pub renormalise: bool,
    /// Which layers of the trunk have experts, first to last.
    pub layers: Vec<bool>,
}

/// The experts that `text` speaks of; `None` for a dense model.
pub(super) fn read(
    text: &Object<'_>,
    family: Family,
    layers: usize,
) -> Result<Option<MoeShape>, Error> {
    // Qwen3.5's mixtures renormalise, said or not; where one says it does not, readers differ in
    // whether they listen. Of Qwen3-Next's, they differ in what silence means.
    let (renormalise, layers) = match family {
        Family::Qwen35Dense => return Ok(None),
        Family::Qwen35Moe if text.flag("norm_topk_prob")? == Some(false) => {
            return Err(text.unsupported("norm_topk_prob", "true, or left out"));
        }
        Family::Qwen35Moe => (true, vec![true; layers]),
        Family::Qwen3Next => match text.flag("norm_topk_prob")? {
            Some(renormalise) => (renormalise, sparse_layers(text, layers)?),
            None => return Err(text.wrong("norm_topk_prob", "true or false")),
        },
    };
    if !layers.contains(&true) {
        return Ok(None);
    }
    let experts = text.size("num_experts", EXPERTS_MAX)?;
    let per_token = text.size("num_experts_per_tok", EXPERTS_MAX)?;
    if per_token > experts {
        return Err(text.wrong("num_experts_per_tok", &format!("at most num_experts = {experts}")));
    }
    Ok(Some(MoeShape {
        experts,
        per_token,
        ffn: text.size("moe_intermediate_size", SIZE_MAX)?,
        shared_ffn: text.size("shared_expert_intermediate_size", SIZE_MAX)?,
        renormalise,
        layers,
    }))
}

/// Every `decoder_sparse_step`-th layer has experts, but for those of `mlp_only_layers`; none has
/// where there are none.
fn sparse_layers(text: &Object<'_>, layers: usize) -> Result<Vec<bool>, Error> {
    if text.count("num_experts", EXPERTS_MAX)? == Some(0) {
        return Ok(vec![false; layers]);
    }
    let step = match text.get("decoder_sparse_step") {
        None => 1,
        Some(_) => text.size("decoder_sparse_step", SIZE_MAX)?,
    };
    let mut sparse: Vec<bool> = (1..=layers).map(|i| i.is_multiple_of(step)).collect();
    for value in text.list("mlp_only_layers")?.into_iter().flatten() {
        let layer = value.as_u64().and_then(|i| sparse.get_mut(usize::try_from(i).ok()?));
        let expected = format!("numbers of layers, from 0 to {}", layers - 1);
        *layer.ok_or_else(|| text.wrong("mlp_only_layers", &expected))? = false;
    }
    Ok(sparse)
}

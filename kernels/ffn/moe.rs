//! A mixture of experts: `x + Σ r_e · expert_e(n) + sigmoid(gate n) · shared(n)`, the sum over the
//! few experts with the largest router probabilities `r = softmax(router n)`.

use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::ops::{argpartition_axis, argsort, sigmoid, softmax_axis};
use mlx_rs::{Array, Dtype};

use super::gated;
use crate::checkpoint::{Linear, Mlp, ModelConfig, MoeShape, MoeWeights};
use crate::error::{Error, Result};
use crate::linear::{ExpertMatrix, Matrix};
use crate::norm::Norm;
use crate::place::Place;
#[cfg(target_os = "linux")]
use crate::{cpu, linear::host_matrix, scratch};

/// From so many pairs of token and expert on, MLX is given them in the experts' order: it then
/// multiplies neighbours together.
const SORTED_MIN: i32 = 64;

/// By MLX's own operations.
#[derive(Debug)]
pub(super) struct MlxMoe {
    norm: Norm,
    router: Matrix,
    gate_up: ExpertMatrix,
    down: ExpertMatrix,
    shared_gate: Matrix,
    shared_gate_up: Matrix,
    shared_down: Matrix,
    experts: i32,
    per_token: i32,
    renormalise: bool,
    dtype: Dtype,
}

fn shape(config: &ModelConfig) -> Result<&MoeShape> {
    config.moe.as_ref().ok_or_else(|| Error::Plan("experts in a model without any".into()))
}

impl MlxMoe {
    pub(super) fn load(
        place: Place,
        gain: &[f32],
        w: &MoeWeights,
        config: &ModelConfig,
    ) -> Result<Self> {
        let shape = shape(config)?;
        let of = |pick: fn(&Mlp) -> &Linear| w.experts.iter().map(pick).collect::<Vec<_>>();
        let matrix = |parts: &[&Linear]| Matrix::load(place, parts);
        Ok(Self {
            norm: Norm::load(place, gain, config.norm_eps)?,
            router: matrix(&[&w.router])?,
            gate_up: ExpertMatrix::load(place, &[of(|e| &e.gate), of(|e| &e.up)])?,
            down: ExpertMatrix::load(place, &[of(|e| &e.down)])?,
            shared_gate: matrix(&[&w.shared_gate])?,
            shared_gate_up: matrix(&[&w.shared.gate, &w.shared.up])?,
            shared_down: matrix(&[&w.shared.down])?,
            experts: shape.experts as i32,
            per_token: shape.per_token as i32,
            renormalise: shape.renormalise,
            dtype: place.dtype(),
        })
    }

    pub(super) fn apply(&self, x: &Array) -> Result<Array> {
        let n = self.norm.apply(x)?;
        let (ids, weights) = self.route(&n)?;
        let routed = self.routed(&n, &ids)?.multiply(weights.expand_dims(-1)?)?;
        let shared = self.shared_down.apply(&gated(&self.shared_gate_up.apply(&n)?)?)?;
        let shared = shared.multiply(sigmoid(self.shared_gate.apply(&n)?)?)?;
        Ok(x.add(routed.sum_axis(-2, false)?)?.add(shared)?)
    }

    /// The experts of each token, u32 [M, K], and their weights.
    fn route(&self, n: &Array) -> Result<(Array, Array)> {
        let scores = self.router.apply(n)?.as_dtype(Dtype::Float32)?;
        let scores = softmax_axis(scores, -1, true)?;
        let ids = argpartition_axis(&scores, -self.per_token, -1)?;
        let ids = ids.try_index((.., self.experts - self.per_token..))?;
        let mut weights = scores.take_along_axis(&ids, -1)?;
        if self.renormalise {
            weights = weights.divide(weights.sum_axis(-1, true)?)?;
        }
        Ok((ids, weights.as_dtype(self.dtype)?))
    }

    /// `[M, H]` → the results of each token's experts, `[M, K, H]`.
    fn routed(&self, n: &Array, ids: &Array) -> Result<Array> {
        let (m, k, h) = (n.dim(0), self.per_token, n.dim(1));
        if m * k < SORTED_MIN {
            let y = self.gate_up.apply(&n.reshape(&[m, 1, 1, h])?, ids, false)?;
            let y = self.down.apply(&gated(&y)?, ids, false)?;
            return Ok(y.reshape(&[m, k, h])?);
        }
        let ids = ids.reshape(&[-1])?;
        let order = argsort(&ids)?;
        let ids = ids.take_axis(&order, 0)?;
        let tokens = order.floor_divide(Array::from_slice(&[k as u32], &[1]))?;
        let n = n.take_axis(&tokens, 0)?.reshape(&[m * k, 1, h])?;
        let y = self.down.apply(&gated(&self.gate_up.apply(&n, &ids, true)?)?, &ids, true)?;
        Ok(y.take_axis(argsort(&order)?, 0)?.reshape(&[m, k, h])?)
    }
}

/// By the Rust kernels.
#[cfg(target_os = "linux")]
#[derive(Debug)]
pub(super) struct HostMoe {
    gain: Vec<f32>,
    eps: f32,
    /// The router's rows, then the shared expert's gate.
    scores: cpu::Weight,
    experts: cpu::Experts,
}

#[cfg(target_os = "linux")]
impl HostMoe {
    pub(super) fn load(gain: &[f32], w: &MoeWeights, config: &ModelConfig) -> Result<Self> {
        let shape = shape(config)?;
        let expert = |mlp: &Mlp| -> Result<cpu::Expert> {
            let gate_up = host_matrix(&[&mlp.gate, &mlp.up])?;
            Ok(cpu::Expert { gate_up, down: host_matrix(&[&mlp.down])? })
        };
        let routed = w.experts.iter().map(expert).collect::<Result<_>>()?;
        let shared = expert(&w.shared)?;
        Ok(Self {
            gain: gain.to_vec(),
            eps: config.norm_eps,
            scores: host_matrix(&[&w.router, &w.shared_gate])?,
            experts: cpu::Experts::new(routed, shared, shape.per_token, shape.renormalise)?,
        })
    }

    pub(super) fn apply(&self, x: &[f32], out: &mut [f32]) {
        let m = x.len() / self.gain.len();
        scratch::with([x.len(), m * self.experts.scores(), 0], |[n, scores, _]| {
            cpu::rms_norm(x, &self.gain, self.eps, n);
            cpu::linear(n, &self.scores, scores);
            cpu::mix_experts(n, scores, &self.experts, x, out);
        });
    }
}

//! Gated DeltaNet by MLX's own operations: the reference twin of the kernels, and the path of
//! GPUs that have none. Rows are padded to the longest; a padded token leaves the state
//! as it is.

use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::ops::{concatenate, exp, logaddexp, select, sigmoid, stack, zeros_dtype};
use mlx_rs::{Array, Dtype, fast};

use super::{GdnPool, GdnRow, GdnShape};
use crate::error::Result;
use crate::gpu::gdn::GdnParameters;

/// Parameters between the projections.
#[derive(Debug)]
pub(super) struct PlainGdn {
    shape: GdnShape,
    /// Taps of the convolution, each [C].
    taps: Vec<Array>,
    /// −exp(A_log), [Hv] fp32.
    decay: Array,
    /// [Hv] fp32.
    dt_bias: Array,
    /// [Dv].
    gain: Array,
    eps: f32,
    dtype: Dtype,
}

/// A step of the recurrence for all rows of a call, fp32.
struct Step {
    /// [B, Hv, Dk].
    k: Array,
    /// [B, Hv, Dv].
    v: Array,
    /// [B, Hv].
    g: Array,
    /// [B, Hv].
    beta: Array,
}

impl PlainGdn {
    pub(super) fn load(w: &GdnParameters<'_>, shape: GdnShape, dtype: Dtype) -> Result<Self> {
        let c = shape.channels();
        let tap = |j: usize| {
            let values: Vec<f32> = (0..c).map(|i| w.conv[4 * i + j]).collect();
            Array::from_slice(&values, &[c as i32])
        };
        let hv = shape.value_heads as i32;
        let decay: Vec<f32> = w.a_log.iter().map(|a| -a.exp()).collect();
        Ok(Self {
            shape,
            taps: (0..4).map(tap).collect(),
            decay: Array::from_slice(&decay, &[hv]),
            dt_bias: Array::from_slice(w.dt_bias, &[hv]),
            gain: Array::from_slice(w.gain, &[shape.value_dim as i32]).as_dtype(dtype)?,
            eps: w.eps,
            dtype,
        })
    }

    /// As `Gdn::mix`.
    pub(super) fn mix(&self, proj: &Array, rows: &[GdnRow], pool: &mut GdnPool) -> Result<Array> {
        let s = &self.shape;
        let (b, hv) = (rows.len() as i32, s.value_heads as i32);
        let t = rows.iter().map(|r| r.len).max().unwrap_or(0).max(1);
        let padded = proj.take_axis(padded_index(rows, t), 0)?;
        let c = s.channels() as i32;
        let zw = hv * s.value_dim as i32;
        let parts = padded.split_at_indices(&[c, c + zw, c + zw + hv], -1)?;
        let slots = ints(rows.iter().map(|r| r.slot));
        let ext = self.extended_window(&parts[0], rows, &slots, pool)?;
        let mut state = pool.state.take_axis(&slots, 0)?;
        state = self.replay(state, rows, &slots, pool)?;
        let live = Array::from_iter(
            rows.iter().flat_map(|r| (0..t).map(move |i| i < r.len)),
            &[b, t as i32, 1],
        );
        let (q, steps) = self.steps(&ext, &parts[2], &parts[3], t)?;
        let committed = state.clone();
        let mut y = Vec::with_capacity(t);
        for (i, step) in steps.iter().enumerate() {
            let live = live.try_index((.., i as i32))?.reshape(&[b, 1, 1, 1])?;
            state = select(&live, &advance(&state, step)?, &state)?;
            let q = q.try_index((.., i as i32))?.expand_dims(-1)?;
            y.push(state.matmul(q)?.squeeze_axes(&[-1])?);
        }
        let commit = Array::from_iter(rows.iter().map(|r| r.commit), &[b, 1, 1, 1]);
        let kept = select(&commit, &state, &committed)?;
        self.store(pool, rows, &slots, (&kept, &ext, &steps))?;
        let y = stack(&y, 1)?;
        self.gated(&y, &parts[1], rows, proj.dim(0), t)
    }

    /// History and new inputs of the convolution, `[B, 3 + t, C]`.
    fn extended_window(
        &self,
        u: &Array,
        rows: &[GdnRow],
        slots: &Array,
        pool: &GdnPool,
    ) -> Result<Array> {
        let b = rows.len() as i32;
        let index: Vec<i32> =
            rows.iter().flat_map(|r| (0..3).map(|j| (r.keep + j) as i32)).collect();
        let index = Array::from_slice(&index, &[b, 3, 1]);
        let window = pool.window.take_axis(slots, 0)?;
        let history = window.take_along_axis(&index, 1)?;
        Ok(concatenate(&[history, u.as_dtype(window.dtype())?], 1)?)
    }

    /// Folds each row's accepted tape entries into its state `[B, Hv, Dv, Dk]`.
    fn replay(
        &self,
        mut state: Array,
        rows: &[GdnRow],
        slots: &Array,
        pool: &GdnPool,
    ) -> Result<Array> {
        let most = rows.iter().map(|r| r.keep).max().unwrap_or(0);
        let tape: Vec<Array> =
            pool.tape.iter().map(|a| a.take_axis(slots, 0)).collect::<Result<_, _>>()?;
        for i in 0..most as i32 {
            let kept = rows.iter().map(|r| (i as usize) < r.keep);
            let kept = Array::from_iter(kept, &[rows.len() as i32, 1]);
            let at = |a: &Array| a.try_index((.., i));
            let step =
                Step { k: at(&tape[0])?, v: at(&tape[1])?, g: at(&tape[2])?, beta: at(&tape[3])? };
            // Selected, not multiplied by zero: what a tape holds beyond its end may be NaN.
            let kept = kept.reshape(&[-1, 1, 1, 1])?;
            state = select(&kept, &advance(&state, &step)?, &state)?;
        }
        Ok(state)
    }

    /// Queries `[B, t, Hv, Dk]` and the steps of `t` tokens.
    fn steps(&self, ext: &Array, b: &Array, a: &Array, t: usize) -> Result<(Array, Vec<Step>)> {
        let s = &self.shape;
        let f32s = |x: &Array| x.as_dtype(Dtype::Float32);
        let ext = f32s(ext)?;
        let mut y: Option<Array> = None;
        for (j, tap) in self.taps.iter().enumerate() {
            let (from, to) = (j as i32, (j + t) as i32);
            let term = ext.try_index((.., from..to))?.multiply(tap)?;
            y = Some(match y {
                Some(y) => y.add(term)?,
                None => term,
            });
        }
        let y = y.unwrap_or(ext);
        let y = y.multiply(sigmoid(&y)?)?;
        let (hk, dk) = (s.key_heads as i32, s.key_dim as i32);
        let parts = y.split_at_indices(&[hk * dk, 2 * hk * dk], -1)?;
        let rows = y.dim(0);
        let heads = |x: &Array, scale: f32| -> Result<Array> {
            let x = x.reshape(&[rows, t as i32, hk, dk])?;
            let norm = x.square()?.sum_axis(-1, true)?.add(Array::from_f32(1e-6))?.rsqrt()?;
            let x = x.multiply(norm)?.multiply(Array::from_f32(scale))?;
            // Value head h uses key head h / ratio.
            let ratio = (s.value_heads / s.key_heads) as i32;
            let x = mlx_rs::ops::broadcast_to(x.expand_dims(3)?, &[rows, t as i32, hk, ratio, dk])?;
            Ok(x.reshape(&[rows, t as i32, hk * ratio, dk])?)
        };
        let q = heads(&parts[0], (s.key_dim as f32).powf(-0.5))?;
        let k = heads(&parts[1], 1.0)?;
        let v = parts[2].reshape(&[rows, t as i32, s.value_heads as i32, s.value_dim as i32])?;
        let beta = sigmoid(f32s(b)?)?;
        let dt = logaddexp(f32s(a)?.add(&self.dt_bias)?, Array::from_f32(0.0))?;
        let g = exp(self.decay.multiply(dt)?)?;
        let steps = (0..t as i32)
            .map(|i| {
                let at = |x: &Array| x.try_index((.., i));
                Ok(Step { k: at(&k)?, v: at(&v)?, g: at(&g)?, beta: at(&beta)? })
            })
            .collect::<Result<_>>()?;
        Ok((q, steps))
    }

    /// Writes state, window and tape of the rows back to their slots.
    fn store(
        &self,
        pool: &mut GdnPool,
        rows: &[GdnRow],
        slots: &Array,
        (state, ext, steps): (&Array, &Array, &[Step]),
    ) -> Result<()> {
        put(&mut pool.state, slots, state)?;
        let most = 3 + self.shape.verify_max;
        // A committed row keeps the last three inputs; a verified one all of them.
        let index: Vec<i32> = rows
            .iter()
            .flat_map(|r| {
                let shift = if r.commit { r.len } else { 0 };
                (0..most).map(move |j| (shift + j).min(r.len + 2) as i32)
            })
            .collect();
        let index = Array::from_slice(&index, &[rows.len() as i32, most as i32, 1]);
        put(&mut pool.window, slots, &ext.take_along_axis(&index, 1)?)?;
        let verified = steps.len().min(self.shape.verify_max);
        let tape: [fn(&Step) -> &Array; 4] = [|s| &s.k, |s| &s.v, |s| &s.g, |s| &s.beta];
        for (pool, pick) in pool.tape.iter_mut().zip(tape) {
            let mut parts: Vec<Array> = steps[..verified].iter().map(|s| pick(s).clone()).collect();
            let blank = zeros_dtype(parts[0].shape(), Dtype::Float32)?;
            parts.resize(self.shape.verify_max, blank);
            put(pool, slots, &stack(&parts, 1)?)?;
        }
        Ok(())
    }

    /// `rms(y) · silu(z)` flattened back to `[M, Hv·Dv]`; tokens of no row are zero.
    fn gated(&self, y: &Array, z: &Array, rows: &[GdnRow], m: i32, t: usize) -> Result<Array> {
        let y = fast::rms_norm(y.as_dtype(self.dtype)?, Some(&self.gain), self.eps)?;
        let z = z.reshape(y.shape())?.as_dtype(Dtype::Float32)?;
        let y = y.as_dtype(Dtype::Float32)?.multiply(z.multiply(sigmoid(&z)?)?)?;
        let cells = y.dim(0) * t as i32;
        let y = y.as_dtype(self.dtype)?.reshape(&[cells, -1])?;
        let zero = zeros_dtype(&[1, y.dim(1)], self.dtype)?;
        let mut from = vec![cells; m as usize];
        for (i, row) in rows.iter().enumerate() {
            for j in 0..row.len {
                from[row.start + j] = (i * t + j) as i32;
            }
        }
        Ok(concatenate(&[y, zero], 0)?.take_axis(Array::from_slice(&from, &[m]), 0)?)
    }
}

/// S ← g S; d = beta (v − S k); S ← S + d kᵀ.
fn advance(state: &Array, step: &Step) -> Result<Array> {
    let state = state.multiply(step.g.expand_dims_axes(&[-1, -2])?)?;
    let seen = state.matmul(step.k.expand_dims(-1)?)?.squeeze_axes(&[-1])?;
    let d = step.v.subtract(seen)?.multiply(step.beta.expand_dims(-1)?)?;
    Ok(state.add(d.expand_dims(-1)?.multiply(step.k.expand_dims(-2)?)?)?)
}

/// Replaces the rows `slots` of `pool` by `values`.
fn put(pool: &mut Array, slots: &Array, values: &Array) -> Result<()> {
    let values = values.as_dtype(pool.dtype())?.expand_dims(1)?;
    let old = std::mem::replace(pool, Array::from_int(0));
    *pool = mlx_rs::ops::indexing::scatter_single(old, slots, values, 0)?;
    Ok(())
}

/// Token `j` of row `i` in the flattened batch, `[B, t]`; padding points at token 0.
fn padded_index(rows: &[GdnRow], t: usize) -> Array {
    let index: Vec<i32> = rows
        .iter()
        .flat_map(|r| (0..t).map(move |j| if j < r.len { (r.start + j) as i32 } else { 0 }))
        .collect();
    Array::from_slice(&index, &[rows.len() as i32, t as i32])
}

fn ints(values: impl Iterator<Item = usize>) -> Array {
    let values: Vec<i32> = values.map(|v| v as i32).collect();
    Array::from_slice(&values, &[values.len() as i32])
}

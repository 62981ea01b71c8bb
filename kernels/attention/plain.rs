//! Attention by MLX's own operations: the reference twin of the kernels, and the path of GPUs
//! that have none. Keys of a row are gathered from its pages into a dense temporary.

use mlx_rs::fast::{rope_dynamic, scaled_dot_product_attention};
use mlx_rs::ops::indexing::{TryIndexOp, scatter_single};
use mlx_rs::ops::{concatenate, sigmoid};
use mlx_rs::{Array, Dtype};

use super::{AttentionRow, AttentionShape, KvPool};
use crate::error::Result;
use crate::norm::Norm;
use crate::place::Place;

/// Parameters between the projections.
#[derive(Debug)]
pub(super) struct PlainAttention {
    shape: AttentionShape,
    q_norm: Norm,
    k_norm: Norm,
    rotary: i32,
    /// Reciprocal inverse frequencies, as MLX wants them, [rotary/2].
    periods: Array,
    dtype: Dtype,
}

impl PlainAttention {
    pub(super) fn load(
        place: Place,
        [q_gain, k_gain]: [Vec<f32>; 2],
        (inv_freq, eps): (&[f32], f32),
        shape: AttentionShape,
    ) -> Result<Self> {
        let periods: Vec<f32> = inv_freq.iter().map(|f| f.recip()).collect();
        let half = periods.len() as i32;
        Ok(Self {
            shape,
            q_norm: Norm::load(place, &q_gain, eps)?,
            k_norm: Norm::load(place, &k_gain, eps)?,
            rotary: 2 * half,
            periods: Array::from_slice(&periods, &[half]),
            dtype: place.dtype(),
        })
    }

    /// `proj [M, (2·Nq + 2·Nkv)·D]` → `[M, Nq·D]`, appending to the cache on the way.
    pub(super) fn attend(
        &self,
        proj: &Array,
        rows: &[AttentionRow],
        pool: &mut KvPool,
    ) -> Result<Array> {
        let s = &self.shape;
        let (m, nq, d) = (proj.dim(0), s.query_heads as i32, s.head_dim as i32);
        let at = [2 * nq * d];
        let parts = proj.split_at_indices(&at, -1)?;
        self.append(&parts[1], rows, pool)?;
        let heads = parts[0].reshape(&[m, nq, 2, d])?;
        let gate = sigmoid(heads.try_index((.., .., 1))?)?.reshape(&[m, nq * d])?;
        let q = self.rotated(&self.q_norm, &heads.try_index((.., .., 0))?, nq, rows)?;
        let mut out = Vec::with_capacity(rows.len());
        for row in rows {
            let (a, b) = (row.start as i32, (row.start + row.len) as i32);
            let q = q.try_index(a..b)?.transpose_axes(&[1, 0, 2])?;
            let pages = self.pages(row);
            let pages = Array::from_slice(pages, &[pages.len() as i32]);
            out.push(self.attend_row(&q, row, (pool, &pages))?);
        }
        Ok(self.flat(&out, rows, m)?.multiply(gate)?)
    }

    /// The pages that a row's queries look at.
    pub(super) fn pages<'a>(&self, row: &'a AttentionRow) -> &'a [u32] {
        &row.pages[..(row.position + row.len).div_ceil(self.shape.page_tokens)]
    }

    /// `q [Nq, len, D]` → `[len, Nq·D]`; `ids` are [`Self::pages`].
    pub(super) fn attend_row(
        &self,
        q: &Array,
        row: &AttentionRow,
        (pool, ids): (&KvPool, &Array),
    ) -> Result<Array> {
        let s = &self.shape;
        let (nkv, d) = (s.kv_heads as i32, s.head_dim as i32);
        let (first, last) = (s.first_key as i32, (row.position + row.len) as i32);
        let dense = |pool: &Array| -> Result<Array> {
            let all = pool.take_axis(ids, 0)?.transpose_axes(&[1, 0, 2, 3])?;
            let all = all.reshape(&[1, nkv, -1, d])?;
            Ok(all.try_index((.., .., first..last))?)
        };
        let (keys, values) = (dense(&pool.keys)?, dense(&pool.values)?);
        let q = q.reshape(&[1, s.query_heads as i32, -1, d])?;
        let scale = (s.head_dim as f32).powf(-0.5);
        // Aligned to the end: query i of `len` sees all keys but the last `len − 1 − i`.
        let mask = mlx_rs::fast::ScaledDotProductAttentionMask::Causal;
        let y = scaled_dot_product_attention(q, keys, values, scale, mask, None)?;
        Ok(y.transpose_axes(&[0, 2, 1, 3])?.reshape(&[row.len as i32, -1])?)
    }

    /// Normalises, rotates and writes `kv [M, 2·Nkv·D]` of the rows' tokens into their pages.
    pub(super) fn append(
        &self,
        kv: &Array,
        rows: &[AttentionRow],
        pool: &mut KvPool,
    ) -> Result<()> {
        let s = &self.shape;
        let (m, nkv, d) = (kv.dim(0), s.kv_heads as i32, s.head_dim as i32);
        let parts = kv.split_equal(2, -1)?;
        let keys = self.rotated(&self.k_norm, &parts[0].reshape(&[m, nkv, d])?, nkv, rows)?;
        let values = parts[1].reshape(&[m, nkv, d])?;
        let (tokens, cells) = self.cells(rows);
        let n = cells.len() as i32;
        let tokens = Array::from_slice(&tokens, &[tokens.len() as i32]);
        let cells = Array::from_slice(&cells, &[n]);
        let put = |pool: &mut Array, new: &Array| -> Result<()> {
            let shape = pool.shape().to_vec();
            let new = new.take_axis(&tokens, 0)?.reshape(&[n, 1, d])?;
            let flat = pool.reshape(&[-1, d])?;
            *pool = Array::from_int(0);
            *pool = scatter_single(flat, &cells, new.as_dtype(self.dtype)?, 0)?.reshape(&shape)?;
            Ok(())
        };
        put(&mut pool.keys, &keys)?;
        put(&mut pool.values, &values)
    }

    /// For every token of every row and every kv head: the token's row of the batch, and the cell
    /// of the pool seen as [pages·Nkv·page, D].
    fn cells(&self, rows: &[AttentionRow]) -> (Vec<i32>, Vec<i32>) {
        let s = &self.shape;
        let (mut tokens, mut cells) = (Vec::new(), Vec::new());
        for row in rows {
            for t in 0..row.len {
                let index = row.position + t;
                let page = row.pages[index / s.page_tokens] as usize;
                tokens.push((row.start + t) as i32);
                for head in 0..s.kv_heads {
                    let cell = (page * s.kv_heads + head) * s.page_tokens;
                    cells.push((cell + index % s.page_tokens) as i32);
                }
            }
        }
        (tokens, cells)
    }

    /// `x [M, heads, D]` normalised over D and rotated by each token's own position.
    fn rotated(&self, norm: &Norm, x: &Array, heads: i32, rows: &[AttentionRow]) -> Result<Array> {
        let (m, d) = (x.dim(0), self.shape.head_dim as i32);
        let mut positions = vec![0_i32; m as usize];
        for row in rows {
            for t in 0..row.len {
                positions[row.start + t] = (row.position + t) as i32;
            }
        }
        let x = norm.apply(&x.reshape(&[m * heads, d])?)?.reshape(&[m, heads, 1, d])?;
        let offset = Array::from_slice(&positions, &[m]);
        let y = rope_dynamic(x, self.rotary, false, None, 1.0, offset, &self.periods)?;
        Ok(y.reshape(&[m, heads, d])?)
    }

    /// Rows' outputs back in the order of the flattened batch; tokens of no row are zero.
    pub(super) fn flat(&self, parts: &[Array], rows: &[AttentionRow], m: i32) -> Result<Array> {
        let all = concatenate(parts, 0)?;
        let in_order = rows.iter().scan(0, |at, r| {
            let here = r.start == *at;
            *at += r.len;
            Some(here)
        });
        if all.dim(0) == m && in_order.into_iter().all(|here| here) {
            return Ok(all);
        }
        let mut from = vec![all.dim(0); m as usize];
        let mut next = 0;
        for row in rows {
            for t in 0..row.len {
                from[row.start + t] = next;
                next += 1;
            }
        }
        let zero = mlx_rs::ops::zeros_dtype(&[1, all.dim(1)], all.dtype())?;
        let all = concatenate(&[all, zero], 0)?;
        Ok(all.take_axis(Array::from_slice(&from, &[m]), 0)?)
    }
}
